"""The graph: firebox's framework-free, immutable representation of a network, and its operations (``ops``).

``rewrite`` holds exact rewrites of graphs, ``reference`` an integer implementation in numpy.
"""

from . import ops
from .graph import DType, Graph, Quantization, Tensor
from .ops import Op, Shape

__all__ = ["DType", "Graph", "Op", "Quantization", "Shape", "Tensor", "ops"]
