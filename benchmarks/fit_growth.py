"""Growth of planning and search time with graph size, relative to v1.1; a part of ``fit.py``'s page."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from common import table, terminal

from firebox.export import Fit, fit, quantize
from firebox.export.fit import needed
from firebox.export.quantization import Range
from firebox.runtime import Graph, plan
from firebox.runtime.graph import Op, Tensor, ops

SIZES = (50, 100, 200, 500, 1_000, 2_000)
# Image rows of a chain of 50 operations. The image area grows with the number of operations, so that tflite-micro's own
# data is the same share of memory in every chain.
_SIDE = 96
# Operations outside Fire modules: the stem, three pools, and the head's convolution, mean and reshape.
_OTHERS = 7
_FIRE = 4
_GROUPS = 4
_SQUEEZE, _EXPAND = 16, 64
# Planning is so fast that it is repeated.
_PLANS = 20


@dataclass(frozen=True)
class Growth:
    """One chain, with pairs of processor seconds: for v1.1 and, right after it, for the chain."""

    graph: Graph
    untiled_bytes: int
    operations: int
    plan_seconds: np.ndarray
    fit_seconds: np.ndarray


def measure_growth(reference: Graph, sizes: Sequence[int], pairs: int) -> list[Growth]:
    """Measure every chain paired with the reference, ``pairs`` times."""
    with terminal.task("growing", 2 * pairs * len(sizes)) as advance:
        return [_measure(reference, chain(size), pairs, advance) for size in sizes]


def _measure(reference: Graph, graph: Graph, pairs: int, advance: Callable[[], None]) -> Growth:
    plans, fits, operations = [], [], 0
    for _ in range(pairs):
        plans.append([_seconds(partial(_plan_often, each))[0] / _PLANS for each in (reference, graph)])
        advance()
    for _ in range(pairs):
        (before, _), (after, found) = (_seconds(partial(_halve, each)) for each in (reference, graph))
        fits.append([before, after])
        operations = len(found.after.graph.ops)
        advance()
    return Growth(graph, needed(plan(graph)), operations, np.array(plans), np.array(fits))


def _plan_often(graph: Graph) -> None:
    for _ in range(_PLANS):
        plan(graph)


def _halve(graph: Graph) -> Fit:
    return fit(graph, needed(plan(graph)) // 2)


T = TypeVar("T")


def _seconds(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def page(found: Sequence[Growth], pairs: int) -> list[str]:
    """The section of the page."""
    reference = np.concatenate([item.fit_seconds[:, 0] for item in found])
    columns = ("operations", "bytes", "operations after")
    times = ("ratio (median)", "lowest to highest", "exponent", "seconds")
    return [
        "## Scaling",
        "Chains of Fire modules in four groups, separated by pools. The image size grows with the number of "
        "operations, so that the runtime's own data is the same share of memory in every chain. Each chain is planned "
        "for tflite-micro, and fitted to half of its memory. The ratio is processor time on one core divided by the "
        f"time that v1.1 at 224x224 takes for the same right before it, {pairs} times. The *exponent* is that of the "
        "growth since the row above (1: linear). Seconds are an indication only. v1.1 itself is fitted to half in "
        f"{np.median(reference):.1f} s (median; {reference.min():.1f} to {reference.max():.1f} in {len(reference)} "
        "runs).",
        "### Planning",
        table((*columns[:2], *times), _rows(found, lambda item: item.plan_seconds, 3, after=False)),
        "### Fitting to half of the memory",
        table((*columns, *times), _rows(found, lambda item: item.fit_seconds, 1, after=True)),
    ]


def _rows(
    found: Sequence[Growth], times: Callable[[Growth], np.ndarray], digits: int, *, after: bool
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    last: tuple[int, float] | None = None
    for item in found:
        ratios = times(item)[:, 1] / times(item)[:, 0]
        middle, size = float(np.median(ratios)), len(item.graph.ops)
        exponent = f"{math.log(middle / last[1]) / math.log(size / last[0]):.2f}" if last else ""
        last = size, middle
        sizes = f"{size:,}", f"{item.untiled_bytes:,}", *([f"{item.operations:,}"] if after else [])
        seconds = f"{np.median(times(item)[:, 1]):.{digits}f}"
        rows.append((*sizes, f"{middle:.2f}", f"{ratios.min():.2f} to {ratios.max():.2f}", exponent, seconds))
    return rows


def chain(size: int) -> Graph:
    """A network of exactly ``size`` operations: Fire modules in four groups with a pool between them, int8.

    Its weights are random and its scales arbitrary: neither affects the plan or the search.
    """
    side = 16 * round(_SIDE * (size / SIZES[0]) ** 0.5 / 16)
    build = _Builder((1, side, side, 3))
    fires, rest = divmod(size - _OTHERS, _FIRE)
    x = build.conv("input", 64, 3, 2)
    for group in range(_GROUPS):
        if group:
            x = build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2))
        for _ in range(fires * group // _GROUPS, fires * (group + 1) // _GROUPS):
            squeezed = build.conv(x, _SQUEEZE)
            x = build.add(ops.Concat, build.conv(squeezed, _EXPAND), build.conv(squeezed, _EXPAND, 3))
    for _ in range(rest + 1):
        x = build.conv(x, 10)
    x = build.add(ops.Reshape, build.add(ops.GlobalAveragePool, x), shape=(1, 10))
    graph = Graph.of(f"chain of {size}", build.tensors.values(), build.ops, ["input"], [x])
    assert len(graph.ops) == size
    return quantize(graph, {tensor.name: Range(-1.0, 1.0) for tensor in graph.activations})


class _Builder:
    """A float32 graph under construction."""

    def __init__(self, shape: tuple[int, ...]):
        self.random = np.random.default_rng(0)
        self.tensors = {"input": Tensor("input", shape)}
        self.ops: list[Op] = []

    def add(self, kind: type[Op], *inputs: str, **attributes: object) -> str:
        op = kind(inputs, f"{kind.__name__.lower()}{len(self.ops)}", **attributes)
        self.ops.append(op)
        shapes = (self.tensors[name].shape for name in inputs)
        self.tensors[op.output] = Tensor(op.output, op.output_shape(*shapes))
        return op.output

    def conv(self, x: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        pad = kernel // 2
        names = []
        for shape in ((channels, kernel, kernel, self.tensors[x].shape[3]), (channels,)):
            data = self.random.normal(0, 0.1, shape).astype(np.float32)
            names.append(f"constant{len(self.tensors)}")
            self.tensors[names[-1]] = Tensor(names[-1], shape, data=data)
        return self.add(ops.Conv, x, *names, stride=(stride, stride), padding=(pad,) * 4, activation="relu")
