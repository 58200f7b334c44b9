"""How right the exported files are beside the network in torch, in every installed backend; writes docs/accuracy.md."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
from common import (
    FOLDER,
    IMAGES,
    REFERENCES,
    data_option,
    load_reference,
    out_option,
    surroundings,
    table,
    write_page,
)

from firebox.export import ExportConfig, Parity, Tolerance
from firebox.model_zoo import export_network
from firebox.model_zoo.classifier import TorchClassifier
from firebox.model_zoo.commands.selection import open_classifiers
from firebox.runtime import Evaluation, LabelledImages, Preprocessing, Session, evaluate, open_images, sample
from firebox.runtime.commands.console import TerminalProgress
from firebox.runtime.inference.classifier import Classifier

_TORCH = "torch"
_INT8 = "model.int8.onnx"


@dataclass(frozen=True)
class Recorder:
    """A classifier that keeps its answers."""

    classifier: Classifier
    outputs: list[np.ndarray] = field(default_factory=list)

    @property
    def preprocessing(self) -> Preprocessing:
        """As the classifier's."""
        return self.classifier.preprocessing

    @property
    def classes(self) -> Sequence[str]:
        """As the classifier's."""
        return self.classifier.classes

    @property
    def class_ids(self) -> Sequence[str]:
        """As the classifier's."""
        return self.classifier.class_ids

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The classifier's answer."""
        self.outputs.append(self.classifier.predict_pixels(pixels))
        return self.outputs[-1]


@dataclass(frozen=True)
class Findings:
    """One network: each file in each backend, the int8 answers, and the int8 file of each calibration seed."""

    network: str
    files: Mapping[str, Evaluation]
    int8: Mapping[str, np.ndarray]
    step: float
    seeds: Mapping[int, Evaluation]
    gate: Mapping[int, Parity]
    unseen: Mapping[int, np.ndarray]


@click.command()
@data_option
@out_option("accuracy.md")
@click.option("--seeds", default=5, show_default=True, help="Calibrations to compare: seeds 0, 1, …")
def main(data_folder: Path, out: Path, seeds: int) -> None:
    """Export v1.1 and v1.0, and measure all files in every installed backend.

    \b
    Example:
      python benchmarks/accuracy.py --data-folder ~/firebox-data
    """
    images = open_images(data_folder / IMAGES)
    found = [measure(name, data_folder, images, range(seeds)) for name in REFERENCES]
    write_page(out, page(found, len(images)))


def measure(name: str, data_folder: Path, images: LabelledImages, seeds: Sequence[int]) -> Findings:
    network = load_reference(name, data_folder)
    with tempfile.TemporaryDirectory() as folder:
        gate: dict[int, Parity] = {}
        for seed in seeds:
            # Seed 0 is the default export and gives all four files. What the gate would refuse is measured, too.
            others = ExportConfig(seed=seed, precisions=("int8",), tolerance=Tolerance(agreement=0, sqnr_db=-100))
            config = ExportConfig() if seed == 0 else others
            found = export_network(network, Path(folder, str(seed)), images, config)
            gate[seed] = next(parity for parity in found.parity if parity.file == _INT8)
        files = {
            label.removeprefix(f"{folder}/0/"): Recorder(classifier)
            for label, classifier in open_classifiers([f"{folder}/0"], None, "all").items()
        }
        sessions = {f"seed {seed}": Session(Path(folder, str(seed), _INT8)) for seed in seeds}
        models = {_TORCH: TorchClassifier(network), **files, **sessions}
        evaluations = evaluate(models, images, progress=TerminalProgress())
    by_name = {evaluation.name: evaluation for evaluation in evaluations}
    calibration = ExportConfig().calibration_images
    drawn = {seed: set(sample(images, calibration, seed).names) for seed in seeds}
    return Findings(
        network=name,
        files={label: by_name[label] for label in (_TORCH, *files)},
        int8={label: np.array(files[label].outputs) for label in files if "int8" in label},
        step=sessions["seed 0"].contract.output.scale or 0.0,
        seeds={seed: by_name[f"seed {seed}"] for seed in seeds},
        gate=gate,
        unseen={seed: np.array([name not in drawn[seed] for name in images.names]) for seed in seeds},
    )


def page(found: Sequence[Findings], images: int) -> list[str]:
    calibration = ExportConfig().calibration_images
    first = found[0].files[_TORCH].top1
    error = (first * (1 - first) / images) ** 0.5
    return [
        "# Accuracy of the exported files",
        "This page is written by\n\n```sh\npython benchmarks/accuracy.py\n```",
        f"on the {images} labelled images of `{FOLDER}/{IMAGES}` (ImageNet, one for each of {images} classes; "
        "[where from](data.md)). "
        f"One image is {1 / images:.1%}, and the standard error of a top-1 on so few is {error:.1%}: these figures "
        "tell whether a file answers as its network does, not how good the network is. The files are what the command "
        "writes with its default options:",
        "\n".join(["```sh", *map(_export_command, REFERENCES), "```"]),
        surroundings(),
        "## Every file in every backend",
        "How often the class named first is right, how often the right one is among the first five, and how often the "
        "file names the class that torch does. The int8 rows are one calibration, seed 0, whose images are among "
        "those measured here; other draws, and unseen images, are [below](#other-calibration-images).",
        table(("network", "file (backend)", "top-1", "top-5", "same class as torch"), _file_rows(found), names=2),
        "## int8: ONNX beside TFLite",
        "Both files come from one quantized graph. A step is the scale of the output, the least by which two logits "
        "can differ.",
        table(
            ("network", "in onnxruntime beside", "same class", "identical logits", "largest difference"),
            _format_rows(found),
            names=2,
        ),
        "## Other calibration images",
        f"The same int8 ONNX file, calibrated with {calibration} images drawn by each seed in turn; none is left "
        "out. *top-1* is the difference to torch on the same images, in percentage points; *lost / won* counts the "
        "images that only torch and only the int8 file gets right. *Unseen* are the images that were not used to "
        f"calibrate ({images - calibration} of {images}). Between seeds nothing differs but the draw, and any "
        "single export is one draw; the seeds share most of the images they are measured on, so that their range "
        "shows what the draw does, not the uncertainty that comes from so few images. *Gate* is the share of the "
        "same class on the few images that an export looks at before it writes; below "
        f"{Tolerance().agreement:.0%}, or an SQNR of {Tolerance().sqnr_db:g} dB, the command would have written "
        "nothing and asked for another calibration or tolerance. Such a draw is measured here all the same.",
        *(f"### {findings.network}\n\n{_seed_table(findings)}" for findings in found),
    ]


def _export_command(name: str) -> str:
    source = f"--weights {FOLDER}/{REFERENCES[name]} --calibrate {FOLDER}/{IMAGES}"
    return f"firebox export {name} {source} --out build/{name}"


def _file_rows(found: Sequence[Findings]) -> list[tuple[str, ...]]:
    return [
        (item.network, label, f"{one.top1:.1%}", f"{one.top5:.1%}", f"{one.agreement(item.files[_TORCH]):.1%}")
        for item in found
        for label, one in item.files.items()
    ]


def _format_rows(found: Sequence[Findings]) -> list[tuple[str, ...]]:
    rows = []
    for item in found:
        (onnx, reference), *others = item.int8.items()
        for label, outputs in others:
            same = item.files[onnx].agreement(item.files[label])
            steps = np.rint(np.abs(outputs - reference) / item.step).astype(int)
            identical = f"{(steps == 0).sum():,} of {steps.size:,} ({(steps == 0).mean():.1%})"
            rows.append((item.network, label, f"{same:.1%}", identical, _plural(steps.max(), "step")))
    return rows


def _seed_table(item: Findings) -> str:
    torch, figures, rows = item.files[_TORCH], [], []
    for seed, int8 in item.seeds.items():
        groups = [(int8, torch), (_some(int8, item.unseen[seed]), _some(torch, item.unseen[seed]))]
        values = [value for one, other in groups for value in (one.top1 - other.top1, one.agreement(other))]
        gate, limit = item.gate[seed], Tolerance()
        passed = gate.agreement >= limit.agreement and (gate.sqnr_db is None or gate.sqnr_db >= limit.sqnr_db)
        verdict = f"{gate.agreement:.1%}{'' if passed else ', refused'}"
        right, expected = (one.ranked[:, 0] == one.labels for one in (int8, torch))
        lost_won = f"{(expected & ~right).sum()} / {(right & ~expected).sum()}"
        rows.append((str(seed), *_cells(values), lost_won, verdict))
        figures.append(values)
    lowest, highest = _cells(np.min(figures, axis=0)), _cells(np.max(figures, axis=0))
    rows.append(("mean", *_cells(np.mean(figures, axis=0)), "", ""))
    rows.append(("range", *(f"{low} to {high}" for low, high in zip(lowest, highest, strict=True)), "", ""))
    columns = (
        "seed",
        "top-1, all",
        "same class, all",
        "top-1, unseen",
        "same class, unseen",
        "lost / won, all",
        "gate",
    )
    return table(columns, rows)


def _some(evaluation: Evaluation, chosen: np.ndarray) -> Evaluation:
    return replace(evaluation, ranked=evaluation.ranked[chosen], labels=evaluation.labels[chosen])


def _cells(values: Sequence[float] | np.ndarray) -> list[str]:
    """Differences in points and shares in turn."""
    return [f"{100 * value:+.2f}" if index % 2 == 0 else f"{value:.1%}" for index, value in enumerate(values)]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


if __name__ == "__main__":
    main()
