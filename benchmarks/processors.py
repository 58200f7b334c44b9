"""int8 files on processors with and without saturating kernels, compared with the reference; writes docs/processors.md.

``--test`` is ``make test-processors``: only the table of networks by processors, with exit code 1 if an output differs
from the reference.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest import mock

import click
import common
import numpy as np
from emulated_networks import Network, Sums, jobs, jobs_of
from emulation import NATIVE, PLAIN, Job, Outcome, emulator, run_jobs
from pairs import RATIO_COLUMNS, Comparison
from pairs import measure as time_pairs
from weight_ranges import FOLDS, Result, kept

from firebox.export import ExportConfig, trace, write_tflite
from firebox.export.activations import run_outputs
from firebox.export.quantization import quantize_network
from firebox.model_zoo import Network as ZooNetwork
from firebox.model_zoo import export_network, load_network
from firebox.runtime import Graph, Session, open_images, sample
from firebox.runtime.files import read_file
from firebox.runtime.inference import golden
from firebox.runtime.onnx_session import kernels_saturate, open_onnx, session_options
from firebox.runtime.processor import this_processor

EMULATED = ("Nehalem", "Haswell", "max")
# The saturating processor for real images: emulated, so that the table is the same on every machine.
_SATURATING = "Haswell"
_REAL_IMAGES = 100
_RANGES = {"full": "full range (8 bits)", "saturation-free": "saturation-free (default)", "7-bit": "7 bits"}
_LOADS = 15
# The headings of the parts that depend on this machine.
_LATER = {"times": "Latency on a saturating processor", "loads": "Load time"}
# The guarantee for each operation, and its reason.
_PROMISES = (
    ("Conv, FullyConnected", "identical", "integer sums; one float32 multiplier, rounded half to even, everywhere"),
    ("MaxPool, Pad, Slice, Reshape, Transpose", "identical", "values are only moved or compared"),
    ("Concat, ReLU", "identical", "inputs and output share one scale"),
    ("Add", "identical", "scale ratios are fractions with odd denominators: no sum is halfway between two integers"),
    ("global average", "identical", "as for Add; a mean of very many pixels, whose scale would have to change by "
     "over 3 %, keeps its scale and is within one step"),
    ("AveragePool, odd number of values", "identical", "no mean is halfway between two integers"),
    ("AveragePool, even number of values", "identical", "written as a depthwise convolution"),
    ("AveragePool that excludes padding, even number of values at a border", "one step",
     "onnxruntime rounds half to even, LiteRT away from zero"),
    ("Softmax", "one step", "each runtime has its own exponential function"),
    ("Quantize from float, or between scales", "one step", "onnxruntime divides, XNNPACK multiplies by the reciprocal"),
)  # fmt: skip


@click.command()
@click.option(
    "--data-folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="FIREBOX_DATA",
    show_envvar=True,
    help="Folder of the weights and images; not needed for --test.",
)
@common.out_option("processors.md")
@click.option(
    "--test",
    is_flag=True,
    help="Only the table of networks by processors, on the terminal; exit code 1 for a difference.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(_LATER)),
    help="Measure these parts only; keep the rest of the page.",
)
@click.option("--rounds", default=8, show_default=True, help="Turns of each latency comparison.")
def main(data_folder: Path | None, out: Path, test: bool, only: tuple[str, ...], rounds: int) -> None:
    """Run int8 files on emulated processors and compare every output with the reference.

    \b
    Example:
      python benchmarks/processors.py --test
      python benchmarks/processors.py --data-folder ~/firebox-data
      python benchmarks/processors.py --data-folder ~/firebox-data --only loads
    """
    if data_folder is None and not test:
        raise click.UsageError("the page needs --data-folder (FIREBOX_DATA); see docs/data.md")
    if only and data_folder is not None:
        update(out, only, data_folder, rounds)
        return
    processors = [*(EMULATED if emulator() else ()), NATIVE]
    if not emulator():
        if os.environ.get("CI") and this_processor().is_x86:
            raise click.ClickException("QEMU's user mode is missing: apt-get install qemu-user-static")
        common.terminal.note(
            "QEMU's user mode is missing (apt-get install qemu-user-static): testing only this machine's processor"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = on_processors(list(prepared(folder / "networks", data_folder, test)), processors)
        wrong = [one for one in outcomes if one.is_wrong]
        if test:
            report(outcomes, processors, wrong)
            sys.exit(1 if wrong else 0)
        assert data_folder is not None
        files = {name: reference_files(folder / name, name, data_folder) for name in common.REFERENCES}
        images = on_processors(
            [job for name, networks in files.items() for network in networks for job in real_jobs(network)],
            [_SATURATING if emulator() else NATIVE],
        )
        parts = [
            *introduction(outcomes, processors),
            *real_images(images),
            *weight_ranges(kept()),
            *roundings(data_folder),
            *times(files["squeezenet1_1"], rounds),
            *loads(files["squeezenet1_1"]),
        ]
    common.write_page(out, parts)


def update(out: Path, only: Sequence[str], data_folder: Path, rounds: int) -> None:
    """Measure some parts again and keep the rest of the page."""
    sections = out.read_text().rstrip("\n").split("\n\n## ")
    with tempfile.TemporaryDirectory() as folder:
        networks = reference_files(Path(folder), "squeezenet1_1", data_folder)
        for part in only:
            found = times(networks, rounds) if part == "times" else loads(networks)
            text = "\n\n".join(found).removeprefix("## ")
            sections = [text if old.startswith(_LATER[part]) else old for old in sections]
    common.write_page(out, ["\n\n## ".join(sections)])


def prepared(folder: Path, data_folder: Path | None, test: bool) -> Iterator[Job]:
    """The jobs of the table; a test omits plain sessions that may saturate."""
    with common.terminal.task("exporting") as advance:
        for job in jobs(folder, data_folder):
            advance(text=job.network)
            if job.exact or not test:
                yield job


def on_processors(wanted: Sequence[Job], processors: Sequence[str]) -> list[Outcome]:
    """All jobs on all processors, two processes at a time."""
    parts = [(processor, wanted[half::2]) for processor in processors for half in (0, 1)]
    found: list[Outcome] = []
    with common.terminal.task("running", len(wanted) * len(processors)) as advance, ThreadPoolExecutor(2) as pool:

        def run(part: tuple[str, Sequence[Job]]) -> None:
            for outcome in run_jobs(part[1], part[0]):
                found.append(outcome)
                advance(text=f"{outcome.job.network} on {outcome.processor}")

        list(pool.map(run, parts))
    places = {id(job): place for place, job in enumerate(wanted)}
    return sorted(found, key=lambda one: places[id(one.job)])


def report(outcomes: Sequence[Outcome], processors: Sequence[str], wrong: Sequence[Outcome]) -> None:
    """Print the table and a line with counts."""
    print(common.table(("network", "runtime", *processors), rows(outcomes, processors), names=2))
    for one in wrong:
        common.terminal.note(
            f"{one.job.network}, {one.job.runtime}, {one.processor}: outputs up to {one.largest_steps} steps off"
        )
    print(f"{len(outcomes) - len(wrong)} passed, {len(wrong)} failed")


def rows(outcomes: Sequence[Outcome], processors: Sequence[str]) -> list[tuple[str, ...]]:
    """Table rows: the share of identical outputs by network, runtime and processor."""
    keys = list(dict.fromkeys((one.job.network, one.job.runtime) for one in outcomes))
    cells = {(one.job.network, one.job.runtime, one.processor): one for one in outcomes}
    return [(*key, *(_share(cells[*key, processor]) for processor in processors)) for key in keys]


def _share(one: Outcome) -> str:
    return (
        f"{one.identical / one.outputs:.0%}" if one.identical == one.outputs else f"{one.identical / one.outputs:.1%}"
    )


def introduction(outcomes: Sequence[Outcome], processors: Sequence[str]) -> list[str]:
    """The guarantees, and the table of networks by processors."""
    return [
        "# Int8 on every processor",
        "This page is generated by\n\n"
        "```sh\npython benchmarks/weight_ranges.py\npython benchmarks/processors.py\n```\n\n"
        "`make test-processors` tests the table of networks.",
        common.surroundings(),
        "On x86 processors with AVX2 or AVX-512 and without VNNI (AMD Zen 1 to 3, Intel before Ice Lake, many cloud "
        "servers), onnxruntime's kernels for uint8 activations and int8 weights add two products in 16 bits, and the "
        "sum saturates. firebox prevents this in two ways. Its sessions load such layers with the same weights as "
        "uint8, whose kernels are exact. Its exports quantize weights so that no pair of them can saturate, for "
        "applications that load the files without firebox; `firebox check FILE` reports whether any ONNX file can "
        "saturate.",
        "## Guarantees by operation",
        "For files exported by firebox, in onnxruntime, LiteRT (XNNPACK) and the reference "
        "(`runtime/graph/reference.py`). *One step*: the output integers of this operation differ by at most one, "
        "which later layers may amplify. tflite-runtime and tflite-micro rescale in fixed point, where each single "
        "operation is within one step.",
        common.table(("operation", "outputs", "reason"), _PROMISES, names=3),
        "## Networks by processor",
        "The share of outputs identical to the reference's, on 2 images. Nehalem (SSE4), Haswell (AVX2) and max (all "
        "features of QEMU; no VNNI) are emulated by `qemu-x86_64`. *onnxruntime* and *litert* are firebox sessions; "
        "*plain onnxruntime* has its default options. *Full range* files use all 8 bits of the weights, like other "
        "quantizers. The files named *onnxruntime's* are made by onnxruntime's own quantizer (int8 weights per "
        f"channel). This machine is {this_processor()}.",
        common.table(("network", "runtime", *processors), rows(outcomes, processors), names=2),
    ]


def reference_files(folder: Path, name: str, data_folder: Path) -> list[Network]:
    """A network with published weights, exported with full-range and with saturation-free weights."""
    network, images = common.load_reference(name, data_folder), open_images(data_folder / common.IMAGES)
    found = []
    for weight_range in ("full", "saturation-free"):
        place = folder / weight_range
        config = ExportConfig(effort="fast", weight_range=weight_range, precisions=("int8",), tolerance=common.NO_GATE)
        export_network(network, place, images, config, progress=common.terminal)
        file, is_safe = place / "model.int8.onnx", weight_range != "full"
        found.append(Network(f"{name}, {weight_range}", (file,), images, network.preprocessing, is_safe))
    return found


def real_jobs(network: Network) -> Iterator[Job]:
    """The ONNX file in a session and in plain onnxruntime, on real images."""
    yield from jobs_of(network, network.files[0], _REAL_IMAGES)


def real_images(outcomes: Sequence[Outcome]) -> list[str]:
    """Networks with published weights on real images."""
    stages = {
        ("full", PLAIN): "full range, plain onnxruntime",
        ("full", "onnxruntime"): "full range, `Session`",
        ("saturation-free", PLAIN): "saturation-free, plain onnxruntime",
        ("saturation-free", "onnxruntime"): "saturation-free, `Session`",
    }
    cells = []
    for name in common.REFERENCES:
        for (weight_range, runtime), stage in stages.items():
            one = next(o for o in outcomes if (o.job.network, o.job.runtime) == (f"{name}, {weight_range}", runtime))
            share = f"{one.identical / one.outputs:.2%}"
            cells.append(
                (name, stage, f"{one.same_class / one.inputs:.0%}", share, str(one.largest_steps), one.weights)
            )
    columns = (
        "network",
        "weights, runtime",
        "agreement",
        "identical logits",
        "largest difference, steps",
        "weights as loaded",
    )
    return [
        f"## {_REAL_IMAGES} real images on an emulated {outcomes[0].processor}",
        f"Compared with the reference on {_REAL_IMAGES} images of `$FIREBOX_DATA/{common.IMAGES}`, drawn with "
        "seed 1. The "
        "files are exported with `--effort fast`, calibrated with 100 images drawn with seed 0. *Agreement* is the "
        "share of images with the same class.",
        common.table(columns, cells, names=2),
    ]


def weight_ranges(results: Sequence[Result]) -> list[str]:
    """The accuracy cost of saturation-free weights."""
    cells = []
    for name in common.REFERENCES:
        for weight_range, title in _RANGES.items():
            found = [one for one in results if (one.network, one.weight_range) == (name, weight_range)]
            if len(found) < FOLDS:
                raise click.ClickException(f"{name}, {weight_range}: run benchmarks/weight_ranges.py first")
            agreement, top1 = [100 * one.agreement for one in found], [100 * (o.top1 - o.float_top1) for o in found]
            cells.append(
                (
                    name,
                    title,
                    f"{np.mean(agreement):.2f} ({min(agreement):.2f} to {max(agreement):.2f})",
                    f"{np.mean(top1):+.2f} ({min(top1):+.2f} to {max(top1):+.2f})",
                    f"{np.mean([one.sqnr_db for one in found]):.2f}",
                    f"{found[0].saturating:,} of {found[0].pairs:,}",
                )
            )
    columns = ("network", "weights", "agreement, %", "top-1, points", "SQNR, dB", "pairs that can saturate")
    return [
        "## Accuracy of saturation-free weights",
        f"Effort `good`, in {FOLDS} folds of the 500 images drawn with seed 0: 100 calibrate, the other 400 are "
        "compared with the float network. Figures are means, with the lowest and the highest fold in brackets. One "
        "image of a fold is 0.25 %. Pairs are those of the first fold. *7 bits* is the usual `reduce_range` option.",
        common.table(columns, cells, names=2),
    ]


def roundings(data_folder: Path) -> list[str]:
    """The effect of exact scales, and of average pools as convolutions."""
    cells = []
    cifar = load_network("squeezenet_cifar")
    images = open_images(data_folder / common.CIFAR)
    train, test = images.split("train"), images.split("test")
    assert train is not None and test is not None
    for seed in range(3):
        calibration, judged = sample(train, 100, seed), sample(test, 1000, seed)
        cells += _rounding_rows("squeezenet_cifar", str(seed), cifar, calibration, judged)
    micro = load_network("squeezenet_micro", random_init=True)
    digits = open_images("digits")
    drawn = sample(digits, 60, 0), sample(digits, 200, 1)
    cells += _rounding_rows("residual sums and average pools", "0", replace(micro, module=Sums()), *drawn)
    columns = ("network", "seed", "scales and pools", "identical in both formats", "agreement", "SQNR, dB")
    return [
        "## Accuracy of exact sums and means",
        "*As calibrated* keeps the calibrated scales and average pools; *as written* is the exported file, with scales "
        "moved to exact ratios and even average pools as convolutions. squeezenet_cifar has residual sums; 100 "
        f"training images calibrate and 1,000 test images of `$FIREBOX_DATA/{common.CIFAR}` are measured, both "
        "drawn with the "
        "seed. *Identical* is the share of outputs that are the same for the ONNX file in onnxruntime and the TFLite "
        "file in LiteRT. *Agreement* and *SQNR* compare the ONNX file with the float network. The second network has "
        "random weights.",
        common.table(columns, cells, names=3),
    ]


def _rounding_rows(name: str, seed: str, network: ZooNetwork, calibration, judged) -> Iterator[tuple[str, ...]]:
    preprocessing = network.preprocessing
    graph = trace(network.module, (1, preprocessing.depth, *preprocessing.size), "network")

    def inputs(images) -> list[np.ndarray]:
        crops = (preprocessing.crop(images.read(one), images.where(one)) for one in images.names)
        return [preprocessing.normalize(pixels)[None] for pixels in crops]

    samples, views = inputs(calibration), inputs(judged)
    expected = run_outputs(graph, views)
    for title, ways in (("as calibrated", _as_calibrated()), ("as written", nullcontext())):
        with ways:
            found = quantize_network(graph, samples, "fast").graph
        onnx, tflite = run_outputs(found, views), _in_litert(found, views)
        noise = ((onnx - expected) ** 2).sum()
        yield (
            name,
            seed,
            title,
            f"{(np.abs(onnx - tflite) < 1e-6).mean():.2%}",
            f"{(onnx.argmax(1) == expected.argmax(1)).mean():.2%}",
            f"{10 * np.log10((expected**2).sum() / noise):.2f}",
        )


@contextmanager
def _as_calibrated() -> Iterator[None]:
    """Quantize without exact scales and without rewriting average pools."""
    with (
        mock.patch("firebox.export.quantization.scales.exact_scales", lambda graph, groups, scales: dict(scales)),
        # The package has a function of the same name as this module, which a dotted path would find.
        mock.patch.object(
            import_module("firebox.export.quantization.quantize"), "averages_as_convolutions", lambda graph: graph
        ),
    ):
        yield


def _in_litert(graph: Graph, views: Sequence[np.ndarray]) -> np.ndarray:
    """Dequantized outputs (images, values) of the TFLite file."""
    quantization = graph.tensors[graph.outputs[0]].quantization
    assert quantization is not None
    with Session(write_tflite(graph), "litert") as session:
        return np.stack([quantization.dequantize(session.run(graph.input_values(x))).ravel() for x in views])


def times(networks: Sequence[Network], rounds: int) -> list[str]:
    """The latency of each way to run a network on a saturating processor."""
    title = f"## {_LATER['times']}"
    if not kernels_saturate():
        return [title, f"Not measured: kernels do not saturate on this machine, {this_processor()}."]
    full, safe = (network.files[0] for network in networks)
    option = session_options(1)
    option.add_session_config_entry("session.x64quantprecision", "1")
    opened = {
        "plain (control)": open_onnx(read_file(full), session_options(1), exact=False),
        "onnxruntime's option `session.x64quantprecision`": open_onnx(read_file(full), option, exact=False),
        "weights rewritten as uint8 (`Session`)": open_onnx(read_file(full), session_options(1)),
        "saturation-free file, plain": open_onnx(read_file(safe), session_options(1), exact=False),
        "saturation-free file, `Session`": open_onnx(read_file(safe), session_options(1)),
    }
    plain = open_onnx(read_file(full), session_options(1), exact=False).session
    (x,) = next(real_jobs(networks[0])).inputs[:1]
    comparisons = [
        Comparison("form", (form,), _runner(one.session, x), _runner(plain, x)) for form, one in opened.items()
    ]
    found = time_pairs(comparisons, rounds, 2.0, 0)
    return [
        title,
        "Latency of squeezenet1_1 in onnxruntime, on one thread, divided by that of the full-range file in a plain "
        f"session, whose outputs are wrong; measured in pairs as on [speed](speed.md), on {this_processor()}.",
        common.table(("form", *RATIO_COLUMNS), [ratios.cells() for ratios in found]),
    ]


def _runner(session, x: np.ndarray):
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def loads(networks: Sequence[Network]) -> list[str]:
    """The time that exact loading and the golden pair add to opening a session."""
    cells = []
    for network in networks:
        data = read_file(network.files[0])
        ways = {
            "plain, no check": lambda data=data: Session(data, exact=False, check="off"),
            "exact, no check": lambda data=data: Session(data, check="off"),
            "exact, golden pair checked": lambda data=data: Session(data),
            "exact, golden pair remembered": lambda data=data: Session(data),
        }
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(_LOADS):
            with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, FIREBOX_CACHE=cache):
                golden.forget()
                for way, load in ways.items():
                    start = time.thread_time()
                    load()
                    spent[way].append(1000 * (time.thread_time() - start))
        base = min(spent["plain, no check"])
        cells += [(network.name, way, f"{min(ms):.1f}", f"{min(ms) - base:+.1f}") for way, ms in spent.items()]
    return [
        f"## {_LATER['loads']}",
        f"Thread time to open a session of squeezenet1_1's ONNX file: the shortest of {_LOADS}, in turns, which "
        "excludes other work on the machine. The first load of a file runs one inference for its golden pair. Measured "
        f"on {this_processor()}, where kernels "
        f"{'saturate' if kernels_saturate() else 'do not saturate, so that no weights are examined'}.",
        common.table(("file", "session", "ms", "difference, ms"), cells, names=2),
    ]


if __name__ == "__main__":
    main()
