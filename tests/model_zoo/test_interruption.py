"""Trainings in processes of their own, stopped by signals and full disks."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import CEILING, wait_until

from firebox.model_zoo import TrainingConfig, load_network, resume, train

# Processes started in the background ignore SIGINT; this restores the handler of a terminal session.
PROGRAM = """
import signal
from firebox.runtime.commands.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
COMMAND = [sys.executable, "-c", PROGRAM, "train"]
# The training waits before its last epoch, so that it cannot finish before a busy machine sends the signal.
HELD = f"""
import sys
sys.path.append({str(Path(__file__).parents[1] / "support")!r})
from waiting import hold_after
hold_after(19)
{PROGRAM}"""
HELD_COMMAND = [sys.executable, "-c", HELD, "train"]


def options(images: Path, out: Path) -> list[str]:
    return ["--data", str(images), "--out", str(out), "--epochs", "20", "--batch-size", "4"]


def wait_for_epochs(log: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    wait_until(
        lambda: log.exists() and len(log.read_text().splitlines()) > epochs,
        f"{epochs} epochs in {log}",
        lambda: process.poll() is None,
    )


def test_ctrl_c_and_resume_give_the_weights_of_an_uninterrupted_run(images, tmp_path):
    out = tmp_path / "interrupted"
    with subprocess.Popen([*HELD_COMMAND, *options(images, out)], stderr=subprocess.PIPE, text=True) as process:
        wait_for_epochs(out / "log.csv", 2, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=CEILING)
    assert process.returncode == 130
    assert f"resume with: firebox train --resume {out}" in err
    assert err.endswith("error: interrupted\n")
    assert "Traceback" not in err
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.safetensors",
        "config.json",
        "curves.png",
        "log.csv",
        "tensorboard",
    }
    load_network(out)

    # As after a stop between writing the log and writing the checkpoint.
    with (out / "log.csv").open("a") as log:
        log.write("19,1,0.1,9,0,0,1\n")
    resumed = resume(out)
    config = TrainingConfig(data=str(images), epochs=20, batch_size=4)
    uninterrupted = train(config, tmp_path / "uninterrupted")
    assert resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
    with (out / "log.csv").open() as log:
        assert [int(row["epoch"]) for row in csv.DictReader(log)] == list(range(1, 21))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups, which Ctrl-C signals")
@pytest.mark.parametrize("attempt", range(3))
def test_ctrl_c_ends_the_processes_that_decode_images(images, tmp_path, attempt):
    out = tmp_path / "run"
    command = [*HELD_COMMAND, *options(images, out), "--memory", "1", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for_epochs(out / "log.csv", 1, process)
        # A different moment in each attempt.
        time.sleep(0.05 * attempt)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=CEILING)
    assert process.returncode == 130, err
    assert err.count("error: interrupted") == 1
    assert f"resume with: firebox train --resume {out}" in err
    assert "Traceback" not in err and "Exception" not in err


@pytest.mark.parametrize("limit", [100_000, 500_000], ids=["at the start", "after an epoch"])
def test_a_full_disk_leaves_complete_files_or_none(images, tmp_path, limit):
    out = tmp_path / "full"
    process = subprocess.run(
        [*COMMAND, *options(images, out)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=CEILING,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 1
    assert "no space left" in process.stderr
    assert "Traceback" not in process.stderr
    if limit < 360_000:
        assert not out.exists()
    else:
        # The first checkpoint fits, because it has no momentum yet.
        assert not list(out.glob(".*"))
        load_network(out)
