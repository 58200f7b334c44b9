"""Training methods compared: snapshot ensembles, FreezeOut, transfer and shapes; writes docs/training.md.

The page is written from ``results/training.json``. Experiments without figures there are trained first. Each training
is a run folder that also holds its result, so that a benchmark that was stopped continues where it was.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import common
import numpy as np
from freeze_timing import measure_saving, measure_step
from training_figures import EXPERIMENTS, KEPT, Kept, Results, logits_file, read_kept, to_json
from training_page import page
from training_trials import FREEZE_COMPILED, Experiment, Trial, experiments

from firebox.model_zoo import TrainingConfig, load_network, resume, train
from firebox.model_zoo.training import average_checkpoints, open_training_images
from firebox.model_zoo.training.log import read_log
from firebox.model_zoo.training.run import SNAPSHOTS
from firebox.model_zoo.weights import read_checkpoint
from firebox.model_zoo.weights.checkpoint import FILE_NAME
from firebox.runtime import FireboxError, LabelledImages
from firebox.runtime.errors import UsageError
from firebox.runtime.files import sha256, write_file, write_files

_FOLDER = Path(__file__).resolve().parent.parent / "build" / "training"
# One thread each. Huge pages, and memory that is not returned to the system, make a step a sixth faster with glibc.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
_RESULT = "result.json"


@dataclass(frozen=True)
class Bench:
    """The folders of the runs and of the images."""

    folder: Path
    data: Path

    @property
    def experiments(self) -> list[Experiment]:
        """All experiments, with their trials."""
        return experiments(self.folder, self.data / common.CIFAR, self.data / common.REFERENCES["squeezenet1_1"])

    @property
    def test(self) -> LabelledImages:
        """The images that accuracies are measured on."""
        return common.test_images(self.data)

    @property
    def trials(self) -> dict[str, Trial]:
        """All trainings by name."""
        return {trial.name: trial for experiment in self.experiments for trial in experiment.trials}

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """The result of a finished trial with the same config."""
        try:
            kept = json.loads((self.folder / trial.name / _RESULT).read_text())
        except FileNotFoundError:
            return None
        return kept if kept["key"] == key(trial) else None


@click.command()
@common.optional_data_option
@common.out_option("training.md")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=_FOLDER, help="Folder of the runs.  [default: build/training]"
)
@click.option("--only", multiple=True, type=click.Choice(list(EXPERIMENTS)), help="Train these experiments only.")
@click.option("--fresh", is_flag=True, help="Train experiments again that have figures in results/training.json.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Trainings at a time, one thread each.")
@click.option("--trial", hidden=True, help="Run this training and no other; write no page.")
def main(
    data_folder: Path | None,
    out: Path,
    folder: Path,
    only: tuple[str, ...],
    fresh: bool,
    jobs: int,
    trial: str | None,
) -> None:
    """Write the page from the kept figures; train experiments that have none.

    \b
    Example:
      python benchmarks/training.py
      python benchmarks/training.py --data-folder ~/firebox-data --only snapshots --fresh
    """
    bench = Bench(folder.resolve(), data_folder or Path())
    if trial is not None:
        run(bench, bench.trials[trial])
        return
    kept = read_kept()
    for experiment in bench.experiments:
        if (only and experiment.name not in only) or (experiment.name in kept and not fresh):
            continue
        if data_folder is None:
            raise click.UsageError(f"training {experiment.name} needs --data-folder (FIREBOX_DATA); see docs/data.md")
        run_all(bench, experiment.trials, jobs, data_folder)
        kept[experiment.name] = summary(bench, experiment)
        write_file(KEPT, to_json(kept))
    common.write_page(out, page(read_kept(), out.parent))


def summary(bench: Bench, experiment: Experiment) -> Kept:
    """The figures of an experiment whose trials have all run."""
    found = {trial.name: result for trial in experiment.trials if (result := bench.result(trial))}
    figures = EXPERIMENTS[experiment.name].of(Results(found, bench.folder, bench.test.labels))
    return Kept(experiment_key(experiment), common.surroundings(), figures)


def experiment_key(experiment: Experiment) -> str:
    """Identifies the configs of all trials of an experiment."""
    return sha256("".join(map(key, experiment.trials)).encode())


def run_all(bench: Bench, trials: Sequence[Trial], jobs: int, data: Path) -> None:
    """Train ``jobs`` trials at a time, each in its own process and after the trials that it needs.

    Raises ``ClickException`` after all of them if some have failed.
    """
    missing = [trial for trial in trials if bench.result(trial) is None]
    pending: dict[str, Future[None]] = {}
    failed: list[str] = []

    def work(trial: Trial) -> None:
        for name in trial.needs:
            if name in pending:
                pending[name].result()
        command = [sys.executable, __file__, "--folder", str(bench.folder), "--data-folder", str(data)]
        subprocess.run([*command, "--trial", trial.name], env=os.environ | _ENVIRONMENT, check=True)

    with ThreadPoolExecutor(jobs) as pool, common.terminal.task("training", len(missing)) as advance:
        for trial in missing:
            pending[trial.name] = pool.submit(work, trial)
        for name, future in pending.items():
            try:
                future.result()
            except subprocess.CalledProcessError:
                failed.append(name)
            advance(text=name)
    if failed:
        raise click.ClickException(f"no page is written, because these trainings failed: {', '.join(failed)}")


def run(bench: Bench, trial: Trial) -> None:
    """Train, or resume, then measure the network and its snapshots, if any, on the test images."""
    folder = bench.folder / trial.name
    if trial.averages:
        snapshots = sorted((bench.folder / trial.needs[0] / SNAPSHOTS).iterdir())
        average_checkpoints(snapshots, folder / FILE_NAME, open_training_images(trial.config)[0])
    elif not (folder / FILE_NAME).is_file():
        train(trial.config, folder)
    else:
        _resume(trial, folder)
    files: dict[str, bytes | str] = {}
    test = bench.test
    accuracies: dict[str, float] = {}
    config = load_network(folder).config
    for path in [folder / FILE_NAME, *sorted(folder.glob("snapshots/*"))]:
        network = load_network(path)
        logits = common.test_logits(network, test)
        accuracies[path.stem] = common.accuracy(logits, test.labels)
        files[logits_file(path.stem)] = _npy(logits.astype(np.float32))
    rows = read_log(folder, sys.maxsize)
    result = {
        "key": key(trial),
        "model": trial.config.model,
        "parameters": config.parameters,
        "macs": config.macs,
        "test": accuracies,
        "val": rows[-1].val_accuracy if rows else None,
    }
    if trial.config.freezeout:
        checkpoint = read_checkpoint(folder / FILE_NAME)
        result["saving"] = measure_saving(checkpoint)
        if trial.name == FREEZE_COMPILED:
            result["step"] = [measure_step(checkpoint, compiled) for compiled in (False, True)]
    files[_RESULT] = json.dumps(result, indent=2) + "\n"
    write_files(folder, files)
    common.terminal.note(f"{trial.name}: {accuracies['checkpoint']:.2%} of the test images")


def _resume(trial: Trial, folder: Path) -> None:
    """Finish a run that was stopped. Raises ``UsageError`` if the run has another config."""
    checkpoint = read_checkpoint(folder / FILE_NAME)
    config = checkpoint.training
    # The run has values for options that the trial leaves open; the number of iterations determines that of epochs.
    left_open: dict[str, Any] = {name: None for name, value in vars(trial.config).items() if value is None}
    if trial.config.iterations:
        left_open["epochs"] = trial.config.epochs
    if key(replace(trial, config=replace(config, **left_open))) != key(trial):
        raise UsageError(f"{folder} is a run with another config; remove it")
    if checkpoint.epoch < config.epochs:
        resume(folder)


def key(trial: Trial) -> str:
    """Identifies a trial by the options that differ from their defaults, without the folders of files.

    An option that is added to firebox later does not change the key.
    """
    plain = TrainingConfig().to_json()
    given = {name: value for name, value in trial.config.to_json().items() if value != plain[name]}
    for name in ("data", "start"):
        if name in given:
            given[name] = Path(given[name]).name
    given["teachers"] = [Path(path).name for path in given.get("teachers", ())]
    values = [given, trial.needs, *([trial.averages] if trial.averages else [])]
    return sha256(json.dumps(values, sort_keys=True).encode())


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


if __name__ == "__main__":
    try:
        main()
    except FireboxError as error:
        raise SystemExit(f"error: {error}") from error
