"""Structure: the direction of imports, the packages that imports load, and the seeds of tests."""

import ast
import re
import subprocess
import sys

import draw_house
import pytest
from house import FLOORS, ROOT, circles, imports, misplaced, modules, upward
from waiting import CEILING


def test_every_sub_room_has_its_floor():
    assert misplaced(ROOT, FLOORS) == []


def test_imports_run_downwards_only():
    assert upward(imports(ROOT, list(FLOORS)), FLOORS) == []


def test_rooms_import_each_other_by_relative_names():
    files = modules(ROOT, list(FLOORS)).values()
    absolute = re.compile(r"^\s*(from|import) firebox\b", re.MULTILINE)
    assert [str(path) for path in files if absolute.search(path.read_text())] == []


def test_the_drawing_shows_the_floors_as_they_are():
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == draw_house.draw(), (
        "run: python tests/support/draw_house.py docs/architecture.svg"
    )


def test_no_modules_import_each_other_in_a_circle():
    assert circles(imports(ROOT, list(FLOORS))) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("low/here.py", "from ..high.there import x"),
        ("low/here.py", "def lazily():\n    from ..high import there"),
        ("low/here.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..high.there import X"),
        ("low/here.py", "from firebox.ground.high.there import x"),
        ("low/here.py", "import firebox.ground.high.there"),
        ("low/here.py", "from ..high import anything"),
        ("low/here.py", "from ... import above"),
        ("low/here.py", "from ...above.any import x"),
        ("low/here.py", "from ..beside.there import x"),
        ("low/deeper/here.py", "from ...high.there import x"),
        ("high/there.py", "from .. import x"),
        ("high/there.py", "from ..commands import run"),
    ],
)
def test_the_check_finds_imports_upward(tmp_path, path, source):
    floors = {"ground": [{"low", "beside"}, {"high"}, {"commands"}], "above": [{"any"}]}
    for module in (
        "ground",
        "ground/low",
        "ground/low/deeper",
        "ground/beside",
        "ground/high",
        "ground/commands",
        "above",
    ):
        (tmp_path / module).mkdir(parents=True)
        (tmp_path / module / "__init__.py").write_text("")
    for module in ("ground/low/here", "ground/beside/there", "ground/high/there", "ground/commands/run", "above/any"):
        (tmp_path / f"{module}.py").write_text("from . import x\n" if "low" in module else "")
    assert misplaced(tmp_path, floors) == []
    assert upward(imports(tmp_path, list(floors)), floors) == []
    (tmp_path / "ground" / path).write_text(source)
    assert len(upward(imports(tmp_path, list(floors)), floors)) == 1
    (tmp_path / "ground" / "new.py").write_text("")
    assert misplaced(tmp_path, floors) == ["ground/new has no floor"]


@pytest.mark.parametrize("back", ["from .a import x", "def lazily():\n    from . import a", "from . import face"])
def test_the_check_finds_circles(tmp_path, back):
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("from .a import face")
    (room / "a.py").write_text("from .b import x")
    (room / "b.py").write_text("import ast")
    assert circles(imports(tmp_path, ["room"])) == []
    (room / "b.py").write_text(back)
    assert circles(imports(tmp_path, ["room"]))


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a new interpreter imports when it runs some code."""
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
def test_imports_load_no_heavy_package(code):
    loaded = loaded_by(code)
    assert "firebox" in loaded
    assert not loaded & HEAVY


def test_planning_a_tflite_file_needs_numpy_only(exported):
    model = str(exported / "model.int8.tflite")
    assert not loaded_by(f"from firebox.runtime import plan; plan({model!r}).to_json()") & HEAVY


def test_help_loads_no_torch():
    code = "import sys; sys.argv = ['firebox', '--help']; from firebox.runtime.commands.main import main\ntry: main()\nexcept SystemExit: pass"  # noqa: E501
    assert not loaded_by(code) & (HEAVY - {"rich"})


# Generators that the system seeds unless an argument does, and sources that cannot be seeded.
SEEDED_BY_AN_ARGUMENT = {"default_rng", "Random", "RandomState", "SeedSequence", "PCG64", "MT19937", "Philox", "SFC64"}
WITHOUT_A_SEED = {"SystemRandom", "urandom", "getrandom", "token_bytes", "token_hex", "randbelow", "uuid1", "uuid4"}


def unseeded(source: str) -> list[int]:
    """Lines of a test that draw other values in each run; conftest.py seeds the shared generators."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            bare = not node.args and not node.keywords
            # `torch.seed()`, `generator.seed()` and `random.seed(None)` take their seed from the system.
            nothing = bare or any(isinstance(value, ast.Constant) and value.value is None for value in node.args)
            if name in WITHOUT_A_SEED or (name in SEEDED_BY_AN_ARGUMENT | {"seed", "manual_seed"} and nothing):
                found.append(node.lineno)
    return found


# random_run.py draws a seed and prints it.
DRAWING = sorted(path for path in ROOT.glob("tests/**/*.py") if path.name != "random_run.py")


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.name)
def test_tests_seed_their_generators(path):
    lines = unseeded(path.read_text())
    assert not lines, f"{path}: lines {lines} draw without a seed; pass one"


def test_the_check_finds_generators_without_a_seed():
    for line in ("np.random.default_rng()", "random.Random()", "torch.seed()", "random.seed(None)", "uuid4()"):
        assert unseeded(line) == [1]
    assert unseeded("np.random.default_rng(0), random.Random(seed), torch.manual_seed(3), torch.rand(3)") == []


def test_shared_generators_are_reset_before_each_test():
    import random

    import numpy as np
    import torch

    shared = (random.random, np.random.random, lambda: torch.rand(1).item())
    drawn = [draw() for draw in shared]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    assert drawn == [draw() for draw in shared]
