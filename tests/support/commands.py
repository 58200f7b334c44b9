"""Runs of the command line: exit code, standard output and standard error."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import pytest
from waiting import CEILING, QUIET

from firebox.runtime.commands.main import main

# The command for a separate process of the same Python.
PROGRAM = f"{QUIET}; from firebox.runtime.commands.main import main; main()"


@dataclass(frozen=True)
class Ran:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def run_here(*arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Ran:
    """Run ``firebox ...`` in this process; output that libraries write past Python is captured, too."""
    with pytest.MonkeyPatch.context() as patch, _caught(patch, 1, "stdout") as out, _caught(patch, 2, "stderr") as err:
        patch.setattr(sys, "argv", ["firebox", *map(str, arguments)])
        # click derives the program name from this attribute; it would be `python -m pytest`.
        patch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as exit:
            main()
        _flush()
        return Ran(int(exit.value.code or 0), _read(out), _read(err))


def run_apart(*arguments: object) -> Ran:
    """Run ``firebox ...`` in a separate process and assert that it prints no traceback."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@contextmanager
def _caught(patch: pytest.MonkeyPatch, descriptor: int, name: str) -> Iterator[BinaryIO]:
    """Capture output to a file descriptor, from Python's stream of that name and from libraries."""
    _flush()
    before = os.dup(descriptor)
    with TemporaryFile() as file, open(descriptor, "w", closefd=False, encoding="utf-8") as stream:
        os.dup2(file.fileno(), descriptor)
        try:
            with patch.context() as within:
                within.setattr(sys, name, stream)
                yield file
        finally:
            stream.flush()
            _flush()
            os.dup2(before, descriptor)
            os.close(before)


def _flush() -> None:
    """Flush the buffers of Python and of C."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def _read(file: BinaryIO) -> str:
    file.seek(0)
    # subprocess normalizes line ends in text mode in the same way.
    return file.read().decode().replace("\r\n", "\n")
