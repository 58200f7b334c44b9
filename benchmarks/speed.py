"""int8 compared with onnxruntime's quantizer and with float32, and sessions with bare backends; writes docs/speed.md.

The page has only ratios of paired times: on a machine with other work, milliseconds mean little.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import common
import numpy as np
from comparators import quantize_with_onnxruntime
from pairs import BLOCK, RATIO_COLUMNS, Comparison, Ratios, bare, bind, measure

from firebox.export import ExportConfig
from firebox.model_zoo import TorchClassifier, export_network, load_network
from firebox.runtime import Evaluation, LabelledImages, Preprocessing, Session, evaluate, open_images
from firebox.runtime.inference import Classifier, installed_backends
from firebox.runtime.inference.installed import BACKENDS

_SMALL = "squeezenet_micro"


@dataclass(frozen=True)
class Quantized:
    """The file of onnxruntime's quantizer as a ``Classifier``, with the preprocessing and classes of a float32 file."""

    session: Session
    run: Callable[[np.ndarray], np.ndarray]

    @property
    def preprocessing(self) -> Preprocessing:
        """From the float32 file."""
        return self.session.preprocessing

    @property
    def classes(self) -> Sequence[str]:
        """From the float32 file."""
        return self.session.classes

    @property
    def class_ids(self) -> Sequence[str]:
        """From the float32 file."""
        return self.session.class_ids

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Logits, shape (classes,)."""
        return self.run(common.encode(self.session, pixels)).reshape(-1)


@click.command()
@common.data_option
@common.out_option("speed.md")
@click.option("--rounds", default=10, show_default=True, help="Turns of each comparison.")
@click.option("--seconds", default=2.0, show_default=True, help="Minimum length of a turn.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random orders.")
def main(data_folder: Path, out: Path, rounds: int, seconds: float, seed: int) -> None:
    """Compare the latency of v1.1, v1.0 and squeezenet_micro in pairs, on one thread.

    \b
    Example:
      python benchmarks/speed.py --data-folder ~/firebox-data
    """
    comparisons: list[Comparison] = []
    evaluations: dict[str, list[Evaluation]] = {}
    images = open_images(data_folder / common.IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        for name in common.REFERENCES:
            network, place = common.load_reference(name, data_folder), Path(folder, name)
            export_network(network, place, images, progress=common.terminal)
            theirs = quantize_with_onnxruntime(place, images)
            comparisons += compare(name, place, theirs, images)
            models: dict[str, Classifier] = {
                "torch": TorchClassifier(network),
                "firebox, model.int8.onnx": Session(place / "model.int8.onnx"),
                "onnxruntime, quantize_static": Quantized(Session(place / "model.float32.onnx"), bare(theirs)),
            }
            evaluations[name] = evaluate(models, images, progress=common.terminal)
        digits, place = open_images("digits"), Path(folder, _SMALL)
        config = ExportConfig(tolerance=common.NO_GATE)
        export_network(load_network(_SMALL, random_init=True), place, digits, config, progress=common.terminal)
        comparisons += compare(_SMALL, place, quantize_with_onnxruntime(place, digits), digits)
        found = measure(comparisons, rounds, seconds, seed)
    common.write_page(out, page(found, evaluations, len(images)))


def compare(name: str, folder: Path, theirs: Path, images: LabelledImages) -> list[Comparison]:
    """All comparisons of one network, on the same image."""
    sessions = {
        (precision, backend): Session(folder / f"model.{precision}.{BACKENDS[backend].format}", backend)
        for precision in ("float32", "int8")
        for backend in (*installed_backends("onnx"), *installed_backends("tflite"))
    }
    ours = sessions["int8", "onnxruntime"]
    pixels = ours.preprocessing.crop(images.image(0))
    inputs = {key: common.encode(session, pixels) for key, session in sessions.items()}
    floats, integers = inputs["float32", "onnxruntime"], inputs["int8", "onnxruntime"]
    contract, run, twin, their_run = ours.contract, *(bare(folder / "model.int8.onnx") for _ in range(2)), bare(theirs)

    def whole() -> np.ndarray:
        return contract.output.decode(run(contract.input.encode(floats)))

    found = [
        Comparison("quantizer", (name, "own input type"), lambda: their_run(floats), lambda: run(integers)),
        Comparison("quantizer", (name, "float32 input and output"), lambda: their_run(floats), whole),
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
        "# Speed of exported files",
        "This page is generated by\n\n```sh\npython benchmarks/speed.py\n```",
        "Every figure is a ratio of two latencies, measured one right after the other in one process, on one thread, "
        f"for one image. The order within each block of {len(BLOCK)} pairs is random, from a seed; the comparisons "
        f"take turns in {len(found[0].rounds)} rounds. The ratio is the median over all pairs. The medians of the "
        "rounds show how repeatable it is on this machine, the percentiles how much single pairs vary. The page gives "
        "no milliseconds, because the machine had other work; `firebox profile` measures them on your device.",
        "squeezenet1_1 and squeezenet1_0 have their published weights "
        f"(`{common.FOLDER}/{'`, `'.join(common.REFERENCES.values())}`; "
        f"[data](data.md)); {_SMALL} has random weights, which take the same time.",
        common.surroundings(),
        "## Control: the same file twice",
        "One int8 ONNX file in two sessions. Ratios below that are no further from 1 than these show no difference.",
        common.table(("network", *RATIO_COLUMNS), rows("control")),
        "## int8 compared with onnxruntime's quantizer",
        "Latency of the file from `onnxruntime.quantization.quantize_static` (QDQ, uint8 activations, int8 weights per "
        "channel, MinMax, after `quant_pre_process`) divided by that of `model.int8.onnx`; above 1, firebox's file is "
        "faster. Both run in onnxruntime and are made from one float32 ONNX file with the same calibration images. The "
        "quantizer's file has float32 input and output. firebox's has uint8 input and output, which explains part of "
        "the gain in the first row of each network; the second row adds the conversions from and to float32, in numpy, "
        "to firebox's time.",
        common.table(("network", "input", *RATIO_COLUMNS), rows("quantizer"), names=2),
        f"Accuracy of the two files on the {images} images of `{common.FOLDER}/{common.IMAGES}`, "
        f"{ExportConfig().calibration_images} "
        f"of which calibrated both. One image is {1 / images:.1%}; [other calibration "
        "images](accuracy.md#other-calibration-images) change these figures, too.",
        common.table(
            ("network", "quantizer", "top-1", "top-5", "agreement with torch"), _accuracy_rows(evaluations), names=2
        ),
        "## Session compared with the bare backend",
        "Latency of `Session.run` divided by that of the backend's own calls (`InferenceSession.run`; `set_tensor`, "
        "`invoke`, `get_tensor`) on the same int8 file and array: the overhead of a session's checks.",
        common.table(("network", "backend", *RATIO_COLUMNS), rows("session"), names=2),
        "## int8 compared with float32",
        "Latency of the float32 file divided by that of the int8 file, both in a `Session`: above 1, int8 is faster.",
        common.table(("network", "backend", *RATIO_COLUMNS), rows("int8"), names=2),
    ]


def _accuracy_rows(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[tuple[str, ...]]:
    return [
        (name, one.name, f"{one.top1:.1%}", f"{one.top5:.1%}", f"{one.agreement(found[0]):.1%}")
        for name, found in evaluations.items()
        for one in found
    ]


if __name__ == "__main__":
    main()
