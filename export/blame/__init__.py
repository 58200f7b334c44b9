"""Per-layer diagnosis of int8 accuracy loss, and its repair."""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach

if TYPE_CHECKING:
    from .files import BlameFiles, blame_files
    from .recommendations import Recommendation
    from .repair import Repair, repair
    from .sensitivity import Blame, LayerBlame, blame
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "files": ("BlameFiles", "blame_files"),
            "recommendations": ("Recommendation",),
            "repair": ("Repair", "repair"),
            "sensitivity": ("Blame", "LayerBlame", "blame"),
        },
    )

__all__ = ["Blame", "BlameFiles", "LayerBlame", "Recommendation", "Repair", "blame", "blame_files", "repair"]
