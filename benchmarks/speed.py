"""How fast int8 is beside onnxruntime's quantizer and float32, and a session beside its backend; writes docs/speed.md.

Nothing but ratios of times taken in turn: on a machine that does other work too, milliseconds tell little.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
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
from comparators import quantize_with_onnxruntime
from pairs import BLOCK, RATIO_COLUMNS, Comparison, Ratios, bare, bind, measure

from firebox.export import ExportConfig
from firebox.model_zoo import export_network, load_network
from firebox.model_zoo.classifier import TorchClassifier
from firebox.runtime import (
    Evaluation,
    LabelledImages,
    Preprocessing,
    Session,
    evaluate,
    open_images,
)
from firebox.runtime.commands.console import TerminalProgress
from firebox.runtime.inference.backends import BACKENDS, installed_backends
from firebox.runtime.inference.classifier import Classifier

_SMALL = "squeezenet_micro"


@dataclass(frozen=True)
class Quantized:
    """The file of onnxruntime's quantizer behind the interface that evaluation knows; the rest is the contract's."""

    session: Session
    run: Callable[[np.ndarray], np.ndarray]

    @property
    def preprocessing(self) -> Preprocessing:
        """As in the float32 file."""
        return self.session.preprocessing

    @property
    def classes(self) -> Sequence[str]:
        """As in the float32 file."""
        return self.session.classes

    @property
    def class_ids(self) -> Sequence[str]:
        """As in the float32 file."""
        return self.session.class_ids

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Logits, shape (classes,)."""
        return self.run(encode(self.session, pixels)).reshape(-1)


@click.command()
@data_option
@out_option("speed.md")
@click.option("--rounds", default=10, show_default=True, help="How often every comparison has its turn.")
@click.option("--seconds", default=2.0, show_default=True, help="How long a turn takes, at least.")
@click.option("--seed", default=0, show_default=True, help="Decides every order.")
def main(data_folder: Path, out: Path, rounds: int, seconds: float, seed: int) -> None:
    """Compare the files of v1.1, v1.0 and squeezenet_micro in pairs, on one thread.

    \b
    Example:
      python benchmarks/speed.py --data-folder ~/firebox-data
    """
    comparisons: list[Comparison] = []
    evaluations: dict[str, list[Evaluation]] = {}
    images = open_images(data_folder / IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        for name in REFERENCES:
            network, place = load_reference(name, data_folder), Path(folder, name)
            export_network(network, place, images)
            theirs = quantize_with_onnxruntime(place, images)
            comparisons += compare(name, place, theirs, images)
            models: dict[str, Classifier] = {
                "torch": TorchClassifier(network),
                "firebox, model.int8.onnx": Session(place / "model.int8.onnx"),
                "onnxruntime, quantize_static": Quantized(Session(place / "model.float32.onnx"), bare(theirs)),
            }
            evaluations[name] = evaluate(models, images, progress=TerminalProgress())
        digits, place = open_images("digits"), Path(folder, _SMALL)
        config = ExportConfig(tolerance=NO_GATE)
        export_network(load_network(_SMALL, random_init=True), place, digits, config)
        comparisons += compare(_SMALL, place, quantize_with_onnxruntime(place, digits), digits)
        found = measure(comparisons, rounds, seconds, seed)
    write_page(out, page(found, evaluations, len(images)))


def compare(name: str, folder: Path, theirs: Path, images: LabelledImages) -> list[Comparison]:
    """Every comparison of one network, all on the same image."""
    sessions = {
        (precision, backend): Session(folder / f"model.{precision}.{BACKENDS[backend].format}", backend)
        for precision in ("float32", "int8")
        for backend in (*installed_backends("onnx"), *installed_backends("tflite"))
    }
    ours = sessions["int8", "onnxruntime"]
    pixels = ours.preprocessing.crop(images.image(0))
    inputs = {key: encode(session, pixels) for key, session in sessions.items()}
    floats, integers = inputs["float32", "onnxruntime"], inputs["int8", "onnxruntime"]
    contract, run, twin, their_run = ours.contract, *(bare(folder / "model.int8.onnx") for _ in range(2)), bare(theirs)

    def whole() -> np.ndarray:
        return contract.output.decode(run(contract.input.encode(floats)))

    found = [
        Comparison("quantizer", (name, "each its own input"), lambda: their_run(floats), lambda: run(integers)),
        Comparison("quantizer", (name, "both from float32 to float32"), lambda: their_run(floats), whole),
        Comparison("control", (name,), lambda: run(integers), lambda: twin(integers)),
    ]
    for (precision, backend), session in sessions.items():
        x = inputs[precision, backend]
        if precision == "int8":
            direct = bare(folder / f"model.int8.{BACKENDS[backend].format}", backend)
            found.append(Comparison("session", (name, backend), bind(session.run, x), bind(direct, x)))
            float_run = bind(sessions["float32", backend].run, inputs["float32", backend])
            found.append(Comparison("int8", (name, backend), float_run, bind(session.run, x)))
    return found


def page(found: Sequence[Ratios], evaluations: Mapping[str, Sequence[Evaluation]], images: int) -> list[str]:
    def rows(section: str) -> list[tuple[str, ...]]:
        return [ratios.cells() for ratios in found if ratios.comparison.section == section]

    return [
        "# Speed of the exported files",
        "This page is written by\n\n```sh\npython benchmarks/speed.py\n```",
        "Every figure is a ratio of two times that were taken right after one another, on one thread, for one image, "
        "in one process. Which of the two comes first changes within each block of "
        f"{len(BLOCK)} pairs, in an order drawn by a seed; the comparisons take turns in {len(found[0].rounds)} "
        "rounds. The ratio is the median of all pairs. The medians of the rounds say how well it can be repeated on "
        "this machine, the percentiles how much a single pair is off. There are no milliseconds here: the machine did "
        "other work too, and yours is another. `firebox profile` measures them where they count.",
        f"squeezenet1_1 and squeezenet1_0 have their published weights (`{FOLDER}/{'`, `'.join(REFERENCES.values())}`; "
        f"[where from](data.md)), {_SMALL} has random ones, which take the same time.",
        surroundings(),
        "## The same thing twice",
        "One int8 ONNX file in two sessions. Below, what is no further from 1 than this is no difference.",
        table(("network", *RATIO_COLUMNS), rows("control")),
        "## int8 beside onnxruntime's quantizer",
        "Time of the file that `onnxruntime.quantization.quantize_static` makes (QDQ, uint8 activations, int8 weights "
        "per channel, MinMax, after `quant_pre_process`) to that of `model.int8.onnx`, both in onnxruntime, made from "
        "one float32 ONNX file with the same calibration images: above 1, this project's is faster. The quantizer's "
        "file takes and gives float32. This project's takes and gives uint8, which is part of the gain in the first "
        "row of each network; in the second the conversions from and to float32, in numpy, are counted against it.",
        table(("network", "input", *RATIO_COLUMNS), rows("quantizer"), names=2),
        f"How right the two files are, on the {images} images of `{FOLDER}/{IMAGES}`, of which "
        f"{ExportConfig().calibration_images} calibrated both; one image is {1 / images:.1%}, and "
        "[another draw](accuracy.md#other-calibration-images) moves these figures too.",
        table(("network", "made by", "top-1", "top-5", "same class as torch"), _accuracy_rows(evaluations), names=2),
        "## Session beside the bare backend",
        "Time of `Session.run` to that of the backend's own calls (`InferenceSession.run`; `set_tensor`, `invoke`, "
        "`get_tensor`) on the same int8 file and the same array: what the checks of a session cost.",
        table(("network", "backend", *RATIO_COLUMNS), rows("session"), names=2),
        "## int8 beside float32",
        "Time of the float32 file to that of the int8 file, both in a `Session`: above 1, int8 is faster.",
        table(("network", "backend", *RATIO_COLUMNS), rows("int8"), names=2),
    ]


def _accuracy_rows(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[tuple[str, ...]]:
    return [
        (name, one.name, f"{one.top1:.1%}", f"{one.top5:.1%}", f"{one.agreement(found[0]):.1%}")
        for name, found in evaluations.items()
        for one in found
    ]


if __name__ == "__main__":
    main()
