"""Shared by the benchmarks: the reference networks, the options, and writing pages."""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
import torch

from firebox.export import Tolerance
from firebox.model_zoo import Network, load_network
from firebox.model_zoo.training import load_images, predict
from firebox.runtime import LabelledImages, Session, open_images
from firebox.runtime.commands.console import TerminalProgress
from firebox.runtime.files import write_file

# Networks with published weights, and the files of these weights.
REFERENCES = {"squeezenet1_1": "squeezenet1_1.pth", "squeezenet1_0": "compressed_SqueezeNet.net"}
IMAGES = "imagenet-samples.tar"
CIFAR = "cifar10-images.tar"

# The parity gate off: files that fail it are measured as well.
NO_GATE = Tolerance(agreement=0, sqnr_db=-100, formats_agreement=0)

# Shows the progress of the benchmarks.
terminal = TerminalProgress()

# The folder of the weights and images in the commands of the pages.
FOLDER = "$FIREBOX_DATA"

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_PACKAGES = ("numpy", "pillow", "torch", "onnx", "onnxruntime", "ai-edge-litert", "tflite-runtime", "tflite-micro")
_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def _data_option(required: bool):
    return click.option(
        "--data-folder",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        envvar="FIREBOX_DATA",
        show_envvar=True,
        required=required,
        help="Folder of the weights and images; see docs/data.md.",
    )


data_option = _data_option(required=True)
optional_data_option = _data_option(required=False)


def out_option(name: str):
    """The option for the page to write."""
    return click.option(
        "--out", type=click.Path(path_type=Path), default=_DOCS / name, help=f"Page to write.  [default: docs/{name}]"
    )


def load_reference(name: str, data_folder: Path, input_size: tuple[int, int] | None = None) -> Network:
    # Single images do not keep several threads busy, and on busy cores threads wait for each other.
    torch.set_num_threads(1)
    return load_network(name, data_folder / REFERENCES[name], input_size=input_size)


def test_images(data_folder: Path) -> LabelledImages:
    """The test images of CIFAR-10, used for no training and no choice."""
    images = open_images(data_folder / CIFAR).split("test")
    if images is None:
        raise click.ClickException(f"{data_folder / CIFAR} has no folder test")
    return images


def test_logits(network: Network, test: LabelledImages) -> np.ndarray:
    """The logits (images, classes) of a network for all images."""
    images = load_images(test, network.preprocessing)
    return predict(network.module, images, network.preprocessing).numpy()


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The top-1 accuracy of logits (images, classes)."""
    return float((logits.argmax(1) == labels).mean())


def encode(session: Session, pixels: np.ndarray) -> np.ndarray:
    """Pixels as the input tensor of the session's file."""
    values = session.preprocessing.normalize(pixels)[None]
    values = values.transpose(0, 3, 1, 2) if session.contract.layout == "NCHW" else values
    return np.ascontiguousarray(session.contract.input.encode(values))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table; the first ``names`` columns are aligned left, the others, with figures, right."""
    rule = ["---"] * names + ["---:"] * (len(columns) - names)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def surroundings() -> str:
    """Package versions and processor features, which are needed to reproduce a table."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cores = f"{os.cpu_count()} cores"
    return f"Measured with {', '.join(versions)}; {platform.machine()}, {cores}{_instructions()}."


def write_page(path: Path, parts: Iterable[str]) -> None:
    write_file(path, "\n\n".join(parts) + "\n")
    terminal.note(f"wrote {path}")


def _instructions() -> str:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    found = [name for name in _INSTRUCTIONS if name in words]
    return f" with {', '.join(found)}" if found else ""
