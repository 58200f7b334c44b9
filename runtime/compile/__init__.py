"""From a quantized graph and its row plan to one C file, to a library for this machine, and to WebAssembly."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .build import build_library
    from .isa import CHOICES, families, isa_names
    from .projects.web import WebProject, web_project
    from .source import CSource, compile_c
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "build": ("build_library",),
            "isa": ("CHOICES", "families", "isa_names"),
            "projects.web": ("WebProject", "web_project"),
            "source": ("CSource", "compile_c"),
        },
    )

__all__ = [
    "CHOICES",
    "CSource",
    "WebProject",
    "build_library",
    "compile_c",
    "families",
    "isa_names",
    "web_project",
]
