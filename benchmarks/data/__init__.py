"""What is learned: data sets, texts as characters, what was tuned; and errors a user can act on."""
