"""The scripts in examples/ run as they are, and the tour opens as a notebook."""

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from waiting import CEILING

from firebox import Session

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object, cwd: Path) -> str:
    """Standard output of a script, run as users run it."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=CEILING, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_tour_runs_from_training_to_an_ensemble(tmp_path):
    out = run("tour.py", cwd=tmp_path)
    assert re.search(r"does not fit 24.0 KiB.*\n.*\nfits 24.0 KiB", out)
    accuracies = {name.strip(): float(share) for name, share in re.findall(r"^(.{10}) ([\d.]+)%$", out, re.MULTILINE)}
    assert set(accuracies) == {"1 onnx", "1 tflite", "2 onnx", "2 tflite", "ensemble"}
    assert min(accuracies["2 tflite"], accuracies["ensemble"]) > 80
    assert {path.name for path in (tmp_path / "build" / "tour").iterdir()} == {
        "run", "snapshot1", "snapshot2", "fitted"
    }  # fmt: skip


def test_the_tour_is_made_of_cells():
    """Percent format: every line belongs to a cell, text cells hold comments only and alternate with code."""
    cells = re.split(r"^# %%", (EXAMPLES / "tour.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert cells[0] == ""
    text = [cell.startswith(" [markdown]\n") for cell in cells[1:]]
    assert text == [True, False] * (len(text) // 2)
    for is_text, cell in zip(text, cells[1:], strict=True):
        lines = cell.splitlines()[1:]
        assert not is_text or all(line.startswith("#") for line in lines if line)
        compile("\n".join(lines), "cell", "exec")


@pytest.fixture(scope="module")
def url(exported):
    spec = spec_from_file_location("backend", EXAMPLES / "backend.py")
    assert spec is not None and spec.loader is not None
    backend = module_from_spec(spec)
    spec.loader.exec_module(backend)
    with Session(exported / "model.int8.tflite") as session:
        server = backend.make_server(session, port=0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(CEILING)
        server.server_close()


def answer(url: str, data: bytes | None = None) -> tuple[int, dict]:
    """Status and JSON body."""
    try:
        with urllib.request.urlopen(url, data, timeout=CEILING) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def photo() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def test_the_backend_classifies_like_a_session(url, exported):
    status, found = answer(f"{url}/classify?top=2", photo())
    with Session(exported / "model.int8.tflite") as session:
        expected = [vars(prediction) for prediction in session.classify(photo(), top=2)]
    assert (status, found) == (200, {"classes": expected})
    assert answer(f"{url}/health")[1]["backend"] == "litert"


@pytest.mark.parametrize(
    ("path", "data", "status", "error"),
    [
        ("/classify", b"no image", 400, "not an image"),
        ("/classify?top=0", photo(), 400, "top is 0"),
        ("/classify?top=x", photo(), 400, "top is 'x'"),
        ("/classify", b"", 413, "send 1 to"),
        ("/other", photo(), 404, "POST /classify"),
        ("/", None, 404, "GET /health"),
    ],
)
def test_the_backend_reports_bad_requests_in_one_line(url, path, data, status, error):
    found, body = answer(url + path, data)
    assert found == status and error in body["error"] and "\n" not in body["error"]


def test_the_board_script_measures_and_checks(tmp_path, exported):
    model = exported / "model.int8.tflite"
    out = run("board.py", model, "--sram", "256KiB", "--seconds", "0.2", cwd=tmp_path)
    assert "golden check passed" in out
    found = json.loads((tmp_path / "board.json").read_text())["files"]["model.int8.tflite"]
    assert found["plan"]["arena_bytes"] > 0 and found["profiles"][0]["verdict"]["fits"]
