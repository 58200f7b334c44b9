"""Graphs, memory plans, sessions and measurements, with numpy as the only requirement.

>>> from firebox.runtime import Session, plan
>>> plan("model.int8.tflite").arena_bytes
>>> Session("model.int8.tflite").classify("cat.jpg")

Each name is imported on first use.
"""

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from .contract import Contract
    from .errors import FireboxError
    from .formats.read import read_graph
    from .graph import Graph
    from .images import LabelledImages, Preprocessing, open_images, sample, split_images
    from .inference import Ensemble, Evaluation, Facts, Prediction, Session, evaluate
    from .memory import Budget, MeasuredArena, MemoryPlan, Verdict, measure_arena, plan
    from .profiling import Profile, profile
    from .units import format_size, parse_size
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "contract": ("Contract",),
            "errors": ("FireboxError",),
            "formats.read": ("read_graph",),
            "graph": ("Graph",),
            "images": ("LabelledImages", "Preprocessing", "open_images", "sample", "split_images"),
            "inference": ("Ensemble", "Evaluation", "Facts", "Prediction", "Session", "evaluate"),
            "memory": ("Budget", "MeasuredArena", "MemoryPlan", "Verdict", "measure_arena", "plan"),
            "profiling": ("Profile", "profile"),
            "units": ("format_size", "parse_size"),
        },
    )

__all__ = [
    "Budget",
    "Contract",
    "Ensemble",
    "Evaluation",
    "Facts",
    "FireboxError",
    "Graph",
    "LabelledImages",
    "MeasuredArena",
    "MemoryPlan",
    "Prediction",
    "Preprocessing",
    "Profile",
    "Session",
    "Verdict",
    "evaluate",
    "format_size",
    "measure_arena",
    "open_images",
    "parse_size",
    "plan",
    "profile",
    "read_graph",
    "sample",
    "split_images",
]
