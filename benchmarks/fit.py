"""Networks fitted to SRAM budgets and run in arenas of exactly that size; writes docs/fit.md.

Exits with 1 if a fitted file does not run within its budget, or if its outputs differ from those of the original file.
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
import common
import numpy as np
from fit_growth import SIZES, measure_growth
from fit_growth import page as growth_page
from pairs import BLOCK, RATIO_COLUMNS, Comparison, Ratios, bare, bind, measure

from firebox.export import ExportConfig, Fit, fit
from firebox.export.fit import DoesNotFitError, needed
from firebox.export.fit.files import file_contents
from firebox.export.fit.segments import Stage
from firebox.model_zoo import export_network, load_network
from firebox.runtime import Graph, LabelledImages, Session, format_size, measure_arena, open_images, read_graph, sample
from firebox.runtime.contract import read_contract
from firebox.runtime.errors import FormatError
from firebox.runtime.graph import ops
from firebox.runtime.memory import run_in_arena

KiB = 1024
# The target: no more extra work than this.
_EXTRA_MACS = 0.02
# Nothing fits this budget; the error holds the smallest arena found.
_HOPELESS = 1
_MICRO = "tflite-micro"
_RUNTIMES = (_MICRO, "LiteRT, reference kernels", "LiteRT, XNNPACK", "onnxruntime")
_BACKENDS = {"LiteRT, XNNPACK": "litert", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Case:
    """A network at an input size, its budgets, and the target among them."""

    model: str
    side: int
    budgets: tuple[int, ...]
    aim: int | None = None

    @property
    def label(self) -> str:
        """The name and size in the tables."""
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
    """One fit: its result and search time, and the number of images with identical outputs in each runtime."""

    case: Case
    fit: Fit
    lowest: bool
    measured_bytes: int
    seconds: float
    same: Mapping[str, int]
    files: Mapping[str, Path]

    @property
    def budget(self) -> str:
        """The budget in the tables."""
        if self.fit.sram_bytes % KiB or self.lowest:
            return f"{self.fit.sram_bytes:,} bytes" + (" (smallest found)" if self.lowest else "")
        return f"{self.fit.sram_bytes // KiB:,} KiB"


@dataclass(frozen=True)
class Found:
    """Results of one network: the original file, the fits, and the budgets without a fit."""

    case: Case
    untiled_bytes: int
    untiled_measured: int
    graph: Graph
    rows: tuple[Row, ...]
    refused: Mapping[int, int]

    @property
    def least(self) -> int:
        """The smallest budget with a fit."""
        return min(row.fit.sram_bytes for row in self.rows)


@click.command()
@common.data_option
@common.out_option("fit.md")
@click.option("--images", "count", default=20, show_default=True, help="Images to compare.")
@click.option("--rounds", default=4, show_default=True, help="Turns of each latency comparison.")
@click.option("--seconds", default=1.0, show_default=True, help="Minimum length of a turn.")
@click.option("--pairs", default=2, show_default=True, help="Times that each chain is planned and fitted.")
@click.option("--seed", default=0, show_default=True, help="Seed of the images and of the random orders.")
@click.option("--quick", is_flag=True, help="Two budgets and short chains, to test the script.")
def main(
    data_folder: Path, out: Path, count: int, rounds: int, seconds: float, pairs: int, seed: int, quick: bool
) -> None:
    """Fit networks to budgets, run every file in an arena of exactly that size, and time it.

    \b
    Example:
      python benchmarks/fit.py --data-folder ~/firebox-data
    """
    images = open_images(data_folder / common.IMAGES)
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
    common.write_page(out, [*page(found, ratios, count, seed, wrong), *growth_page(growth, pairs)])
    if wrong:
        raise click.ClickException(
            f"outputs differ from the original file, or the file does not run: {'; '.join(wrong)}"
        )


def export_untiled(case: Case, data_folder: Path, images: LabelledImages, out: Path) -> None:
    """Export the int8 files of a network without a budget."""
    size = (case.side, case.side)
    if case.model in common.REFERENCES:
        network = common.load_reference(case.model, data_folder, size)
    else:
        network = load_network(case.model, random_init=True, input_size=size)
    common.terminal.note(f"{case.label}: exporting")
    # No gate: some networks have random weights or another input size than they were trained for.
    export_network(network, out, images, ExportConfig(precisions=("int8",), tolerance=common.NO_GATE))


def fit_all(case: Case, folder: Path, images: LabelledImages) -> Found:
    """Fit every budget of a case, and the smallest budget that can be reached."""
    untiled = {ending: folder / f"model.int8.{ending}" for ending in ("tflite", "onnx")}
    graph = read_graph(untiled["tflite"])
    inputs = encoded(untiled, images)
    # An arena large enough for every file.
    expected = outputs_of(untiled, inputs, 1 << 24)
    rows: list[Row] = []
    refused: dict[int, int] = {}
    for budget in (*case.budgets, _HOPELESS):
        if refused:
            # The smallest arena found is the same for every budget below it.
            refused[budget] = min(refused.values())
            continue
        try:
            rows.append(fitted(case, graph, budget, untiled, inputs, expected))
        except DoesNotFitError as error:
            common.terminal.note(f"{case.label}: {error}")
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
    """Fit one budget; write both files, run them and measure the arena. Raises ``DoesNotFitError``."""
    start = time.process_time()
    found = fit(graph, budget)
    seconds = time.process_time() - start
    files = {ending: path.with_name(f"{budget}.{ending}") for ending, path in untiled.items()}
    contract = read_contract(untiled["tflite"].read_bytes())
    for ending, content in file_contents(found.graph, contract, found.offsets).items():
        files[ending].write_bytes(content)
    common.terminal.note(
        f"{case.label}: {format_size(budget)}, {found.extra_macs:+.2%} MACs, {len(found.after.graph.ops)} operations"
    )
    same = {
        name: sum(np.array_equal(was, now) for was, now in zip(expected[name], given, strict=False))
        for name, given in outputs_of(files, inputs, budget).items()
    }
    measured = measure_arena(files["tflite"], "tflm", exact=True).total_bytes
    return Row(case, found, lowest, measured, seconds, same, files)


def encoded(files: Mapping[str, Path], images: LabelledImages) -> dict[str, list[np.ndarray]]:
    """The images as inputs of each file, preprocessed by its contract."""
    inputs = {}
    for ending, path in files.items():
        with Session(path) as session:
            crops = [session.preprocessing.crop(images.read(name), images.where(name)) for name in images.names]
            inputs[ending] = [common.encode(session, pixels) for pixels in crops]
    return inputs


def outputs_of(
    files: Mapping[str, Path], inputs: Mapping[str, list[np.ndarray]], arena_size: int
) -> dict[str, list[np.ndarray]]:
    """Outputs of each runtime for the images; none if tflite-micro cannot run the file in its arena."""
    runs = [in_arena(files["tflite"], inputs["tflite"], arena_size), with_reference(files["tflite"], inputs["tflite"])]
    for backend, ending in (("litert", "tflite"), ("onnxruntime", "onnx")):
        run = bare(files[ending], backend)
        runs.append([run(x) for x in inputs[ending]])
    return dict(zip(_RUNTIMES, runs, strict=True))


def in_arena(path: Path, inputs: list[np.ndarray], arena_size: int) -> list[np.ndarray]:
    """Outputs of tflite-micro in an arena of ``arena_size`` bytes, in its own process, because it may abort."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(run_in_arena, path.read_bytes(), arena_size, inputs).result()
        except (FormatError, BrokenProcessPool) as error:
            common.terminal.note(f"{path}: {error}")
            return []


def with_reference(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of LiteRT with its reference kernels, without XNNPACK."""
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
    """Comparisons of each fitted file with the original one, and of the first original file with itself."""
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
    verdict = "All outputs are identical." if not wrong else f"**Not identical: {'; '.join(wrong)}.**"
    random = sorted({item.case.model for item in found} - set(common.REFERENCES))
    sources = (
        "squeezenet1_1 and squeezenet1_0 have their published weights "
        f"(`{common.FOLDER}/{'`, `'.join(common.REFERENCES.values())}`; "
        "[data](data.md)), the same at every input size."
    )
    if random:
        sources += f" {' and '.join(random)} have random weights."
    return [
        "# Fitting SRAM budgets",
        "This page is generated by\n\n```sh\npython benchmarks/fit.py\n```",
        "`firebox fit` rewrites each network's int8 TFLite file until everything that tflite-micro needs for an "
        f"inference fits the budget: input, activations, scratch memory and the runtime's own data. {sources}",
        common.surroundings(),
        "## Targets",
        f"The target is a budget for each network, with at most {_EXTRA_MACS:.0%} extra multiply-accumulates.",
        common.table(("network", "target", "smallest fit found", "extra MACs at target", "reached"), _aims(found)),
        "## Budgets",
        "*Planned* is the memory in the plan of the fitted file; *measured* is the smallest `arena_size`, to 16 bytes, "
        "in which tflite-micro ran the file. Both are for a 64-bit host; on a 32-bit target the runtime needs less for "
        "its own data. *Extra MACs* are computed twice where tiles overlap. *Operations* is the number of operations "
        "in the file. The row *smallest found* is the smallest budget that the search reached, with the file for it. "
        "For squeezenet1_1 at 224x224, vendors' tools report 829 KiB of activations, and the stock converter's file "
        "takes an arena of 2,260,768 bytes in tflite-micro; these figures are from other sources, not measured here. "
        f"firebox's file takes {first.untiled_measured:,} bytes ({first.case.label}) before fitting.",
        common.table(
            (*names, "planned, bytes", "measured, bytes", "extra MACs", "operations"), _budget_rows(found), names=2
        ),
        "## Tiles",
        "Between the two tensors, the network is computed in bands of rows, one band after the other; a band may "
        "consist of several tiles side by side. The rest of the network is unchanged. Tensors are named after their "
        "modules.",
        common.table((*names, "segments and their bands"), each(_where, skip_untiled=True), names=3),
        "## Identical outputs",
        f"The number of images, of {count}, for which the output of the fitted file is bit for bit that of the "
        f"original file in the same runtime. The images are from `{common.FOLDER}/{common.IMAGES}`, drawn with "
        f"seed {seed} and "
        "preprocessed by the file's contract. tflite-micro runs in its own process, in an arena of exactly the budget. "
        f"{verdict}",
        common.table(
            (*names, *_RUNTIMES),
            each(lambda row: tuple(f"{same} of {count}" for same in row.same.values())),
            names=2,
        ),
        "## Latency",
        "Latency of the fitted file divided by that of the original file: above 1, the fitted file is slower. The two "
        f"run one right after the other on one thread, in random order within blocks of {len(BLOCK)} pairs, in "
        f"{len(ratios[0].rounds)} rounds that alternate with the other comparisons. These runtimes have memory to "
        "spare and gain nothing from tiles. The search minimizes multiply-accumulates, not latency: computing channels "
        "in groups adds none but costs time here, so that a smaller budget can be faster.",
        common.table((*names, "runtime", *RATIO_COLUMNS), rows("latency"), names=3),
        "Control: the original file in two instances. Ratios no further from 1 than these show no difference.",
        common.table(("network", "runtime", *RATIO_COLUMNS), rows("control"), names=2),
        "## Search time",
        "Processor time of one call on one core; an indication only.",
        common.table((*names, "seconds"), each(lambda row: (f"{row.seconds:.1f}",), skip_untiled=True), names=2),
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
        macs = f"{item.graph.macs:,} in total"
        before = f"{item.untiled_bytes:,}", f"{item.untiled_measured:,}", macs, f"{len(item.graph.ops)}"
        rows.append((item.case.label, "original", *before))
        for row in item.rows:
            figures = f"{needed(row.fit.after):,}", f"{row.measured_bytes:,}", f"{row.fit.extra_macs:+.2%}"
            rows.append((item.case.label, row.budget, *figures, f"{len(row.fit.after.graph.ops)}"))
        for budget, smallest in item.refused.items():
            refusal = f"does not fit; smallest found: {smallest:,}", "", "", ""
            rows.append((item.case.label, f"{budget // KiB:,} KiB", *refusal))
    return rows


def _where(row: Row) -> tuple[str, ...]:
    return (_joined(filter(None, map(_stage, row.fit.stages))),)


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(parts) or "none; only reordered"


def _stage(stage: Stage) -> str | None:
    """The description of a segment that is tiled or reordered."""
    convolutions = [op.output for op in stage.graph.ops if isinstance(op, ops.Conv)]
    groups = sum("/channels" in name for name in convolutions)
    words = []
    if stage.bands:
        bands, tiles = len(stage.bands), sum(map(len, stage.bands))
        words.append(f"{bands} band{'s' * (bands > 1)}" + (f" of {tiles} tiles" if tiles > bands else ""))
    if groups:
        words.append(f"channels in {groups} groups")
    ends = (name.removesuffix("/padded") for name in (stage.source, stage.target))
    return f"`{'` to `'.join(ends)}`: {', '.join(words)}" if words else None


if __name__ == "__main__":
    main()
