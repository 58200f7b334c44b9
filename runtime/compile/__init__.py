"""From a quantized graph and its row plan to one C file."""
