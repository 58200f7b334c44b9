"""Latency and memory of a file on this machine."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .latency import Profile, profile
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "latency": ("Profile", "profile"),
        },
    )

__all__ = ["Profile", "profile"]
