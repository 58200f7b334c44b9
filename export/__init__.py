"""From a trained network to the files that a device runs: int8 ONNX and TFLite, checked and fitted into SRAM.

>>> from firebox.export import export
>>> export(module, "build", preprocessing=..., images=..., classes=...)

torch is imported to trace a module, to tune weights and for ``FakeQuantized``; all else runs without it.
"""

from typing import TYPE_CHECKING

from ..runtime.lazy import attach

if TYPE_CHECKING:
    from .blame import Blame, BlameFiles, blame, blame_files
    from .exporter import Export, ExportConfig, export
    from .fit.files import FitFiles, fit_file
    from .fit.search import Fit, fit
    from .formats.onnx_writer import write_onnx
    from .formats.tflite_writer import write_tflite
    from .parity import Parity, Tolerance
    from .quantization import FakeQuantized, calibrate, quantize
    from .trace import trace
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "blame": ("Blame", "BlameFiles", "blame", "blame_files"),
            "exporter": ("Export", "ExportConfig", "export"),
            "fit.files": ("FitFiles", "fit_file"),
            "fit.search": ("Fit", "fit"),
            "formats.onnx_writer": ("write_onnx",),
            "formats.tflite_writer": ("write_tflite",),
            "parity": ("Parity", "Tolerance"),
            "quantization": ("FakeQuantized", "calibrate", "quantize"),
            "trace": ("trace",),
        },
        {"torch": "export"},
    )

__all__ = [
    "Blame",
    "BlameFiles",
    "Export",
    "ExportConfig",
    "FakeQuantized",
    "Fit",
    "FitFiles",
    "Parity",
    "Tolerance",
    "blame",
    "blame_files",
    "calibrate",
    "export",
    "fit",
    "fit_file",
    "quantize",
    "trace",
    "write_onnx",
    "write_tflite",
]
