"""From a float graph to an int8 graph: calibration, post-training quantization, and training with fake quantization.

``FakeQuantized`` imports torch on first use; everything else needs numpy and onnxruntime.
"""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach

if TYPE_CHECKING:
    from .calibration import calibrate
    from .fake_quantize import FakeQuantized
    from .gptq import Moments, input_moments
    from .precisions import with_float16_weights, with_int8_weights, with_int16_layers
    from .ptq import Effort, PTQResult, calibration_samples, quantize_network
    from .quantize import quantize, with_input_type
    from .ranges import CALIBRATORS, Calibrator, Range
    from .scales import scale_groups
    from .weight_grid import DEFAULT_RANGE, WeightRange
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "calibration": ("calibrate",),
            "fake_quantize": ("FakeQuantized",),
            "gptq": ("Moments", "input_moments"),
            "precisions": ("with_float16_weights", "with_int16_layers", "with_int8_weights"),
            "ptq": ("Effort", "PTQResult", "calibration_samples", "quantize_network"),
            "quantize": ("quantize", "with_input_type"),
            "ranges": ("CALIBRATORS", "Calibrator", "Range"),
            "scales": ("scale_groups",),
            "weight_grid": ("DEFAULT_RANGE", "WeightRange"),
        },
        {"torch": "export"},
    )

__all__ = [
    "CALIBRATORS",
    "DEFAULT_RANGE",
    "Calibrator",
    "Effort",
    "FakeQuantized",
    "Moments",
    "PTQResult",
    "Range",
    "WeightRange",
    "calibrate",
    "calibration_samples",
    "input_moments",
    "quantize",
    "quantize_network",
    "scale_groups",
    "with_float16_weights",
    "with_input_type",
    "with_int8_weights",
    "with_int16_layers",
]
