"""Two files of one network side by side: images prepared, layers blamed, the int8 one repaired and written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.commands.console import progress
from ...runtime.contract import Contract, read_contract
from ...runtime.errors import DataError, UsageError
from ...runtime.files import check_writable, read_file, write_files
from ...runtime.graph import Graph
from ...runtime.images import LabelledImages, sample
from ...runtime.inference import Session
from ...runtime.report.summary import node_data
from ..activations import run_outputs
from ..formats.contract_writer import complete, for_file
from ..formats.onnx_writer import write_onnx
from ..formats.tflite_writer import write_tflite
from ..parity import session_outputs
from ..quantization.quantize import with_input_type
from .matching import match
from .repair import Repair, check_target, repair
from .sensitivity import Blame, as_graph, blame_match, class_agreement, passes


@dataclass(frozen=True)
class BlameFiles:
    """What was found and written; ``report`` is what ``blame.json`` says of it.

    ``repair`` is None when none was asked for. ``fixed`` is, for each repaired file, the share of the judged images
    on which its own runtime gives the float network's class.
    """

    blame: Blame
    repair: Repair | None
    fixed: Mapping[str, float]
    files: tuple[Path, ...]
    report: Mapping[str, Any]

    @property
    def agreement(self) -> float:
        """The share of images with the float network's class: of the worse repaired file, or of what came nearest."""
        nearest = self.repair.agreement if self.repair else self.blame.agreement
        return min(self.fixed.values(), default=nearest)

    @property
    def reached(self) -> bool:
        """Whether no repair was asked for, or it did what was asked, if anything was to be done."""
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
    quiet: bool = False,
) -> BlameFiles:
    """Blame the layers of an int8 file, against a float32 file of the same network, on ``count`` images.

    With a ``target``, the share of images that are to get the float network's class, the float network is quantized
    again until it is reached: calibrated on up to ``count`` other images, judged on those that were blamed. Into
    ``out`` go ``blame.json``, node data for Model Explorer and, when the target is reached, NAME.fixed.onnx and
    NAME.fixed.tflite. Raises as ``blame`` and ``repair`` do, ``UsageError`` when neither file tells how its images
    are to be prepared, and ``DataError`` for one image where two are needed.
    """
    if target is not None:
        check_target(target)
    floats, integers = as_graph(reference), as_graph(quantized)
    contract = _contract(reference, quantized)
    found = match(floats, integers)
    if out is not None:
        check_writable(out)
    judged, calibration = _draw(images, count, seed, target is not None)
    pixels = [contract.preprocessing.crop(judged.read(name), judged.where(name)) for name in judged.names]
    samples = _samples(contract, pixels)
    with progress("blaming", passes(found.quantized) * len(samples), quiet=quiet) as advance:
        blamed = blame_match(found, samples, advance)
    repaired, fixed, files = None, {}, {}
    if target is not None:
        others = [contract.preprocessing.crop(calibration.read(n), calibration.where(n)) for n in calibration.names]
        with progress("fixing", quiet=quiet) as advance:
            repaired = repair(
                floats, found.quantized, _samples(contract, others), samples, target, lambda text: advance(text=text)
            )
        if repaired.reached and repaired.steps:
            files = _written(repaired.graph, found.quantized, contract, Path(quantized).stem)
            fixed = _judged(files, run_outputs(floats, samples), pixels)
    report = _report(reference, quantized, images, blamed, repaired, fixed, len(calibration))
    contents: dict[str, bytes | str] = {"blame.json": json.dumps(report, indent=2, allow_nan=False) + "\n"}
    contents |= {f"{Path(quantized).stem}.{name}.json": text for name, text in explorer_data(blamed).items()}
    found_out = BlameFiles(blamed, repaired, fixed, (), report)
    if found_out.reached:
        contents |= files
    return replace(found_out, files=tuple(write_files(out, contents)) if out is not None else ())


def explorer_data(blamed: Blame) -> dict[str, str]:
    """Custom node data for Model Explorer by what it shows: where noise is from, and what each tensor lost."""
    figures = {
        "recovered": {layer.layer: layer.recovered for layer in blamed.layers},
        "agreement_gain": {layer.layer: layer.agreement_gain for layer in blamed.layers},
        "sqnr_db": {tensor.name: tensor.sqnr_db for tensor in blamed.tensors if tensor.sqnr_db is not None},
    }
    return {name: node_data(values) for name, values in figures.items()}


def _contract(*files: str | Path) -> Contract:
    """What the first of some files that firebox wrote says about itself."""
    for file in files:
        contract = read_contract(read_file(file))
        if contract is not None:
            return contract
    raise UsageError(
        f"neither {' nor '.join(map(str, files))} carries a contract, so images cannot be prepared; "
        "use firebox.export.blame with arrays"
    )


def _draw(images: LabelledImages, count: int, seed: int, both: bool) -> tuple[LabelledImages, LabelledImages]:
    """Images to judge by, and others to calibrate with if both are needed."""
    drawn = sample(images, 2 * count if both else count, seed)
    if both and len(drawn) < 2:
        raise DataError(f"{images.source} has one image; a repair needs one to calibrate with and another to judge by")
    half = (len(drawn) + 1) // 2 if both else len(drawn)
    return drawn.subset(range(half)), drawn.subset(range(half, len(drawn)))


def _samples(contract: Contract, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [contract.preprocessing.normalize(image)[None] for image in pixels]


def _written(graph: Graph, before: Graph, contract: Contract, name: str) -> dict[str, bytes]:
    """The repaired network as files that take what the file before took."""
    dtype = before.tensors[before.inputs[0]].dtype
    tflite = with_input_type(graph, dtype) if dtype == "uint8" else graph
    return {
        f"{name}.fixed.onnx": complete(write_onnx, graph, for_file(contract, graph, "NCHW")),
        f"{name}.fixed.tflite": complete(write_tflite, tflite, for_file(contract, tflite, "NHWC")),
    }


def _judged(files: Mapping[str, bytes], expected: np.ndarray, pixels: Sequence[np.ndarray]) -> dict[str, float]:
    """How often each file agrees with the float network, in a runtime of its own format."""
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
