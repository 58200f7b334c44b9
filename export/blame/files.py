"""Comparison of a float file and an int8 file of one network on images, and repair of the int8 file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.contract import Contract, read_contract
from ...runtime.errors import DataError, UsageError
from ...runtime.files import check_writable, read_file, write_files
from ...runtime.graph import Graph
from ...runtime.images import LabelledImages, sample
from ...runtime.inference import Session
from ...runtime.progress import SILENT, Progress
from ...runtime.report import node_data
from ..activations import run_outputs
from ..formats.contract_writer import contract_for_file, with_golden_pair
from ..formats.onnx_writer import write_onnx
from ..formats.tflite_writer import write_tflite
from ..parity import session_outputs
from ..quantization.quantize import with_input_type
from .matching import match
from .repair import Repair, check_target, repair
from .sensitivity import Blame, as_graph, blame_match, class_agreement


@dataclass(frozen=True)
class BlameFiles:
    """The result of ``blame_files`` and the written files; ``report`` is the content of ``blame.json``.

    ``repair`` is ``None`` unless a target was given. ``fixed`` has, for each repaired file, the share of the images on
    which its own runtime predicts the float network's class.
    """

    blame: Blame
    repair: Repair | None
    fixed: Mapping[str, float]
    files: tuple[Path, ...]
    report: Mapping[str, Any]

    @property
    def agreement(self) -> float:
        """The share of images with the float network's class: the worse repaired file's, or else the best network's."""
        nearest = self.repair.agreement if self.repair else self.blame.agreement
        return min(self.fixed.values(), default=nearest)

    @property
    def reached(self) -> bool:
        """True if the target was reached, or there was none."""
        return self.repair is None or self.agreement >= self.repair.target


def blame_files(
    reference: str | Path,
    quantized: str | Path,
    images: LabelledImages,
    out: str | Path | None = None,
    *,
    count: int = 100,
    seed: int = 0,
    target: float | None = None,
    progress: Progress = SILENT,
) -> BlameFiles:
    """Measure the sensitivity of an int8 file's layers against a float32 file of the same network, on ``count`` images.

    With a ``target``, the share of these images that must get the float network's class, the float network is quantized
    again until it is reached, calibrated on up to ``count`` other images. ``out`` receives ``blame.json``, node data
    for Model Explorer and, if the target is reached, NAME.fixed.onnx and NAME.fixed.tflite. Raises as ``blame`` and
    ``repair`` do, ``UsageError`` when neither file has firebox metadata, and ``DataError`` for a single image
    where two are needed.
    """
    if target is not None:
        check_target(target)
    floats, integers = as_graph(reference), as_graph(quantized)
    contract = _contract(reference, quantized)
    found = match(floats, integers)
    if out is not None:
        check_writable(out)
    drawn, calibration = _draw(images, count, seed, target is not None)
    pixels = contract.preprocessing.crop_all(drawn)
    samples = _samples(contract, pixels)
    blamed = blame_match(found, samples, progress)
    repaired, fixed, files = None, {}, {}
    if target is not None:
        others = _samples(contract, contract.preprocessing.crop_all(calibration))
        repaired = repair(floats, found.quantized, others, samples, target, progress)
        if repaired.reached and repaired.steps:
            files = _written(repaired.graph, found.quantized, contract, Path(quantized).stem)
            fixed = _agreements(files, run_outputs(floats, samples), pixels)
    report = _report(reference, quantized, images, blamed, repaired, fixed, len(calibration))
    contents: dict[str, bytes | str] = {"blame.json": json.dumps(report, indent=2, allow_nan=False) + "\n"}
    contents |= {f"{Path(quantized).stem}.{name}.json": text for name, text in explorer_data(blamed).items()}
    result = BlameFiles(blamed, repaired, fixed, (), report)
    if result.reached:
        contents |= files
    return replace(result, files=tuple(write_files(out, contents)) if out is not None else ())


def explorer_data(blamed: Blame) -> dict[str, str]:
    """Node data for Model Explorer, by figure: each layer's share of the noise and gain, and each tensor's SQNR."""
    figures = {
        "recovered": {layer.layer: layer.recovered for layer in blamed.layers},
        "agreement_gain": {layer.layer: layer.agreement_gain for layer in blamed.layers},
        "sqnr_db": {tensor.name: tensor.sqnr_db for tensor in blamed.tensors if tensor.sqnr_db is not None},
    }
    return {name: node_data(values) for name, values in figures.items()}


def _contract(*files: str | Path) -> Contract:
    """The contract of the first file that carries one. Raises ``UsageError`` if none does."""
    for file in files:
        contract = read_contract(read_file(file))
        if contract is not None:
            return contract
    raise UsageError(
        f"neither {' nor '.join(map(str, files))} has firebox metadata, so images cannot be prepared; "
        "pass arrays to firebox.export.blame instead"
    )


def _draw(images: LabelledImages, count: int, seed: int, both: bool) -> tuple[LabelledImages, LabelledImages]:
    """Draw images to compare on, and as many others to calibrate with if both are needed."""
    drawn = sample(images, 2 * count if both else count, seed)
    if both and len(drawn) < 2:
        raise DataError(f"{images.source} has one image; a repair needs one to calibrate on and another to compare on")
    half = (len(drawn) + 1) // 2 if both else len(drawn)
    return drawn.subset(range(half)), drawn.subset(range(half, len(drawn)))


def _samples(contract: Contract, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [contract.preprocessing.normalize(image)[None] for image in pixels]


def _written(graph: Graph, before: Graph, contract: Contract, name: str) -> dict[str, bytes]:
    """Files of the repaired network, with the input type of the file before the repair."""
    dtype = before.tensors[before.inputs[0]].dtype
    tflite = with_input_type(graph, dtype) if dtype == "uint8" else graph
    return {
        f"{name}.fixed.onnx": with_golden_pair(write_onnx, graph, contract_for_file(contract, graph, "NCHW")),
        f"{name}.fixed.tflite": with_golden_pair(write_tflite, tflite, contract_for_file(contract, tflite, "NHWC")),
    }


def _agreements(files: Mapping[str, bytes], expected: np.ndarray, pixels: Sequence[np.ndarray]) -> dict[str, float]:
    """Each file's agreement with the float network, in a runtime for its format."""
    found = {}
    for name, data in files.items():
        with Session(data, check="off") as session:
            found[name] = class_agreement(expected, session_outputs(session, pixels))
    return found


def _report(
    reference: str | Path,
    quantized: str | Path,
    images: LabelledImages,
    blamed: Blame,
    repaired: Repair | None,
    fixed: Mapping[str, float],
    calibrated: int,
) -> dict[str, Any]:
    report = {"float": str(reference), "int8": str(quantized), "data": images.source, **blamed.to_json()}
    if repaired is None:
        return {**report, "repair": None}
    return {
        **report,
        "repair": {**repaired.to_json(), "calibration_images": calibrated, "files_agreement": dict(fixed)},
    }
