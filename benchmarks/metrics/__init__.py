"""What is reported of runs: scores of a matrix of accuracies, and statistics over seeds."""
