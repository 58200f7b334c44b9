"""Paired timing of two ways to do the same work: ratios are reliable where seconds are not."""

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import terminal

from firebox.runtime.inference.installed import BACKENDS
from firebox.runtime.onnx_session import open_onnx, session_options

# Runs are repeated until a sample takes this long, in seconds.
_SAMPLE = 0.002
# The side that runs first in each pair of a block: each side equally often, shuffled by the seed.
BLOCK = (0, 0, 1, 1)

Run = Callable[[], Any]


# The columns of ``Ratios.cells`` after the label.
RATIO_COLUMNS = ("ratio (median)", "medians of rounds", "10th to 90th percentile", "pairs")


@dataclass(frozen=True)
class Comparison:
    """Two ways to do the same work; the ratio is the time of ``upper`` divided by the time of ``lower``."""

    section: str
    label: tuple[str, ...]
    upper: Run
    lower: Run


@dataclass(frozen=True)
class Ratios:
    """A ratio for each pair of a comparison, by round; the rounds alternate with those of other comparisons."""

    comparison: Comparison
    rounds: list[np.ndarray]

    def cells(self) -> tuple[str, ...]:
        """A table row."""
        pairs = np.concatenate(self.rounds)
        medians = [float(np.median(ratios)) for ratios in self.rounds]
        low, middle, high = np.percentile(pairs, (10, 50, 90))
        spreads = f"{min(medians):.3f} to {max(medians):.3f}", f"{low:.3f} to {high:.3f}"
        return (*self.comparison.label, f"{middle:.3f}", *spreads, f"{len(pairs):,}")


def measure(comparisons: Sequence[Comparison], rounds: int, seconds: float, seed: int) -> list[Ratios]:
    """Measure all comparisons: in each round every comparison has one turn, in a new random order."""
    rng = np.random.default_rng(seed)
    found = [Ratios(comparison, []) for comparison in comparisons]
    with terminal.task("timing", rounds * len(found)) as advance:
        for _ in range(rounds):
            for index in rng.permutation(len(found)):
                comparison = found[index].comparison
                found[index].rounds.append(turn((comparison.upper, comparison.lower), seconds, rng))
                advance()
    return found


def turn(runs: tuple[Run, Run], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Ratios of the first run's time to the second's, in whole blocks of pairs, after a warm-up."""
    for run in runs:
        run()
    repeats = math.ceil(_SAMPLE / min(elapsed(run, 1) for run in runs))
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for first in rng.permutation(BLOCK):
            times = {side: elapsed(runs[side], repeats) for side in (first, 1 - first)}
            ratios.append(times[0] / times[1])
    return np.array(ratios)


def elapsed(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def bind(run: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> Run:
    return lambda: run(x)


def bare(path: Path, backend: str = "onnxruntime", exact: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """One inference by the runtime's own calls, on one thread; ``exact`` as in ``Session``."""
    if backend == "onnxruntime":
        session = open_onnx(path.read_bytes(), session_options(1), exact).session
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]
    runtime = importlib.import_module(BACKENDS[backend].module)
    interpreter = runtime.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run
