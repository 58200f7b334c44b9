"""Traffic of one inference between DRAM and SRAM under a limit of SRAM for activations.

The model is layer by layer, in the order of the graph. A tensor that fits stays in SRAM until its last row has been
read. A spilled tensor lies in DRAM: it is written once, and read once by each operation that uses it. As long as the
live tensors of an operation exceed the SRAM, the largest tensor at the peak is spilled. The input is read from DRAM and
the outputs are written to it once; without spilling this is all, the compulsory traffic.

The figures are a lower bound for this schedule: operations stream spilled tensors through SRAM, and neither rows in
flight nor rows that overlapping windows read again are counted. The model follows Siu et al., Memory Requirements for
Convolutional Neural Network Hardware Accelerators, IISWC 2018.
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
    """DRAM reads and writes of one inference, and the spilled tensors.

    ``weight_bytes`` is the part of ``dram_read_bytes`` due to weights, zero if they are resident. ``operand_bytes``
    counts each operand of each operation once.
    """

    dram_read_bytes: int
    dram_written_bytes: int
    weight_bytes: int
    operand_bytes: int
    spilled: tuple[str, ...]

    @property
    def dram_bytes(self) -> int:
        """Bytes read and written."""
        return self.dram_read_bytes + self.dram_written_bytes

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        return {"dram_bytes": self.dram_bytes, **vars(self)}


def traffic(graph: Graph, sram_bytes: int, precision: Precision, weights: Weights) -> Traffic:
    """Traffic of one inference if all values had ``precision``, with ``sram_bytes`` for activations.

    Resident weights are on the chip and do not count towards ``sram_bytes``. Streamed weights are read from DRAM by
    each operation that uses them, so by every stripe of a tiled layer. ``int8 entropy-coded`` is int8 with weights
    compressed to ``entropy_bytes``; see ``precisions``.
    """
    sizes = {tensor.name: _nbytes(tensor, precision) for tensor in graph.tensors.values()}
    spilled = _spill(graph, sizes, sram_bytes)
    reads: Counter[str] = Counter()
    for op in graph.ops:
        # A slice reads only its output.
        reads.update({name: sizes[op.output if isinstance(op, ops.Slice) else name] for name in op.inputs})
    made = [op.output for op in graph.ops]
    streamed = sum(size for name, size in reads.items() if graph.tensors[name].data is not None)
    streamed = streamed if weights == "streamed" else 0
    return Traffic(
        dram_read_bytes=streamed
        + sum(reads[name] for name in spilled)
        # An input that stays in SRAM is read once, however often it is used.
        + sum(min(reads[name], sizes[name]) for name in set(graph.inputs) - set(spilled)),
        dram_written_bytes=sum(sizes[name] for name in made if name in spilled or name in graph.outputs),
        weight_bytes=streamed,
        operand_bytes=reads.total() + sum(sizes[name] for name in made),
        spilled=spilled,
    )


def precisions(graph: Graph) -> tuple[Precision, ...]:
    """Precisions that ``traffic`` supports for a graph; entropy coding needs int8 weights."""
    held = {tensor.dtype for tensor in graph.tensors.values() if tensor.data is not None and not _is_bias(tensor)}
    return ("float32", "int8", "int8 entropy-coded") if held == {"int8"} else ("float32", "int8")


def weight_bytes(graph: Graph, precision: Precision) -> int:
    """Bytes of the stored constants of a graph."""
    return sum(_nbytes(tensor, precision) for tensor in graph.tensors.values() if tensor.data is not None)


def entropy_bytes(values: np.ndarray) -> int:
    """Shannon bound in bytes for coding one value at a time, without the code table.

    Huffman codes come close to it (Han et al., Deep Compression, arXiv 1510.00149, section 4).
    """
    counts = np.unique(values, return_counts=True)[1]
    bits = float((counts * np.log2(values.size / counts)).sum())
    return math.ceil(bits / 8)


def _spill(graph: Graph, sizes: dict[str, int], sram_bytes: int) -> tuple[str, ...]:
    """Spilled tensors in order.

    ``sram_bytes`` decides only the length of this list, not its order: less SRAM never spills less.
    """
    ranges = live_ranges(graph, rowwise=True, alignment=1)
    blocks = [(live, block) for live in ranges for block in live.blocks]
    steps = np.arange(max(len(graph.ops), 1))[:, None]
    first = np.array([block.first for _, block in blocks], np.int64)
    last = np.array([block.last for _, block in blocks], np.int64)
    alive = ((first <= steps) & (steps <= last)).astype(np.int64)
    owner = np.array([live.tensor for live, _ in blocks])
    # Bytes of a block at the given precision.
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
    """True for constants of one dimension; biases have 32 bits at every precision."""
    return tensor.data is not None and len(tensor.shape) == 1
