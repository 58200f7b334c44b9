"""The arena of LiteRT's reference kernels, as ``arena_planner.cc`` and ``simple_memory_arena.cc`` lay it out.

Inputs stay for the whole inference and lie first; then the largest first, of one size the older one, each in the
smallest gap that takes it, at multiples of 64 bytes. Some operations write over their input. A mean has temporaries;
the reference kernels of all other operations here have none.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from .graph import Add, GlobalAveragePool, Graph, Op, Reshape, Softmax
from .placement import Block, Buffer, Life, placed_at

ALIGNMENT = 64

# A tensor of one number is never shared.
_SCALAR_BYTES = 4


def arena(graph: Graph) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...], Mapping[str, str]]:
    """Activations and temporaries in their places, and which activation lies in the place of which other."""
    shared = _shared(graph)
    lives = _lives(graph, shared)
    temporaries = [life for step, op in enumerate(graph.ops) for life in _temporaries(graph, op, step)]
    placed = _best_fit([*lives, *temporaries], graph.inputs)
    return placed[: len(lives)], placed[len(lives) :], shared


def delegated_arena(graph: Graph) -> tuple[Buffer, ...]:
    """What stays in the arena when a delegate takes all operations: inputs and outputs."""
    ends = {*graph.inputs, *graph.outputs}
    return _best_fit([life for life in _lives(graph, {}) if life.tensor in ends], graph.inputs)


def _best_fit(lives: Sequence[Life], kept: Sequence[str]) -> tuple[Buffer, ...]:
    """An offset for each, those in ``kept`` first, each in the smallest gap that is free during its whole life."""
    offsets: dict[str, int] = {}
    placed: list[tuple[int, Life]] = []
    for life in sorted(lives, key=lambda life: (life.tensor not in kept, -life.nbytes, life.first)):
        offset = _smallest_gap([item for item in placed if _together(item[1], life)], life.nbytes)
        placed.append((offset, life))
        placed.sort(key=lambda item: item[0])
        offsets[life.tensor] = offset
    return placed_at(lives, offsets)


def _smallest_gap(placed: Sequence[tuple[int, Life]], nbytes: int) -> int:
    end, best, smallest = 0, None, math.inf
    for offset, life in placed:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if start + nbytes <= offset and offset - start < smallest:
            best, smallest = start, offset - end
        end = max(end, offset + life.nbytes)
    return best if best is not None else -(-end // ALIGNMENT) * ALIGNMENT


def _together(one: Life, other: Life) -> bool:
    return one.first <= other.last and other.first <= one.last


def _shared(graph: Graph) -> dict[str, str]:
    """Which output lies in the place of which activation, of those that operations write over their input."""
    uses = Counter(name for op in graph.ops for name in op.inputs) + Counter((*graph.inputs, *graph.outputs))
    shared: dict[str, str] = {}
    for op in graph.ops:
        if not isinstance(op, Add | Reshape | Softmax) or op.output in graph.outputs:
            continue
        for name in op.inputs if isinstance(op, Add) else op.inputs[:1]:
            tensor = graph.tensors[name]
            if name in graph.inputs or tensor.data is not None:
                continue
            # A reshape does not change the values, so others may still read them.
            if isinstance(op, Reshape):
                shared[op.output] = shared.get(name, name)
                break
            if uses[name] == 1 and tensor.nbytes > _SCALAR_BYTES:
                if uses[shared.get(name, name)] == 1:
                    shared[op.output] = shared.get(name, name)
                break
    return shared


def _lives(graph: Graph, shared: Mapping[str, str]) -> list[Life]:
    end = max(len(graph.ops) - 1, 0)
    first = dict.fromkeys(graph.inputs, 0) | {op.output: step for step, op in enumerate(graph.ops)}
    last = first | dict.fromkeys((*graph.inputs, *(shared.get(name, name) for name in graph.outputs)), end)
    for step, op in enumerate(graph.ops):
        for name in (*op.inputs, op.output):
            place = shared.get(name, name)
            if place in last:
                last[place] = max(last[place], step)
    return [
        Life(t.name, t.nbytes, (Block(first[t.name], last[t.name], 0, t.nbytes),))
        for t in graph.activations
        if t.name not in shared
    ]


def _temporaries(graph: Graph, op: Op, step: int) -> list[Life]:
    """A mean keeps the index it is at, the axes, and a 32-bit sum for each output value."""
    if not isinstance(op, GlobalAveragePool):
        return []
    sizes = (4 * len(graph.tensors[op.inputs[0]].shape), 4 * 2, 4 * math.prod(graph.tensors[op.output].shape))
    return [Life(f"{op.name}/temporary{i}", size, (Block(step, step, 0, size),)) for i, size in enumerate(sizes)]
