"""Bytes that one inference moves between DRAM and SRAM when only so much SRAM is there for activations.

The model is layer by layer: operations run in the graph's order. A tensor for which there is room stays in SRAM until
nothing reads it (or its rows) any more; one that is spilled lies in DRAM, is written once and read once by every
operation that uses it. While more is alive during some operation than there is SRAM, the largest tensor at the peak is
spilled. The input comes from DRAM and the outputs go there, once: without spilling that is all, the compulsory
traffic. It is the least that such a schedule moves: an operation streams what is spilled through SRAM, and neither the
rows in flight nor those that overlapping windows read again are counted. Siu et al. (Memory Requirements for
Convolutional Neural Network Hardware Accelerators, IISWC 2018) reckon with layers in this way.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..graph import Graph, Tensor, ops
from .allocation import live_ranges

Precision = Literal["float32", "int8", "int8 entropy-coded"]
Weights = Literal["resident", "streamed"]


@dataclass(frozen=True)
class Traffic:
    """What one inference reads from DRAM and writes to it, and which tensors are spilled.

    ``weight_bytes`` is the part of ``dram_read_bytes`` that is weights, zero where they are resident;
    ``operand_bytes`` is what all operations read and write when each touches every operand once.
    """

    dram_read_bytes: int
    dram_written_bytes: int
    weight_bytes: int
    operand_bytes: int
    spilled: tuple[str, ...]

    @property
    def dram_bytes(self) -> int:
        """Read and written."""
        return self.dram_read_bytes + self.dram_written_bytes

    def to_json(self) -> dict[str, Any]:
        """Figures with their units, for programs."""
        return {"dram_bytes": self.dram_bytes, **vars(self)}


def traffic(graph: Graph, sram_bytes: int, precision: Precision, weights: Weights) -> Traffic:
    """What one inference of a graph moves, were its numbers of ``precision``, with ``sram_bytes`` for activations.

    Resident weights lie on the chip, beside those bytes; streamed ones are read from DRAM by each operation that uses
    them, so by every stripe of a tiled layer. ``int8 entropy-coded`` is int8 with weights of ``entropy_bytes`` each;
    it takes a graph for which ``precisions`` has it.
    """
    sizes = {tensor.name: _nbytes(tensor, precision) for tensor in graph.tensors.values()}
    spilled = _spill(graph, sizes, sram_bytes)
    reads: Counter[str] = Counter()
    for op in graph.ops:
        # A slice reads no more than it keeps.
        reads.update({name: sizes[op.output if isinstance(op, ops.Slice) else name] for name in op.inputs})
    made = [op.output for op in graph.ops]
    streamed = sum(size for name, size in reads.items() if graph.tensors[name].data is not None)
    streamed = streamed if weights == "streamed" else 0
    return Traffic(
        dram_read_bytes=streamed
        + sum(reads[name] for name in spilled)
        # What stays is read once, however often it is used.
        + sum(min(reads[name], sizes[name]) for name in set(graph.inputs) - set(spilled)),
        dram_written_bytes=sum(sizes[name] for name in made if name in spilled or name in graph.outputs),
        weight_bytes=streamed,
        operand_bytes=reads.total() + sum(sizes[name] for name in made),
        spilled=spilled,
    )


def precisions(graph: Graph) -> tuple[Precision, ...]:
    """Those that ``traffic`` can tell of a graph: entropy coding needs int8 weights to count."""
    held = {tensor.dtype for tensor in graph.tensors.values() if tensor.data is not None and not _is_bias(tensor)}
    return ("float32", "int8", "int8 entropy-coded") if held == {"int8"} else ("float32", "int8")


def weight_bytes(graph: Graph, precision: Precision) -> int:
    """Bytes in which all constants of a graph are stored."""
    return sum(_nbytes(tensor, precision) for tensor in graph.tensors.values() if tensor.data is not None)


def entropy_bytes(values: np.ndarray) -> int:
    """The Shannon bound: no code that takes one value at a time stores them in fewer bytes; its table is not counted.

    Huffman codes come near it (Han et al., Deep Compression, arXiv 1510.00149, section 4).
    """
    counts = np.unique(values, return_counts=True)[1]
    bits = float((counts * np.log2(values.size / counts)).sum())
    return math.ceil(bits / 8)


def _spill(graph: Graph, sizes: dict[str, int], sram_bytes: int) -> tuple[str, ...]:
    """Tensors for which there is no room, in the order in which they go.

    That order does not depend on ``sram_bytes``, only its end does: less SRAM never spills less.
    """
    ranges = live_ranges(graph, rowwise=True, alignment=1)
    blocks = [(live, block) for live in ranges for block in live.blocks]
    steps = np.arange(max(len(graph.ops), 1))[:, None]
    first = np.array([block.first for _, block in blocks], np.int64)
    last = np.array([block.last for _, block in blocks], np.int64)
    alive = ((first <= steps) & (steps <= last)).astype(np.int64)
    owner = np.array([live.tensor for live, _ in blocks])
    # A block is a part of a tensor, whose bytes here are those of the precision asked for.
    left = np.array([(b.end - b.offset) * sizes[live.tensor] // live.nbytes for live, b in blocks], np.int64)
    spilled: list[str] = []
    while (needed := alive @ left).max(initial=0) > sram_bytes:
        at_peak = {str(name): 0 for name in owner[(alive[needed.argmax()] * left) > 0]}
        spilled.append(max(at_peak, key=lambda name: sizes[name]))
        left[owner == spilled[-1]] = 0
    return tuple(spilled)


def _nbytes(tensor: Tensor, precision: Precision) -> int:
    count = math.prod(tensor.shape)
    if precision == "float32" or _is_bias(tensor):
        return 4 * count
    if precision == "int8 entropy-coded" and tensor.data is not None:
        return entropy_bytes(tensor.data)
    return count


def _is_bias(tensor: Tensor) -> bool:
    """A constant of one dimension; it has 32 bits in every precision."""
    return tensor.data is not None and len(tensor.shape) == 1
