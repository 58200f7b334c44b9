"""Quantization-aware training compared with post-training quantization, on CIFAR-10; writes docs/qat.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import common
import numpy as np
import torch

from firebox.export import ExportConfig, FakeQuantized, Tolerance, quantize, write_tflite
from firebox.export.activations import run_activations
from firebox.export.quantization import Range
from firebox.model_zoo import (
    Network,
    TorchClassifier,
    TrainingConfig,
    export_network,
    load_network,
    resume,
    train,
    train_quantized,
)
from firebox.model_zoo.networks import fake_quantized
from firebox.model_zoo.training import quantized_config
from firebox.model_zoo.weights import read_checkpoint
from firebox.model_zoo.weights.checkpoint import FILE_NAME
from firebox.runtime import Graph, LabelledImages, Preprocessing, Session, open_images, sample, split_images
from firebox.runtime.formats.read import format_of
from firebox.runtime.inference import Classifier, installed_backends

_MODEL = "squeezenet_cifar_small"
_FLOAT, _INT8 = "float", "int8"
_BEFORE, _AFTERWARDS, _TUNED = "float", "PTQ", "QAT"
# The number of images whose activations are compared.
_LOOKED_INTO = 20
_TORCH, _TUNED_FLOAT = f"{_TUNED}, torch", f"{_TUNED}, without quantization"


@dataclass(frozen=True)
class Findings:
    """Logits (images, classes) of every classifier, the labels, and the step of the int8 logits."""

    logits: Mapping[str, np.ndarray]
    labels: np.ndarray
    step: float

    def ranked(self, name: str) -> np.ndarray:
        """The predicted classes."""
        return self.logits[name].argmax(1)

    def right(self, name: str) -> np.ndarray:
        """Correct predictions, as booleans."""
        return self.ranked(name) == self.labels

    def accuracy(self, name: str) -> float:
        """The share of correct predictions."""
        return float(self.right(name).mean())

    def steps(self, name: str) -> np.ndarray:
        """The difference of each logit from the one training computed, in steps of the int8 logits."""
        return np.rint(np.abs(self.logits[name] - self.logits[_TORCH]) / self.step).astype(int)


@dataclass(frozen=True)
class Tensors:
    """All activations of a few images in one runtime, compared with training: the number of values at each difference
    in steps (0, 1, 2, …), and the tensor with the smallest share within one step."""

    counts: np.ndarray
    worst: str
    worst_share: float


@click.command()
@common.data_option
@common.out_option("qat.md")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="build/qat",
    show_default=True,
    help="Folder of the runs; unfinished runs are resumed, finished runs are reused.",
)
@click.option("--float-epochs", default=8, show_default=True, help="Epochs of the float training.")
@click.option("--epochs", default=1, show_default=True, help="Epochs of fine-tuning.")
@click.option("--lr", type=float, help="Learning rate of fine-tuning.  [default: as firebox train --qat]")
@click.option("--seed", default=0, show_default=True, help="Seed of both trainings and of the calibration.")
def main(data_folder: Path, out: Path, runs: Path, float_epochs: int, epochs: int, lr: float | None, seed: int) -> None:
    """Train squeezenet_cifar_small, fine-tune it in int8, export both, and measure them on the test images.

    \b
    Example:
      python benchmarks/qat.py --data-folder ~/firebox-data
    """
    torch.set_num_threads(1)
    images = open_images(data_folder / common.CIFAR)
    data = str(data_folder / common.CIFAR)
    plan = TrainingConfig(_MODEL, data, epochs=float_epochs, batch_size=128, val_fraction=0.05, threads=1, seed=seed)
    network = trained(runs / _FLOAT, data, partial(train, plan))
    tuning = quantized_config(network)
    tuning = replace(tuning, data=data, epochs=epochs, learning_rate=lr or tuning.learning_rate)
    tuned = trained(runs / _INT8, data, partial(train_quantized, network, tuning))
    test = common.test_images(data_folder)
    seen = split_images(images, tuning.val_fraction, tuning.seed)[0]
    classifiers = all_classifiers(network, tuned, seen, runs, seed)
    found = measure(classifiers, network.preprocessing, test)
    common.write_page(out, page(network, tuned, found, every_activation(tuned, sample(test, _LOOKED_INTO, seed)), seed))


def trained(folder: Path, data: str, start: Callable[[Path], object]) -> Network:
    """The network of a run, which is started, resumed or reused."""
    if not (folder / FILE_NAME).exists():
        start(folder)
    checkpoint = read_checkpoint(folder / FILE_NAME)
    if checkpoint.epoch < checkpoint.training.epochs:
        resume(folder, data=data)
    return load_network(folder)


def all_classifiers(
    network: Network, tuned: Network, seen: LabelledImages, runs: Path, seed: int
) -> dict[str, Classifier]:
    """Every classifier to measure, by its name in the tables."""
    found: dict[str, Classifier] = {_BEFORE: TorchClassifier(network)}
    # No gate: files that fail it are measured as well.
    config = ExportConfig(seed=seed, tolerance=Tolerance(agreement=0, sqnr_db=-100))
    for name, one in ((_AFTERWARDS, network), (_TUNED, tuned)):
        files = export_network(one, runs / f"{name} files", seen, config, progress=common.terminal).files
        if one is tuned:
            found[_TORCH] = TorchClassifier(tuned)
            found[_TUNED_FLOAT] = Session(next(file for file in files if file.name == "model.float32.onnx"))
        for file in files:
            if ".int8." in file.name:
                for backend in installed_backends(format_of(file)):
                    found[f"{name}, {backend}"] = Session(file, backend)
    return found


def measure(classifiers: Mapping[str, Classifier], preprocessing: Preprocessing, test: LabelledImages) -> Findings:
    pixels = [preprocessing.crop(test.read(name), test.where(name)) for name in test.names]
    logits: dict[str, np.ndarray] = {}
    with common.terminal.task("predicting", len(classifiers) * len(pixels)) as advance:
        for name, classifier in classifiers.items():
            outputs = []
            for image in pixels:
                outputs.append(classifier.predict_pixels(image))
                advance()
            logits[name] = np.array(outputs)
    session = next(one for name, one in classifiers.items() if _is_file(name))
    assert isinstance(session, Session) and session.contract.output.scale is not None
    return Findings(logits, test.labels, session.contract.output.scale)


def every_activation(tuned: Network, images: LabelledImages) -> dict[str, Tensors]:
    """The output of every operation, in torch and in every runtime."""
    whole = fake_quantized(tuned.module, tuned.ranges)
    graph, ranges = whole.graph(), whole.ranges()
    integers = quantize(graph, ranges)
    inputs = [tuned.preprocessing.normalize(tuned.preprocessing.crop(images.read(name)))[None] for name in images.names]
    steps: dict[str, dict[str, np.ndarray]] = {}
    with common.terminal.task("comparing activations", len(integers.ops)) as advance:
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
    """The dequantized output, NHWC, by runtime."""
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
            outputs = [session.run(source.quantization.quantize(x, source.dtype)) for x in inputs]
        found[backend] = target.quantization.dequantize(np.concatenate(outputs))
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
        "This page is generated by\n\n```sh\npython benchmarks/qat.py\n```",
        f"on the {count:,} test images of `{common.FOLDER}/{common.CIFAR}` (CIFAR-10; [data](data.md)), which "
        "were used for no "
        "training, calibration or other choice. *PTQ* is post-training quantization, *QAT* quantization-aware "
        "training. The networks come from",
        "\n".join(["```sh", *_commands(network.training, tuned.training, seed), "```"]),
        f"with batches of {network.training.batch_size}, seed {seed} and one thread. The float training is short: the "
        "figures show the effect of int8, not how good the network can be.",
        common.surroundings(),
        "## Accuracy",
        f"One image is {1 / count:.2%}; the standard error of one accuracy is {_error(accuracy, count):.2%}, but all "
        f"rows use the same images. *Lost / won* counts the images that only *{_BEFORE}*, or only the row, classifies "
        f"correctly. *{_TUNED_FLOAT}* is the fine-tuned network in float: its gain over *{_BEFORE}* comes from the "
        "longer training, the remaining gain from training in int8.",
        common.table(
            ("", "top-1", "difference from float", "lost / won", "agreement with float"), _accuracy_rows(found)
        ),
        "## Training compared with the runtimes",
        "Logits of the fine-tuned network with fake quantization in torch, compared with those of its int8 files. A "
        "step is the scale of the output: the smallest difference between two logits.",
        common.table(("", "identical", "within 1 step", "largest difference"), _step_rows(found)),
        f"The same for every activation of the network, on {_LOOKED_INTO} random test images. *Worst* is the tensor "
        "with the smallest share of values within one step. tflite-runtime rescales in fixed point, and the steps of "
        "the global average, and thus of the logits, are several times finer than those of its input.",
        common.table(
            ("", "values", "identical", "within 1 step", "worst tensor", "worst within 1 step"), _tensor_rows(tensors)
        ),
    ]


def _commands(network: TrainingConfig, tuned: TrainingConfig, seed: int) -> list[str]:
    options = f"--batch-size {network.batch_size} --val-fraction {network.val_fraction} --threads 1 --seed {seed}"
    train = f"firebox train {_MODEL} --data {common.FOLDER}/{common.CIFAR} --epochs {network.epochs} {options}"
    return [
        f"{train} --out build/qat/{_FLOAT}",
        f"firebox train --qat build/qat/{_FLOAT} --epochs {tuned.epochs} --lr {tuned.learning_rate:g} --out "
        f"build/qat/{_INT8}",
        *(f"firebox export build/qat/{name} --seed {seed} --out build/{name}" for name in (_FLOAT, _INT8)),
    ]


def _is_file(name: str) -> bool:
    """True for the name of an int8 file of the fine-tuned network."""
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
