"""Int8 accuracy at each effort, on images not used for calibration, compared with other quantizers; writes
docs/quantization.md.

Each of five folds calibrates in turn, and the other images are measured. The figures of every fold are kept in a small
file, so that a benchmark that was stopped continues where it was.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import click
import common
import numpy as np
from comparators import (
    STOCK_REQUIREMENTS,
    STOCK_SCRIPT,
    StockQuantizer,
    convert_with_stock,
    open_stock,
    quantize_with_onnxruntime,
)
from pairs import bare
from quantization_page import FOLDS, LITERT, ONNX, Figures, File, Result, page

import firebox.export
import firebox.runtime
from firebox.export import ExportConfig, trace, write_onnx
from firebox.export.formats.contract_writer import contract_for_file
from firebox.export.parity import compare
from firebox.export.quantization import Effort, calibration_samples, quantize_network, with_int16_layers
from firebox.model_zoo import Network, TorchClassifier, export_network
from firebox.runtime import Contract, LabelledImages, Session, open_images
from firebox.runtime.contract import KEY, TensorSpec
from firebox.runtime.files import sha256, write_file
from firebox.runtime.images import match_labels

_CACHE = Path(__file__).resolve().parent.parent / "build" / "quantization"
_SEED = 0

# Layers with 16-bit activations, to show the cost of 8 bits: patterns by name.
_WIDE = {"first two Fires": ("features.3.*", "features.4.*"), "all": ("*",)}

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Made:
    """The files of one network: functions from pixels (height, width, channels) to logits, by runtime; the processor
    seconds to make the files; the step of the logits, where two formats are compared."""

    runs: Mapping[str, Run]
    seconds: float
    step: float = 1.0


@dataclass(frozen=True)
class Method:
    """A quantization method: ``make`` takes a network, the calibration images and a folder for its files. Its results
    are valid as long as the files in ``sources`` and the ``versions`` are the same."""

    name: str
    make: Callable[[Network, LabelledImages, Path], Made]
    sources: Sequence[Path]
    versions: str


@dataclass(frozen=True)
class Truth:
    """A network with all images, their pixels, the float32 logits (images, classes) and the labels."""

    network: Network
    images: LabelledImages
    pixels: Sequence[np.ndarray]
    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Job:
    """One method on one network and fold, and the file of its result."""

    network: str
    method: Method
    fold: int
    file: Path
    key: str

    def result(self) -> Result | None:
        """The kept result, if the sources are unchanged."""
        try:
            kept = json.loads(self.file.read_text())
        except FileNotFoundError:
            return None
        return Result.from_json(kept["result"]) if kept["key"] == self.key else None

    def keep(self, result: Result) -> None:
        """Keep the result for the next run."""
        write_file(self.file, json.dumps({"key": self.key, "result": asdict(result)}, indent=2) + "\n")


@click.command()
@common.data_option
@common.out_option("quantization.md")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=_CACHE,
    help="Folder of kept results.  [default: build/quantization]",
)
@click.option("--fresh", is_flag=True, help="Measure again, even where results are kept.")
@click.option(
    "--stock", type=click.Path(path_type=Path, exists=True), help="Python of the stock converter's environment."
)
@click.option(
    "--only", multiple=True, help="Measure these methods only; the page shows the kept results of the others."
)
def main(data_folder: Path, out: Path, cache: Path, fresh: bool, stock: Path | None, only: tuple[str, ...]) -> None:
    """Quantize v1.1 and v1.0 with every method, fold by fold.

    \b
    Example:
      python benchmarks/quantization.py --data-folder ~/firebox-data --stock build/stock_litert/bin/python
    """
    images = open_images(data_folder / common.IMAGES)
    found = list(methods(stock))
    names = [method.name for method in found]
    if not set(only) <= set(names):
        raise click.UsageError(f"--only {' '.join(only)}: the methods are {', '.join(names)}")
    jobs = [
        Job(
            network,
            method,
            fold,
            cache / f"{network}.{method.name}.{fold}.json".replace(" ", "-"),
            key(method, data_folder / weights),
        )
        for network, weights in common.REFERENCES.items()
        for fold in range(FOLDS)
        for method in found
    ]
    wanted = [job for job in jobs if not only or job.method.name in only]
    missing = [job for job in wanted if (fresh or job.result() is None) and (stock or not is_stock(job.method))]
    with common.terminal.task("measuring", len(missing)) as advance:
        for name in dict.fromkeys(job.network for job in missing):
            known = truth(common.load_reference(name, data_folder), images)
            for job in (job for job in missing if job.network == name):
                result = measure(job.method, job.fold, known)
                job.keep(result)
                common.terminal.note(f"{name}, {job.method.name}, fold {job.fold}: {_briefly(result)}")
                advance(text=name)
    common.write_page(out, page(files(jobs), len(images)))


def methods(stock: Path | None) -> Iterator[Method]:
    rooms = [Path(path) for room in (firebox.export, firebox.runtime) for path in room.__path__]
    ours = [file for room in rooms for file in sorted(room.rglob("*.py"))]
    for effort in get_args(Effort):
        yield Method(f"firebox {effort}", partial(_export, effort), ours, "")
    for name, layers in _WIDE.items():
        yield Method(f"firebox good, {name} 16-bit", partial(_widened, layers), ours, "")
    theirs = Path(__file__).with_name("comparators.py")
    yield Method("onnxruntime", _onnxruntime, [theirs], version("onnxruntime"))
    for quantizer in get_args(StockQuantizer):
        make = partial(_stock, stock or Path(), quantizer)
        yield Method(f"litert-torch {quantizer}", make, [STOCK_REQUIREMENTS, STOCK_SCRIPT], "")


def is_stock(method: Method) -> bool:
    return STOCK_SCRIPT in method.sources


def key(method: Method, weights: Path) -> str:
    contents = [file.read_bytes() for file in (*method.sources, weights)]
    return sha256(b"".join([method.versions.encode(), version("ai-edge-litert").encode(), *contents]))


def _export(effort: Effort, network: Network, images: LabelledImages, folder: Path) -> Made:
    config = ExportConfig(len(images), effort=effort, precisions=("int8",), tolerance=common.NO_GATE)
    start = processor_seconds()
    export_network(network, folder, images, config)
    seconds = processor_seconds() - start
    onnx, tflite = Session(folder / "model.int8.onnx", "onnxruntime"), Session(folder / "model.int8.tflite", "litert")
    return Made({ONNX: onnx.predict_pixels, LITERT: tflite.predict_pixels}, seconds, onnx.contract.output.scale or 1.0)


def _widened(layers: Sequence[str], network: Network, images: LabelledImages, folder: Path) -> Made:
    """With 16-bit activations in some layers: ONNX only, because LiteRT's kernels for them take a second each."""
    preprocessing, start = network.preprocessing, processor_seconds()
    crops = [preprocessing.crop(images.read(name), images.where(name)) for name in images.names]
    graph = trace(network.module, (1, preprocessing.depth, *preprocessing.size), network.name)
    quantized = quantize_network(graph, calibration_samples(crops, preprocessing))
    wide, none = with_int16_layers(quantized.graph, layers), TensorSpec("float32", ())
    contract = Contract(network.name, preprocessing, network.classes, network.class_ids, "NHWC", "logits", none, none)
    file = write_onnx(wide, {KEY: contract_for_file(contract, wide, "NCHW").to_bytes()})
    return Made({ONNX: Session(file).predict_pixels}, processor_seconds() - start)


def _onnxruntime(network: Network, images: LabelledImages, folder: Path) -> Made:
    export_network(network, folder, images, ExportConfig(precisions=("float32",)))
    start = processor_seconds()
    run, session = bare(quantize_with_onnxruntime(folder, images)), Session(folder / "model.float32.onnx")
    seconds = processor_seconds() - start
    return Made({ONNX: lambda pixels: run(common.encode(session, pixels)).reshape(-1)}, seconds)


def _stock(python: Path, quantizer: StockQuantizer, network: Network, images: LabelledImages, folder: Path) -> Made:
    start = processor_seconds()
    file = convert_with_stock(python, quantizer, network, images, folder / "stock.tflite")
    return Made({LITERT: open_stock(file, network)}, processor_seconds() - start)


def folds(images: int) -> list[np.ndarray]:
    """Indices of the calibration images of each fold; the folds are disjoint."""
    return [np.sort(fold) for fold in np.array_split(np.random.default_rng(_SEED).permutation(images), FOLDS)]


def truth(network: Network, images: LabelledImages) -> Truth:
    pixels = [network.preprocessing.crop(images.read(name), name) for name in images.names]
    classifier, logits = TorchClassifier(network), []
    with common.terminal.task(f"{network.name} in torch", len(pixels)) as advance:
        for each in pixels:
            logits.append(classifier.predict_pixels(each))
            advance()
    labels = match_labels(images, network.classes, network.class_ids)
    return Truth(network, images, pixels, np.array(logits), labels)


def measure(method: Method, fold: int, known: Truth) -> Result:
    drawn = folds(len(known.pixels))[fold]
    others = np.setdiff1d(np.arange(len(known.pixels)), drawn)
    with tempfile.TemporaryDirectory() as folder:
        made = method.make(known.network, known.images.subset(drawn), Path(folder))
        logits = {name: np.array([run(known.pixels[i]) for i in others]) for name, run in made.runs.items()}
    found = {name: figures(outputs, known.logits[others], known.labels[others]) for name, outputs in logits.items()}
    if len(logits) < 2:
        return Result(made.seconds, found, None, None)
    first, second = logits.values()
    steps = np.rint(np.abs(first - second) / made.step)
    return Result(made.seconds, found, float((steps == 0).mean()), int(steps.max()))


def processor_seconds() -> float:
    """Processor time of this process and of the processes that it started and waited for."""
    return sum(os.times()[:4])


def figures(found: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> Figures:
    parity = compare("", "int8", "", expected, found)
    right, truly = (logits.argmax(1) == labels for logits in (found, expected))
    lost, won = int((truly & ~right).sum()), int((right & ~truly).sum())
    sqnr = np.inf if parity.sqnr_db is None else float(parity.sqnr_db)
    return Figures(parity.agreement, float(right.mean()), float(truly.mean()), lost, won, sqnr)


def files(jobs: Sequence[Job]) -> list[File]:
    """The methods with results for every fold."""
    known: dict[tuple[str, str], list[Result]] = {}
    for job in jobs:
        result = job.result()
        if result:
            known.setdefault((job.network, job.method.name), []).append(result)
    return [
        File(network, method, runtime, results)
        for (network, method), results in known.items()
        if len(results) == FOLDS
        for runtime in results[0].runtimes
    ]


def _briefly(result: Result) -> str:
    one = next(iter(result.runtimes.values()))
    return f"{one.agreement:.1%} agreement, {one.sqnr_db:.1f} dB, {result.seconds:.0f} s"


if __name__ == "__main__":
    main()
