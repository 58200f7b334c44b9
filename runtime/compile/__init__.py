"""From a quantized graph and its row plan to one C file."""

from .isa import CHOICES, families, isa_names
from .source import CSource, compile_c

__all__ = ["CHOICES", "CSource", "compile_c", "families", "isa_names"]
