"""From a float graph to an int8 graph: calibration, post-training quantization, and training with fake quantization.

``FakeQuantized`` imports torch on first use; everything else needs numpy and onnxruntime.
"""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach
from .calibration import calibrate
from .gptq import Moments, input_moments
from .precisions import with_float16_weights, with_int8_weights, with_int16_layers
from .ptq import Effort, PTQResult, calibration_samples, quantize_network
from .quantize import quantize, with_input_type
from .ranges import CALIBRATORS, Calibrator, Range
from .scales import scale_groups
from .weight_grid import DEFAULT_RANGE, WeightRange

if TYPE_CHECKING:
    from .fake_quantize import FakeQuantized
else:
    __getattr__, __dir__ = attach(__name__, {"fake_quantize": ("FakeQuantized",)}, {"torch": "export"})

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
