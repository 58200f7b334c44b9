"""The installed package: the wheel's files, its types, its commands, and the public names of each package."""

import ast
import importlib
import inspect
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
from house import FLOORS, ROOT
from waiting import CEILING

# Packages with public names.
FACES = [
    "firebox",
    *sorted(
        "firebox." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in FLOORS
        for path in (ROOT / room).rglob("__init__.py")
        if "__all__" in path.read_text()
    ),
]

# `firebox demo` with less training, quantization and profiling.
SHORT_DEMO = """
import functools, sys
from firebox.model_zoo import demo
demo.TrainingConfig = functools.partial(demo.TrainingConfig, epochs=3)
demo.ExportConfig = functools.partial(demo.ExportConfig, effort="fast")
demo._PROFILE_SECONDS = 0.1
sys.argv = ["firebox", "demo", "--out", "demo", "--json"]
from firebox.runtime.commands.main import main
main()
"""


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=CEILING, check=False)
    assert ran.returncode == 0 or not check, ran.stdout + ran.stderr
    return ran


def sources() -> list[str]:
    """Files of the rooms and of src/ that are, or would be, committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "src", *FLOORS, cwd=ROOT).stdout.splitlines()
    return sorted(name for name in listed if (ROOT / name).is_symlink() or (ROOT / name).exists())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources so that no earlier build/ folder adds files to it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in (*sources(), "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, tree, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new virtual environment with the wheel; its other packages are those of the running environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_rooms(wheel):
    expected = {f"firebox/{name.removeprefix('src/firebox/')}" for name in sources() if not (ROOT / name).is_symlink()}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert "firebox/py.typed" in packed


def test_the_wheel_works_outside_of_the_repository(environment, exported, tmp_path):
    for command in ([environment / "firebox"], [environment / "python", "-m", "firebox"]):
        assert run(*command, "--version", cwd=tmp_path).stdout == "firebox, version 0.1.0\n"
        assert "squeezenet1_1" in run(*command, "models", cwd=tmp_path).stdout
    planned = run(environment / "firebox", "plan", exported / "model.int8.tflite", "--json", cwd=tmp_path)
    assert json.loads(planned.stdout)["arena_bytes"] > 0
    where = run(environment / "python", "-c", "import firebox; print(firebox.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(environment.parent)


def test_the_demo_runs_from_the_wheel(environment, tmp_path):
    ran = run(environment / "python", "-c", SHORT_DEMO, cwd=tmp_path, check=False)
    assert ran.returncode in (0, 3), ran.stderr
    assert {"training", "export", "evaluation", "profiles"} <= json.loads(ran.stdout).keys()


@pytest.mark.parametrize("installed", ["editable", "wheel"])
def test_type_checkers_see_the_types(installed, request, tmp_path):
    checker = Path(sys.executable).with_name("basedpyright")
    if not checker.exists():
        pytest.skip("basedpyright is not installed")
    python = sys.executable if installed == "editable" else request.getfixturevalue("environment") / "python"
    (tmp_path / "user.py").write_text(
        "import firebox\n"
        "from firebox import Session, plan\n"
        "from firebox.runtime import read_graph\n"
        "reveal_type(Session)\nreveal_type(plan('a.tflite').arena_bytes)\nreveal_type(read_graph('a.onnx'))\n"
        "reveal_type(firebox.__version__)\n"
        "from firebox import Sesion\n"
    )
    found = json.loads(
        run(checker, "--outputjson", "--pythonpath", python, "user.py", cwd=tmp_path, check=False).stdout
    )
    revealed = [entry["message"] for entry in found["generalDiagnostics"] if entry["severity"] == "information"]
    assert [text.rpartition(" is ")[2] for text in revealed] == ['"type[Session]"', '"int"', '"Graph"', '"str"']
    errors = [entry["message"] for entry in found["generalDiagnostics"] if entry["severity"] == "error"]
    assert errors == ['"Sesion" is unknown import symbol']


@pytest.mark.parametrize("name", FACES)
def test_public_names_are_listed_and_documented(name):
    package = importlib.import_module(name)
    listed = package.__all__
    assert len(listed) == len(set(listed))
    assert [entry for entry in listed if entry.startswith("_") and entry != "__version__"] == []
    for entry in listed:
        value = getattr(package, entry)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{name}.{entry} has no docstring"


@pytest.mark.parametrize("name", FACES)
def test_lazy_names_are_those_that_type_checkers_see(name):
    package = importlib.import_module(name)
    assert package.__file__ is not None
    seen = set()
    for block in ast.parse(Path(package.__file__).read_text()).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom)
                home = importlib.import_module("." * line.level + (line.module or ""), name)
                for alias in line.names:
                    seen.add(alias.name)
                    # A submodule of the same name, imported above, must not hide the public name.
                    assert getattr(package, alias.name) is getattr(home, alias.name)
    assert seen <= set(package.__all__)


def test_an_unknown_name_is_an_attribute_error():
    import firebox

    with pytest.raises(AttributeError, match="module 'firebox' has no attribute 'sesion'"):
        firebox.sesion  # noqa: B018
    assert {"Session", "__version__"} <= set(dir(firebox))
