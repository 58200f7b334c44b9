"""What people see: tables, progress and the one JSON object that programs get. rich is loaded when first needed."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

# Seconds between the lines that stand in for a progress bar where stderr is not a terminal.
_LOG_INTERVAL = 15.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def print_json(values: Any) -> None:
    """One JSON object on stdout."""
    say(json.dumps(values, indent=2, allow_nan=False))


def say(text: str) -> None:
    """Text on stdout. A reader that has gone (``head``, ``less``) is no failure: the verdict is still to be given."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def note(text: str) -> None:
    """A line for people, on stderr so that stdout stays for results."""
    click.echo(text, err=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; columns of figures are aligned to the right."""
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
        # Headings fold first and columns move together, so that names stay whole.
        for column in view.columns[1:]:
            column.header = str(column.header).replace(" ", "\n")
        if too_wide():
            view.padding = 0
    console.print(view)


@contextmanager
def progress(description: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left on stderr; yields ``advance(steps=1, text="")``.

    Where stderr is not a terminal, a line every few seconds instead; ``quiet`` shows nothing.
    """
    if quiet:
        yield lambda steps=1, text="": None
    elif sys.stderr.isatty():
        with _bar(description, total) as advance:
            yield advance
    else:
        yield _log(description, total)


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:,.1f}/s" if task.speed else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=_console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(description, total=total, text="")

        def advance(steps: int = 1, text: str = "") -> None:
            fields: dict[str, Any] = {"text": text} if text else {}
            bar.update(task, advance=steps, **fields)

        yield advance


def _log(description: str, total: int | None) -> Callable[..., None]:
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

    # Piped output is not folded to 80 columns: a table that is grepped keeps its rows on one line.
    stream = sys.stderr if stderr else sys.stdout
    return Patient(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _style(cell: str) -> str:
    if cell.startswith("fits"):
        return "green"
    return "bold red" if cell.startswith("does not fit") else ""
