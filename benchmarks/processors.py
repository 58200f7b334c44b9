"""Int8 files on processors with and without kernels that saturate, beside the reference; writes docs/processors.md.

``--test`` is what ``make test-processors`` runs: the table of networks and processors alone, and exit code 1 when an
output differs from the reference's.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from emulation import NATIVE, Job, Outcome, emulator, run_jobs
from firebox.export import ExportConfig, Tolerance, export, write_onnx
from firebox.model_zoo import SqueezeNet, export_network, load_network, model_config
from firebox.runtime import LabelledImages, Preprocessing, open_images, read_graph, sample
from firebox.runtime.console import note, progress
from firebox.runtime.graph import Conv, Graph, Quantization, Tensor
from firebox.runtime.reference import run_reference
from torch import nn

EMULATED = ("Nehalem", "Haswell", "max")
_NO_GATE = Tolerance(agreement=0, sqnr_db=-100, formats_agreement=0)
_IMAGES = 3
PLAIN = "plain onnxruntime"


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
    """The int8 files of one network, with images for their inputs."""

    name: str
    files: tuple[Path, ...]
    images: LabelledImages
    preprocessing: Preprocessing


def main_jobs(folder: Path, data_folder: Path | None) -> Iterator[Job]:
    """All networks of the table in all runtimes, ``_IMAGES`` images each."""
    for network in networks(folder, data_folder):
        for file in network.files:
            yield from jobs_of(network, file)
    yield from all_127(folder)


def networks(folder: Path, data_folder: Path | None) -> Iterator[Network]:
    """Exported with few images: what they compute matters here, not how well."""
    digits, quick = open_images("digits"), ExportConfig(20, "fast", precisions=("int8",), tolerance=_NO_GATE)
    torch.manual_seed(0)
    micro = load_network("squeezenet_micro", random_init=True)
    real = data_folder is not None
    large = load_network("squeezenet1_1", data_folder / "squeezenet1_1.pth" if real else None, random_init=not real)
    scenes = open_images(data_folder / "imagenet-samples.tar") if real else digits
    for name, network, images, config in (
        ("squeezenet_micro", micro, digits, quick),
        ("squeezenet_micro, fitted to 48 KiB", micro, digits, replace(quick, sram_bytes=48 * 1024)),
        (
            "squeezenet_micro, full range, fitted",
            micro,
            digits,
            replace(quick, sram_bytes=48 * 1024, weight_range="full"),
        ),
        ("squeezenet1_1", large, scenes, quick),
        ("squeezenet1_1, full range", large, scenes, replace(quick, weight_range="full")),
    ):
        place = folder / name.replace(", ", "-").replace(" ", "-")
        export_network(network, place, images, config, quiet=True)
        yield Network(
            name, tuple(place / f"model.int8.{end}" for end in ("onnx", "tflite")), images, network.preprocessing
        )
    bypass = SqueezeNet(model_config("squeezenet_micro", bypass="complex", bypass_before_relu=True))
    for name, module in (("squeezenet_micro, complex bypass", bypass), ("residual sums and average pools", Sums())):
        place = folder / name.replace(", ", "-").replace(" ", "-")
        export(
            module,
            place,
            preprocessing=micro.preprocessing,
            images=digits,
            classes=micro.classes,
            config=replace(quick, weight_range="full" if module is bypass else "saturation-free"),
            quiet=True,
        )
        yield Network(
            name, tuple(place / f"model.int8.{end}" for end in ("onnx", "tflite")), digits, micro.preprocessing
        )
    place = folder / "quantizer"
    export_network(micro, place, digits, replace(quick, precisions=("float32",)), quiet=True)
    for form, activations in (("QDQ", "QUInt8"), ("QOperator", "QUInt8"), ("QDQ", "QInt8"), ("QOperator", "QInt8")):
        file = quantized(place / "model.float32.onnx", place / f"{form}-{activations}.onnx", form, activations, digits)
        yield Network(f"onnxruntime's {form}, {activations}", (file,), digits, micro.preprocessing)


def quantized(source: Path, target: Path, form: str, activations: str, images: LabelledImages) -> Path:
    """squeezenet_micro by onnxruntime's own quantizer, weights int8 per channel."""
    from comparators import Feeds
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    graph = read_graph(source)
    preprocessing = load_network("squeezenet_micro", random_init=True).preprocessing
    drawn = sample(images, 20, 0)
    feeds = [
        {graph.inputs[0]: preprocessing.normalize(preprocessing.crop(drawn.picture(i)))[None].transpose(0, 3, 1, 2)}
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


def jobs_of(network: Network, file: Path, images: int = _IMAGES) -> Iterator[Job]:
    """The file in each runtime that reads it."""
    graph = read_graph(file)
    inputs, outputs = [], []
    drawn = sample(network.images, images, 1)
    for index in range(len(drawn)):
        pixels = network.preprocessing.crop(drawn.picture(index))
        x = graph.input_values(network.preprocessing.normalize(pixels)[None].astype(np.float32))
        result = run_reference(graph, x)[graph.outputs[0]]
        inputs.append(x)
        outputs.append(result.ravel())
    arrays, answers = np.stack(inputs), np.stack(outputs)
    runtimes: Sequence[str] = ("litert",)
    if file.suffix == ".onnx":
        runtimes = ("onnxruntime", PLAIN)
        arrays, answers = np.ascontiguousarray(unsigned(arrays).transpose(0, 1, 4, 2, 3)), unsigned(answers)
    for runtime in runtimes:
        yield Job(network.name, runtime, file, arrays, answers, _step(graph))


def all_127(folder: Path) -> Iterator[Job]:
    """A convolution of nothing but the largest weights and inputs: no sum of products is larger."""
    channels, size = 16, 6
    weight, one = np.full((8, 3, 3, channels), 127, np.int8), Quantization((1.0,), -128)
    steps = Quantization((1.0,) * 8, 0, 0)
    tensors = [
        Tensor("input", (1, size, size, channels), "int8", one),
        Tensor("weight", weight.shape, "int8", steps, weight),
        Tensor("bias", (8,), "int32", steps, np.zeros(8, np.int32)),
        Tensor("output", (1, size - 2, size - 2, 8), "int8", Quantization((127 * 9.0 * channels,), -128)),
    ]
    graph = Graph.of("all_127", tensors, [Conv(("input", "weight", "bias"), "output")], ["input"], ["output"])
    file = folder / "all_127.onnx"
    file.write_bytes(write_onnx(graph))
    x = np.full((1, size, size, channels), 127, np.int8)
    expected = unsigned(run_reference(graph, x)["output"].transpose(0, 3, 1, 2).reshape(1, -1))
    inputs = np.ascontiguousarray(unsigned(x).transpose(0, 3, 1, 2))[None]
    for runtime in ("onnxruntime", PLAIN):
        yield Job("all weights 127", runtime, file, inputs, expected)


def unsigned(values: np.ndarray) -> np.ndarray:
    """Integers of a graph as an ONNX file of ours has them; floats as they are."""
    return values.view(np.uint8) ^ np.uint8(0x80) if values.dtype == np.int8 else values


def _step(graph: Graph) -> float:
    """The least by which two outputs can differ."""
    op = graph.producers[graph.outputs[0]]
    source = graph.tensors[op.inputs[0]].quantization if graph.tensors[op.output].quantization is None else None
    return source.scale[0] if source else 1.0


@click.command()
@click.option(
    "--data-folder", type=click.Path(path_type=Path, file_okay=False), envvar="FIREBOX_DATA", show_envvar=True
)
@click.option("--test", is_flag=True, help="The table of networks and processors only; exit code 1 for a difference.")
def main(data_folder: Path | None, test: bool) -> None:
    """Run int8 files on emulated processors and compare every output with the reference."""
    processors = (*(EMULATED if emulator() else ()), NATIVE)
    if not emulator():
        note("QEMU's user mode is missing (apt-get install qemu-user-static): only this machine's processor is tried")
    with tempfile.TemporaryDirectory() as folder:
        with progress("exporting") as advance:
            jobs = []
            for job in main_jobs(Path(folder), data_folder):
                jobs.append(job)
                advance(text=job.network)
        found: list[Outcome] = []
        with progress("running", len(jobs) * len(processors)) as advance:
            for processor in processors:
                for outcome in run_jobs(jobs, processor):
                    found.append(outcome)
                    advance(text=f"{outcome.job.network} on {processor}")
    for cells in rows(found, processors):
        print(cells)


def rows(found: Sequence[Outcome], processors: Sequence[str]) -> list[tuple[str, ...]]:
    """Networks and runtimes by processors: the share of identical outputs."""
    keys = list(dict.fromkeys((one.job.network, one.job.runtime) for one in found))
    cells = {(one.job.network, one.job.runtime, one.processor): one for one in found}
    return [
        (
            *key,
            *(f"{(o := cells[*key, p]).identical / o.outputs:.2%} {o.largest_steps} {o.weights}" for p in processors),
        )
        for key in keys
    ]


if __name__ == "__main__":
    main()
