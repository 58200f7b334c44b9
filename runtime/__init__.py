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
    from .graph.graph import Graph
    from .images.datasets import LabelledImages, open_images, sample, split_images
    from .images.preprocessing import Preprocessing
    from .inference.ensemble import Ensemble
    from .inference.evaluation import Evaluation, evaluate
    from .inference.session import Facts, Prediction, Session
    from .memory.measure import MeasuredArena, measure_arena
    from .memory.plan import MemoryPlan, Verdict, plan
    from .profiling.latency import Profile, profile
    from .units import format_size, parse_size
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "contract": ("Contract",),
            "errors": ("FireboxError",),
            "formats.read": ("read_graph",),
            "graph.graph": ("Graph",),
            "images.datasets": ("LabelledImages", "open_images", "sample", "split_images"),
            "images.preprocessing": ("Preprocessing",),
            "inference.ensemble": ("Ensemble",),
            "inference.evaluation": ("Evaluation", "evaluate"),
            "inference.session": ("Facts", "Prediction", "Session"),
            "memory.measure": ("MeasuredArena", "measure_arena"),
            "memory.plan": ("MemoryPlan", "Verdict", "plan"),
            "profiling.latency": ("Profile", "profile"),
            "units": ("format_size", "parse_size"),
        },
    )

__all__ = [
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
