"""What a network is: an immutable graph of tensors and operations (``ops``), its rewrites and its integer reference."""

from . import ops
from .graph import DType, Graph, Quantization, Tensor
from .ops import Op, Shape

__all__ = ["DType", "Graph", "Op", "Quantization", "Shape", "Tensor", "ops"]
