"""The graph, the memory plan, sessions and measuring: numpy only, so that a board can have it.

>>> from firebox.runtime import Session, plan
>>> plan("model.int8.tflite").arena_bytes
>>> Session("model.int8.tflite").classify("cat.jpg")
"""

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
