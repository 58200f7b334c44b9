"""Trainings killed at random moments, resumed, and compared with unbroken ones; writes docs/resume.md."""

import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from common import out_option, surroundings, table, write_page
from firebox.model_zoo.checkpoint import FILE_NAME
from firebox.model_zoo.run_folder import SNAPSHOTS, read_log
from firebox.runtime.console import progress
from firebox.runtime.files import sha256

_MODEL, _DATA = "squeezenet_micro", "digits"
_COMMON = ("--images-per-class", "40", "--batch-size", "64", "--threads", "1")
_PROGRAM = (sys.executable, "-c", "from firebox.runtime.main import main; main()")


@dataclass
class Trial:
    """A training with some options, and the moments at which it was killed: epochs that it had by then."""

    name: str
    options: tuple[str, ...]
    seconds: float = 0.0
    digests: Mapping[str, str] = field(default_factory=dict)
    kills: list[int] = field(default_factory=list)
    runs: int = 0
    same: int = 0


def _trials() -> list[Trial]:
    return [
        Trial("plain", ()),
        Trial("snapshots", ("--snapshots", "5")),
        Trial("average of the weights, CutMix", ("--ema", "0.9", "--cutmix", "1")),
        Trial("FreezeOut", ("--freezeout", "cubic")),
    ]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True, help="How often a training is killed.")
@click.option("--epochs", type=click.IntRange(5), default=10, show_default=True, help="Epochs, a multiple of 5.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the moments.")
@out_option("resume.md")
def main(kills: int, epochs: int, seed: int, out: Path) -> None:
    """Kill trainings at random moments, go on with them, and compare what they become."""
    moments, trials = random.Random(seed), _trials()
    options = " ".join(f"--{name} {value}" for name, value in (("kills", kills), ("epochs", epochs), ("seed", seed)))
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("killing trainings", kills + len(trials)) as advance,
    ):
        for trial in trials:
            start = time.monotonic()
            _finish(_command(trial, epochs, Path(folder) / trial.name))
            trial.seconds, trial.digests = time.monotonic() - start, _digests(Path(folder) / trial.name)
            advance(text=trial.name)
        while (done := sum(len(trial.kills) for trial in trials)) < kills:
            trial = min(trials, key=lambda trial: len(trial.kills))
            share = math.ceil(kills / len(trials)) - len(trial.kills)
            _broken(trial, epochs, Path(folder) / "broken", moments, min(share, kills - done))
            advance(sum(len(trial.kills) for trial in trials) - done, text=trial.name)
    write_page(out, _page(trials, epochs, f"python benchmarks/resume.py {options}"))
    if any(trial.same < trial.runs for trial in trials):
        raise click.ClickException("a resumed training became another one")


def _broken(trial: Trial, epochs: int, out: Path, moments: random.Random, most: int) -> None:
    """Train once, killed at moments within the time that an unbroken training takes, until it ends."""
    shutil.rmtree(out, ignore_errors=True)
    trial.runs += 1
    for _ in range(most):
        resumed = (out / FILE_NAME).is_file()
        command = ["train", "--resume", str(out)] if resumed else _command(trial, epochs, out)
        with subprocess.Popen([*_PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(moments.random() * trial.seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
        trial.kills.append(len(read_log(out, epochs)))
    else:
        _finish(["train", "--resume", str(out)] if (out / FILE_NAME).is_file() else _command(trial, epochs, out))
    trial.same += _digests(out) == trial.digests


def _command(trial: Trial, epochs: int, out: Path) -> list[str]:
    return ["train", _MODEL, "--data", _DATA, "--epochs", str(epochs), *_COMMON, *trial.options, "--out", str(out)]


def _finish(command: list[str]) -> None:
    # One that was killed after its last epoch has nothing to go on with: what is there is compared all the same.
    subprocess.run([*_PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _digests(out: Path) -> dict[str, str]:
    """SHA-256 of the checkpoint and of each snapshot."""
    paths = (out / FILE_NAME, *sorted((out / SNAPSHOTS).glob("*.safetensors")))
    return {path.name: sha256(path.read_bytes()) for path in paths}


def _page(trials: list[Trial], epochs: int, command: str) -> list[str]:
    rows = [
        (
            trial.name,
            f"`{' '.join(trial.options)}`" if trial.options else "",
            str(len(trial.kills)),
            ", ".join(map(str, sorted(trial.kills))),
            str(trial.runs),
            str(len(trial.digests)),
            f"{trial.same} of {trial.runs}",
        )
        for trial in trials
    ]
    kills, same, runs = (sum(found) for found in zip(*((len(t.kills), t.same, t.runs) for t in trials), strict=True))
    return [
        "# Trainings that are killed",
        "This page is written by",
        f"```sh\n{command}\n```",
        f"{_MODEL} on {_DATA} for {epochs} epochs (`{' '.join(_COMMON)}`), once unbroken, then killed (SIGKILL) at "
        "random moments, while the process starts, reads, trains or writes, and begun again with `--resume` until it "
        "ends. The checkpoint, with the weights, the optimizer's state and all else that it holds, and each snapshot "
        "are compared byte by byte.",
        table(
            (
                "training",
                "options",
                "kills",
                "epochs done when it was killed",
                "trainings",
                "files of each",
                "equal to the unbroken one",
            ),
            rows,
            names=2,
        ),
        f"{kills} kills; {same} of {runs} trainings became the unbroken one to the last bit.",
        surroundings(),
    ]


if __name__ == "__main__":
    main()
