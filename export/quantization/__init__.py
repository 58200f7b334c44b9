"""From a float graph to an int8 graph."""
