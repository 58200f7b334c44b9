"""The memory plan of one inference: the arena with its activations, its peak and the tensors alive there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UnsupportedError
from ..formats.read import has_external_buffers, read_placed
from ..graph import Graph, Op
from ..units import format_size
from .allocation import Buffer, Layout
from .targets import STATIC, TFLM, Target, find_target, lay_out

Source = Literal["planned", "measured", "unknown"]


@dataclass(frozen=True)
class MemoryLine:
    """One line of an account of memory: bytes, and whether they were planned, measured or are unknown."""

    name: str
    nbytes: int | None
    source: Source


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one inference on a target. All figures are planned, not measured."""

    layout: Layout
    target: str

    @property
    def graph(self) -> Graph:
        """The graph that the target executes; padding that its kernels lack is a separate operation."""
        return self.layout.graph

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Activations in the arena, without views of other activations."""
        return self.layout.buffers

    @property
    def offsets(self) -> Mapping[str, int]:
        """Offsets that the file prescribes; empty if the target chooses them itself."""
        return self.layout.offsets

    @property
    def arena_bytes(self) -> int:
        """Size of the arena: input, activations, output, and scratch memory if it is known."""
        return self.layout.arena_bytes

    @property
    def total_bytes(self) -> int | None:
        """The whole demand for SRAM, or ``None`` if a part of it is unknown."""
        return self.layout.total_bytes

    @property
    def input_bytes(self) -> int:
        """Size of the input: part of the arena, except for onnxruntime, which reads the caller's array."""
        return sum(self.graph.tensors[name].nbytes for name in self.graph.inputs)

    @property
    def weight_bytes(self) -> int:
        """Size of the constants: in flash, not in the arena."""
        return self.graph.weight_bytes

    def alive_bytes(self, step: int) -> int:
        """Bytes of the tensors alive during an operation."""
        return sum(b.end - b.offset for buffer in self.buffers for b in buffer.blocks if b.first <= step <= b.last)

    def alive(self, step: int) -> list[Buffer]:
        """The tensors alive during an operation."""
        return [buffer for buffer in self.buffers if buffer.first <= step <= buffer.last]

    def account(self) -> tuple[MemoryLine, ...]:
        """The memory of an inference line by line; parts that cannot be planned are listed as unknown."""
        total, scratch = self.total_bytes, self.layout.scratch
        in_arena = any(buffer.tensor in self.graph.inputs for buffer in self.buffers)
        where = "part of the arena" if in_arena else "the caller's"
        has_halves = any(t.data is not None and t.dtype == "float16" for t in self.graph.tensors.values())
        return (
            MemoryLine("weights", self.weight_bytes, "planned"),
            *((_line("float16 weights as float32", self.layout.unpacked_bytes),) if has_halves else ()),
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
        """The verdict on a budget, by the total or, if that is unknown, by the arena."""
        return Verdict(sram_bytes, self.arena_bytes, total_bytes=self.total_bytes)

    @property
    def peak_step(self) -> int:
        """Index of the operation during which most bytes are alive."""
        return max(range(max(len(self.graph.ops), 1)), key=lambda step: (self.alive_bytes(step), -step))

    @property
    def peak_op(self) -> Op | None:
        """The operation at the peak; ``None`` for a graph without operations."""
        return self.graph.ops[self.peak_step] if self.graph.ops else None

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
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
    """An account as JSON values."""
    return {line.name: {"bytes": line.nbytes, "source": line.source} for line in lines}


def _line(name: str, nbytes: int | None) -> MemoryLine:
    return MemoryLine(name, nbytes, "planned" if nbytes is not None else "unknown")


@dataclass(frozen=True)
class Verdict:
    """A verdict on an SRAM budget, by planned or measured figures (``arena_source``).

    It judges ``total_bytes``, the whole demand. If that is unknown it judges the arena alone: the scratch memory of
    kernels and the overhead of the runtime are not included.
    """

    sram_bytes: int
    arena_bytes: int
    arena_source: Source = "planned"
    total_bytes: int | None = None

    @property
    def about(self) -> Literal["total", "arena"]:
        """The figure that is judged."""
        return "arena" if self.total_bytes is None else "total"

    @property
    def margin_bytes(self) -> int:
        """Bytes to spare; negative if the budget is too small."""
        return self.sram_bytes - (self.arena_bytes if self.total_bytes is None else self.total_bytes)

    @property
    def fits(self) -> bool:
        """True if the figure is at most the budget."""
        return self.margin_bytes >= 0

    @property
    def exit_code(self) -> int:
        """0 if it fits, else 3."""
        return 0 if self.fits else 3

    def text(self) -> str:
        """The verdict in words: ``fits 256.0 KiB, 12.3 KiB to spare``."""
        margin = format_size(abs(self.margin_bytes))
        if self.fits:
            return f"fits {format_size(self.sram_bytes)}, {margin} to spare"
        return f"does not fit {format_size(self.sram_bytes)}, {margin} too much"

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        return {**vars(self), "about": self.about, "fits": self.fits, "margin_bytes": self.margin_bytes}


def plan(
    model: str | Path | bytes | Graph, target: str | None = None, offsets: Mapping[str, int] | None = None
) -> MemoryPlan:
    """Plan the memory of an ``.onnx`` or ``.tflite`` file (path or bytes) or of a graph on a target.

    ``target`` is a name in ``TARGETS``; the default is ``tflm``, or ``static`` if tflite-micro cannot run the network.
    ``offsets`` take the place of those in the file. Raises ``UsageError`` for an unknown target, and ``FormatError`` or
    ``UnsupportedError`` for a file that cannot be read or whose memory on the target is unknown.
    """
    chosen = find_target(target) if target is not None else None
    graph, found = (model, {}) if isinstance(model, Graph) else read_placed(model)
    if chosen is None:
        chosen = _default_target(model, graph)
    elif _has_unreachable_constants(model, chosen):
        raise UnsupportedError(
            f"{chosen.name} does not find constants behind the flatbuffer, where the file has them; rewrite the file "
            "with firebox fit, or plan it for another target"
        )
    return MemoryPlan(lay_out(graph, chosen, found if offsets is None else offsets), chosen.name)


def _default_target(model: str | Path | bytes | Graph, graph: Graph) -> Target:
    is_unknown = _has_unreachable_constants(model, TFLM) or TFLM.unplanned(graph) is not None
    return STATIC if is_unknown else TFLM


def _has_unreachable_constants(model: str | Path | bytes | Graph, target: Target) -> bool:
    return not target.reads_external_buffers and not isinstance(model, Graph) and has_external_buffers(model)
