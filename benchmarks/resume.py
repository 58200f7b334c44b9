"""Crash recovery: kills trainings at random moments, resumes them and compares the results; writes docs/resume.md."""

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from common import out_option, surroundings, table, terminal, write_page

from firebox.model_zoo.training.log import read_log
from firebox.model_zoo.training.run import SNAPSHOTS
from firebox.model_zoo.weights import read_checkpoint
from firebox.model_zoo.weights.checkpoint import FILE_NAME
from firebox.runtime.commands.main import main as firebox
from firebox.runtime.files import sha256

_MODEL, _DATA = "squeezenet_micro", "digits"
_COMMON = ("--images-per-class", "40", "--batch-size", "64", "--threads", "1")
# Processes start with torch imported, before any computation.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["firebox.model_zoo.training.trainer", "torch._dynamo", "matplotlib.font_manager", "sklearn.datasets"]
# Folders of runs: the one that others start from, and the one that is killed.
_PLAIN, _BROKEN = "plain", "broken"


@dataclass
class Trial:
    """A training with options: its total ``epochs``, ``seconds`` per epoch, and the epochs completed at each kill."""

    name: str
    options: tuple[str, ...]
    epochs: int = 0
    seconds: float = 0.0
    digests: Mapping[str, str] = field(default_factory=dict)
    kills: list[int] = field(default_factory=list)
    runs: int = 0
    same: int = 0


def _trials() -> list[Trial]:
    return [
        Trial(_PLAIN, ()),
        Trial("snapshots", ("--snapshots", "5")),
        Trial("weight average, CutMix", ("--ema", "0.9", "--cutmix", "1")),
        Trial("FreezeOut", ("--freezeout", "cubic")),
        Trial("Muon", ("--optimizer", "muon")),
        Trial("gradient accumulation", ("--accumulation", "4")),
        Trial("QAT", ("--qat", _PLAIN)),
        # An epoch takes a hundredth of a second.
        Trial("head on cached features", ("--start", _PLAIN, "--learn", "head", "--epochs", "100")),
    ]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=24, show_default=True, help="Number of kills.")
@click.option("--epochs", type=click.IntRange(5), default=10, show_default=True, help="Epochs, a multiple of 5.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random moments.")
@out_option("resume.md")
def main(kills: int, epochs: int, seed: int, out: Path) -> None:
    """Kill trainings at random moments, resume them, and compare the results."""
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    moments, trials = random.Random(seed), _trials()
    options = " ".join(f"--{name} {value}" for name, value in (("kills", kills), ("epochs", epochs), ("seed", seed)))
    with (
        tempfile.TemporaryDirectory() as name,
        terminal.task("killing trainings", kills + len(trials)) as advance,
    ):
        folder = Path(name)
        for trial in trials:
            unbroken = folder / trial.name
            if _train(_command(trial, epochs, unbroken), unbroken) != 0:
                raise click.ClickException(f"the training {trial.name!r} failed")
            trial.epochs, trial.digests = _epochs(unbroken), _digests(unbroken)
            trial.seconds = read_log(unbroken, trial.epochs)[-1].seconds
            advance(text=trial.name)
        for index, trial in enumerate(trials):
            share = len(range(index, kills, len(trials)))
            while len(trial.kills) < share and trial.same == trial.runs:
                done = len(trial.kills)
                _break(trial, epochs, folder / _BROKEN, moments, share - done)
                advance(len(trial.kills) - done, text=trial.name)
    write_page(out, _page(trials, epochs, f"python benchmarks/resume.py {options}"))
    if any(trial.same < trial.runs for trial in trials):
        raise click.ClickException("a resumed training differs from the uninterrupted one")


def _break(trial: Trial, epochs: int, out: Path, moments: random.Random, most: int) -> None:
    """Train to the end, with kills at random moments of random remaining epochs."""
    shutil.rmtree(out, ignore_errors=True)
    trial.runs += 1
    for _ in range(most):
        epoch, delay = moments.randrange(_epochs(out), trial.epochs), moments.random() * trial.seconds
        ended = _train(_command(trial, epochs, out), out, epoch, delay) is not None
        if ended or (done := _epochs(out)) == trial.epochs:
            break
        trial.kills.append(done)
    else:
        _train(_command(trial, epochs, out), out)
    trial.same += _digests(out) == trial.digests


def _command(trial: Trial, epochs: int, out: Path) -> list[str]:
    """The command that starts the training, or resumes it."""
    if (out / FILE_NAME).is_file():
        return ["train", "--resume", str(out)]
    return ["train", _MODEL, "--data", _DATA, "--epochs", str(epochs), *_COMMON, *trial.options, "--out", str(out)]


def _train(command: list[str], out: Path, epoch: int | None = None, delay: float = 0) -> int | None:
    """The exit code; ``None`` for a process killed ``delay`` seconds after it completed ``epoch`` (0: start)."""
    process, before = _PROCESSES.Process(target=_firebox, args=(command, out.parent)), _begun(out)
    process.start()
    if epoch is not None:
        while process.is_alive() and (_begun(out) == before or len(read_log(out, epoch)) < epoch):
            time.sleep(0.01)
        process.join(delay)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
    process.join()
    return process.exitcode


def _firebox(command: list[str], folder: Path) -> None:
    """Run ``firebox ...`` in a folder, without output."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    os.chdir(folder)
    sys.argv = ["firebox", *command]
    firebox()


def _begun(out: Path) -> int:
    """The number of processes that have started to train in a run: each writes its own TensorBoard file."""
    return len(list((out / "tensorboard").glob("*")))


def _epochs(out: Path) -> int:
    """Epochs that a run has completed."""
    return read_checkpoint(out / FILE_NAME).epoch if (out / FILE_NAME).is_file() else 0


def _digests(out: Path) -> dict[str, str]:
    """SHA-256 of the checkpoint and each snapshot."""
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
        "# Crash recovery",
        "This page is generated by",
        f"```sh\n{command}\n```",
        f"{_MODEL} is trained on {_DATA} for {epochs} epochs (`{' '.join(_COMMON)}`): once without interruption, then "
        "with kills (SIGKILL) at random moments of random epochs, while the process trains or writes, and a `--resume` "
        "after each kill. Kills after the last epoch leave nothing to resume and are not counted. The checkpoint, with "
        "the weights, the optimizer state and everything else in it, and each snapshot are compared byte by byte.",
        table(
            (
                "training",
                "options",
                "kills",
                "epochs completed at each kill",
                "trainings",
                "files compared",
                "identical to the uninterrupted one",
            ),
            rows,
            names=2,
        ),
        f"{kills} kills; {same} of {runs} resumed trainings are bit-identical to the uninterrupted one.",
        surroundings(),
    ]


if __name__ == "__main__":
    main()
