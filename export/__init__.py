"""From a trained network to the files a phone runs.

>>> from firebox.export import export
>>> export(module, "build", preprocessing=..., images=..., classes=...)

torch is imported when a module is traced; graphs are quantized and written without it.
"""

from .blame.sensitivity import Blame, blame
from .exporter import Export, ExportConfig, export
from .fit.files import Fitted, fit_file
from .fit.search import Fit, fit
from .formats.onnx_writer import write_onnx
from .formats.tflite_writer import write_tflite
from .parity import Parity, Tolerance
from .quantization.calibration import calibrate
from .quantization.gptq import input_moments
from .quantization.quantize import quantize
from .quantization.ranges import Range
from .trace import trace

__all__ = [
    "Blame",
    "Export",
    "ExportConfig",
    "Fit",
    "Fitted",
    "Parity",
    "Range",
    "Tolerance",
    "blame",
    "calibrate",
    "export",
    "fit",
    "fit_file",
    "input_moments",
    "quantize",
    "trace",
    "write_onnx",
    "write_tflite",
]
