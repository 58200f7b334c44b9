"""The networks that benchmarks/compile.py compiles: exported once, and kept in build/compile/exports."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import CIFAR, IMAGES, NO_GATE, REFERENCES, load_reference, terminal
from torch import nn

from firebox.export import ExportConfig, trace, write_onnx, write_tflite
from firebox.export.quantization.calibration import choose_ranges, collect_histograms
from firebox.export.quantization.quantize import quantize
from firebox.model_zoo import Network, export_network, list_models, load_network
from firebox.runtime import Graph, LabelledImages, open_images, read_graph, sample
from firebox.runtime.files import write_files

BUILD = Path(__file__).resolve().parent.parent / "build" / "compile"
# Networks of the zoo that are too large to be compiled by everything: each has more than 10 M parameters.
LARGE = ("alexnet", "vgg16")
# Networks that exist with trained weights: published, or included in firebox.
_INCLUDED = ("squeezenet_cifar", "squeezenet_cifar_small")


@dataclass(frozen=True)
class Case:
    """A network at an input size. ``side`` is the height and width of the input."""

    name: str
    side: int

    @property
    def label(self) -> str:
        """The name and size in the tables."""
        return f"{self.name}, {self.side}x{self.side}"

    @property
    def weights(self) -> str:
        """Where the weights are from, in the tables."""
        return "trained" if self.name in REFERENCES or self.name in _INCLUDED else "random"

    @property
    def folder(self) -> Path:
        """The folder of the exported files."""
        return BUILD / "exports" / f"{self.name}-{self.side}"

    @property
    def tflite(self) -> Path:
        """The int8 TFLite file."""
        return self.folder / "model.int8.tflite"

    @property
    def onnx(self) -> Path:
        """The int8 ONNX file."""
        return self.folder / "model.int8.onnx"


V11, V10 = Case("squeezenet1_1", 224), Case("squeezenet1_0", 224)
SMALLER, SMALLEST, CIFAR_NETWORK = Case("squeezenet1_1", 128), Case("squeezenet1_1", 96), Case("squeezenet_cifar", 32)


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv 1801.04381, table 2): (N, 3, H, W) to (N, 1000)."""

    _STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, width: float):
        super().__init__()
        channels = _rounded(32 * width)
        layers: list[nn.Module] = [_conv(3, channels, 3, 2)]
        for expansion, filters, repeats, stride in self._STAGES:
            for number in range(repeats):
                outputs = _rounded(filters * width)
                layers.append(_Inverted(channels, outputs, expansion, stride if number == 0 else 1))
                channels = outputs
        last = _rounded(1280 * max(width, 1.0))
        self.features = nn.Sequential(*layers, _conv(channels, last, 1, 1))
        self.classifier = nn.Linear(last, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(self.features(x).mean((2, 3)))


class _Inverted(nn.Module):
    """An inverted residual: expand, filter each channel, project, and add the input if the shapes are equal."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv(inputs, hidden, 1, 1)] if expansion > 1 else []
        project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.layers = nn.Sequential(*expand, _conv(hidden, hidden, 3, stride, hidden), project)
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        return x + self.layers(x) if self.adds else self.layers(x)


class ResNet8(nn.Module):
    """The ResNet of MLPerf Tiny's image classification: (N, 3, 32, 32) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3, 1, activation=nn.ReLU)
        self.blocks = nn.Sequential(_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.layers = nn.Sequential(_conv(inputs, outputs, 3, stride, activation=nn.ReLU), second)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        return torch.relu(self.shortcut(x) + self.layers(x))


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, activation: type[nn.Module] = nn.ReLU6
) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, as the paper's code rounds: never more than 10 % below."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found if found >= 0.9 * channels else found + 8


# Networks that are not in the zoo.
OTHERS = {
    "mobilenet_v2 x 0.35": (lambda: MobileNetV2(0.35), "squeezenet1_1"),
    "mobilenet_v2": (lambda: MobileNetV2(1.0), "squeezenet1_1"),
    "resnet8": (ResNet8, "squeezenet_micro"),
}


def exported(case: Case, data_folder: Path) -> Case:
    """Export a network's files, unless they are there; returns the case."""
    if case.tflite.is_file() and case.onnx.is_file():
        return case
    terminal.note(f"{case.label}: exporting")
    network, images = network_of(case, data_folder), images_of(case, data_folder)
    if case.weights == "trained":
        export_network(network, case.folder, images, ExportConfig(precisions=("int8",), tolerance=NO_GATE))
        return case
    # The accuracy of random weights does not matter: few images, and no search.
    preprocessing, drawn = network.preprocessing, sample(images, 8, 0)
    crops = (preprocessing.crop(drawn.read(name), drawn.where(name)) for name in drawn.names)
    samples = [preprocessing.normalize(pixels)[None] for pixels in crops]
    graph = trace(network.module, (1, preprocessing.depth, *preprocessing.size), network.name)
    ranges = choose_ranges(graph, collect_histograms(graph, samples), "minmax")
    quantized = quantize(graph, ranges)
    write_files(case.folder, {case.tflite.name: write_tflite(quantized), case.onnx.name: write_onnx(quantized)})
    return case


def network_of(case: Case, data_folder: Path) -> Network:
    """The network with its weights: published or included ones where they exist, else random ones."""
    torch.set_num_threads(1)
    size = (case.side, case.side)
    if case.name in REFERENCES:
        return load_reference(case.name, data_folder, size)
    if case.name not in OTHERS:
        return load_network(case.name, random_init=case.weights == "random", input_size=size)
    make, like = OTHERS[case.name]
    torch.manual_seed(0)
    module = make()
    # Statistics of noise keep the activations of random weights in range.
    with torch.no_grad():
        for _ in range(4):
            module(torch.randn(4, 3, *size))
    base = load_network(like, random_init=True, input_size=size)
    return replace(base, module=module.eval(), name=case.name.replace(" x ", "_").replace(".", "_"))


def images_of(case: Case, data_folder: Path) -> LabelledImages:
    """Real images of the kind that the network classifies."""
    images = open_images(data_folder / (CIFAR if case.side == 32 else IMAGES))
    return images.split("train") or images


def held_back(case: Case, data_folder: Path) -> LabelledImages:
    """The images that calibrated nothing."""
    images, config = images_of(case, data_folder), ExportConfig()
    drawn = set(sample(images, config.calibration_images, config.seed).names)
    return images.subset([index for index, name in enumerate(images.names) if name not in drawn])


def inputs_of(case: Case, images: LabelledImages, data_folder: Path) -> tuple[Graph, np.ndarray]:
    """The graph of the TFLite file, and images as its int8 inputs (images, 1, height, width, channels)."""
    graph, preprocessing = read_graph(case.tflite), network_of(case, data_folder).preprocessing
    crops = (preprocessing.crop(images.read(name), images.where(name)) for name in images.names)
    return graph, np.stack([graph.input_values(preprocessing.normalize(pixels)[None]) for pixels in crops])


def zoo() -> Iterator[Case]:
    """All networks of the zoo, those of ImageNet at a small input size where the network allows one."""
    for name in list_models():
        side = {"alexnet": 227, "vgg16": 224, "googlenet": 224, "nin": 224}.get(name, 64)
        yield Case(
            name, 32 if "cifar" in name or name.startswith(("densenet", "resnet")) or name.endswith("micro") else side
        )
