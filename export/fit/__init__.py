"""Fitting: a network rewritten to the same integers within an SRAM budget, and smaller alternatives if none fits."""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach

if TYPE_CHECKING:
    from .alternatives import smaller_alternatives
    from .search import DoesNotFitError, Fit, fit, least_bytes, needed
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "alternatives": ("smaller_alternatives",),
            "search": (
                "DoesNotFitError",
                "Fit",
                "fit",
                "least_bytes",
                "needed",
            ),
        },
    )

__all__ = [
    "DoesNotFitError",
    "Fit",
    "fit",
    "least_bytes",
    "needed",
    "smaller_alternatives",
]
