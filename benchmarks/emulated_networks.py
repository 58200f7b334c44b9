"""The networks for emulated processors, with the reference's outputs for their inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from common import IMAGES, NO_GATE
from comparators import Feeds
from emulation import PLAIN, Job
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import nn

from firebox.export import ExportConfig, write_onnx
from firebox.model_zoo import export_network, load_network, model_config
from firebox.model_zoo.networks import SqueezeNet
from firebox.runtime import Graph, LabelledImages, Preprocessing, open_images, read_graph, sample
from firebox.runtime.exactness.check import check_saturation
from firebox.runtime.graph import Quantization, Tensor, ops
from firebox.runtime.graph.reference import run_reference


class Sums(nn.Module):
    """Residual sums, average pools of even, odd and padded windows, and a global average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 12, 3, 2), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.even, self.odd, self.padded = nn.AvgPool2d(2), nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 1, 1)
        self.head = nn.Conv2d(12, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.left(x))
        x = self.even(x)
        x = self.padded(x + self.right(x))
        return self.head(self.odd(x)).mean((2, 3))


@dataclass(frozen=True)
class Network:
    """The int8 files of one network and images for their inputs; ``is_safe`` if no kernel can saturate on them."""

    name: str
    files: tuple[Path, ...]
    images: LabelledImages
    preprocessing: Preprocessing
    is_safe: bool


def jobs(folder: Path, data_folder: Path | None) -> Iterator[Job]:
    """All networks in all runtimes, two images each."""
    for network in _networks(folder, data_folder):
        for file in network.files:
            yield from jobs_of(network, file, 2)
    yield from _all_127(folder)


def _networks(folder: Path, data_folder: Path | None) -> Iterator[Network]:
    """The networks, exported with few images: accuracy does not matter here."""
    digits, quick = open_images("digits"), ExportConfig(20, "fast", precisions=("int8",), tolerance=NO_GATE)
    full, both = replace(quick, weight_range="full"), ("onnx", "tflite")
    torch.manual_seed(0)
    micro = load_network("squeezenet_micro", random_init=True)
    bypass = SqueezeNet(model_config("squeezenet_micro", bypass="complex", bypass_before_relu=True))
    name, large, scenes = "squeezenet1_1", None, digits
    if data_folder is not None:
        large, scenes = load_network(name, data_folder / f"{name}.pth"), open_images(data_folder / IMAGES)
    large = large or load_network(name, random_init=True)
    budget = 48 * 1024
    for title, network, images, config, endings in (
        ("squeezenet_micro", micro, digits, quick, both),
        ("squeezenet_micro, fitted to 48 KiB", micro, digits, replace(quick, sram_bytes=budget), both),
        ("squeezenet_micro, fitted, full range", micro, digits, replace(full, sram_bytes=budget), both),
        ("squeezenet_micro, complex bypass", replace(micro, module=bypass), digits, quick, both),
        ("residual sums and average pools", replace(micro, module=Sums()), digits, full, both),
        (name, large, scenes, quick, both),
        (f"{name}, full range", large, scenes, full, ("onnx",)),
    ):
        place = folder / title.replace(", ", "-").replace(" ", "-")
        export_network(network, place, images, config)
        files, is_safe = tuple(place / f"model.int8.{end}" for end in endings), config.weight_range != "full"
        yield Network(title, files, images, network.preprocessing, is_safe)
    place = folder / "quantizer"
    export_network(micro, place, digits, replace(quick, precisions=("float32",)))
    for form, activations in (("QDQ", "QUInt8"), ("QOperator", "QUInt8"), ("QDQ", "QInt8"), ("QOperator", "QInt8")):
        file = _quantized(place / "model.float32.onnx", place / f"{form}-{activations}.onnx", form, activations, digits)
        yield Network(f"onnxruntime's {form}, {activations}", (file,), digits, micro.preprocessing, False)


def _quantized(source: Path, target: Path, form: str, activations: str, images: LabelledImages) -> Path:
    """squeezenet_micro by onnxruntime's own quantizer, weights int8 per channel."""
    graph = read_graph(source)
    preprocessing = load_network("squeezenet_micro", random_init=True).preprocessing
    drawn = sample(images, 20, 0)
    feeds = [
        {graph.inputs[0]: preprocessing.normalize(preprocessing.crop(drawn.image(i)))[None].transpose(0, 3, 1, 2)}
        for i in range(len(drawn))
    ]
    quantize_static(
        source,
        target,
        Feeds({name: np.ascontiguousarray(x, np.float32) for name, x in feed.items()} for feed in feeds),
        quant_format=QuantFormat[form],
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
    )
    return target


def jobs_of(network: Network, file: Path, count: int) -> Iterator[Job]:
    """The file in each runtime that reads it, on random images, with the reference's outputs."""
    graph, drawn = read_graph(file), sample(network.images, count, 1)
    crops = (network.preprocessing.crop(drawn.read(name), drawn.where(name)) for name in drawn.names)
    inputs = [graph.input_values(network.preprocessing.normalize(pixels)[None]) for pixels in crops]
    outputs = np.stack([run_reference(graph, x)[graph.outputs[0]].ravel() for x in inputs])
    if file.suffix == ".tflite":
        yield Job(network.name, "litert", file, np.stack(inputs), outputs, _step(graph))
        return
    arrays = np.ascontiguousarray(_unsigned(np.stack(inputs)).transpose(0, 1, 4, 2, 3))
    verdict = check_saturation(file).verdict
    if network.is_safe and verdict != "cannot saturate":
        raise click.ClickException(f"{network.name}: {file.name} was exported saturation-free, but {verdict}")
    yield Job(network.name, "onnxruntime", file, arrays, _unsigned(outputs), _step(graph))
    yield Job(network.name, PLAIN, file, arrays, _unsigned(outputs), _step(graph), exact=network.is_safe)


def _all_127(folder: Path) -> Iterator[Job]:
    """A convolution with only the largest weights and inputs: no sum of products can be larger."""
    channels, size = 16, 6
    weight, one = np.full((8, 3, 3, channels), 127, np.int8), Quantization((1.0,), -128)
    steps = Quantization((1.0,) * 8, 0, 0)
    tensors = [
        Tensor("input", (1, size, size, channels), "int8", one),
        Tensor("weight", weight.shape, "int8", steps, weight),
        Tensor("bias", (8,), "int32", steps, np.zeros(8, np.int32)),
        Tensor("output", (1, size - 2, size - 2, 8), "int8", Quantization((127 * 9.0 * channels,), -128)),
    ]
    graph = Graph.of("all_127", tensors, [ops.Conv(("input", "weight", "bias"), "output")], ["input"], ["output"])
    file = folder / "all_127.onnx"
    file.write_bytes(write_onnx(graph))
    x = np.full((1, size, size, channels), 127, np.int8)
    expected = _unsigned(run_reference(graph, x)["output"].transpose(0, 3, 1, 2).reshape(1, -1))
    inputs = np.ascontiguousarray(_unsigned(x).transpose(0, 3, 1, 2))[None]
    yield Job("all weights 127", "onnxruntime", file, inputs, expected)
    yield Job("all weights 127", PLAIN, file, inputs, expected, exact=False)


def _unsigned(values: np.ndarray) -> np.ndarray:
    """Integers of a graph in the form of firebox's ONNX files; floats unchanged."""
    return values.view(np.uint8) ^ np.uint8(0x80) if values.dtype == np.int8 else values


def _step(graph: Graph) -> float:
    """The smallest difference between two outputs."""
    op = graph.producers[graph.outputs[0]]
    source = graph.tensors[op.inputs[0]].quantization if graph.tensors[op.output].quantization is None else None
    return source.scale[0] if source else 1.0
