"""Saturation-free int8 weights compared with full-range (8-bit) and 7-bit weights, for docs/processors.md.

As in ``quantization.py``, each of five folds calibrates in turn, and the other images are measured. Results are kept,
so that a benchmark that was stopped continues where it was; ``--fresh`` measures again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import click
import numpy as np
from common import IMAGES, REFERENCES, data_option, load_reference

from firebox.export.activations import run_outputs
from firebox.export.formats.onnx_writer import write_onnx
from firebox.export.quantization.ptq import quantize_network
from firebox.export.quantization.weight_grid import WeightRange
from firebox.export.trace import trace
from firebox.runtime import open_images
from firebox.runtime.commands.console import note, progress
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
        network = load_reference(name, data_folder)
        graph = trace(network.module, (1, network.preprocessing.depth, *network.preprocessing.size), name)
        crops = [network.preprocessing.crop(images.read(one), one) for one in images.names]
        samples = [network.preprocessing.normalize(pixels)[None] for pixels in crops]
        labels = match_labels(images, network.classes, network.class_ids)
        expected = run_outputs(graph, samples)
        with progress(name, FOLDS * len(get_args(WeightRange))) as advance:
            for fold, drawn in enumerate(parts):
                rest = np.setdiff1d(np.arange(len(images)), drawn)
                for weight_range in get_args(WeightRange):
                    file = cache / f"{name}.{weight_range}.{fold}.json"
                    if fresh or not file.is_file():
                        calibration = [samples[i] for i in np.sort(drawn)]
                        found = quantize_network(graph, calibration, weight_range=weight_range, quiet=True).graph
                        outputs = run_outputs(found, [samples[i] for i in rest])
                        layers = check_saturation(write_onnx(found)).layers
                        result = Result(
                            name,
                            weight_range,
                            fold,
                            len(rest),
                            float((outputs.argmax(1) == expected[rest].argmax(1)).mean()),
                            float((outputs.argmax(1) == labels[rest]).mean()),
                            float((expected[rest].argmax(1) == labels[rest]).mean()),
                            float(10 * np.log10((expected[rest] ** 2).sum() / ((outputs - expected[rest]) ** 2).sum())),
                            sum(layer.saturating or 0 for layer in layers),
                            sum(layer.pairs for layer in layers),
                        )
                        write_file(file, json.dumps(asdict(result), indent=2) + "\n")
                        note(f"{name}, {weight_range}, fold {fold}: {result.agreement:.2%}")
                    advance(text=name)


if __name__ == "__main__":
    main()
