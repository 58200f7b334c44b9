"""The ``firebox`` command: collects the commands of the rooms, and turns errors into one line and an exit code."""

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
# Characters of a command's description in ``firebox --help``.
_HELP_WIDTH = 88


# Sections of ``firebox --help``; commands of other packages follow under the last heading.
_SECTIONS = {
    "Get started": ("demo",),
    "Train": ("models", "recipes", "train", "average", "evaluate"),
    "Export": ("export", "fit", "compile", "blame", "check"),
    "Plan memory": ("plan", "report", "energy", "devices"),
    "Run": ("classify", "profile"),
    "Other": (),
}


class _Commands(click.Group):
    """The commands of the entry-point group ``firebox.commands``, each loaded on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self._sections().values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = entry_points(group="firebox.commands", name=cmd_name)
        return next(iter(found)).load() if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in self._sections().items():
            commands = ((name, self.get_command(ctx, name)) for name in names)
            rows = [(name, command.get_short_help_str(_HELP_WIDTH)) for name, command in commands if command]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def _sections(self) -> dict[str, list[str]]:
        """Names of the installed commands by section."""
        installed = set(entry_points(group="firebox.commands").names)
        found = {heading: [name for name in names if name in installed] for heading, names in _SECTIONS.items()}
        found["Other"] += sorted(installed - {name for names in _SECTIONS.values() for name in names})
        return found


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("firebox"), prog_name="firebox")
def firebox() -> None:
    """Train compact SqueezeNets, export them as int8 ONNX and TFLite, plan their memory, run and measure them.

    \b
    Example:
      firebox demo                                   train, export, plan and profile a small network
      firebox plan model.int8.tflite --sram 256KiB   does it fit?

    \b
    Exit codes: 0 success (or fits), 1 failed, 2 bad usage, 3 does not fit, 4 undecided,
    130 interrupted.
    Tab completion: eval "$(_FIREBOX_COMPLETE=bash_source firebox)"   (or zsh_source, fish_source)
    """


def main() -> None:
    """Run the command line; an error is one line on stderr, and its kind decides the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by the caller (``>&-``): there is no output, but the exit code is still the verdict.
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
        _complain("interrupted")
        code = _INTERRUPTED
    except OSError as error:
        _complain(f"cannot use {error.filename or 'the output'}: {reason(error)}")
        code = FireboxError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + _line(text), err=True)


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    """Show firebox's own warnings as one line, others as Python does."""
    if issubclass(category, WrongAnswerWarning):
        click.echo(click.style("warning: ", fg="yellow", bold=True) + _line(str(message)), err=True)
    else:
        _python_shows(message, category, *where)  # pyright: ignore[reportArgumentType]


def _line(text: str) -> str:
    # Names of files and tensors may contain line breaks and control characters.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
