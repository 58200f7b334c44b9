"""Start-up time of the package and of its commands, compared with importing numpy; writes docs/startup.md.

Every case runs in a new Python process. The cases take turns, so that other work on the machine disturbs them alike.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import common

from firebox.export import ExportConfig
from firebox.model_zoo import export_network, load_network
from firebox.runtime import open_images
from firebox.runtime.progress import Progress

_NUMPY = "import numpy"
_IMPORTS = (
    _NUMPY,
    "import firebox",
    "import firebox.runtime",
    "from firebox.runtime import Session",
    "from firebox.runtime import plan",
    "from firebox.runtime import *",
)
# Threads and the order of hashes vary from run to run, and instruction counts with them.
_STEADY = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Cost:
    """The least wall-clock and processor time of a case in milliseconds, and its instructions, if they were counted."""

    wall_ms: float
    processor_ms: float
    instructions: int | None


@click.command()
@common.out_option("startup.md")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="Python of another environment.")
@click.option("--rounds", default=20, show_default=True, help="Number of times that every case runs.")
@click.option("--count/--no-count", default=True, show_default=True, help="Count instructions with valgrind.")
def main(out: Path, before: Path | None, rounds: int, count: bool) -> None:
    """Time imports and commands of this environment's firebox and, with --before, of another one.

    \b
    Example:
      python benchmarks/startup.py --before ~/firebox-0.1/.venv/bin/python
    """
    trees = ({"before": before} if before else {}) | {"now": Path(sys.executable)}
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder))
        cases = {
            (tree, name): command for tree, python in trees.items() for name, command in commands(python, model).items()
        }
        found = measure(cases, rounds, count, common.terminal)
    common.write_page(out, page(list(trees), found, rounds))


def small_model(folder: Path) -> Path:
    """An int8 TFLite file of the smallest network."""
    network = load_network("squeezenet_micro", random_init=True, in_channels=1, num_classes=10)
    config = ExportConfig(calibration_images=4, tolerance=common.NO_GATE)
    export_network(network, folder, open_images("digits"), config)
    return folder / "model.int8.tflite"


def commands(python: Path, model: Path) -> dict[str, list[str]]:
    """The cases by name: a command line each."""
    firebox = str(python.with_name("firebox"))
    return {code: [str(python), "-c", code] for code in _IMPORTS} | {
        "firebox --help": [firebox, "--help"],
        "firebox plan MODEL": [firebox, "plan", str(model), "--json"],
    }


def measure(
    cases: Mapping[tuple[str, str], Sequence[str]], rounds: int, count: bool, progress: Progress
) -> dict[tuple[str, str], Cost]:
    """The cost of every case; the first run of each fills the caches of bytecode and is not measured."""
    walls: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    processors: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    with progress.task("measuring", (rounds + 1) * len(cases)) as advance:
        for turn in range(rounds + 1):
            for case, command in cases.items():
                wall, processor = timed(command)
                if turn:
                    walls[case].append(wall)
                    processors[case].append(processor)
                advance()
    if count and not shutil.which("valgrind"):
        common.terminal.note("valgrind is not installed: instructions are not counted")
        count = False
    return {
        case: Cost(min(walls[case]), min(processors[case]), instructions(command) if count else None)
        for case, command in cases.items()
    }


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall-clock and processor time of one process, in milliseconds."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | _STEADY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(),
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} failed with exit code {process.returncode}")
    return wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def instructions(command: Sequence[str]) -> int:
    """Instructions of one process, counted by valgrind."""
    count = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    interpreter = [str(Path(command[0]).with_name("python"))] if Path(command[0]).name == "firebox" else []
    ran = subprocess.run(
        [*count, *interpreter, *command], env=os.environ | _STEADY, capture_output=True, text=True, check=True
    )
    (line,) = (line for line in ran.stderr.splitlines() if "I refs:" in line or "I   refs:" in line)
    return int(line.split()[-1].replace(",", ""))


def page(trees: Sequence[str], found: Mapping[tuple[str, str], Cost], rounds: int) -> list[str]:
    names = list(dict.fromkeys(name for _, name in found))
    figures = {
        "Processor time": lambda cost: cost.processor_ms,
        "Wall-clock time": lambda cost: cost.wall_ms,
        "Instructions": lambda cost: cost.instructions,
    }
    parts = [
        "# Start-up time",
        "This page is generated by",
        f"```sh\npython benchmarks/startup.py{' --before PYTHON' if 'before' in trees else ''}\n```",
        f"Every case runs {rounds} times in a new process, in turns with the others. The tables show the least "
        "processor and wall-clock time, and the instructions of one run under valgrind; in brackets the ratio to "
        "`import numpy` in the same environment. All figures include the start of Python. The names of `firebox` and "
        "`firebox.runtime` are imported on first use; `from firebox.runtime import *` imports all of them.",
    ]
    if "before" in trees:
        parts.append("*before* is the version of the environment that `--before` names.")
    for title, figure in figures.items():
        if any(figure(cost) is None for cost in found.values()):
            continue
        rows = [
            (f"`{name}`", *(_cell(figure(found[tree, name]), figure(found[tree, _NUMPY]), title) for tree in trees))
            for name in names
        ]
        parts += [f"## {title}", common.table(("case", *trees), rows)]
    return [*parts, common.surroundings()]


def _cell(value: float, numpy: float, title: str) -> str:
    text = f"{value / 1e6:,.0f} M" if title == "Instructions" else f"{value:,.0f} ms"
    return f"{text} ({value / numpy:.2f})"


if __name__ == "__main__":
    main()
