"""How far networks can be fitted to SRAM budgets, run in arenas of exactly that size; writes docs/fit.md.

Exits with 1 when a fitted file does not run in its budget or answers anything else than the file before.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from common import (
    FOLDER,
    IMAGES,
    NO_GATE,
    REFERENCES,
    data_option,
    encode,
    load_reference,
    out_option,
    surroundings,
    table,
    write_page,
)
from fit_growth import SIZES, measure_growth
from fit_growth import page as growth_page
from pairs import BLOCK, RATIO_COLUMNS, Comparison, Ratios, bare, bind, measure

from firebox.export import ExportConfig
from firebox.export.fit.files import written
from firebox.export.fit.search import Fit, fit, needed
from firebox.export.fit.segments import Stage
from firebox.model_zoo import export_network, load_network
from firebox.runtime import Graph, LabelledImages, Session, format_size, measure_arena, open_images, read_graph, sample
from firebox.runtime.commands.console import note
from firebox.runtime.contract import read_contract
from firebox.runtime.errors import DoesNotFitError, FormatError
from firebox.runtime.graph import ops
from firebox.runtime.memory.measure import run_in_arena

KiB = 1024
# What is aimed at: no more extra work than this.
_EXTRA_MACS = 0.02
# Nothing fits it: the error tells the least that was reached.
_HOPELESS = 1
_MICRO = "tflite-micro"
_RUNTIMES = (_MICRO, "LiteRT, reference kernels", "LiteRT, XNNPACK", "onnxruntime")
_BACKENDS = {"LiteRT, XNNPACK": "litert", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Case:
    """A network at an input size, the budgets that it is fitted to, and the one that is aimed at."""

    model: str
    side: int
    budgets: tuple[int, ...]
    aim: int | None = None

    @property
    def label(self) -> str:
        """Name and size."""
        return f"{self.model}, {self.side}x{self.side}"


_LARGE = tuple(KiB * size for size in (1024, 768, 512, 384))
_CASES = (
    Case("squeezenet1_1", 224, tuple(KiB * size for size in (1024, 768, 512, 384, 320, 256)), 256 * KiB),
    Case("squeezenet1_1", 128, tuple(KiB * size for size in (256, 192, 160, 128)), 128 * KiB),
    Case("squeezenet1_1", 96, tuple(KiB * size for size in (192, 160, 128, 96))),
    Case("squeezenet1_0", 224, _LARGE, 384 * KiB),
    Case("squeezenet1_0_simple_bypass", 224, _LARGE, 384 * KiB),
    Case("squeezenet1_0_complex_bypass", 224, _LARGE, 384 * KiB),
)
_QUICK = (Case("squeezenet1_1", 96, (192 * KiB, 160 * KiB), 160 * KiB),)


@dataclass(frozen=True)
class Row:
    """One fit: what it is, what it took, and on how many images each runtime gave the integers of before."""

    case: Case
    fit: Fit
    lowest: bool
    measured_bytes: int
    seconds: float
    same: Mapping[str, int]
    files: Mapping[str, Path]

    @property
    def budget(self) -> str:
        """As it stands in the tables."""
        if self.fit.sram_bytes % KiB or self.lowest:
            return f"{self.fit.sram_bytes:,} bytes" + (" (the least found)" if self.lowest else "")
        return f"{self.fit.sram_bytes // KiB:,} KiB"


@dataclass(frozen=True)
class Found:
    """Everything about one network: the file before, the fits, and the budgets that no fit was found for."""

    case: Case
    untiled_bytes: int
    untiled_measured: int
    graph: Graph
    rows: tuple[Row, ...]
    refused: Mapping[int, int]

    @property
    def least(self) -> int:
        """The smallest budget that was fitted."""
        return min(row.fit.sram_bytes for row in self.rows)


@click.command()
@data_option
@out_option("fit.md")
@click.option("--images", "count", default=20, show_default=True, help="Images that are compared.")
@click.option("--rounds", default=4, show_default=True, help="How often every comparison of times has its turn.")
@click.option("--seconds", default=1.0, show_default=True, help="How long a turn takes, at least.")
@click.option("--pairs", default=2, show_default=True, help="How often each chain is planned and fitted.")
@click.option("--seed", default=0, show_default=True, help="Draws the images and decides every order.")
@click.option("--quick", is_flag=True, help="Two budgets and short chains, to try the script.")
def main(
    data_folder: Path, out: Path, count: int, rounds: int, seconds: float, pairs: int, seed: int, quick: bool
) -> None:
    """Fit the networks of the zoo to budgets, run every file in an arena of exactly that size, and time it.

    \b
    Example:
      python benchmarks/fit.py --data-folder ~/firebox-data
    """
    images = open_images(data_folder / IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for case in _QUICK if quick else _CASES:
            place = Path(folder, f"{case.model}-{case.side}")
            export_untiled(case, data_folder, images, place)
            found.append(fit_all(case, place, sample(images, count, seed)))
        reference = found[0].graph
        ratios = measure(list(comparisons(found, sample(images, 1, seed))), rounds, seconds, seed)
        growth = measure_growth(reference, SIZES[:2] if quick else SIZES, pairs)
    wrong = [
        f"{row.case.label}, {row.budget}: {name}"
        for item in found
        for row in item.rows
        for name, same in row.same.items()
        if same != count
    ]
    write_page(out, [*page(found, ratios, count, seed, wrong), *growth_page(growth, pairs)])
    if wrong:
        raise click.ClickException(f"not the integers of the file before, or no run at all: {'; '.join(wrong)}")


def export_untiled(case: Case, data_folder: Path, images: LabelledImages, out: Path) -> None:
    """The int8 files of a network as they are without a budget."""
    size = (case.side, case.side)
    if case.model in REFERENCES:
        network = load_reference(case.model, data_folder, size)
    else:
        network = load_network(case.model, random_init=True, input_size=size)
    note(f"{case.label}: exporting")
    # Networks without published weights, or of another size than they were trained for, are not held to the gate.
    export_network(network, out, images, ExportConfig(precisions=("int8",), tolerance=NO_GATE), quiet=True)


def fit_all(case: Case, folder: Path, images: LabelledImages) -> Found:
    """Every budget of a case, and the least that can be reached."""
    untiled = {ending: folder / f"model.int8.{ending}" for ending in ("tflite", "onnx")}
    graph = read_graph(untiled["tflite"])
    inputs = encoded(untiled, images)
    # An arena in which there is room for anything.
    expected = answers(untiled, inputs, 1 << 24)
    rows: list[Row] = []
    refused: dict[int, int] = {}
    for budget in (*case.budgets, _HOPELESS):
        if refused:
            # The least that was reached is the same for every budget below it.
            refused[budget] = min(refused.values())
            continue
        try:
            rows.append(fitted(case, graph, budget, untiled, inputs, expected))
        except DoesNotFitError as error:
            note(f"{case.label}: {error}")
            refused[budget] = error.smallest_bytes
    least = refused.pop(_HOPELESS)
    rows.append(fitted(case, graph, least, untiled, inputs, expected, lowest=True))
    before = rows[0].fit.before
    measured = measure_arena(untiled["tflite"], "tflm", exact=True).total_bytes
    return Found(case, needed(before), measured, before.graph, tuple(rows), refused)


def fitted(
    case: Case,
    graph: Graph,
    budget: int,
    untiled: Mapping[str, Path],
    inputs: Mapping[str, list[np.ndarray]],
    expected: Mapping[str, list[np.ndarray]],
    *,
    lowest: bool = False,
) -> Row:
    """Fit to one budget; write both files, run them and measure the arena. Raises ``DoesNotFitError``."""
    start = time.process_time()
    found = fit(graph, budget)
    seconds = time.process_time() - start
    files = {ending: path.with_name(f"{budget}.{ending}") for ending, path in untiled.items()}
    contract = read_contract(untiled["tflite"].read_bytes())
    for ending, content in written(found.graph, contract, found.offsets).items():
        files[ending].write_bytes(content)
    note(f"{case.label}: {format_size(budget)}, {found.extra_macs:+.2%} MACs, {len(found.after.graph.ops)} operations")
    same = {
        name: sum(np.array_equal(was, now) for was, now in zip(expected[name], given, strict=False))
        for name, given in answers(files, inputs, budget).items()
    }
    measured = measure_arena(files["tflite"], "tflm", exact=True).total_bytes
    return Row(case, found, lowest, measured, seconds, same, files)


def encoded(files: Mapping[str, Path], images: LabelledImages) -> dict[str, list[np.ndarray]]:
    """The images as each file takes them: prepared as its contract says."""
    inputs = {}
    for ending, path in files.items():
        with Session(path) as session:
            crops = [session.preprocessing.crop(images.read(name), images.where(name)) for name in images.names]
            inputs[ending] = [encode(session, pixels) for pixels in crops]
    return inputs


def answers(
    files: Mapping[str, Path], inputs: Mapping[str, list[np.ndarray]], arena_size: int
) -> dict[str, list[np.ndarray]]:
    """What each runtime makes of the images; no answers where tflite-micro refuses the file in its arena."""
    runs = [in_arena(files["tflite"], inputs["tflite"], arena_size), with_reference(files["tflite"], inputs["tflite"])]
    for backend, ending in (("litert", "tflite"), ("onnxruntime", "onnx")):
        run = bare(files[ending], backend)
        runs.append([run(x) for x in inputs[ending]])
    return dict(zip(_RUNTIMES, runs, strict=True))


def in_arena(path: Path, inputs: list[np.ndarray], arena_size: int) -> list[np.ndarray]:
    """Runs in tflite-micro in an arena of so many bytes, in a process of its own, for it may end this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(run_in_arena, path.read_bytes(), arena_size, inputs).result()
        except (FormatError, BrokenProcessPool) as error:
            note(f"{path}: {error}")
            return []


def with_reference(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Runs in LiteRT without XNNPACK, with the kernels that are written to be read."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    found = []
    for x in inputs:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        found.append(interpreter.get_tensor(target))
    return found


def comparisons(found: Sequence[Found], images: LabelledImages) -> Iterable[Comparison]:
    """Each fitted file beside the one before it; and that one beside itself."""
    for index, item in enumerate(found):
        first = item.rows[0].files["tflite"].parent
        untiled = {ending: first / f"model.int8.{ending}" for ending in ("tflite", "onnx")}
        inputs = encoded(untiled, images)
        for name, backend in _BACKENDS.items():
            ending = "onnx" if backend == "onnxruntime" else "tflite"
            before, x = bare(untiled[ending], backend), inputs[ending][0]
            if index == 0:
                twin = bare(untiled[ending], backend)
                yield Comparison("control", (item.case.label, name), bind(twin, x), bind(before, x))
            for row in item.rows:
                if row.fit.stages:
                    after = bare(row.files[ending], backend)
                    label = item.case.label, row.budget, name
                    yield Comparison("latency", label, bind(after, x), bind(before, x))


def page(found: Sequence[Found], ratios: Sequence[Ratios], count: int, seed: int, wrong: Sequence[str]) -> list[str]:
    def rows(section: str) -> list[tuple[str, ...]]:
        return [item.cells() for item in ratios if item.comparison.section == section]

    def each(cells: Callable[[Row], tuple[str, ...]], skip_untiled: bool = False) -> list[tuple[str, ...]]:
        return [
            (row.case.label, row.budget, *cells(row))
            for item in found
            for row in item.rows
            if row.fit.stages or not skip_untiled
        ]

    first, names = found[0], ("network", "budget")
    verdict = "Every cell is." if not wrong else f"**Not so: {'; '.join(wrong)}.**"
    random = sorted({item.case.model for item in found} - set(REFERENCES))
    sources = (
        f"squeezenet1_1 and squeezenet1_0 have their published weights (`{FOLDER}/{'`, `'.join(REFERENCES.values())}`; "
        "[where from](data.md)), at every input size the same."
    )
    if random:
        sources += f" For {' and '.join(random)} there are none: their weights are random."
    return [
        "# Networks within a budget",
        "This page is written by\n\n```sh\npython benchmarks/fit.py\n```",
        "Each network's int8 TFLite file is rewritten by `firebox fit` until everything that tflite-micro needs for an "
        "inference is no more than the budget: input, activations, scratch memory and what the runtime itself keeps. "
        f"{sources}",
        surroundings(),
        "## Aims",
        f"A budget for each network, reached with at most {_EXTRA_MACS:.0%} more multiply-accumulates.",
        table(("network", "aim", "least that was fitted", "extra MACs at the aim", "reached"), _aims(found)),
        "## Budgets",
        "*Planned* is what the plan of the fitted file says that it needs, *measured* the smallest `arena_size`, to 16 "
        "bytes, in which tflite-micro ran the file. Both are of a 64-bit machine; on a 32-bit one the runtime keeps "
        "less. *Extra MACs* are computed a second time where tiles overlap. Operations are counted as they stand in "
        "the file. *The least found* is the smallest budget that the search reached, and the file is the one for it. "
        f"For squeezenet1_1 at 224x224 vendors' tools report 829 KiB of activations, and the stock converter's file "
        "takes an arena of 2,260,768 bytes in tflite-micro: other makers' figures, not measured here. This project's "
        f"file takes {first.untiled_measured:,} bytes ({first.case.label}) before any fit.",
        table((*names, "planned, bytes", "measured, bytes", "extra MACs", "operations"), _budget_rows(found), names=2),
        "## Where the tiles are",
        "From one tensor to another the network is computed in bands of rows, one band after the other; a band can be "
        "of several tiles side by side. Elsewhere it is computed as before. Tensors are called after their modules.",
        table((*names, "bands of tiles"), each(_where, skip_untiled=True), names=3),
        "## The same integers",
        f"On how many of {count} images (drawn from `{FOLDER}/{IMAGES}` by seed {seed}, prepared as the file's "
        "contract says) the fitted file's output is bit for bit that of the file before it, in the same runtime. "
        f"tflite-micro has an arena of exactly the budget, in a process of its own. {verdict}",
        table(
            (*names, *_RUNTIMES),
            each(lambda row: tuple(f"{same} of {count}" for same in row.same.values())),
            names=2,
        ),
        "## Time of an inference",
        "Time of the fitted file to that of the file before it: above 1, the fitted one is slower. The two are run "
        f"right after one another on one thread, in changing order within blocks of {len(BLOCK)} pairs, in "
        f"{len(ratios[0].rounds)} rounds with the others in between. These runtimes have memory to spare and no use "
        "for tiles. The search weighs multiply-accumulates, not time: channels in groups add none, but cost time here, "
        "so that a smaller budget can be the faster one.",
        table((*names, "runtime", *RATIO_COLUMNS), rows("latency"), names=3),
        "The file before it in two instances; what is no further from 1 than this is no difference.",
        table(("network", "runtime", *RATIO_COLUMNS), rows("control"), names=2),
        "## Time of the search",
        "Seconds of processor time, on one core, of one call each: an indication only.",
        table((*names, "seconds"), each(lambda row: (f"{row.seconds:.1f}",), skip_untiled=True), names=2),
    ]


def _aims(found: Sequence[Found]) -> list[tuple[str, ...]]:
    rows = []
    for item in found:
        at = next((row for row in item.rows if row.fit.sram_bytes == item.case.aim), None)
        extra = f"{at.fit.extra_macs:+.2%}" if at else "does not fit"
        reached = "yes" if at and at.fit.extra_macs <= _EXTRA_MACS else "no"
        aim = f"{item.case.aim // KiB} KiB" if item.case.aim else "none"
        least = f"{item.least:,} bytes ({format_size(item.least)})"
        rows.append((item.case.label, aim, least, *((extra, reached) if item.case.aim else ("", ""))))
    return rows


def _budget_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for item in found:
        macs = f"{item.graph.macs:,} in all"
        before = f"{item.untiled_bytes:,}", f"{item.untiled_measured:,}", macs, f"{len(item.graph.ops)}"
        rows.append((item.case.label, "before", *before))
        for row in item.rows:
            figures = f"{needed(row.fit.after):,}", f"{row.measured_bytes:,}", f"{row.fit.extra_macs:+.2%}"
            rows.append((item.case.label, row.budget, *figures, f"{len(row.fit.after.graph.ops)}"))
        for budget, smallest in item.refused.items():
            refusal = f"does not fit: {smallest:,} is the least found", "", "", ""
            rows.append((item.case.label, f"{budget // KiB:,} KiB", *refusal))
    return rows


def _where(row: Row) -> tuple[str, ...]:
    return (_joined(filter(None, map(_stage, row.fit.stages))),)


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(parts) or "none: only another order"


def _stage(stage: Stage) -> str | None:
    """A stretch that is not computed as before, in words."""
    convolutions = [op.output for op in stage.graph.ops if isinstance(op, ops.Conv)]
    groups = sum("/channels" in name for name in convolutions)
    said = []
    if stage.bands:
        bands, tiles = len(stage.bands), sum(map(len, stage.bands))
        said.append(f"{bands} band{'s' * (bands > 1)}" + (f" of {tiles} tiles" if tiles > bands else ""))
    if groups:
        said.append(f"channels in {groups} groups")
    ends = (name.removesuffix("/padded") for name in (stage.source, stage.target))
    return f"`{'` to `'.join(ends)}`: {', '.join(said)}" if said else None


if __name__ == "__main__":
    main()
