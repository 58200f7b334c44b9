"""Training: the loop, its callbacks, its data and its results."""
