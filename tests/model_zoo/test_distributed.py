"""Training in several processes, as torchrun starts them."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import PROGRAM
from waiting import CEILING

from firebox.model_zoo import load_network
from firebox.model_zoo.weights import read_checkpoint
from firebox.runtime.commands import console
from firebox.runtime.commands.main import main

# Excludes batch norm, whose statistics differ by process, and augmentation, which processes draw independently.
EQUAL = ("--set", "batch_norm=false", "--augment", "none", "--precision", "float32")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def work(rank: int, port: int, folder: Path, mishap: str, arguments: list[str]) -> None:
    """One of two processes of the command, with torchrun's environment; stdout and stderr go to files.

    ``RANK`` in an argument is replaced by the rank of the process. ``mishap`` is a fault to inject.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    console._LOG_INTERVAL = math.inf
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), stream)
    if mishap == "elsewhere":
        os.chdir(folder / str(rank))
    elif mishap and rank == 1:
        from firebox.model_zoo.training.learner import Learner

        accumulate = Learner._accumulate

        def fail(learner, *arguments, **more):
            if learner.state.step == 4 and mishap == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if learner.state.step == 4:
                next(iter(learner.module.parameters())).data.fill_(math.nan)
            return accumulate(learner, *arguments, **more)

        Learner._accumulate = fail
    sys.argv = ["firebox", *(argument.replace("RANK", str(rank)) for argument in arguments)]
    main()


def free_port() -> int:
    """A port that is not in use and that neither the system nor a test in another process will assign.

    It lies below the range of ephemeral ports; each process searches from a start of its own.
    """
    for port in (20_000 + (os.getpid() * 10 + offset) % 10_000 for offset in range(1000)):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def together(folder: Path, *arguments: object, mishap: str = "") -> list[Result]:
    """The exit codes and output of the two processes of a command."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    # Processes that have imported torch but not computed anything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["firebox.model_zoo.training.trainer", "torch._dynamo", "matplotlib.font_manager"])
    command = [*map(str, arguments)]
    processes = [context.Process(target=work, args=(rank, port, folder, mishap, command)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(CEILING)
            assert process.exitcode is not None, "a process did not end"
    finally:
        for process in processes:
            process.kill()
    texts = [[(folder / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(2)]
    assert not any("Traceback" in text for pair in texts for text in pair), texts
    return [Result(int(process.exitcode or 0), *pair) for process, pair in zip(processes, texts, strict=True)]


def test_two_processes_reach_the_weights_of_one(firebox, images, tmp_path):
    more = ("--freezeout", "linear", "--freeze-first", 0.25, "--accumulation", 2, "--ema", 0.9)
    options = ("train", "--data", images, "--epochs", 3, "--batch-size", 4, *EQUAL, *more, "--json")
    first, second = together(tmp_path / "output", *options, "--out", tmp_path / "two")
    assert (first.code, second.code) == (0, 0)
    assert (second.out, second.err) == ("", "")
    found = json.loads(first.out)
    alone = json.loads(firebox(*options, "--out", tmp_path / "one").out)
    assert (found["steps"], found["predicted_saving"]) == (alone["steps"], alone["predicted_saving"])
    for name in ("train_loss", "train_accuracy", "val_accuracy"):
        assert found[name] == pytest.approx(alone[name], rel=1e-4), name
    two, one = (read_checkpoint(Path(each["checkpoint"])) for each in (found, alone))
    for group in ("weights", "learning", "optimizer"):
        theirs, ours = getattr(two, group), getattr(one, group)
        assert theirs.keys() == ours.keys()
        assert all(torch.allclose(tensor, ours[name], rtol=1e-3, atol=1e-5) for name, tensor in theirs.items())
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2


def test_a_nan_loss_in_one_process_ends_all(images, tmp_path):
    out = tmp_path / "run"
    options = ("train", "--data", images, "--epochs", 5, "--batch-size", 4, "--out", out)
    for result in together(tmp_path / "output", *options, mishap="nan"):
        assert result.code == 1
        assert "the loss is nan at step 4" in result.err
    assert read_checkpoint(out / "checkpoint.safetensors").epoch == 1


def test_a_killed_process_ends_all(images, tmp_path):
    out = tmp_path / "run"
    options = ("train", "--data", images, "--epochs", 5, "--batch-size", 4, "--out", out)
    first, second = together(tmp_path / "output", *options, mishap="killed")
    assert second.code == -signal.SIGKILL
    assert (first.code, first.err.count("\n")) == (1, 1)
    assert "another training process exited" in first.err
    assert read_checkpoint(out / "checkpoint.safetensors").epoch == 1


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(images, tmp_path):
    out = tmp_path / "run"
    for result in together(tmp_path / "output", "train", "--data", images, "--batch-size", 5, "--out", out):
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "2 processes cannot share a batch of 5 images equally" in result.err
    assert not out.exists()


def test_processes_with_different_images_are_refused(images, tmp_path):
    out, output = tmp_path / "run", tmp_path / "output"
    for rank in ("0", "1"):
        shutil.copytree(images, output / rank / "images")
    image = output / "1" / "images" / "class0" / "0.png"
    image.rename(image.with_name("other.png"))
    options = ("train", "--data", "images", "--epochs", 2, "--batch-size", 4, "--out", out)
    for each in together(output, *options, mishap="elsewhere"):
        assert (each.code, each.err.count("\n")) == (2, 1)
        assert "the processes would train different networks; give all of them the same images" in each.err
    assert not out.exists()


def test_paths_may_differ_between_processes(trained, images, tmp_path):
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        shutil.copy(trained.checkpoint, tmp_path / rank / "start.safetensors")
        shutil.copytree(images, tmp_path / rank / "images")
    files = ("--data", tmp_path / "RANK" / "images", "--start", tmp_path / "RANK" / "start.safetensors")
    options = ("train", *files, "--epochs", 1, "--batch-size", 4, "--out", tmp_path / "run")
    assert [result.code for result in together(tmp_path / "output", *options)] == [0, 0]


def test_torchrun_starts_the_command(images, tmp_path):
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    options = ["--data", str(images), "--epochs", "2", "--batch-size", "4", "--out", str(out), "--json"]
    ran = subprocess.run(
        [*torchrun, sys.executable, "-c", PROGRAM, "train", *options],
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["epochs"] == 2
    load_network(out)
