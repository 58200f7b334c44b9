"""The memory of one inference: planned for a target, measured in its runtime, and its traffic and energy."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .allocation import Block, Buffer, Layout, LiveRange, align, allocate, live_ranges, peak_live_bytes
    from .devices import Device, budget, known_devices
    from .energy import Scenario, scenarios
    from .hill_climb import allocate_within
    from .measure import MeasuredArena, measure_arena, run_in_arena
    from .plan import MemoryLine, MemoryPlan, Verdict, plan
    from .targets import TARGETS, TFLM, Runtime, Target, find_target, register
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "allocation": (
                "Block",
                "Buffer",
                "Layout",
                "LiveRange",
                "align",
                "allocate",
                "live_ranges",
                "peak_live_bytes",
            ),
            "devices": ("Device", "budget", "known_devices"),
            "energy": ("Scenario", "scenarios"),
            "hill_climb": ("allocate_within",),
            "measure": ("MeasuredArena", "measure_arena", "run_in_arena"),
            "plan": ("MemoryLine", "MemoryPlan", "Verdict", "plan"),
            "targets": ("TARGETS", "TFLM", "Runtime", "Target", "find_target", "register"),
        },
    )

__all__ = [
    "TARGETS",
    "TFLM",
    "Block",
    "Buffer",
    "Device",
    "Layout",
    "LiveRange",
    "MeasuredArena",
    "MemoryLine",
    "MemoryPlan",
    "Runtime",
    "Scenario",
    "Target",
    "Verdict",
    "align",
    "allocate",
    "allocate_within",
    "budget",
    "find_target",
    "known_devices",
    "live_ranges",
    "measure_arena",
    "peak_live_bytes",
    "plan",
    "register",
    "run_in_arena",
    "scenarios",
]
