"""Where int8 loses accuracy, and how to get it back."""
