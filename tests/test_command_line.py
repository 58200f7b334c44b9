"""The commands: their output on stdout and stderr, and their exit codes."""

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from commands import PROGRAM, run_apart
from PIL import Image

from firebox.export import Tolerance
from firebox.runtime.formats.read import read_graph

COMMANDS = sorted(entry_points(group="firebox.commands").names)


@pytest.fixture(scope="module")
def model(exported) -> Path:
    return exported / "model.int8.tflite"


@pytest.fixture(scope="module")
def image(noise) -> Path:
    return noise / "class1" / "0.png"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(command, name):
    ran = command(name, "--help")
    assert ran.code == 0
    assert "Example" in ran.out
    assert f"firebox {name}" in ran.out.partition("Example")[2]
    assert "--json" in ran.out
    assert ran.err == ""


def test_help_of_export_shows_the_default_tolerance(command):
    shown = " ".join(command("export", "--help").out.split())
    tolerance = Tolerance()
    assert f"the network's class. [default: {tolerance.agreement:g}]" in shown
    assert f"of int8, in dB. [default: {tolerance.sqnr_db:g}]" in shown


def test_the_command_itself():
    ran = run_apart("--help")
    assert ran.code == 0
    assert all(name in ran.out for name in COMMANDS)
    assert "Exit codes" in ran.out
    assert run_apart("-h").out == ran.out
    assert run_apart("--version").out.startswith("firebox, version ")
    unknown = run_apart("plann")
    assert unknown.code == 2
    assert "plann" in unknown.err
    script = Path(sys.executable).parent / "firebox"
    if script.exists():
        version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert version.stdout == run_apart("--version").out


def one_object(text: str) -> dict:
    """Standard output, which must be exactly one JSON object."""
    values = json.loads(text)
    assert isinstance(values, dict)
    return values


def test_plan_as_json_and_as_tables(command, model):
    values = one_object(command("plan", model, "--json").out)
    ends = [buffer["offset"] + buffer["nbytes"] for buffer in values["buffers"]]
    assert 0 <= values["arena_bytes"] - max(ends) < 16
    assert values["verdict"] is None
    people = command("plan", model)
    assert people.code == 0
    assert f"{values['arena_bytes']:,} bytes" in people.out
    assert values["peak"]["op"] in people.out


def test_tables_keep_names_whole_on_a_terminal_of_80_columns(model):
    names = [op.name for op in read_graph(model).ops]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    firebox = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen([*firebox, "plan", str(model)], stdout=theirs, env=os.environ | {"TERM": "dumb"}) as running:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux reports the closed end as an error.
            while part := os.read(ours, 1 << 16):
                shown += part
    os.close(ours)
    assert running.returncode == 0
    table = shown.decode().partition("Memory on")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert set(names) <= {word for line in table for word in line.split()}


def test_the_verdict_is_the_exit_code(model, exported):
    total = one_object(run_apart("plan", model, "--json").out)["total_bytes"]
    for budget, code in ((total, 0), (total - 1, 3)):
        ran = run_apart("plan", model, "--sram", budget, "--json")
        verdict = one_object(ran.out)["verdict"]
        assert (ran.code, verdict["fits"], verdict["margin_bytes"]) == (code, code == 0, budget - total)
    late = run_apart("plan", exported / "model.int8.onnx", "--sram", "1KiB")
    assert late.code == 3
    assert "does not fit 1.0 KiB" in late.out


def test_profile_measures_and_has_a_verdict(command, model):
    ran = command("profile", model, "--seconds", "0.2", "--json", "--sram", "16B")
    assert ran.code == 3
    values = one_object(ran.out)
    assert values["p50_ms"] > 0
    assert values["verdict"]["fits"] is False
    people = command("profile", model, "--seconds", "0.2", "--sram", "1GiB", "--backend", "tflite-runtime")
    assert people.code == 0
    assert "tflite-runtime" in people.out
    assert "fits 1,024.0 MiB" in people.out


def test_classify_prints_classes_and_scores(command, model, image):
    values = one_object(command("classify", model, image, "--top", "2", "--json").out)
    (answers,) = values.values()
    assert list(values) == [str(image)]
    assert [set(answer) for answer in answers] == [{"label", "index", "score"}] * 2
    assert answers[0]["label"] in command("classify", model, image).out


def test_evaluate_files_and_folders(command, exported, noise):
    ran = command("evaluate", exported, "--data", noise, "--backend", "all", "--json")
    values = one_object(ran.out)
    assert ran.code == 0
    assert values["images"] == 12
    # Two formats, two precisions; TFLite in two runtimes.
    assert len(values["models"]) == 6
    assert values["models"][0]["agreement_with_first"] == 1
    assert "top-1" in command("evaluate", exported / "model.int8.onnx", "--data", noise, "--images", "3").out


def test_export_of_weights_from_the_zoo(command, noise, tmp_path):
    import torch

    from firebox.model_zoo import create_model

    torch.save(create_model("squeezenet_micro", num_classes=3).state_dict(), tmp_path / "w.pth")
    options = ("squeezenet_micro", "--weights", tmp_path / "w.pth", "--calibrate", noise, "--images", 4)
    ran = command("export", *options, "--out", tmp_path / "out", "--min-agreement", "0", "--min-sqnr", "0", "--json")
    assert ran.code == 0, ran.err
    values = one_object(ran.out)
    assert values["name"] == "squeezenet_micro"
    assert Path(values["out"]) == tmp_path / "out"
    assert sorted(values["files"]) == sorted(path.name for path in (tmp_path / "out").glob("model.*"))
    assert values["checkpoint_sha256"]


def test_export_calibrates_with_the_images_that_a_run_was_trained_on(command, noise, tmp_path):
    from firebox.model_zoo import TrainingConfig, train

    config = TrainingConfig(data=str(noise), epochs=1, batch_size=4, images_per_class=2, input_size=(24, 24))
    train(config, tmp_path / "run")
    options = ("--effort", "fast", "--min-agreement", "0", "--min-sqnr", "0", "--json")
    ran = command("export", tmp_path / "run", "--out", tmp_path / "out", *options)
    assert ran.code == 0, ran.err
    assert one_object(ran.out)["calibration"]["images"] == 3 * config.images_per_class


def test_models_in_json(command):
    assert [entry["name"] for entry in one_object(command("models", "*micro", "--json").out)["models"]] == [
        "squeezenet_micro"
    ]


@pytest.mark.parametrize("size", ["512kb", "-1", "0", "", "0KiB", "abc", "1.5B"])
def test_invalid_sizes_are_usage_errors(command, model, size):
    for name in ("plan", "profile"):
        ran = command(name, model, f"--sram={size}")
        assert ran.code == 2, (name, size)
        assert ran.out == ""
        assert "error: size" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "none.tflite"), "no such file"),
        (("plan", "."), "ends neither"),
        (("plan", "model.pt"), "ends neither"),
        (("plan",), "Missing argument 'MODEL'"),
        (("profile", "none.onnx"), "no such file"),
        (("profile", "{model}", "--backend", "onnxruntime"), "does not run .tflite files"),
        (("profile", "{model}", "--backend", "tensorrt"), "is not one of"),
        (("profile", "{model}", "--threads", "0"), "threads is 0"),
        (("profile", "{model}", "--seconds", "0"), "time limit"),
        (("profile", "{model}", "--seconds", "nan"), "time limit"),
        (("classify", "{model}", "none.jpg"), "no such file"),
        (("classify", "{model}", "{image}", "--top", "0"), "top is 0"),
        (("classify", "{model}"), "Missing argument"),
        (("evaluate", "{model}", "--data", "nowhere"), "no such data"),
        (("evaluate", "squeezenet9", "--data", "digits"), "squeezenet9"),
        (("evaluate", "{model}", "--data", "digits", "--images", "0"), "a sample of 0"),
        (("export", "squeezenet9", "--calibrate", "digits"), "squeezenet9"),
        (
            ("export", "squeezenet1_1", "--calibrate", "digits"),
            "no weights for it; pass --weights imagenet, ",
        ),
        (("export", "squeezenet1_1", "--images", "0"), "0 calibration images"),
        (("models", "mobilenet*"), "no model matches"),
        (("demo", "--sram", "12kb"), "unknown unit"),
        (("demo", "--seed", "-1"), "-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_exit_code_2(command, model, image, tmp_path, arguments, said):
    ran = command(*(argument.format(model=model, image=image) for argument in arguments), cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert ran.out == ""
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_exit_code_1(command, model, exported, image, tmp_path):
    (tmp_path / "cut.tflite").write_bytes(model.read_bytes()[:3000])
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "text.tar").write_text("no archive")
    (tmp_path / "half.onnx").write_bytes((exported / "model.int8.onnx").read_bytes()[:5000])
    for arguments in (
        ("plan", "cut.tflite"),
        ("plan", "text.onnx"),
        ("plan", "half.onnx", "--json"),
        ("profile", "cut.tflite", "--json"),
        ("classify", "cut.tflite", image),
        ("classify", model, "text.jpg"),
        ("classify", model, image, "text.jpg", "--json"),
        ("evaluate", model, "--data", "text.tar", "--json"),
        ("evaluate", model, "--data", "digits"),
    ):
        ran = command(*arguments, cwd=tmp_path)
        assert ran.code == 1, (arguments, ran.err)
        assert ran.out == "", arguments
        # LiteRT logs its version to stderr.
        (line,) = [line for line in ran.err.splitlines() if not line.startswith("INFO: ")]
        assert line.startswith("error: ")


def test_a_closed_pipe_keeps_the_exit_code(model):
    command = f"{sys.executable} -c 'from firebox.runtime.commands.main import main; main()' plan {model} --sram 1KiB"
    ran = subprocess.run(
        ["bash", "-c", f"{command} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "3\n"
    assert ran.stderr == ""


def test_output_that_cannot_be_written_is_an_error(model):
    command = [sys.executable, "-c", PROGRAM, "plan", str(model), "--json"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert "no space left" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_exist(shell):
    script = Path(sys.executable).parent / "firebox"
    if not script.exists():
        pytest.skip("the firebox script is not installed next to this Python")
    environment = {"_FIREBOX_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([script], capture_output=True, text=True, check=False, env=environment)
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("no bash here")
    assert "_FIREBOX_COMPLETE" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_the_demo_runs_and_replaces_only_its_own_files(tmp_path, monkeypatch):
    from firebox.model_zoo import demo

    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    train = demo.train
    monkeypatch.setattr(demo, "train", lambda config, *a, **k: train(replace(config, epochs=4), *a, **k))
    monkeypatch.setattr(demo, "_PROFILE_SECONDS", 0.1)
    out = tmp_path / "demo"
    found = demo.run_demo(out, 256 * 1024)
    report = json.loads(found.report.read_text())
    assert {path.name for path in out.glob("model.*")} == set(report["export"]["files"])
    torch, *files = found.evaluations
    assert torch.top1 > 0.85
    assert all(result.agreement(torch) > 0.9 for result in files)
    assert all(measured.verdict is not None for measured in found.profiles)
    (out / "mine.txt").write_text("kept")
    (out / "training" / "mine.txt").write_text("kept")
    monkeypatch.setattr(demo, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out, 256 * 1024)
    assert [path.name for path in (out / "training").iterdir()] == ["mine.txt"]
    assert (out / "mine.txt").exists()


def test_images_of_every_kind_are_classified(command, model, tmp_path):
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (20, 30)).save(tmp_path / "print.jpg")
    Image.new("P", (16, 16)).save(tmp_path / "palette.gif")
    paths = sorted(tmp_path.iterdir())
    values = one_object(command("classify", model, *paths, "--json").out)
    assert list(values) == [str(path) for path in paths]


def test_only_regular_files_are_replaced(command, model, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("-o", pipe), ("-o", tmp_path / "page.html", "--csv", pipe)):
        ran = command("report", model, *arguments)
        assert (ran.code, ran.out) == (1, "")
        assert "not a regular file" in ran.err
    again = command("report", model, "-o", tmp_path / "page.html", "--csv", tmp_path / "." / "page.html")
    assert again.code == 2
    assert "are both" in again.err
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    images = command("evaluate", model, "--data", pipe)
    assert images.code == 1
    assert "neither a folder" in images.err


def test_a_name_with_a_line_break_is_escaped(command):
    ran = command("plan", "one\ntwo\x1b[31m.tflite")
    assert ran.code == 2
    assert ran.err == "error: no such file: one\\ntwo\\x1b[31m.tflite\n"


def test_a_closed_standard_output_keeps_the_exit_code(model):
    for name, expected in ((str(model), 3), ("none.tflite", 2)):
        shell = [sys.executable, "-c", PROGRAM, "plan", name, "--sram", "1B"]
        ran = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *shell], stderr=subprocess.PIPE, text=True, check=False)
        assert ran.returncode == expected, ran.stderr
        assert "Traceback" not in ran.stderr
