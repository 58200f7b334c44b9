"""Size, memory, agreement and speed of every precision that firebox export writes; writes docs/precisions.md."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
from common import (
    FOLDER,
    IMAGES,
    NO_GATE,
    REFERENCES,
    data_option,
    encode,
    load_reference,
    out_option,
    surroundings,
    table,
    write_page,
)
from pairs import RATIO_COLUMNS, Comparison, Ratios, bind, measure

from firebox.export import Export, ExportConfig
from firebox.export.parity import Precision
from firebox.model_zoo import export_network
from firebox.runtime import LabelledImages, Session, open_images
from firebox.runtime.errors import FormatError
from firebox.runtime.inference.backends import BACKENDS, installed_backends
from firebox.runtime.units import format_size

_NETWORK = "squeezenet1_1"
_PRECISIONS = get_args(Precision)
# Layers of 16 bits beside the int8 of all others, by what the rows are called.
_INT16 = {
    "int8, last layer 16-bit": ("classifier.*", "output"),
    "int8, last Fire module 16-bit too": ("features.12*", "classifier.*", "output"),
    "all layers 16-bit": ("*",),
}


@dataclass(frozen=True)
class Files:
    """The two files of a precision, and what the export has found out about them."""

    name: str
    export: Export
    precision: Precision

    def path(self, ending: str) -> Path:
        """Where one of them is."""
        return self.export.out / f"model.{self.precision}.{ending}"

    def facts(self, ending: str) -> Mapping[str, Any]:
        """Size, memory, and how it compares with the network."""
        name = self.path(ending).name
        parity = next(entry for entry in self.export.report["parity"]["files"] if entry["file"] == name)
        return {**self.export.report["files"][name], **parity}


@click.command()
@data_option
@out_option("precisions.md")
@click.option("--rounds", default=3, show_default=True, help="How often every comparison has its turn.")
@click.option("--seconds", default=1.0, show_default=True, help="How long a turn takes, at least.")
@click.option("--seed", default=0, show_default=True, help="Decides every order, and draws the images.")
def main(data_folder: Path, out: Path, rounds: int, seconds: float, seed: int) -> None:
    """Export v1.1 in every precision, and compare the files with the network and with each other, on one thread.

    \b
    Example:
      python benchmarks/precisions.py --data-folder ~/firebox-data
    """
    images = open_images(data_folder / IMAGES)
    network = load_reference(_NETWORK, data_folder)
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig(seed=seed, precisions=_PRECISIONS, tolerance=NO_GATE)
        plain = export_network(network, Path(folder, "plain"), images, config)
        files = [Files(precision, plain, precision) for precision in _PRECISIONS]
        for name, layers in _INT16.items():
            config = ExportConfig(seed=seed, precisions=("int8",), int16_layers=layers, tolerance=NO_GATE)
            files.append(Files(name, export_network(network, Path(folder, name), images, config), "int8"))
        comparisons, refused = compare(files, images)
        found = measure(comparisons, rounds, seconds, seed)
    write_page(out, page(files, found, refused))


def compare(files: Sequence[Files], images: LabelledImages) -> tuple[list[Comparison], list[tuple[str, str]]]:
    """Every file beside the float32 one in the same backend, and which backend does not run which."""
    found, refused = [], []
    for backend in (*installed_backends("onnx"), *installed_backends("tflite")):
        ending = BACKENDS[backend].format
        floats = Session(files[0].path(ending), backend)
        pixels = floats.preprocessing.crop(images.image(0))
        for one in files[1:]:
            try:
                session = Session(one.path(ending), backend)
            except FormatError:
                refused.append((one.name, backend))
                continue
            runs = [bind(item.run, encode(item, pixels)) for item in (floats, session)]
            found.append(Comparison("precision", (one.name, backend), runs[0], runs[1]))
    return found, refused


def page(files: Sequence[Files], found: Sequence[Ratios], refused: Sequence[tuple[str, str]]) -> list[str]:
    """The parts of the page."""
    calibration, parity = (files[0].export.report[key] for key in ("calibration", "parity"))
    rows = [(one.name, ending, *_cells(one.facts(ending))) for one in files for ending in ("onnx", "tflite")]
    columns = ("precision", "format", "size", "arena", "planned for", "SQNR", "same class")
    return [
        "# Precisions of the exported files",
        "This page is written by\n\n```sh\npython benchmarks/precisions.py\n```",
        f"{_NETWORK} with its published weights (`{FOLDER}/{REFERENCES[_NETWORK]}`; [where from](data.md)), exported "
        "as `firebox export --precision ... --int16 ...` does: "
        f"{calibration['images']} images of `{FOLDER}/{IMAGES}` calibrate, {parity['images']} others are "
        "compared with the network in torch.",
        surroundings(),
        "## Size, memory and agreement",
        "*float16* stores weights as float16; *dynamic* stores them as int8, between float32 activations, of which "
        "TFLite's kernels make integers by the range that each input has, and onnxruntime does not; *16-bit* layers "
        "have int8 weights and activations of 16 bits. The arena is what `firebox plan` plans for tflite-micro, or for "
        "a static compiler where tflite-micro has no kernels.",
        table(columns, rows, names=2),
        "## Speed",
        "Time of the float32 file to that of each other one in the same runtime, taken in turn as on "
        "[speed.md](speed.md): above 1, it is faster than float32. LiteRT has no fast kernels for 16-bit activations.",
        table(("precision", "backend", *RATIO_COLUMNS), [ratios.cells() for ratios in found], names=2),
        *([f"Not run: {'; '.join(f'{name} in {backend}' for name, backend in refused)}."] if refused else []),
    ]


def _cells(facts: Mapping[str, Any]) -> tuple[str, ...]:
    sqnr = "exact" if facts["sqnr_db"] is None else f"{facts['sqnr_db']:.1f} dB"
    sizes = format_size(facts["bytes"]), format_size(facts["arena_bytes"])
    return *sizes, facts["target"], sqnr, f"{facts['agreement']:.1%}"


if __name__ == "__main__":
    main()
