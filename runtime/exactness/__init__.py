"""Exactness of integer networks across runtimes: saturation on x86, and rounding of each operation."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .check import Damage, SaturationCheck, check_saturation, measure_saturation
    from .rounding import Promise, promise
    from .saturation import exact_form
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "check": (
                "Damage",
                "SaturationCheck",
                "check_saturation",
                "measure_saturation",
            ),
            "rounding": (
                "Promise",
                "promise",
            ),
            "saturation": ("exact_form",),
        },
    )

__all__ = [
    "Damage",
    "Promise",
    "SaturationCheck",
    "check_saturation",
    "exact_form",
    "measure_saturation",
    "promise",
]
