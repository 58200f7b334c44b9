"""The ``firebox`` command: it collects the rooms' commands and turns errors into one line and an exit code."""

import os
import sys
import warnings
from importlib.metadata import entry_points, version
from pathlib import Path

import click

from ..errors import FireboxError, WrongAnswerWarning
from ..files import reason

# 128 + SIGINT, as shells report it.
_INTERRUPTED = 130
_python_shows = warnings.showwarning


class _Commands(click.Group):
    """The commands of the entry-point group ``firebox.commands``, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry_points(group="firebox.commands").names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = entry_points(group="firebox.commands", name=cmd_name)
        return next(iter(found)).load() if found else None


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("firebox"), prog_name="firebox")
def firebox() -> None:
    """Train compact SqueezeNets, export them as int8 ONNX and TFLite, plan their memory, run and measure them.

    \b
    Example:
      firebox demo                                   the whole way on real scans of digits
      firebox plan model.int8.tflite --sram 256KiB   does it fit?

    \b
    Exit codes: 0 fine or fits, 1 failed, 2 bad usage, 3 does not fit, 4 undecided.
    Tab completion: eval "$(_FIREBOX_COMPLETE=bash_source firebox)"   (or zsh_source, fish_source)
    """


def main() -> None:
    """Run the command line; errors end as one line on stderr and the exit code of their kind."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed before the start (``>&-``): nobody listens, but the verdict is still to be given.
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    warnings.showwarning = _show_warning
    try:
        code = firebox(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except FireboxError as error:
        _complain(str(error))
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("stopped")
        code = _INTERRUPTED
    except OSError as error:
        _complain(f"cannot use {error.filename or 'the output'}: {reason(error)}")
        code = FireboxError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + _line(text), err=True)


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    """firebox's own warnings as one line; others as Python shows them."""
    if issubclass(category, WrongAnswerWarning):
        click.echo(click.style("warning: ", fg="yellow", bold=True) + _line(str(message)), err=True)
    else:
        _python_shows(message, category, *where)  # pyright: ignore[reportArgumentType]


def _line(text: str) -> str:
    # Names of files and tensors may hold line ends and control characters.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
