"""What an optimizer costs: time and memory, beside torch's and other packages'."""
