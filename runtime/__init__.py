"""The graph, the memory plan, sessions and measuring: numpy only, so that a board can have it.

>>> from firebox.runtime import Session, plan
>>> plan("model.int8.tflite").arena_bytes
>>> Session("model.int8.tflite").classify("cat.jpg")
"""

from .arena import MeasuredArena, measure_arena
from .contract import Contract
from .datasets import LabelledImages, open_images, sample, split_images
from .ensemble import Ensemble
from .errors import FireboxError
from .evaluation import Evaluation, evaluate
from .graph import Graph
from .planning import MemoryPlan, Verdict, plan
from .preprocessing import Preprocessing
from .profiling import Profile, profile
from .reader import read_graph
from .session import Facts, Prediction, Session
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
