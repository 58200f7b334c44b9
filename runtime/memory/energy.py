"""Energy of one inference in 45 nm CMOS, as lower and upper bounds from its traffic and arithmetic.

The figures are from Horowitz, Computing's Energy Problem, ISSCC 2014, as used by Han et al., Learning both Weights and
Connections, arXiv 1506.02626, table 1. They serve to compare schedules and precisions of one network. Chips in phones
differ, so energy is always planned, never measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..formats.read import read_graph
from ..graph import Graph
from .traffic import Precision, Traffic, Weights, precisions, traffic, weight_bytes

Schedule = Literal["layer by layer", "tiled"]

_WORD_BYTES = 4
_PJ_PER_MJ = 1e9
# Picojoules of 32-bit accesses and operations. 8-bit multiplication takes less, but the paper's table has only 32 bits.
DRAM_PJ = 640.0
SRAM_PJ = 5.0
INT_MAC_PJ = 3.1 + 0.1
FLOAT_MAC_PJ = 3.7 + 0.9


@dataclass(frozen=True)
class Energy:
    """Millijoules of one inference.

    At the low end each operation fetches each operand from SRAM once, packed into 32-bit words, and reuses it from
    registers. At the high end each multiply-accumulate also fetches its weight and its input, one access each. DRAM and
    arithmetic are the same in both.
    """

    dram_mj: float
    arithmetic_mj: float
    sram_low_mj: float
    sram_high_mj: float

    @property
    def low_mj(self) -> float:
        """Total with full reuse in registers."""
        return self.dram_mj + self.arithmetic_mj + self.sram_low_mj

    @property
    def high_mj(self) -> float:
        """Total without reuse."""
        return self.dram_mj + self.arithmetic_mj + self.sram_high_mj

    def to_json(self) -> dict[str, float]:
        """Figures by name; names carry the unit."""
        return {"energy_low_mj": self.low_mj, "energy_high_mj": self.high_mj, **vars(self)}


def energy(moved: Traffic, macs: int, precision: Precision) -> Energy:
    """Energy of the traffic and of ``macs`` multiply-accumulates at a precision."""
    low_pj = moved.operand_bytes / _WORD_BYTES * SRAM_PJ
    return Energy(
        dram_mj=moved.dram_bytes / _WORD_BYTES * DRAM_PJ / _PJ_PER_MJ,
        arithmetic_mj=macs * (FLOAT_MAC_PJ if precision == "float32" else INT_MAC_PJ) / _PJ_PER_MJ,
        sram_low_mj=low_pj / _PJ_PER_MJ,
        sram_high_mj=(low_pj + 2 * macs * SRAM_PJ) / _PJ_PER_MJ,
    )


@dataclass(frozen=True)
class Scenario:
    """One way to run a network within a budget. All figures are planned."""

    schedule: Schedule
    precision: Precision
    weights: Weights
    stored_weight_bytes: int
    macs: int
    traffic: Traffic
    energy: Energy

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        how = {"schedule": self.schedule, "precision": self.precision, "weights": self.weights, "source": "planned"}
        sizes = {"stored_weight_bytes": self.stored_weight_bytes, "macs": self.macs}
        return how | sizes | self.traffic.to_json() | self.energy.to_json()


def scenarios(
    model: str | Path | bytes | Graph, sram_bytes: int, tiled: str | Path | bytes | Graph | None = None
) -> list[Scenario]:
    """All ways to run a model with ``sram_bytes`` for activations: schedules, precisions, resident or streamed weights.

    ``tiled`` is the same network after ``fit``. Raises ``FormatError`` or ``UnsupportedError`` for a file that cannot
    be read.
    """
    found = []
    schedules: list[tuple[Schedule, Any]] = [("layer by layer", model)]
    if tiled is not None:
        schedules.append(("tiled", tiled))
    for schedule, source in schedules:
        graph = source if isinstance(source, Graph) else read_graph(source)
        found += [
            _scenario(graph, sram_bytes, schedule, precision, weights)
            for precision in precisions(graph)
            for weights in ("resident", "streamed")
        ]
    return found


def _scenario(graph: Graph, sram_bytes: int, schedule: Schedule, precision: Precision, weights: Weights) -> Scenario:
    moved = traffic(graph, sram_bytes, precision, weights)
    return Scenario(
        schedule=schedule,
        precision=precision,
        weights=weights,
        stored_weight_bytes=weight_bytes(graph, precision),
        macs=graph.macs,
        traffic=moved,
        energy=energy(moved, graph.macs, precision),
    )
