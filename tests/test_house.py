"""How the house is built: what may import what, what a board without torch has to load, and what tests may draw."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import CEILING

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"runtime": {"export", "model_zoo"}, "export": {"model_zoo"}, "model_zoo": set()}
FILES = [path for room in FORBIDDEN for path in sorted((ROOT / room).glob("*.py"))]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports from, at its head or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 2:
                names = [module.split(".")[0]] if module else [alias.name for alias in node.names]
            else:
                names = module.split(".")[1:2] if module.split(".")[0] == "firebox" else []
            rooms.update(names)
        elif isinstance(node, ast.Import):
            rooms.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("firebox."))
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_downwards_only(path):
    assert not imported_rooms(path) & FORBIDDEN[path.parent.name]


def test_the_check_sees_imports():
    assert imported_rooms(ROOT / "export" / "exporter.py") == {"runtime"}
    assert imported_rooms(ROOT / "model_zoo" / "demo.py") == {"runtime", "export"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter loads for some code."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CEILING)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


HEAVY = {"torch", "onnx", "onnxruntime", "ai_edge_litert", "tflite_runtime", "PIL", "rich", "sklearn", "flatbuffers"}
HEAVY |= {"bokeh"}


@pytest.mark.parametrize(
    "code",
    [
        "import firebox.runtime",
        "import firebox.runtime.commands.main",
        "import firebox.runtime.commands.options",
        "import firebox.runtime.commands.report, firebox.runtime.report.page, firebox.runtime.report.summary",
        "import firebox.export",
        "from firebox.runtime import plan, Session; from firebox.runtime.commands.main import firebox",
    ],
)
def test_importing_loads_nothing_heavy(code):
    loaded = loaded_by(code)
    assert "firebox" in loaded
    assert not loaded & HEAVY


def test_planning_a_tflite_file_takes_numpy_only(exported):
    model = str(exported / "model.int8.tflite")
    assert not loaded_by(f"from firebox.runtime import plan; plan({model!r}).to_json()") & HEAVY


def test_help_takes_no_torch():
    code = "import sys; sys.argv = ['firebox', '--help']; from firebox.runtime.commands.main import main\ntry: main()\nexcept SystemExit: pass"  # noqa: E501
    assert not loaded_by(code) & (HEAVY - {"rich"})


# Generators that the system seeds unless they are given a seed, and what has none.
SEEDED_BY_AN_ARGUMENT = {"default_rng", "Random", "RandomState", "SeedSequence", "PCG64", "MT19937", "Philox", "SFC64"}
WITHOUT_A_SEED = {"SystemRandom", "urandom", "getrandom", "token_bytes", "token_hex", "randbelow", "uuid1", "uuid4"}


def unseeded(source: str) -> list[int]:
    """Lines of a test that draw something else in every run; conftest.py seeds what the libraries share."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            bare = not node.args and not node.keywords
            # `torch.seed()` and `generator.seed()` take a seed of the system's; `random.seed(None)` does, too.
            nothing = bare or any(isinstance(value, ast.Constant) and value.value is None for value in node.args)
            if name in WITHOUT_A_SEED or (name in SEEDED_BY_AN_ARGUMENT | {"seed", "manual_seed"} and nothing):
                found.append(node.lineno)
    return found


# random_run.py draws a seed, and prints it.
DRAWING = sorted(path for path in ROOT.glob("tests/**/*.py") if path.name != "random_run.py")


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.name)
def test_tests_draw_nothing_without_a_seed(path):
    lines = unseeded(path.read_text())
    assert not lines, f"{path}: lines {lines} draw without a seed; give one"


def test_the_check_sees_what_has_no_seed():
    for line in ("np.random.default_rng()", "random.Random()", "torch.seed()", "random.seed(None)", "uuid4()"):
        assert unseeded(line) == [1]
    assert unseeded("np.random.default_rng(0), random.Random(seed), torch.manual_seed(3), torch.rand(3)") == []


def test_generators_that_are_shared_begin_anew_in_each_test():
    import random

    import numpy as np
    import torch

    shared = (random.random, np.random.random, lambda: torch.rand(1).item())
    drawn = [draw() for draw in shared]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    assert drawn == [draw() for draw in shared]
