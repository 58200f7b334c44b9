"""The memory of one inference: the arena with every activation in it, its peak and what is alive there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .graph import Graph, Op
from .placement import Buffer, lifetimes, place
from .reader import read_graph
from .units import format_size

Source = Literal["planned", "measured", "unknown"]


@dataclass(frozen=True)
class MemoryLine:
    """One line of the account of memory: bytes, and whether they were planned, measured or are unknown."""

    name: str
    nbytes: int | None
    source: Source


@dataclass(frozen=True)
class MemoryPlan:
    """The arena of one inference. All figures are planned, not measured."""

    graph: Graph
    buffers: tuple[Buffer, ...]

    @property
    def arena_bytes(self) -> int:
        """Size of the arena: input, activations and output."""
        return max((buffer.end for buffer in self.buffers), default=0)

    @property
    def input_bytes(self) -> int:
        """The part of the arena that the input takes."""
        return sum(self.graph.tensors[name].nbytes for name in self.graph.inputs)

    @property
    def weight_bytes(self) -> int:
        """Constants: in flash, not in the arena."""
        return self.graph.weight_bytes

    def alive_bytes(self, step: int) -> int:
        """Bytes of what is alive during one operation."""
        return sum(b.end - b.offset for buffer in self.buffers for b in buffer.blocks if b.first <= step <= b.last)

    def alive(self, step: int) -> list[Buffer]:
        """What is alive during one operation."""
        return [buffer for buffer in self.buffers if buffer.first <= step <= buffer.last]

    def account(self) -> tuple[MemoryLine, ...]:
        """What an inference needs, line by line; what cannot be planned is there as unknown."""
        return (
            MemoryLine("weights", self.weight_bytes, "planned"),
            MemoryLine("arena", self.arena_bytes, "planned"),
            MemoryLine("input (part of the arena)", self.input_bytes, "planned"),
            MemoryLine("kernel scratch", None, "unknown"),
            MemoryLine("runtime overhead", None, "unknown"),
        )

    @property
    def peak_step(self) -> int:
        """The operation during which most bytes are alive."""
        return max(range(max(len(self.graph.ops), 1)), key=lambda step: (self.alive_bytes(step), -step))

    @property
    def peak_op(self) -> Op | None:
        """The operation that binds, if there is any."""
        return self.graph.ops[self.peak_step] if self.graph.ops else None

    def to_json(self) -> dict[str, Any]:
        """Figures with their units, for programs."""
        steps = [
            {
                "op": op.name,
                "kind": op.kind,
                "alive_bytes": self.alive_bytes(step),
                "macs": self.graph.op_macs(op),
                "output": op.output,
                "output_shape": list(self.graph.tensors[op.output].shape),
            }
            for step, op in enumerate(self.graph.ops)
        ]
        peak = self.peak_op
        return {
            "name": self.graph.name,
            "arena_bytes": self.arena_bytes,
            "memory": memory_json(self.account()),
            "macs": self.graph.macs,
            "peak": {
                "op": peak.name if peak else None,
                "alive": {buffer.tensor: buffer.nbytes for buffer in self.alive(self.peak_step)},
            },
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "ops": steps,
        }


def memory_json(lines: Sequence[MemoryLine]) -> dict[str, Any]:
    """An account for programs."""
    return {line.name: {"bytes": line.nbytes, "source": line.source} for line in lines}


@dataclass(frozen=True)
class Verdict:
    """Whether an arena fits a budget of SRAM; ``arena_source`` says whether the figure was planned or measured.

    It is about the arena: scratch memory of kernels and the overhead of the runtime come on top of it.
    """

    sram_bytes: int
    arena_bytes: int
    arena_source: Source = "planned"

    @property
    def fits(self) -> bool:
        """At most the budget."""
        return self.arena_bytes <= self.sram_bytes

    @property
    def exit_code(self) -> int:
        """0 fits, 3 does not."""
        return 0 if self.fits else 3

    def text(self) -> str:
        """For people: ``fits 256.0 KiB, 12.3 KiB to spare``."""
        margin = format_size(abs(self.sram_bytes - self.arena_bytes))
        if self.fits:
            return f"fits {format_size(self.sram_bytes)}, {margin} to spare"
        return f"does not fit {format_size(self.sram_bytes)}, {margin} too much"

    def to_json(self) -> dict[str, Any]:
        """Figures with their units, for programs."""
        margin = self.sram_bytes - self.arena_bytes
        return {**vars(self), "fits": self.fits, "margin_bytes": margin}


def plan(model: str | Path | bytes | Graph) -> MemoryPlan:
    """Plan the arena of an ``.onnx`` or ``.tflite`` file (path or bytes) or of a graph.

    Raises ``FormatError`` or ``UnsupportedError`` for a file that cannot be read.
    """
    graph = model if isinstance(model, Graph) else read_graph(model)
    return MemoryPlan(graph, place(lifetimes(graph)))
