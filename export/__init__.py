"""From a trained network to the files a phone runs.

>>> from firebox.export import export
>>> export(module, "build", preprocessing=..., images=..., classes=...)

torch is imported when a module is traced; graphs are quantized and written without it.
"""

from .calibrate import Range, calibrate
from .export import Export, ExportConfig, export
from .parity import Parity, Tolerance
from .quantize import quantize
from .rounding import input_moments
from .trace import trace
from .write_onnx import write_onnx
from .write_tflite import write_tflite

__all__ = [
    "Export",
    "ExportConfig",
    "Parity",
    "Range",
    "Tolerance",
    "calibrate",
    "export",
    "input_moments",
    "quantize",
    "trace",
    "write_onnx",
    "write_tflite",
]
