"""How the house is built: what may import what, and what a board without torch has to load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


HEAVY = {"torch", "onnx", "onnxruntime", "ai_edge_litert", "tflite_runtime", "PIL", "rich", "sklearn", "flatbuffers"}
HEAVY |= {"bokeh"}


@pytest.mark.parametrize(
    "code",
    [
        "import firebox.runtime",
        "import firebox.runtime.main",
        "import firebox.runtime.cli",
        "import firebox.runtime.report_cli, firebox.runtime.report, firebox.runtime.summary",
        "import firebox.export",
        "from firebox.runtime import plan, Session; from firebox.runtime.main import firebox",
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
    code = "import sys; sys.argv = ['firebox', '--help']; from firebox.runtime.main import main\ntry: main()\nexcept SystemExit: pass"  # noqa: E501
    assert not loaded_by(code) & (HEAVY - {"rich"})
