"""Output of the commands: tables, progress and JSON. rich is loaded on first use."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..progress import SILENT, Advance, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

# Seconds between progress lines if stderr is not a terminal.
_LOG_INTERVAL = 15.0


def print_json(values: Any) -> None:
    """Print one JSON object on stdout."""
    say(json.dumps(values, indent=2, allow_nan=False))


def say(text: str) -> None:
    """Print text on stdout. A closed pipe (``head``, ``less``) is not an error: the exit code still is the verdict."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def note(text: str) -> None:
    """Print a line on stderr, so that stdout holds only results."""
    click.echo(text, err=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout; columns of figures are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = list(rows)
    for index, column in enumerate(columns):
        figures = index > 0 and all(row[index].lstrip("+-")[:1].isdigit() or row[index] in ("", "-") for row in rows)
        view.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console = _console()

    def too_wide() -> bool:
        return console.measure(view, options=console.options.update(width=sys.maxsize)).maximum > console.width

    if too_wide():
        # Fold headings and remove padding, so that names stay on one line.
        for column in view.columns[1:]:
            column.header = str(column.header).replace(" ", "\n")
        if too_wide():
            view.padding = 0
    console.print(view)


class TerminalProgress(Progress):
    """Progress bars with rate and remaining time on stderr, or a line every few seconds if it is not a terminal."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._open = 0

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar, or lines."""
        if not sys.stderr.isatty():
            yield _log(description, total)
            return
        # rich supports one live display: the outermost task opens it, nested tasks add their bars.
        self._bars = self._bars or _bars()
        self._open += 1
        if self._open == 1:
            self._bars.start()
        task = self._bars.add_task(description, total=total, text="")

        def advance(steps: int = 1, text: str = "") -> None:
            fields: dict[str, Any] = {"text": text} if text else {}
            assert self._bars is not None
            self._bars.update(task, advance=steps, **fields)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
            self._open -= 1
            if not self._open:
                self._bars.stop()
                self._bars = None

    def note(self, text: str) -> None:
        """Print a line on stderr, above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            note(text)


def progress_unless(silent: bool) -> Progress:
    """Progress of a command; none if ``silent`` (with ``--json``)."""
    return SILENT if silent else TerminalProgress()


def _bars() -> "Bars":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:,.1f}/s" if task.speed else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Bars(*columns, TextColumn("{task.fields[text]}"), console=_console(stderr=True), transient=True)


def _log(description: str, total: int | None) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(steps: int = 1, text: str = "") -> None:
        nonlocal last, done
        done += steps
        now = time.monotonic()
        if now - last >= _LOG_INTERVAL:
            last = now
            rate = done / (now - start)
            left = f", {(total - done) / rate:,.0f} s left" if total else ""
            note(f"{description}: {done}/{total or '?'} ({rate:,.1f}/s{left}) {text}".rstrip())

    return advance


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            _close_stdout()

    # Piped output is not folded to 80 columns, so that grep finds whole rows.
    stream = sys.stderr if stderr else sys.stdout
    return Patient(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _style(cell: str) -> str:
    if cell.startswith("fits"):
        return "green"
    if cell.startswith("undecided"):
        return "yellow"
    return "bold red" if cell.startswith("does not fit") else ""
