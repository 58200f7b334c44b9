"""How long `firebox export` takes at each effort, and how that grows with the calibration images; writes
docs/effort.md.

The whole command is timed, start of Python and imports included: that is what a user waits for.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click
import numpy as np
from common import FOLDER, IMAGES, REFERENCES, data_option, out_option, surroundings, table, write_page

from firebox.export.quantization.ptq import Effort
from firebox.runtime.commands.console import note, progress

_NETWORK = "squeezenet1_1"
_EFFORTS = get_args(Effort)
_IMAGES = (25, 50, 100, 200)
_SEED = 0
# A draw that the gate would refuse takes as long.
_NO_GATE = ("--min-agreement", "0", "--min-sqnr", "-100")


@dataclass(frozen=True)
class Case:
    """One command: its effort and the number of images that calibrate."""

    effort: str
    images: int


@dataclass(frozen=True)
class Times:
    """One run of a command: seconds on the wall, and of all processors together."""

    wall: float
    processor: float


@click.command()
@data_option
@out_option("effort.md")
@click.option("--rounds", default=3, show_default=True, help="How often every command has its turn.")
@click.option("--effort", "efforts", multiple=True, type=click.Choice(_EFFORTS), help="Only these.  [default: all]")
@click.option("--images", multiple=True, type=int, default=_IMAGES, show_default=True, help="Calibration images.")
def main(data_folder: Path, out: Path, rounds: int, efforts: tuple[str, ...], images: tuple[int, ...]) -> None:
    """Time the export of v1.1 at every effort and number of images.

    \b
    Example:
      python benchmarks/effort.py --data-folder ~/firebox-data --effort fast
    """
    cases = [Case(effort, count) for effort in efforts or _EFFORTS for count in sorted(images)]
    times: dict[Case, list[Times]] = {case: [] for case in cases}
    rng = np.random.default_rng(_SEED)
    with progress("timing", rounds * len(cases)) as advance:
        for _ in range(rounds):
            for index in rng.permutation(len(cases)):
                case = cases[index]
                times[case].append(run(case, data_folder))
                note(f"{case.effort}, {case.images} images: {times[case][-1].wall:.1f} s")
                advance()
    write_page(out, page(times, rounds))


def command(effort: str, images: int | str, folder: Path | str, out: str) -> list[str]:
    source = f"--weights {folder}/{REFERENCES[_NETWORK]} --calibrate {folder}/{IMAGES}"
    return f"export {_NETWORK} {source} --effort {effort} --images {images} --out {out}".split()


def run(case: Case, data_folder: Path) -> Times:
    """One command in a process of its own. Raises ``ClickException`` when it fails."""
    firebox = Path(sys.executable).with_name("firebox")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [firebox, *command(case.effort, case.images, data_folder, folder), *_NO_GATE], stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise click.ClickException(f"firebox export failed: {said.read().decode().strip()}")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def page(times: Mapping[Case, Sequence[Times]], rounds: int) -> list[str]:
    images = " ".join(f"--images {count}" for count in sorted({case.images for case in times}))
    shown = " ".join(command("EFFORT", "IMAGES", FOLDER, f"build/{_NETWORK}"))
    return [
        "# What each effort costs",
        f"This page is written by\n\n```sh\npython benchmarks/effort.py --rounds {rounds} {images}\n```",
        f"Whole commands, with the start of Python, imports, tracing, the gate's images and all four files:\n\n"
        f"```sh\nfirebox {shown}\n```",
        f"with each effort and number of calibration images in turn, in {rounds} rounds and an order drawn anew for "
        "each. Medians, with the least and the most in brackets. The machine did other work too, which the seconds on "
        "the wall show and those of the processors less. *A further image* is the growth of the processors' median "
        "since the row above.",
        surroundings(),
        table(("effort", "images", "seconds", "processor seconds", "a further image, ms"), _rows(times)),
    ]


def _rows(times: Mapping[Case, Sequence[Times]]) -> list[tuple[str, ...]]:
    rows, last = [], None
    for case, found in times.items():
        wall, processor = ([getattr(one, name) for one in found] for name in ("wall", "processor"))
        middle = float(np.median(processor))
        growth = ""
        if last and last[0].effort == case.effort:
            growth = f"{1000 * (middle - last[1]) / (case.images - last[0].images):.0f}"
        last = case, middle
        rows.append((case.effort, str(case.images), _spread(wall), _spread(processor), growth))
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
