"""Writers of ONNX and TFLite files and of the contract that they carry."""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach

if TYPE_CHECKING:
    from .contract_writer import contract_for_file, with_golden_pair
    from .onnx_writer import write_onnx
    from .tflite_writer import write_tflite
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "contract_writer": (
                "contract_for_file",
                "with_golden_pair",
            ),
            "onnx_writer": ("write_onnx",),
            "tflite_writer": ("write_tflite",),
        },
    )

__all__ = [
    "contract_for_file",
    "with_golden_pair",
    "write_onnx",
    "write_tflite",
]
