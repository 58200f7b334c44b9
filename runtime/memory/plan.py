"""The memory plan of one inference: the arena with its activations, its peak and the tensors alive there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..files import read_file
from ..formats.read import format_of, has_external_buffers, read_placed
from ..graph import Graph, Op
from .account import MemoryLine, memory_json
from .allocation import Buffer, Layout
from .targets import STATIC, TFLM, Target, find_target, lay_out
from .verdict import Budget, FlashDemand, Verdict, as_budget


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one inference on a target. All figures are planned, not measured.

    ``file_bytes`` is the size of the file if the target runs it as it is.
    """

    layout: Layout
    target: str
    # A network is planned alike from a file and from a graph.
    file_bytes: int | None = field(default=None, compare=False)

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

    @cached_property
    def flash(self) -> FlashDemand:
        """The demand for flash: the target's own figure, or else the file, or the weights if there is no file."""
        target = find_target(self.target)
        if target.flash_bytes is not None:
            return FlashDemand(target.flash_bytes(self.graph), "weights and code")
        if self.file_bytes is not None:
            return FlashDemand(self.file_bytes, "file")
        return FlashDemand(self.weight_bytes, "weights")

    @cached_property
    def timeline(self) -> tuple[int, ...]:
        """Bytes of the tensors alive at each moment; a moment is an operation unless these run a row at a time."""
        change = np.zeros(max(len(self.moments), 1) + 1, np.int64)
        for buffer in self.buffers:
            for block in buffer.blocks:
                change[block.first] += block.end - block.offset
                change[min(block.last + 1, len(change) - 1)] -= block.end - block.offset
        return tuple(np.cumsum(change)[:-1].tolist())

    @property
    def moments(self) -> tuple[str, ...]:
        """What runs at each moment, in words."""
        return self.layout.moments or tuple(op.name for op in self.graph.ops)

    def alive_bytes(self, step: int) -> int:
        """Bytes of the tensors alive during an operation; where it runs several times, the most."""
        return self.timeline[self._fullest(step)]

    def alive(self, step: int) -> list[Buffer]:
        """The tensors alive during an operation, at its fullest moment."""
        moment = self._fullest(step)
        return [buffer for buffer in self.buffers if any(b.first <= moment <= b.last for b in buffer.blocks)]

    def _fullest(self, step: int) -> int:
        if not self.layout.runs or not self.graph.ops:
            return step
        runs = self.layout.runs.get(self.graph.ops[step].output, (0,))
        return max(runs, key=lambda moment: self.timeline[moment])

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
            *self._flash_lines(),
        )

    def _flash_lines(self) -> tuple[MemoryLine, ...]:
        flash = self.flash
        known = MemoryLine(f"flash ({flash.about})", flash.nbytes, flash.source)
        return (known,) if flash.has_code else (known, _line("flash (code)", None))

    @property
    def _scratch_bytes(self) -> int:
        steps = range(len(self.graph.ops))
        scratch = self.layout.scratch or ()
        return max((sum(b.end - b.offset for b in scratch if b.first == step) for step in steps), default=0)

    def verdict(self, budget: Budget | int) -> Verdict:
        """The verdict on a budget, by the total or, if that is unknown, by the arena; a number is bytes of SRAM."""
        return Verdict(as_budget(budget), self.arena_bytes, total_bytes=self.total_bytes, flash=self.flash)

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
            "flash_needed_bytes": self.flash.nbytes,
            "flash_about": self.flash.about,
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


def _line(name: str, nbytes: int | None) -> MemoryLine:
    return MemoryLine(name, nbytes, "planned" if nbytes is not None else "unknown")


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
    layout = lay_out(graph, chosen, found if offsets is None else offsets)
    return MemoryPlan(layout, chosen.name, _file_bytes(model, chosen))


def _file_bytes(model: str | Path | bytes | Graph, target: Target) -> int | None:
    """The size of a file that the target runs as it is, else ``None``."""
    if isinstance(model, Graph) or target.runtime is None or format_of(model) != target.runtime.format:
        return None
    return len(model if isinstance(model, bytes) else read_file(model))


def _default_target(model: str | Path | bytes | Graph, graph: Graph) -> Target:
    is_unknown = _has_unreachable_constants(model, TFLM) or TFLM.unplanned(graph) is not None
    return STATIC if is_unknown else TFLM


def _has_unreachable_constants(model: str | Path | bytes | Graph, target: Target) -> bool:
    return not target.reads_external_buffers and not isinstance(model, Graph) and has_external_buffers(model)
