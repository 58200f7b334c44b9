"""Per-layer diagnosis of int8 accuracy loss, and its repair."""

from .files import BlameFiles, blame_files
from .recommendations import Recommendation
from .repair import Repair, repair
from .sensitivity import Blame, LayerBlame, blame

__all__ = ["Blame", "BlameFiles", "LayerBlame", "Recommendation", "Repair", "blame", "blame_files", "repair"]
