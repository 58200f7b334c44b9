"""The command ``report``."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from ..units import format_size
from .console import print_json, progress_unless, say
from .options import backend_option, budget_options, json_option, model_argument, seconds_option, threads_option

if TYPE_CHECKING:
    from ..memory import Budget, MemoryPlan, Verdict
    from ..profiling import Profile


@click.command("report")
@model_argument
@click.option("--before", type=click.Path(path_type=Path), help="An earlier version of MODEL, to be shown next to it.")
@budget_options
@click.option("--measure-time", is_flag=True, help="Also run MODEL on this machine and show its latency.")
@backend_option
@threads_option
@seconds_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Page to write.",
)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Also write a CSV with Vela's columns.")
@click.option(
    "--node-data",
    type=click.Path(path_type=Path),
    help="Also write node data for Model Explorer into a folder.",
)
@json_option
@click.pass_context
def report_command(
    context: click.Context,
    model: Path,
    before: Path | None,
    budget: "Budget | None",
    measure_time: bool,
    backend: str,
    threads: int,
    seconds: float,
    out: Path,
    table: Path | None,
    node_data: Path | None,
    as_json: bool,
) -> None:
    """Write a self-contained HTML page that shows the memory of MODEL (.onnx or .tflite) during an inference.

    Exit code 3 if the planned memory does not fit the budget, 4 if that is undecided, as in firebox plan.

    \b
    Example:
      firebox report model.int8.tflite --sram 256KiB
      firebox report fitted.tflite --before model.int8.tflite --measure-time -o report.html --csv report.csv
    """
    from ..memory import plan
    from ..profiling import profile
    from ..report import load_bokeh

    load_bokeh()
    after, earlier = plan(model), plan(before) if before is not None else None
    measured = None
    if measure_time:
        measured = profile(
            model,
            sram=budget,
            backend=backend,
            threads=threads,
            max_seconds=seconds,
            progress=progress_unless(as_json),
        )
    verdict = after.verdict(budget) if budget is not None else None
    written = _write(_contents(model, after, earlier, verdict, measured, out, table, node_data))
    if as_json:
        print_json({"files": list(map(str, written)), "verdict": verdict.to_json() if verdict else None})
    else:
        for path in written:
            say(f"{path}  {format_size(path.stat().st_size)}")
        if verdict:
            say(verdict.text())
    context.exit(verdict.exit_code if verdict else 0)


def _contents(
    model: Path,
    after: "MemoryPlan",
    before: "MemoryPlan | None",
    verdict: "Verdict | None",
    measured: "Profile | None",
    out: Path,
    table: Path | None,
    node_data: Path | None,
) -> dict[Path, str]:
    from ..files import read_file
    from ..report import model_explorer_node_data, report_html, summary_csv

    contents = {out: report_html(after, before, verdict, measured, name=model.name, data=read_file(model))}
    if table is not None and table.resolve() == out.resolve():
        raise UsageError(f"--out and --csv are both {out}; give --csv another name")
    if table is not None:
        plans = {"before": before, "after": after} if before else {"default": after}
        contents[table] = summary_csv(plans, measured, verdict, network=model.stem)
    if node_data is not None:
        found = model_explorer_node_data(after, measured)
        contents |= {node_data / f"{name}.json": text for name, text in found.items()}
    return contents


def _write(contents: dict[Path, str]) -> list[Path]:
    """Write each folder's files all or none, after all folders have been checked to be writable."""
    from ..files import check_writable, write_files

    folders: dict[Path, dict[str, str]] = defaultdict(dict)
    for path, text in contents.items():
        folders[path.parent][path.name] = text
    for folder in folders:
        check_writable(folder)
    return [path for folder, files in folders.items() for path in write_files(folder, files)]
