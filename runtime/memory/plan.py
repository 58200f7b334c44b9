"""The memory of one inference: the arena with every activation in it, its peak and what is alive there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UnsupportedError, UsageError
from ..formats.read import has_external_buffers, read_placed
from ..graph import Graph, Op
from ..units import format_size
from .allocation import Buffer
from .targets import TARGETS, Layout, Target, lay_out, unplanned

Source = Literal["planned", "measured", "unknown"]


@dataclass(frozen=True)
class MemoryLine:
    """One line of the account of memory: bytes, and whether they were planned, measured or are unknown."""

    name: str
    nbytes: int | None
    source: Source


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one inference on a target. All figures are planned, not measured."""

    layout: Layout
    target: Target

    @property
    def graph(self) -> Graph:
        """What the target runs: with padding as operations of its own where it has no other word for it."""
        return self.layout.graph

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Activations in the arena, without those that are views of others."""
        return self.layout.buffers

    @property
    def offsets(self) -> Mapping[str, int]:
        """Where the file tells the target to put activations; empty where it finds their places itself."""
        return self.layout.offsets

    @property
    def arena_bytes(self) -> int:
        """Size of the arena: input, activations, output, and scratch memory where it is known."""
        return self.layout.arena_bytes

    @property
    def total_bytes(self) -> int | None:
        """Everything that the target needs in SRAM, or ``None`` where a part of it is unknown."""
        return self.layout.total_bytes

    @property
    def input_bytes(self) -> int:
        """The input: a part of the arena, but for onnxruntime, which reads the caller's array."""
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
        total, scratch = self.total_bytes, self.layout.scratch
        where = "the caller's" if self.target == "onnxruntime" else "part of the arena"
        halves = sum(2 * t.nbytes for t in self.graph.tensors.values() if t.data is not None and t.dtype == "float16")
        unpacked = halves if self.target == "litert-reference" else None
        return (
            MemoryLine("weights", self.weight_bytes, "planned"),
            *((_line("float16 weights as float32", unpacked),) if halves else ()),
            MemoryLine("arena", self.arena_bytes, "planned"),
            MemoryLine(f"input ({where})", self.input_bytes, "planned"),
            _line("kernel scratch", None if scratch is None else self._scratch_bytes),
            _line("runtime overhead", None if total is None else total - self.arena_bytes),
            _line("total in SRAM", total),
        )

    @property
    def _scratch_bytes(self) -> int:
        steps = range(len(self.graph.ops))
        scratch = self.layout.scratch or ()
        return max((sum(b.end - b.offset for b in scratch if b.first == step) for step in steps), default=0)

    def verdict(self, sram_bytes: int) -> "Verdict":
        """Whether the total, or the arena where the total is unknown, fits a budget."""
        return Verdict(sram_bytes, self.arena_bytes, total_bytes=self.total_bytes)

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
            "target": self.target,
            "arena_bytes": self.arena_bytes,
            "total_bytes": self.total_bytes,
            "memory": memory_json(self.account()),
            "macs": self.graph.macs,
            "peak": {
                "op": peak.name if peak else None,
                "alive": {buffer.tensor: buffer.nbytes for buffer in self.alive(self.peak_step)},
            },
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "views": dict(self.layout.views),
            "ops": steps,
        }


def memory_json(lines: Sequence[MemoryLine]) -> dict[str, Any]:
    """An account for programs."""
    return {line.name: {"bytes": line.nbytes, "source": line.source} for line in lines}


def _line(name: str, nbytes: int | None) -> MemoryLine:
    return MemoryLine(name, nbytes, "planned" if nbytes is not None else "unknown")


@dataclass(frozen=True)
class Verdict:
    """Whether memory fits a budget of SRAM; ``arena_source`` says whether the figures were planned or measured.

    It is about everything that the target needs, ``total_bytes``. Where that is unknown it is about the arena: scratch
    memory of kernels and the overhead of the runtime come on top of it.
    """

    sram_bytes: int
    arena_bytes: int
    arena_source: Source = "planned"
    total_bytes: int | None = None

    @property
    def about(self) -> Literal["total", "arena"]:
        """What is judged."""
        return "arena" if self.total_bytes is None else "total"

    @property
    def margin_bytes(self) -> int:
        """What is to spare, or missing when negative."""
        return self.sram_bytes - (self.arena_bytes if self.total_bytes is None else self.total_bytes)

    @property
    def fits(self) -> bool:
        """At most the budget."""
        return self.margin_bytes >= 0

    @property
    def exit_code(self) -> int:
        """0 fits, 3 does not."""
        return 0 if self.fits else 3

    def text(self) -> str:
        """For people: ``fits 256.0 KiB, 12.3 KiB to spare``."""
        margin = format_size(abs(self.margin_bytes))
        if self.fits:
            return f"fits {format_size(self.sram_bytes)}, {margin} to spare"
        return f"does not fit {format_size(self.sram_bytes)}, {margin} too much"

    def to_json(self) -> dict[str, Any]:
        """Figures with their units, for programs."""
        return {**vars(self), "about": self.about, "fits": self.fits, "margin_bytes": self.margin_bytes}


def plan(
    model: str | Path | bytes | Graph, target: Target | None = None, offsets: Mapping[str, int] | None = None
) -> MemoryPlan:
    """Plan the memory of an ``.onnx`` or ``.tflite`` file (path or bytes) or of a graph on a target.

    Without a target it is ``tflm``, or ``static`` for what tflite-micro cannot run.

    ``tflm`` is tflite-micro, to the byte; ``litert-reference`` LiteRT without XNNPACK, ``litert`` with it,
    ``onnxruntime`` and ``static``, a compiler as good as can be. Raises ``UsageError`` for another target,
    ``FormatError`` or ``UnsupportedError`` for a file that cannot be read, or whose memory there is not known.
    """
    if target is not None and target not in TARGETS:
        raise UsageError(f"target {target!r} is not one of {', '.join(TARGETS)}")
    graph, found = (model, {}) if isinstance(model, Graph) else read_placed(model)
    far = not isinstance(model, Graph) and target in (None, "tflm") and has_external_buffers(model)
    if far and target == "tflm":
        raise UnsupportedError(
            "tflite-micro does not find constants behind the flatbuffer, where the file has them; write it anew with "
            "firebox fit, or plan it for another target"
        )
    target = target or ("static" if far or unplanned(graph, "tflm") is not None else "tflm")
    return MemoryPlan(lay_out(graph, target, found if offsets is None else offsets), target)
