"""The worked examples of docs/extending.md: their changes, applied to a copy of firebox, do what the page promises.

A block of code belongs to the file that the line before it names. A ``diff`` block changes the file: lines with a blank
or ``-`` in front must stand in it, once and in this order, and lines with ``+`` are added. A ``python`` block of a file
marked "(new)" is the file. What follows "Result:" runs in a process that imports the copy, and nothing but the files
that the section names differs from firebox.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from waiting import CEILING

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
ROOMS = ("runtime", "export", "model_zoo", "src")
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n\n```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"`(?P<file>[\w/.]+)`(?P<new> \(new\))?:$")


@dataclass
class Section:
    """The changes of one worked example by file, and the code and commands that show its result."""

    diffs: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    results: list[tuple[str, str]] = field(default_factory=list)


def read_sections() -> dict[str, Section]:
    sections = {}
    for text in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = sections[text.splitlines()[0]] = Section()
        for block in BLOCK.finditer(text):
            target = TARGET.search(block["before"])
            if target and block["language"] == "diff":
                section.diffs[target["file"]] = block["code"]
            elif target:
                assert target["new"], f"{target['file']} is neither a diff nor marked (new)"
                section.new[target["file"]] = block["code"]
            else:
                assert block["before"].startswith("Result"), (
                    f"no file is named before the block after {block['before']!r}"
                )
                section.results.append((block["language"], block["code"]))
    return sections


SECTIONS = read_sections()


def apply_diff(text: str, diff: str) -> str:
    """The text with all parts of a diff applied; each part must match it in exactly one place."""
    for part in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = [(line[:1] or " ", line[1:]) for line in part.splitlines()]
        old = "".join(f"{line}\n" for mark, line in lines if mark != "+")
        new = "".join(f"{line}\n" for mark, line in lines if mark != "-")
        assert old, "a part of a diff needs a line that is in the file"
        assert f"\n{text}".count(f"\n{old}") == 1, f"these lines are not once in the file:\n{old}"
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}", 1)[1:]
    return text


def copy_with(section: Section, folder: Path) -> Path:
    """A copy of the three rooms with the changes of a section, installed as a folder on Python's path."""
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / room, folder / room, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file, code in section.new.items():
        assert not (folder / file).exists(), f"{file} exists already"
        (folder / file).write_text(code, encoding="utf-8")
    for file, diff in section.diffs.items():
        path = folder / file
        path.write_text(apply_diff(path.read_text(encoding="utf-8"), diff), encoding="utf-8")
    install(folder)
    return folder / "src"


def install(folder: Path) -> None:
    """The metadata that pip writes, which the command line finds its commands by."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "src" / f"firebox-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: firebox\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["firebox.commands"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[firebox.commands]", *lines, ""]))


def run(source: Path, arguments: list[str], folder: Path) -> str:
    """Standard output of Python with the copy of firebox."""
    environment = os.environ | {"PYTHONPATH": str(source)}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=CEILING,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_results(section: Section, source: Path, folder: Path) -> str:
    """The output of all code and commands that show a section's result."""
    out = ""
    for language, code in section.results:
        if language == "python":
            out += run(source, ["-c", code], folder)
            continue
        for line in code.splitlines():
            prompt, program, *arguments = shlex.split(line)
            assert (prompt, program) == ("$", "firebox")
            out += run(source, ["-m", "firebox", *arguments], folder)
    return out


# A line that the result of each section prints.
PRINTED = {
    "An operation": r"^\d+ bytes of SRAM$",
    "A backend": r"^tflite-micro [\d.a-z]+ golden check: passed$",
    "A target": r"Memory on ping-pong[\s\S]*--target \[[^]]*ping-pong",
    "A network": r"^\d+ parameters in 4 files$",
    "A calibration method": r"^\d+ of \d+ ranges are narrower than minmax$",
    "A command": r"^  macs  .*Print the multiply-accumulates of MODEL",
}


def test_the_page_explains_what_is_tested():
    assert set(SECTIONS) == set(PRINTED)
    assert all(section.results and (section.diffs or section.new) for section in SECTIONS.values())
    text = PAGE.read_text(encoding="utf-8")
    blocks = sum(len([*section.diffs, *section.new, *section.results]) for section in SECTIONS.values())
    assert 2 * blocks == len(re.findall(r"^```", text, re.MULTILINE)), "a block is not part of any example"


@pytest.mark.parametrize("name", SECTIONS)
def test_the_changes_of_a_section_are_enough(name, tmp_path, exported):
    section = SECTIONS[name]
    source = copy_with(section, tmp_path / "firebox")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(exported / "model.int8.tflite", work)
    assert re.search(PRINTED[name], run_results(section, source, work), re.MULTILINE)
