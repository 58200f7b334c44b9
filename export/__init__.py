"""From a trained network to the files a phone runs.

>>> from firebox.export import export
>>> export(module, "build", preprocessing=..., images=..., classes=...)

torch is imported when a module is traced; graphs are quantized and written without it.
"""

from .blaming import Blame, blame
from .calibration import calibrate
from .calibrators import Range
from .exporter import Export, ExportConfig, export
from .fitted import Fitted, fit_file
from .fitting import Fit, fit
from .onnx_writer import write_onnx
from .parity import Parity, Tolerance
from .quantization import quantize
from .rounding import input_moments
from .tflite_writer import write_tflite
from .tracing import trace

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
