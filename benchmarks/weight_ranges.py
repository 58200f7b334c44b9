"""Saturation-free int8 weights compared with full-range (8-bit) and 7-bit weights, for docs/processors.md.

As in ``quantization.py``, each of five folds calibrates in turn, and the other images are measured. Results are kept,
so that a benchmark that was stopped continues where it was; ``--fresh`` measures again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, get_args

import click
import numpy as np
from common import IMAGES, REFERENCES, data_option, load_reference, terminal

from firebox.export import trace, write_onnx
from firebox.export.activations import run_outputs
from firebox.export.quantization import WeightRange, quantize_network
from firebox.model_zoo import Network
from firebox.runtime import Graph, LabelledImages, open_images
from firebox.runtime.exactness.check import check_saturation
from firebox.runtime.files import write_file
from firebox.runtime.images import match_labels

CACHE = Path(__file__).resolve().parent.parent / "build" / "weight_ranges"
FOLDS = 5
SEED = 0


@dataclass(frozen=True)
class Result:
    """One network, weight range and fold: agreement with the float network, top-1 of both, SQNR of the logits in dB,
    and the pairs of weights that can saturate."""

    network: str
    weight_range: WeightRange
    fold: int
    images: int
    agreement: float
    top1: float
    float_top1: float
    sqnr_db: float
    saturating: int
    pairs: int


def kept(cache: Path = CACHE) -> list[Result]:
    """All results so far."""
    return [Result(**json.loads(path.read_text())) for path in sorted(cache.glob("*.json"))]


@click.command()
@data_option
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of kept results.")
@click.option("--network", "networks", multiple=True, type=click.Choice(list(REFERENCES)), default=list(REFERENCES))
@click.option("--fresh", is_flag=True, help="Measure again, even where results are kept.")
def main(data_folder: Path, cache: Path, networks: Sequence[str], fresh: bool) -> None:
    """Quantize v1.1 and v1.0 with each weight range, fold by fold.

    \b
    Example:
      python benchmarks/weight_ranges.py --data-folder ~/firebox-data
    """
    images = open_images(data_folder / IMAGES)
    parts = np.array_split(np.random.default_rng(SEED).permutation(len(images)), FOLDS)
    for name in networks:
        files = {
            (weight_range, fold): cache / f"{name}.{weight_range}.{fold}.json"
            for fold in range(FOLDS)
            for weight_range in get_args(WeightRange)
        }
        missing = [key for key, file in files.items() if fresh or not file.is_file()]
        subject = Subject.of(load_reference(name, data_folder), images) if missing else None
        with terminal.task(name, len(missing)) as advance:
            for weight_range, fold in missing:
                assert subject is not None
                result = measure(subject, weight_range, fold, np.sort(parts[fold]))
                write_file(files[weight_range, fold], json.dumps(asdict(result), indent=2) + "\n")
                terminal.note(f"{name}, {weight_range}, fold {fold}: {result.agreement:.2%}")
                advance(text=name)


@dataclass(frozen=True)
class Subject:
    """A float network with the samples, labels and logits (images, classes) of all images."""

    graph: Graph
    samples: Sequence[np.ndarray]
    labels: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, network: Network, images: LabelledImages) -> Self:
        """Trace a network and run it on all images."""
        preprocessing = network.preprocessing
        graph = trace(network.module, (1, preprocessing.depth, *preprocessing.size), network.name)
        crops = (preprocessing.crop(images.read(one), one) for one in images.names)
        samples = [preprocessing.normalize(pixels)[None] for pixels in crops]
        labels = match_labels(images, network.classes, network.class_ids)
        return cls(graph, samples, labels, run_outputs(graph, samples))


def measure(subject: Subject, weight_range: WeightRange, fold: int, drawn: np.ndarray) -> Result:
    """Quantize with the images ``drawn`` and compare the int8 network with the float one on all others."""
    rest = np.setdiff1d(np.arange(len(subject.samples)), drawn)
    calibration = [subject.samples[i] for i in drawn]
    found = quantize_network(subject.graph, calibration, weight_range=weight_range).graph
    outputs, expected = run_outputs(found, [subject.samples[i] for i in rest]), subject.logits[rest]
    predicted, labels = outputs.argmax(1), subject.labels[rest]
    layers = check_saturation(write_onnx(found)).layers
    return Result(
        network=subject.graph.name,
        weight_range=weight_range,
        fold=fold,
        images=len(rest),
        agreement=float((predicted == expected.argmax(1)).mean()),
        top1=float((predicted == labels).mean()),
        float_top1=float((expected.argmax(1) == labels).mean()),
        sqnr_db=float(10 * np.log10((expected**2).sum() / ((outputs - expected) ** 2).sum())),
        saturating=sum(layer.saturating or 0 for layer in layers),
        pairs=sum(layer.pairs for layer in layers),
    )


if __name__ == "__main__":
    main()
