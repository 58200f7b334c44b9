"""Trainings killed at random moments, resumed, and compared with unbroken ones; writes docs/resume.md."""

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
from common import out_option, surroundings, table, write_page

from firebox.model_zoo.training.log import read_log
from firebox.model_zoo.training.run import SNAPSHOTS
from firebox.model_zoo.weights.checkpoint import FILE_NAME, read_checkpoint
from firebox.runtime.commands.console import progress
from firebox.runtime.commands.main import main as firebox
from firebox.runtime.files import sha256

_MODEL, _DATA = "squeezenet_micro", "digits"
_COMMON = ("--images-per-class", "40", "--batch-size", "64", "--threads", "1")
# Processes begin with torch loaded, and nothing computed yet.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["firebox.model_zoo.training.trainer", "torch._dynamo", "matplotlib.font_manager", "sklearn.datasets"]
# Folders of runs: the one that others begin with, and the one that is broken.
_PLAIN, _BROKEN = "plain", "broken"


@dataclass
class Trial:
    """A training with some options: ``epochs`` in all, ``seconds`` each; ``kills`` are the epochs done at each."""

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
        Trial("average of the weights, CutMix", ("--ema", "0.9", "--cutmix", "1")),
        Trial("FreezeOut", ("--freezeout", "cubic")),
        Trial("Muon", ("--optimizer", "muon")),
        Trial("batches in parts", ("--accumulation", "4")),
        Trial("in int8", ("--qat", _PLAIN)),
        # Its epochs take a hundredth of a second.
        Trial("the head, on codes", ("--start", _PLAIN, "--learn", "head", "--epochs", "100")),
    ]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=24, show_default=True, help="How often a training is killed.")
@click.option("--epochs", type=click.IntRange(5), default=10, show_default=True, help="Epochs, a multiple of 5.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the moments.")
@out_option("resume.md")
def main(kills: int, epochs: int, seed: int, out: Path) -> None:
    """Kill trainings at random moments, go on with them, and compare what they become."""
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    moments, trials = random.Random(seed), _trials()
    options = " ".join(f"--{name} {value}" for name, value in (("kills", kills), ("epochs", epochs), ("seed", seed)))
    with (
        tempfile.TemporaryDirectory() as name,
        progress("killing trainings", kills + len(trials)) as advance,
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
        raise click.ClickException("a resumed training became another one")


def _break(trial: Trial, epochs: int, out: Path, moments: random.Random, most: int) -> None:
    """Train once, killed at random moments of random epochs among those that are left, until it ends."""
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
    """What begins the training, or goes on with what there is of it."""
    if (out / FILE_NAME).is_file():
        return ["train", "--resume", str(out)]
    return ["train", _MODEL, "--data", _DATA, "--epochs", str(epochs), *_COMMON, *trial.options, "--out", str(out)]


def _train(command: list[str], out: Path, epoch: int | None = None, delay: float = 0) -> int | None:
    """The exit code; ``None`` if the process was killed so many seconds after it had done the epoch, 0 for none."""
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
    """``firebox ...`` in a folder, without a word."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    os.chdir(folder)
    sys.argv = ["firebox", *command]
    firebox()


def _begun(out: Path) -> int:
    """How many processes have begun to train in a run: each has a file of its own for TensorBoard."""
    return len(list((out / "tensorboard").glob("*")))


def _epochs(out: Path) -> int:
    """Epochs that a run has done."""
    return read_checkpoint(out / FILE_NAME).epoch if (out / FILE_NAME).is_file() else 0


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
        "random moments of random epochs, while the process trains or writes, and begun again with `--resume` until "
        "it ends. Kills that came after the last epoch leave nothing to go on with and are not counted. The "
        "checkpoint, with the weights, the optimizer's state and all else that it holds, and each snapshot are "
        "compared byte by byte.",
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
