"""Latency and memory of a file on this machine, with a verdict on a budget."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..files import read_file
from ..inference import Facts, Session
from ..memory import Budget, MemoryLine, MemoryPlan, Verdict, plan
from ..memory.account import memory_json
from ..progress import SILENT, Advance, Progress

_WARM_UP = 3
_MIN_RUNS = 30
_MAX_RUNS = 20_000
# The median has settled if the medians of the first and the second half differ by less than this.
_SETTLED = 0.02
_OP_RUNS = 20


@dataclass(frozen=True)
class Profile:
    """Latency in milliseconds over ``runs`` inferences after a warm-up, and the account of the memory.

    Memory is planned for ``target``. ``settled`` is false if the time limit came before a stable median. ``op_ms`` is
    ``None`` if the backend does not report per-operation timing.
    """

    model: str
    backend: str
    threads: int
    load_ms: float
    first_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    settled: bool
    memory: tuple[MemoryLine, ...]
    op_ms: dict[str, float] | None
    verdict: Verdict | None
    facts: Facts
    target: str = "tflm"

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        verdict = self.verdict.to_json() if self.verdict else None
        return asdict(self) | {"memory": memory_json(self.memory), "verdict": verdict}


def profile(
    model: str | Path,
    *,
    sram: Budget | int | None = None,
    backend: str = "auto",
    threads: int = 1,
    max_seconds: float = 10.0,
    progress: Progress = SILENT,
) -> Profile:
    """Load a file, run it until its median latency settles (at most ``max_seconds``), and account for its memory.

    Memory is planned for tflite-micro, or for a static compiler if tflite-micro has no kernels for the file; the
    verdict is on ``sram``, a number of bytes or a ``Budget``. ``progress`` advances once per inference. Raises as
    ``Session`` and ``plan`` do, and ``UsageError`` for a time limit that is not positive.
    """
    if not 0 < max_seconds < float("inf"):
        raise UsageError(f"time limit {max_seconds} is not a positive number of seconds")
    planned = plan(model)
    before = resident_bytes()
    start = time.perf_counter()
    session = Session(model, backend, threads, check="off")
    load_ms = (time.perf_counter() - start) * 1000
    with session:
        # Random values: constant inputs can be faster than real ones.
        x = _random_input(session)
        first_ms = _time(session, x)
        after = resident_bytes()
        with progress.task("measuring") as advance:
            times, settled = _repeat(session, x, max_seconds, advance)
        op_ms = session.op_times_ms(x, _OP_RUNS)
    # A second session checks the golden pair, so that the check is not measured.
    with Session(model, backend, threads) as checked:
        facts = checked.facts
    return Profile(
        model=str(model),
        backend=session.backend,
        threads=threads,
        load_ms=load_ms,
        first_ms=first_ms,
        **{f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 90, 99)},
        runs=len(times),
        settled=settled,
        target=planned.target,
        memory=_account(planned, Path(model), before, after),
        op_ms=op_ms,
        facts=facts,
        verdict=planned.verdict(sram) if sram is not None else None,
    )


def resident_bytes() -> int | None:
    """Resident memory of this process, or ``None`` if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    import resource

    return pages * resource.getpagesize()


def _account(planned: MemoryPlan, model: Path, before: int | None, after: int | None) -> tuple[MemoryLine, ...]:
    growth = after - before if before is not None and after is not None else None
    return (
        MemoryLine("file", len(read_file(model)), "measured"),
        *planned.account(),
        MemoryLine("growth of the process", growth, "measured" if growth is not None else "unknown"),
        MemoryLine("process", after, "measured" if after is not None else "unknown"),
    )


def _random_input(session: Session) -> np.ndarray:
    rng = np.random.default_rng(0)
    if session.input_dtype == "float32":
        return rng.standard_normal(session.input_shape, np.float32)
    limits = np.iinfo(session.input_dtype)
    return rng.integers(limits.min, limits.max, session.input_shape, endpoint=True).astype(session.input_dtype)


def _time(session: Session, x: np.ndarray) -> float:
    start = time.perf_counter()
    session.run(x)
    return (time.perf_counter() - start) * 1000


def _repeat(session: Session, x: np.ndarray, max_seconds: float, advance: Advance) -> tuple[list[float], bool]:
    """Latencies after the warm-up, and whether their median settled; the number of runs doubles until it does."""
    for _ in range(_WARM_UP):
        session.run(x)
    times: list[float] = []
    goal, end = _MIN_RUNS, time.perf_counter() + max_seconds
    while True:
        while len(times) < goal and (time.perf_counter() < end or not times):
            times.append(_time(session, x))
            advance()
        first, second = np.array_split(np.array(times), 2)
        settled = bool(len(times) >= _MIN_RUNS and abs(np.median(second) / np.median(first) - 1) < _SETTLED)
        if settled or len(times) >= _MAX_RUNS or time.perf_counter() >= end:
            return times, settled
        goal *= 2
