"""The commands that a board has: plan, profile, classify. Everything heavy is imported when one of them runs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..units import format_size
from .console import json_option, note, print_json, progress, say, table

if TYPE_CHECKING:
    from ..memory.plan import MemoryLine, Verdict
    from ..memory.targets import Target

_BACKENDS = ("auto", "onnxruntime", "litert", "tflite-runtime")
_TARGETS = ("tflm", "litert-reference", "litert", "onnxruntime", "static")

# Images with a side below this show nothing.
_TINY = 8

model_argument = click.argument("model", type=click.Path(path_type=Path))
sram_option = click.option("--sram", help="Budget of memory to judge by, such as 256KiB or 1MiB.")
backend_option = click.option(
    "--backend", type=click.Choice(_BACKENDS), default="auto", show_default=True, help="Runtime to use."
)
threads_option = click.option("--threads", type=int, default=1, show_default=True, help="Threads that compute.")


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--device`` as another way to give a budget, and ``--devices`` for names of one's own."""
    own = click.option("--devices", type=click.Path(path_type=Path), help="File of your own devices.")
    return click.option("--device", help="Budget by a device's name; `firebox devices` lists them.")(own(command))


@click.command("plan")
@model_argument
@sram_option
@device_options
@click.option(
    "--target",
    type=click.Choice(_TARGETS),
    help="What it runs on.  [default: tflm, or static for what tflite-micro has no kernels for]",
)
@click.option("--measure", is_flag=True, help="Run it there too, and read what memory it takes.")
@json_option
@click.pass_context
def plan_command(
    context: click.Context,
    model: Path,
    sram: str | None,
    device: str | None,
    devices: Path | None,
    target: "Target | None",
    measure: bool,
    as_json: bool,
) -> None:
    """Plan the memory of MODEL (.onnx or .tflite): the arena, its peak and what is alive there.

    Targets are tflite-micro (all that it needs, to the byte), LiteRT with its reference kernels or with XNNPACK,
    onnxruntime, and a static compiler as good as can be. Exit code 3 when it does not fit the budget.

    \b
    Example:
      firebox plan model.int8.tflite --sram 256KiB
      firebox plan model.int8.tflite --device stm32h743
      firebox plan model.int8.tflite --target litert-reference --measure
      firebox plan model.int8.onnx --json
    """
    from ..memory.devices import budget
    from ..memory.measure import measure_arena
    from ..memory.plan import plan

    sram_bytes = budget(sram, device, devices)
    planned = plan(model, target)
    measured = measure_arena(model, planned.target, exact=True) if measure else None
    verdict = (measured or planned).verdict(sram_bytes) if sram_bytes is not None else None
    if as_json:
        found = {
            "measured": measured.to_json() if measured else None,
            "verdict": verdict.to_json() if verdict else None,
        }
        print_json(planned.to_json() | found)
    else:
        peak = planned.peak_step
        rows = [
            (
                ("▶ " if step == peak else "  ") + op.name,
                op.kind,
                "x".join(map(str, planned.graph.tensors[op.output].shape[1:])),
                format_size(planned.graph.tensors[op.output].nbytes),
                format_size(planned.alive_bytes(step)),
                f"{planned.graph.op_macs(op) / 1e6:,.2f} M",
            )
            for step, op in enumerate(planned.graph.ops)
        ]
        table(str(model), ("operation", "kind", "output", "size", "alive", "MACs"), rows)
        alive = ", ".join(f"{buffer.tensor} {format_size(buffer.nbytes)}" for buffer in planned.alive(peak))
        account = (*planned.account(), *(measured.account() if measured else ()))
        table(f"Memory on {planned.target}", ("", "size", "source"), [*_account(account), *_verdict(verdict)])
        say(f"arena: {planned.arena_bytes:,} bytes, at its peak (▶) with {alive}")
        say(f"{planned.graph.macs / 1e6:,.1f} M multiply-accumulates")
    context.exit(verdict.exit_code if verdict else 0)


def _account(lines: "Iterable[MemoryLine]") -> list[tuple[str, str, str]]:
    return [(line.name, "-" if line.nbytes is None else format_size(line.nbytes), line.source) for line in lines]


def _verdict(verdict: "Verdict | None") -> list[tuple[str, str, str]]:
    if verdict is None:
        return []
    name = "verdict" if verdict.about == "total" else "verdict on the arena alone"
    return [(name, verdict.text(), verdict.arena_source)]


@click.command("profile")
@model_argument
@sram_option
@device_options
@backend_option
@threads_option
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Longest time to measure for.")
@json_option
@click.pass_context
def profile_command(
    context: click.Context,
    model: Path,
    sram: str | None,
    device: str | None,
    devices: Path | None,
    backend: str,
    threads: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure MODEL on this machine: latency, time of each operation, memory; and judge it by a budget.

    Exit code 3 when the memory planned for tflite-micro (or for a static compiler, where it has no kernels for MODEL)
    does not fit the budget.

    \b
    Example:
      firebox profile model.int8.tflite --sram 1MiB
      firebox profile model.int8.onnx --threads 4 --json
    """
    from ..memory.devices import budget
    from ..profiling.latency import profile

    sram_bytes = budget(sram, device, devices)
    with progress("measuring", quiet=as_json) as advance:
        found = profile(model, sram=sram_bytes, backend=backend, threads=threads, max_seconds=seconds, tick=advance)
    if as_json:
        print_json(found.to_json())
    else:
        latency = (("load", found.load_ms), ("first inference", found.first_ms))
        quantiles = (("p50", found.p50_ms), ("p90", found.p90_ms), ("p99", found.p99_ms))
        rows = [(name, f"{value:,.3f} ms") for name, value in (*latency, *quantiles)]
        table(
            f"{model} on {found.backend}, threads: {found.threads}, runs: {found.runs}", ("latency", "measured"), rows
        )
        facts = found.facts
        runs_on = (
            ("backend", f"{facts.backend} {facts.version}"),
            ("processor", facts.processor),
            ("weights", facts.weights),
            ("golden pair", facts.golden),
        )
        table("Run on", ("", ""), runs_on)
        if not found.settled:
            note(f"the median had not settled after {seconds:g} s; other work on this machine disturbs it")
        if found.op_ms:
            slowest = sorted(found.op_ms.items(), key=lambda item: -item[1])[:10]
            table("Slowest operations", ("operation", "mean"), [(name, f"{ms:,.3f} ms") for name, ms in slowest])
        table(f"Memory on {found.target}", ("", "size", "source"), [*_account(found.memory), *_verdict(found.verdict)])
    context.exit(found.verdict.exit_code if found.verdict else 0)


@click.command("classify")
@model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=int, default=5, show_default=True, help="How many classes to show.")
@backend_option
@threads_option
@json_option
def classify_command(
    model: Path, images: tuple[Path, ...], top: int, backend: str, threads: int, as_json: bool
) -> None:
    """Name what is on IMAGES with MODEL, preprocessed as it was in training.

    \b
    Example:
      firebox classify model.int8.tflite cat.jpg --top 3
    """
    from ..images.preprocessing import decode
    from ..inference.session import Session

    answers = {}
    with Session(model, backend, threads) as session:
        for path in images:
            image = decode(path)
            if min(image.size) < _TINY:
                note(f"{path} is {image.width}x{image.height} pixels and has to be enlarged; its classes mean little")
            answers[str(path)] = session.classify(image, top)
    if as_json:
        print_json({name: [vars(answer) for answer in found] for name, found in answers.items()})
        return
    for name, found in answers.items():
        rows = [(answer.label, f"{answer.score:.1%}") for answer in found]
        table(name, ("class", "probability"), rows)
