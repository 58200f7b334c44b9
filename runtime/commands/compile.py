"""The command ``compile``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import UsageError
from ..files import write_files
from ..units import format_size
from .console import print_json, progress_unless, say, table
from .options import budget_options, json_option, model_argument, threads_option
from .plan import show_memory

if TYPE_CHECKING:
    from ..compile import CSource
    from ..memory import Budget, Verdict


class _IsaChoice(click.Choice[str]):
    """The choices of instruction sets, looked up when needed: their modules load numpy."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Kinds of processors and single instruction sets."""
        from ..compile import isa_names

        return tuple(isa_names())


@click.command("compile")
@model_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File to write: NAME.c, with NAME.h beside it, NAME.so for this machine, or a folder.  [default: build]",
)
@click.option(
    "--input",
    "input_",
    type=click.Choice(("rows", "whole")),
    default="rows",
    show_default=True,
    help="How the input arrives: row by row, as a camera delivers it, or whole, in the arena.",
)
@click.option(
    "--isa",
    type=_IsaChoice(),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Processors: auto (all in one file), x86, arm64, wasm, cortex-m, plain, or one instruction set.",
)
@click.option(
    "--output",
    type=click.Choice(("int8", "float")),
    help="Type of the output; float has the sums before the last rounding.  [default: int8; float with --project]",
)
@click.option(
    "--project",
    type=click.Choice(("web",)),
    help="Write a folder for an application, not C. web: WebAssembly, an ES module and a page (needs clang and lld).",
)
@click.option("--name", help="Prefix of the public names.  [default: the model's name]")
@threads_option
@budget_options
@json_option
@click.pass_context
def compile_command(
    context: click.Context,
    model: Path,
    out: Path | None,
    input_: Any,
    isa: str,
    output: Any,
    project: str | None,
    name: str | None,
    threads: int,
    budget: "Budget | None",
    as_json: bool,
) -> None:
    """Compile MODEL (int8 .onnx or .tflite) to one C file that needs no runtime.

    The network runs row by row in a static arena, and gives the integers of LiteRT and onnxruntime. With a budget the
    fastest plan that fits it is taken; exit code 3 if none does. A library (NAME.so) is compiled for this machine,
    measured beside the installed runtimes, and from then on used by --backend auto where it is faster.

    \b
    Example:
      firebox compile model.int8.tflite -o model.c
      firebox compile model.int8.tflite --isa cortex-m --sram 64KiB --reserve 8KiB -o firmware/model.c
      firebox compile model.int8.tflite --device stm32h743 -o build
      firebox compile model.int8.tflite --project web -o demo
      firebox compile model.int8.tflite --threads 2 -o model.so
    """
    from ..compile import compile_c

    options = ("input_", "isa", "threads", "output", "name")
    given = {option for option in options if context.get_parameter_source(option) != ParameterSource.DEFAULT}
    if project is not None:
        _refuse_options(f"--project {project}", given - {"output", "name"}, budget)
        _write_web(model, out or Path("build"), output or "float", name, as_json)
        return
    if out is not None and out.suffix == ".so":
        _refuse_options(f"--out {out}", given - {"threads"}, budget)
        _write_library(model, out, threads, as_json)
        return
    if "threads" in given:
        raise UsageError("C in one file runs in one thread; leave --threads out, or write a library with --out NAME.so")
    folder, file = _destination(out)
    sram = budget.available_bytes if budget is not None else None
    with progress_unless(as_json).task("compiling"):
        source = compile_c(model, input=input_, isa=isa, sram_bytes=sram, output=output or "int8", name=name)
    verdict = source.verdict(budget) if budget is not None else None
    written = []
    if verdict is None or verdict.fits is not False:
        stem = Path(file).stem if file else source.name
        written = write_files(folder, source.files(stem))
    if as_json:
        print_json(_as_json(source, written, verdict))
    else:
        show_memory(f"{source.name} in C", source.account(), verdict)
        for path in written:
            say(f"wrote {path} ({format_size(path.stat().st_size)})")
    context.exit(verdict.exit_code if verdict else 0)


def _refuse_options(kind: str, given: set[str], budget: "Budget | None") -> None:
    """Raise ``UsageError`` if there are options that a project or a library decides itself."""
    if given:
        raise UsageError(f"{kind} takes no --{min(given).rstrip('_')}; leave it out")
    if budget is not None:
        raise UsageError(f"{kind} takes no memory budget; leave it out")


def _write_library(model: Path, out: Path, threads: int, as_json: bool) -> None:
    """Write a library for this machine, and measure it."""
    from ..compile import build_library
    from ..files import read_file
    from ..inference.native_speed import measure_native
    from ..inference.session import check_threads

    check_threads(threads)
    data = read_file(model)
    progress = progress_unless(as_json)
    with progress.task("compiling"):
        build_library(data, threads=threads)
    with progress.task("measuring"):
        best_ms = measure_native(data, threads)
    # Only now, from the store: a library that does not run is not handed out.
    library = build_library(data, out, threads=threads)
    record = library.record
    if as_json:
        facts = {"isa": record.isa, "compiler": record.compiler, "threads": record.threads}
        print_json({"name": record.name, "files": [str(out)], **facts, "best_ms": best_ms})
        return
    rows = [(name, f"{ms:,.3f} ms") for name, ms in best_ms.items()]
    table(f"{record.name} for {record.isa}, threads: {threads}", ("backend", "fastest inference"), rows)
    say(f"wrote {out} ({format_size(out.stat().st_size)}), a library for this machine alone")


def _write_web(model: Path, out: Path, output: Any, name: str | None, as_json: bool) -> None:
    """Write the folder of a web project."""
    from ..compile import web_project
    from ..memory.account import memory_json

    if out.suffix in (".c", ".so"):
        raise UsageError(f"--out {out} is the name of a file; --project web writes a folder")
    with progress_unless(as_json).task("compiling"):
        project = web_project(model, output=output, name=name)
    written = write_files(out, project.files())
    if as_json:
        files = [str(path) for path in written]
        memory = memory_json(project.account())
        print_json({"name": project.source.name, "project": "web", "files": files, "memory": memory})
        return
    show_memory(f"{project.source.name} in WebAssembly", project.account(), None)
    for path in written:
        say(f"wrote {path} ({format_size(path.stat().st_size)})")


def _destination(out: Path | None) -> tuple[Path, str]:
    """Folder and file name, which is empty if ``out`` is a folder."""
    if out is None:
        return Path("build"), ""
    if out.suffix == ".c":
        return out.parent, out.name
    if out.suffix and not out.is_dir():
        raise UsageError(f"--out {out} ends in {out.suffix}; use NAME.c, NAME.so or a folder")
    return out, ""


def _as_json(source: "CSource", written: list[Path], verdict: "Verdict | None") -> dict[str, Any]:
    from ..memory.account import memory_json

    return {
        "name": source.name,
        "files": [str(path) for path in written],
        "arena_bytes": source.arena_bytes,
        "memory": memory_json(source.account()),
        "macs": source.plan.graph.macs,
        "input": source.plan.input,
        "verdict": verdict.to_json() if verdict else None,
    }
