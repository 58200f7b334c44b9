"""Fitting: a network rewritten to the same integers within an SRAM budget, and smaller alternatives if none fits."""

from .alternatives import alternatives
from .search import DoesNotFitError, Fit, fit, least_bytes, needed

__all__ = ["DoesNotFitError", "Fit", "alternatives", "fit", "least_bytes", "needed"]
