"""A run that is stopped anywhere and resumed ends with the same bytes."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from waiting import held_after, wait_until

from firebox.model_zoo import TrainingConfig, TrainingResult, resume, train
from firebox.model_zoo.training import Callback, LoopState
from firebox.model_zoo.training.run import Run, claim
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.model_zoo.weights.checkpoint import read_safetensors
from firebox.runtime.errors import CheckpointError, UsageError
from firebox.runtime.progress import Progress

CASES = {
    "average, mixup, accumulation, teachers": {
        "ema": 0.9, "mixup": 0.5, "cutmix": 1.0, "accumulation": 2, "nesterov": True, "teachers": True,
    },
    "snapshots within epochs": {"snapshots": 2, "iterations": 8, "ema": 0.5, "momentum": 0.0},
    # Layers also freeze at the end of epochs.
    "freezing, layer decay, muon": {
        "freezeout": "linear", "freeze_first": 1 / 3, "layer_decay": 0.5, "learn": 4, "start": True,
        "optimizer": "muon",
    },
    "features": {"learn": "head", "start": True, "images_per_class": 6, "ema": 0.9},
}  # fmt: skip


def epochs_on_tensorboard(run: Path) -> list[int]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("val_accuracy")]


def files_of(result: TrainingResult) -> list[bytes]:
    return [path.read_bytes() for path in (result.checkpoint, *result.snapshots)]


@contextmanager
def stopping_after_an_epoch() -> Iterator[None]:
    """Interrupt a training after its next epoch, once the checkpoint is written."""
    write = Run.write

    def stop(run: Run, *state, **last) -> None:
        write(run, *state, **last)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "write", stop)
        yield


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path, changes):
    named = {"start": str(trained.out), "teachers": (str(trained.out),)}
    changes = {name: named[name] if value is True and name in named else value for name, value in changes.items()}
    data = str(trained.out.parent / "images")
    config = replace(TrainingConfig(data=data, epochs=3, batch_size=8), **changes)
    uninterrupted = train(config, tmp_path / "uninterrupted")

    out = tmp_path / "interrupted"
    with stopping_after_an_epoch():
        train(config, out, command="firebox train")
    with stopping_after_an_epoch():
        resume(out)
    resumed = resume(out)
    assert files_of(resumed) == files_of(uninterrupted)
    assert resumed.predicted_saving == uninterrupted.predicted_saving
    assert '"command": "firebox train"' in (out / "config.json").read_text()


class Counts(Callback):
    """A callback of a caller, with a state that sets the learning rates."""

    def __init__(self, name: str = "counts"):
        self.name, self.steps = name, torch.zeros(1)

    def after_step(self, loop: LoopState) -> None:
        self.steps += 1
        for group in loop.optimizer.param_groups:
            group["lr"] = 0.01 / float(self.steps)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"].clone()


def test_callbacks_of_the_caller_resume_with_their_state(trained, tmp_path):
    data = str(trained.out.parent / "images")
    config, counts = TrainingConfig(data=data, epochs=3, batch_size=8), Counts()
    uninterrupted = train(config, tmp_path / "uninterrupted", callbacks=[counts])
    assert int(counts.steps) == uninterrupted.steps
    out = tmp_path / "interrupted"
    with stopping_after_an_epoch():
        train(config, out, callbacks=[Counts()])
    with pytest.raises(CheckpointError, match="has a state of the callback counts, which this training lacks"):
        resume(out)
    assert files_of(resume(out, callbacks=[Counts()])) == files_of(uninterrupted)
    with pytest.raises(UsageError, match="two callbacks are named 'average'"):
        train(replace(config, ema=0.9), tmp_path / "third", callbacks=[Counts("average")])


class Notes(Progress):
    """Collects the notes of a training."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def started(trained, tmp_path) -> Path:
    """A run before its first step, on images of its own."""
    shutil.copytree(trained.out.parent / "images", tmp_path / "images")
    config = TrainingConfig(data=str(tmp_path / "images"), epochs=2, batch_size=8)
    file = train(config, tmp_path / "run").checkpoint
    checkpoint = replace(read_checkpoint(file), epoch=0, step=0, optimizer={}, callbacks={})
    file.write_bytes(pack_checkpoint(checkpoint))
    return file.parent


def test_the_same_number_of_other_images_is_refused(firebox, started, tmp_path):
    image = min((tmp_path / "images" / "class1").iterdir())
    image.rename(tmp_path / "images" / "class0" / "moved.png")
    other = min((tmp_path / "images" / "class2").iterdir())
    shutil.copy(other, tmp_path / "images" / "class1" / "copied.png")
    other.unlink()
    outcome = firebox("train", "--resume", started)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "its classes or its images have changed" in outcome.err


def test_a_changed_bit_is_reported(firebox, started, tmp_path):
    file = started / "checkpoint.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 64
    file.write_bytes(data)
    for command in (("train", "--resume", started), ("evaluate", started, "--data", tmp_path / "images")):
        outcome = firebox(*command)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        assert "is damaged: its tensors do not match their digest; copy it again" in outcome.err


def test_only_one_process_trains_a_run(firebox, started, tmp_path):
    with claim(started):
        again = firebox("train", "--resume", started)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert f"another process is training in {started}" in again.err
    with claim(tmp_path / "new"):
        assert firebox("train", "--data", tmp_path / "images", "--out", tmp_path / "new").code == 2
    assert not (tmp_path / "new").exists()
    assert firebox("train", "--resume", started).code == 0


def test_an_older_checkpoint_is_resumed(started, tmp_path):
    """A checkpoint without teachers and hashes."""
    file = started / "checkpoint.safetensors"
    tensors, metadata = read_safetensors(file.read_bytes(), "")
    header = json.loads(metadata["firebox"])
    for name in ("tensors_sha256", "pictures_sha256", "teachers_sha256"):
        del header[name]
    del header["training"]["teachers"]
    file.write_bytes(safetensors.torch.save(tensors, {"firebox": json.dumps(header)}))
    (started / "log.csv").write_bytes(b"\xff\xfe")
    assert resume(started).epochs == 2


def test_another_number_of_processes_is_noted(started):
    text = (started / "config.json").read_text()
    (started / "config.json").write_text(text.replace('"processes": 1', '"processes": 2'))
    progress = Notes()
    resume(started, progress=progress)
    assert "was started with 2 processes and is resumed with 1" in "".join(progress.notes)


def test_tensorboard_reads_a_run_that_is_resumed_within_a_second(images, tmp_path):
    out = tmp_path / "run"
    with stopping_after_an_epoch():
        train(TrainingConfig(data=str(images), epochs=3, batch_size=4), out)
    (events,) = (out / "tensorboard").iterdir()
    # As if a process with a higher id had written them.
    events.rename(events.with_name(f"events.out.tfevents.{int(time.time())}.vm.~.0"))
    resume(out)
    assert epochs_on_tensorboard(out) == [1, 2, 3]


def test_a_run_killed_at_random_moments_resumes(images, tmp_path):
    out, moments = tmp_path / "killed", random.Random(0)
    config = TrainingConfig(data=str(images), epochs=27, batch_size=4, snapshots=3, ema=0.9, cutmix=1.0)
    # Processes that have imported torch but not computed anything.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["firebox.model_zoo.training.trainer", "torch._dynamo", "matplotlib.font_manager"])
    for kill in range(3):
        work = (resume, out) if kill else (train, config, out)
        # Each kill has its own range of epochs, and none comes after the last epoch.
        process = processes.Process(target=held_after, args=(9 * kill + 8, *work))
        process.start()
        wait_for_an_epoch(out / "log.csv", process)
        time.sleep(moments.random() / 4)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert read_checkpoint(out / "checkpoint.safetensors").epoch < config.epochs
    # As after a kill during a write.
    (out / ".log.csv.0123abcd.part").write_text("half")
    resumed = resume(out)
    uninterrupted = train(config, tmp_path / "uninterrupted")
    assert files_of(resumed) == files_of(uninterrupted)
    assert not list(out.rglob(".*"))
    # TensorBoard has each epoch once, though some were started twice.
    assert epochs_on_tensorboard(out) == list(range(1, config.epochs + 1))


def wait_for_an_epoch(log: Path, process: BaseProcess) -> None:
    """Wait until the log has a new row."""
    before = log.read_bytes() if log.exists() else b""
    wait_until(
        lambda: log.exists() and log.read_bytes() != before and log.read_bytes().count(b"\n") > 1,
        f"another epoch in {log}",
        process.is_alive,
    )
