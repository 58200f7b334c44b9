"""Readers of ONNX and TFLite files, and the legalization of graphs for TFLite."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .onnx_reader import read_onnx
    from .read import Format, format_of, has_external_buffers, read_graph, read_metadata, read_placed
    from .tflite_legalize import explicit_padding, legalize
    from .tflite_reader import read_tflite
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "onnx_reader": ("read_onnx",),
            "read": (
                "Format",
                "format_of",
                "has_external_buffers",
                "read_graph",
                "read_metadata",
                "read_placed",
            ),
            "tflite_legalize": (
                "explicit_padding",
                "legalize",
            ),
            "tflite_reader": ("read_tflite",),
        },
    )

__all__ = [
    "Format",
    "explicit_padding",
    "format_of",
    "has_external_buffers",
    "legalize",
    "read_graph",
    "read_metadata",
    "read_onnx",
    "read_placed",
    "read_tflite",
]
