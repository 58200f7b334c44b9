"""What quantization-aware training gains over quantizing afterwards, on CIFAR-10; writes docs/qat.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from common import CIFAR, FOLDER, data_option, out_option, surroundings, table, test_images, write_page

from firebox.export import ExportConfig, Range, Tolerance, quantize, write_tflite
from firebox.export.activations import run_activations
from firebox.export.quantization.fake_quantize import FakeQuantized
from firebox.model_zoo import (
    Network,
    TrainingConfig,
    export_network,
    load_network,
    quantized_config,
    resume,
    train,
    train_quantized,
)
from firebox.model_zoo.classifier import TorchClassifier
from firebox.model_zoo.networks.int8 import fake_quantized
from firebox.model_zoo.weights.checkpoint import FILE_NAME, read_checkpoint
from firebox.runtime import LabelledImages, Preprocessing, Session, open_images, sample, split_images
from firebox.runtime.commands.console import progress
from firebox.runtime.formats.read import format_of
from firebox.runtime.graph import Graph
from firebox.runtime.inference.backends import installed_backends
from firebox.runtime.inference.classifier import Classifier

_MODEL = "squeezenet_cifar_small"
_FLOAT, _INT8 = "float", "int8"
_BEFORE, _AFTERWARDS, _TUNED = "float", "quantized afterwards", "trained in int8"
# Images whose activations are compared one by one.
_LOOKED_INTO = 20
_TORCH, _TUNED_FLOAT = f"{_TUNED}, torch", f"{_TUNED}, but answering in float"


@dataclass(frozen=True)
class Findings:
    """Logits (images, classes) of everything that answers, the right classes, and the step of int8 logits."""

    logits: Mapping[str, np.ndarray]
    labels: np.ndarray
    step: float

    def ranked(self, name: str) -> np.ndarray:
        """The class of each answer."""
        return self.logits[name].argmax(1)

    def right(self, name: str) -> np.ndarray:
        """Which answers are right."""
        return self.ranked(name) == self.labels

    def accuracy(self, name: str) -> float:
        """The share of them."""
        return float(self.right(name).mean())

    def steps(self, name: str) -> np.ndarray:
        """How many steps of the int8 logits each answer is from what training computed."""
        return np.rint(np.abs(self.logits[name] - self.logits[_TORCH]) / self.step).astype(int)


@dataclass(frozen=True)
class Tensors:
    """Integers of all activations of a few images in one runtime beside training's: how many there are of each
    difference in steps (0, 1, 2, …), and the least share within one step that a tensor has."""

    counts: np.ndarray
    worst: str
    worst_share: float


@click.command()
@data_option
@out_option("qat.md")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="build/qat",
    show_default=True,
    help="Folder of the trainings; those that are there are gone on with, or used when they are finished.",
)
@click.option("--float-epochs", default=8, show_default=True, help="Epochs of the float training.")
@click.option("--epochs", default=1, show_default=True, help="Epochs of fine-tuning.")
@click.option("--lr", type=float, help="Rate of fine-tuning.  [default: that of firebox train --qat]")
@click.option("--seed", default=0, show_default=True, help="Seed of both trainings and of calibration.")
def main(data_folder: Path, out: Path, runs: Path, float_epochs: int, epochs: int, lr: float | None, seed: int) -> None:
    """Train squeezenet_cifar_small, fine-tune it in int8, export both, and measure all of it on the test images.

    \b
    Example:
      python benchmarks/qat.py --data-folder ~/firebox-data
    """
    torch.set_num_threads(1)
    images = open_images(data_folder / CIFAR)
    data = str(data_folder / CIFAR)
    plan = TrainingConfig(_MODEL, data, epochs=float_epochs, batch_size=128, val_fraction=0.05, threads=1, seed=seed)
    network = trained(runs / _FLOAT, data, partial(train, plan))
    tuning = quantized_config(network)
    tuning = replace(tuning, data=data, epochs=epochs, learning_rate=lr or tuning.learning_rate)
    tuned = trained(runs / _INT8, data, partial(train_quantized, network, tuning))
    test = test_images(data_folder)
    seen = split_images(images, tuning.val_fraction, tuning.seed)[0]
    answering = classifiers(network, tuned, seen, runs, seed)
    found = measure(answering, network.preprocessing, test)
    write_page(out, page(network, tuned, found, every_activation(tuned, sample(test, _LOOKED_INTO, seed)), seed))


def trained(folder: Path, data: str, start: Callable[[Path], object]) -> Network:
    """The network of a run, which is begun, gone on with or taken as it is."""
    if not (folder / FILE_NAME).exists():
        start(folder)
    checkpoint = read_checkpoint(folder / FILE_NAME)
    if checkpoint.epoch < checkpoint.training.epochs:
        resume(folder, data=data)
    return load_network(folder)


def classifiers(network: Network, tuned: Network, seen: LabelledImages, runs: Path, seed: int) -> dict[str, Classifier]:
    """Everything that is measured, by its name in the tables."""
    found: dict[str, Classifier] = {_BEFORE: TorchClassifier(network)}
    # What the gate would refuse is measured, too.
    config = ExportConfig(seed=seed, tolerance=Tolerance(agreement=0, sqnr_db=-100))
    for name, one in ((_AFTERWARDS, network), (_TUNED, tuned)):
        files = export_network(one, runs / f"{name} files", seen, config).files
        if one is tuned:
            found[_TORCH] = TorchClassifier(tuned)
            found[_TUNED_FLOAT] = Session(next(file for file in files if file.name == "model.float32.onnx"))
        for file in files:
            if ".int8." in file.name:
                for backend in installed_backends(format_of(file)):
                    found[f"{name}, {backend}"] = Session(file, backend)
    return found


def measure(answering: Mapping[str, Classifier], preprocessing: Preprocessing, test: LabelledImages) -> Findings:
    pixels = [preprocessing.crop(test.read(name), test.where(name)) for name in test.names]
    logits: dict[str, np.ndarray] = {}
    with progress("answering", len(answering) * len(pixels)) as advance:
        for name, classifier in answering.items():
            answers = []
            for image in pixels:
                answers.append(classifier.predict_pixels(image))
                advance()
            logits[name] = np.array(answers)
    session = next(one for name, one in answering.items() if _is_file(name))
    assert isinstance(session, Session) and session.contract.output.scale is not None
    return Findings(logits, test.labels, session.contract.output.scale)


def every_activation(tuned: Network, images: LabelledImages) -> dict[str, Tensors]:
    """The network cut behind each of its operations, in torch and in every runtime."""
    whole = fake_quantized(tuned.module, tuned.ranges)
    graph, ranges = whole.graph(), whole.ranges()
    integers = quantize(graph, ranges)
    inputs = [tuned.preprocessing.normalize(tuned.preprocessing.crop(images.read(name)))[None] for name in images.names]
    steps: dict[str, dict[str, np.ndarray]] = {}
    with progress("looking into the network", len(integers.ops)) as advance:
        for op in integers.ops:
            cut, int8 = (
                Graph.of(one.name, one.tensors.values(), one.ops, one.inputs, (op.output,)) for one in (graph, integers)
            )
            expected = _in_torch(cut, ranges, inputs)
            for backend, found in _in_runtimes(int8, inputs).items():
                scale = integers.tensors[op.output].quantization
                assert scale is not None
                difference = np.rint(np.abs(found - expected) / scale.scale[0]).astype(int)
                steps.setdefault(backend, {})[op.output] = difference.ravel()
            advance()
    return {backend: _pooled(tensors) for backend, tensors in steps.items()}


def _in_torch(cut: Graph, ranges: Mapping[str, Range], inputs: list[np.ndarray]) -> np.ndarray:
    images = np.concatenate(inputs).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        found = FakeQuantized(cut, ranges)(torch.from_numpy(np.ascontiguousarray(images, np.float32))).numpy()
    return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found


def _in_runtimes(cut: Graph, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Reals of the output, NHWC, by runtime."""
    source, target = (cut.tensors[name] for name in (*cut.inputs, *cut.outputs))
    assert source.quantization is not None and target.quantization is not None
    found = {
        "onnxruntime": np.concatenate([values[target.name] for values in run_activations(cut, inputs, [target.name])])
    }
    if found["onnxruntime"].ndim == 4:
        found["onnxruntime"] = found["onnxruntime"].transpose(0, 2, 3, 1)
    file = write_tflite(cut)
    for backend in installed_backends("tflite"):
        with Session(file, backend) as session:
            answers = [session.run(source.quantization.quantize(x, source.dtype)) for x in inputs]
        found[backend] = target.quantization.dequantize(np.concatenate(answers))
    return found


def _pooled(tensors: Mapping[str, np.ndarray]) -> Tensors:
    within = {name: float((steps <= 1).mean()) for name, steps in tensors.items()}
    worst = min(within, key=lambda name: within[name])
    return Tensors(np.bincount(np.concatenate(list(tensors.values()))), worst, within[worst])


def page(network: Network, tuned: Network, found: Findings, tensors: Mapping[str, Tensors], seed: int) -> list[str]:
    assert network.training is not None and tuned.training is not None
    count = len(found.labels)
    accuracy = found.accuracy(_BEFORE)
    return [
        "# Quantization-aware training",
        "This page is written by\n\n```sh\npython benchmarks/qat.py\n```",
        f"on the {count:,} test images of `{FOLDER}/{CIFAR}` (CIFAR-10; [where from](data.md)), which neither "
        "training, calibration nor any choice has seen. The networks are those of",
        "\n".join(["```sh", *_commands(network.training, tuned.training, seed), "```"]),
        f"with batches of {network.training.batch_size}, seed {seed} and one thread; the float training is short: "
        "the figures say what int8 loses, not how good the network can be.",
        surroundings(),
        "## Accuracy",
        f"One image is {1 / count:.2%}; the standard error of one accuracy is {_error(accuracy, count):.2%}, but all "
        f"rows are about the same images. *Lost / won* counts the images that only *{_BEFORE}*, and only the row, "
        f"gets right. *{_TUNED_FLOAT}* is the fine-tuned network without quantization: what its row gains over "
        f"*{_BEFORE}* comes from learning longer, the rest from learning in int8.",
        table(("", "top-1", "beside float", "lost / won", "same class as float"), _accuracy_rows(found)),
        "## What training computed beside what runtimes compute",
        "The fine-tuned network's logits in torch, fake-quantized, beside those of its int8 files. A step is the scale "
        "of the output, the least by which two logits can differ.",
        table(("", "identical", "within 1 step", "largest difference"), _step_rows(found)),
        f"Not only the logits: every activation of the network, on {_LOOKED_INTO} test images drawn by the seed. "
        "*Worst* is the tensor with the fewest values within a step. tflite-runtime rounds in fixed point, and the "
        "steps of the global average, which are the logits', are several times as fine as those of what it averages.",
        table(("", "values", "identical", "within 1 step", "worst", "of it within 1 step"), _tensor_rows(tensors)),
    ]


def _commands(network: TrainingConfig, tuned: TrainingConfig, seed: int) -> list[str]:
    options = f"--batch-size {network.batch_size} --val-fraction {network.val_fraction} --threads 1 --seed {seed}"
    train = f"firebox train {_MODEL} --data {FOLDER}/{CIFAR} --epochs {network.epochs} {options}"
    return [
        f"{train} --out build/qat/{_FLOAT}",
        f"firebox train --qat build/qat/{_FLOAT} --epochs {tuned.epochs} --lr {tuned.learning_rate:g} "
        f"--out build/qat/{_INT8}",
        *(f"firebox export build/qat/{name} --seed {seed} --out build/{name}" for name in (_FLOAT, _INT8)),
    ]


def _is_file(name: str) -> bool:
    """Whether it is an int8 file of the fine-tuned network that answers under this name."""
    return name.startswith(f"{_TUNED}, ") and name not in (_TORCH, _TUNED_FLOAT)


def _error(share: float, count: int) -> float:
    return (share * (1 - share) / count) ** 0.5


def _accuracy_rows(found: Findings) -> list[tuple[str, ...]]:
    expected, rows = found.right(_BEFORE), []
    for name in found.logits:
        right = found.right(name)
        lost_won = f"{(expected & ~right).sum()} / {(right & ~expected).sum()}"
        points = f"{100 * (found.accuracy(name) - found.accuracy(_BEFORE)):+.2f}"
        same = f"{(found.ranked(name) == found.ranked(_BEFORE)).mean():.2%}"
        rows.append((name, f"{found.accuracy(name):.2%}", points, lost_won, same))
    return rows


def _step_rows(found: Findings) -> list[tuple[str, ...]]:
    rows = []
    for name in found.logits:
        if _is_file(name):
            steps = found.steps(name)
            within = f"{(steps <= 1).mean():.2%}"
            rows.append(
                (name, f"{(steps == 0).mean():.2%}", within, f"{steps.max()} step{'s' * int(steps.max() != 1)}")
            )
    return rows


def _tensor_rows(tensors: Mapping[str, Tensors]) -> list[tuple[str, ...]]:
    rows = []
    for backend, found in tensors.items():
        shares = found.counts / found.counts.sum()
        identical, within = f"{shares[0]:.2%}", f"{shares[:2].sum():.2%}"
        rows.append((backend, f"{found.counts.sum():,}", identical, within, found.worst, f"{found.worst_share:.2%}"))
    return rows


if __name__ == "__main__":
    main()
