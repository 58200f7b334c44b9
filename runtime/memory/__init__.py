"""The memory of one inference: planned for a target, measured in its runtime, and its traffic and energy."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .account import MemoryLine
    from .allocation import Block, Buffer, Layout, LiveRange, align, allocate, live_ranges, peak_live_bytes
    from .devices import Device, budget, known_devices
    from .energy import Scenario, scenarios
    from .hill_climb import allocate_within
    from .judge import Judgement, judge, judging_targets, overall_exit_code
    from .measure import MeasuredArena, measure_arena, run_in_arena
    from .plan import MemoryPlan, plan
    from .targets import TARGETS, TFLM, Runtime, Target, find_target, register
    from .verdict import Budget, FlashDemand, Verdict
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "account": ("MemoryLine",),
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
            "judge": ("Judgement", "judge", "judging_targets", "overall_exit_code"),
            "measure": ("MeasuredArena", "measure_arena", "run_in_arena"),
            "plan": ("MemoryPlan", "plan"),
            "targets": ("TARGETS", "TFLM", "Runtime", "Target", "find_target", "register"),
            "verdict": ("Budget", "FlashDemand", "Verdict"),
        },
    )

__all__ = [
    "TARGETS",
    "TFLM",
    "Block",
    "Budget",
    "Buffer",
    "Device",
    "FlashDemand",
    "Judgement",
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
    "judge",
    "judging_targets",
    "known_devices",
    "live_ranges",
    "measure_arena",
    "overall_exit_code",
    "peak_live_bytes",
    "plan",
    "register",
    "run_in_arena",
    "scenarios",
]
