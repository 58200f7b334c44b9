"""Export of a trained network: trace, quantize, write, and compare every file with the network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..runtime.contract import Contract, TensorSpec
from ..runtime.errors import UsageError
from ..runtime.files import check_writable, sha256, write_files
from ..runtime.graph import Graph, ops
from ..runtime.images import LabelledImages, Preprocessing, sample
from ..runtime.inference import Session
from ..runtime.memory import Budget, plan
from ..runtime.progress import SILENT, Progress
from .fit.files import fit_report, report_files
from .fit.search import Fit, fit
from .formats.contract_writer import contract_for_file, with_golden_pair
from .formats.onnx_writer import write_onnx
from .formats.tflite_writer import write_tflite
from .parity import (
    Parity,
    Precision,
    Tolerance,
    compare,
    first_divergence,
    first_violation,
    module_outputs,
    parity_error,
    session_outputs,
)
from .quantization.gptq import input_moments
from .quantization.precisions import find_layers, with_float16_weights, with_int8_weights, with_int16_layers
from .quantization.ptq import Effort, PTQResult, calibration_samples, check_effort, quantize_network
from .quantization.quantize import quantize, with_input_type
from .quantization.ranges import Calibrator, Range
from .quantization.weight_grid import DEFAULT_RANGE, WeightRange
from .runtime_check import EXACT_BACKENDS, compare_with_reference, reference_outputs, runtime_error
from .trace import trace

if TYPE_CHECKING:
    from torch import nn

InputType = Literal["int8", "uint8"]
Format = Literal["onnx", "tflite"]

# Images that the parity gate compares: enough that a few chance disagreements do not fail an export.
_GATE_IMAGES = 100


@dataclass(frozen=True)
class ExportConfig:
    """Files to write and how to quantize them.

    ``calibration_images`` images are drawn by ``seed``. ``effort`` and ``calibrator`` (``None``: chosen by the effort)
    are those of ``quantize_network``. ``weight_range`` limits the integers of int8 weights; the default is safe on
    kernels that saturate, in applications without firebox too. ``input_type`` applies to the int8 TFLite file.
    ``int16_layers`` names layers of the int8 files, or patterns of names, that get 16-bit activations. With
    ``sram_bytes`` the int8 files are rewritten until an inference fits that budget on ``target``, beside a reserve of
    ``reserve_bytes`` and, if given, within ``flash_bytes``.
    """

    calibration_images: int = 100
    effort: Effort = "good"
    calibrator: Calibrator | None = None
    seed: int = 0
    input_type: InputType = "int8"
    weight_range: WeightRange = DEFAULT_RANGE
    precisions: tuple[Precision, ...] = ("float32", "int8")
    int16_layers: tuple[str, ...] = ()
    sram_bytes: int | None = None
    flash_bytes: int | None = None
    reserve_bytes: int = 0
    target: str = "tflm"
    tolerance: Tolerance = field(default_factory=Tolerance)

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise UsageError(f"{self.calibration_images} calibration images are too few; use at least 1")
        check_effort(self.effort, self.calibrator)
        if self.weight_range not in get_args(WeightRange):
            raise UsageError(f"weight range {self.weight_range!r} is not one of {', '.join(get_args(WeightRange))}")
        if self.input_type not in get_args(InputType):
            raise UsageError(f"input type {self.input_type!r} is not one of {', '.join(get_args(InputType))}")
        if not self.precisions or not set(self.precisions) <= set(get_args(Precision)):
            raise UsageError(f"precisions {self.precisions} are not among {', '.join(get_args(Precision))}")
        if self.int16_layers and "int8" not in self.precisions:
            raise UsageError(f"16-bit layers ({', '.join(self.int16_layers)}) need an int8 file; add precision int8")
        if self.int16_layers and self.sram_bytes is not None:
            raise UsageError("a network with 16-bit layers cannot be fitted; drop int16_layers or sram_bytes")
        if self.sram_bytes is None and (self.flash_bytes is not None or self.reserve_bytes):
            raise UsageError("flash_bytes and reserve_bytes have no effect without sram_bytes; give the SRAM too")

    @property
    def budget(self) -> Budget | None:
        """The budget of the int8 files, if there is one."""
        if self.sram_bytes is None:
            return None
        return Budget(self.sram_bytes, self.flash_bytes, self.reserve_bytes)


@dataclass(frozen=True)
class Export:
    """The written files and their comparison with the network; ``report`` is the content of ``export.json``."""

    out: Path
    files: tuple[Path, ...]
    parity: tuple[Parity, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """The network at one precision; ``reference`` is the float network that it was made from (equalized, for int8)."""

    precision: Precision
    graph: Graph
    reference: Graph


@dataclass(frozen=True)
class Artifact:
    """One exported file, in memory until all have passed the gate.

    ``data`` may hold a rewrite of the variant's graph: fitted to a budget, or with uint8 input.
    """

    variant: Variant
    format: Format
    data: bytes

    @property
    def precision(self) -> Precision:
        """Precision of the file."""
        return self.variant.precision

    @property
    def name(self) -> str:
        """File name."""
        return f"model.{self.precision}.{self.format}"


def export(
    module: "nn.Module",
    out: str | Path,
    *,
    preprocessing: Preprocessing,
    images: LabelledImages,
    classes: Sequence[str],
    class_ids: Sequence[str] = (),
    name: str = "model",
    checkpoint_sha256: str = "",
    config: ExportConfig | None = None,
    ranges: Mapping[str, Range] | None = None,
    progress: Progress = SILENT,
) -> Export:
    """Trace, quantize, write ``model.PRECISION.{onnx,tflite}`` and compare every file with the module.

    ``images`` need no labels: some calibrate, others (if there are enough) pass through the gate. Int8 files are also
    compared with the numpy reference, so that a faulty runtime is not mistaken for a quantization error. ``ranges``
    learned in training replace calibration; weights are then rounded to nearest, as in training.

    Nothing is written when it raises: ``UnsupportedError`` for a network that cannot be traced, ``QuantizationError``
    for one that cannot be quantized, ``DoesNotFitError`` when the budget is too small, and ``ParityError`` past the
    tolerance.
    """
    config = config or ExportConfig()
    check_writable(out)
    with progress.task("tracing", 1) as advance:
        graph = trace(module, (1, preprocessing.depth, *preprocessing.size), name)
        advance()
    contract = _contract(graph, name, preprocessing, tuple(classes), tuple(class_ids), checkpoint_sha256)
    find_layers(graph, config.int16_layers)
    calibration, gate = _draw(images, config)
    if ranges:
        calibration = calibration.subset(())
    variants, ptq = _variants(graph, calibration, preprocessing, ranges, config, progress)
    fitted = _fitted(variants, config, progress)
    artifacts = [file for variant in variants for file in _write(variant, contract, config.input_type, fitted)]
    pixels = preprocessing.crop_all(gate)
    parity, identical = _check_parity(module, artifacts, pixels, preprocessing, config.tolerance, progress)
    report = _report(contract, artifacts, parity, calibration, gate, config)
    report["parity"]["identical_outputs"] = identical
    report["calibration"] |= ptq.to_json() if ptq else {}
    contents: dict[str, bytes | str] = {artifact.name: artifact.data for artifact in artifacts}
    if fitted:
        int8 = {artifact.format: artifact.data for artifact in artifacts if artifact.precision == "int8"}
        report["fit"] = fit_report(fitted, contract, int8, pixels, progress=progress)
        contents |= report_files(fitted, "model.int8", int8, progress=progress)
    written = write_files(out, {**contents, "export.json": json.dumps(report, indent=2) + "\n"})
    return Export(Path(out), tuple(written[:-1]), tuple(parity), report)


def _draw(images: LabelledImages, config: ExportConfig) -> tuple[LabelledImages, LabelledImages]:
    """Draw images for calibration and others for the gate; the same ones if there are too few."""
    drawn = sample(images, config.calibration_images + _GATE_IMAGES, config.seed)
    calibration = drawn.subset(range(min(len(drawn), config.calibration_images)))
    rest = drawn.subset(range(len(calibration), len(drawn)))
    return calibration, rest if len(rest) else calibration.subset(range(min(len(calibration), _GATE_IMAGES)))


def _contract(
    graph: Graph,
    name: str,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    class_ids: tuple[str, ...],
    checkpoint_sha256: str,
) -> Contract:
    shape = graph.tensors[graph.outputs[0]].shape
    if len(graph.outputs) != 1 or int(np.prod(shape)) != len(classes):
        raise UsageError(f"the network's output {shape} does not give one value for each of its {len(classes)} classes")
    answer = "probabilities" if isinstance(graph.producers.get(graph.outputs[0]), ops.Softmax) else "logits"
    none = TensorSpec("float32", ())
    return Contract(name, preprocessing, classes, class_ids, "NHWC", answer, none, none, checkpoint_sha256)


def _variants(
    graph: Graph,
    calibration: LabelledImages,
    preprocessing: Preprocessing,
    ranges: Mapping[str, Range] | None,
    config: ExportConfig,
    progress: Progress,
) -> tuple[list[Variant], PTQResult | None]:
    """The network at each precision, and the result of post-training quantization if there was any."""
    pixels = preprocessing.crop_all(calibration) if {"int8", "dynamic"} & set(config.precisions) else []
    ptq: PTQResult | None = None
    variants = []
    for precision in config.precisions:
        converted = reference = graph
        if precision == "int8":
            if ranges:
                converted = quantize(graph, ranges, None, config.weight_range)
            else:
                samples = calibration_samples(pixels, preprocessing, progress)
                ptq = quantize_network(
                    graph,
                    samples,
                    config.effort,
                    config.calibrator,
                    config.seed,
                    weight_range=config.weight_range,
                    progress=progress,
                )
                converted, reference = ptq.graph, ptq.reference
            converted = with_int16_layers(converted, config.int16_layers)
        elif precision == "float16":
            converted = with_float16_weights(graph)
        elif precision == "dynamic":
            samples = [preprocessing.normalize(image)[None] for image in pixels]
            moments = input_moments(graph, samples, config.seed, progress) if samples else None
            converted = with_int8_weights(graph, moments)
        variants.append(Variant(precision, converted, reference))
    return variants, ptq


def _fitted(variants: Sequence[Variant], config: ExportConfig, progress: Progress) -> Fit | None:
    """The int8 network rewritten for the budget; ``None`` without a budget."""
    if config.budget is None:
        return None
    int8 = next((variant.graph for variant in variants if variant.precision == "int8"), None)
    if int8 is None:
        raise UsageError(f"only int8 is fitted, and precision {', '.join(config.precisions)} is exported; add int8")
    return fit(with_input_type(int8, config.input_type), config.budget, config.target, progress=progress)


def _write(variant: Variant, contract: Contract, input_type: InputType, fitted: Fit | None) -> list[Artifact]:
    """A variant's ONNX and TFLite files, complete with contract and golden pair."""
    onnx = tflite = variant.graph
    offsets = None
    if variant.precision == "int8":
        tflite = with_input_type(tflite, input_type)
        if fitted and fitted.stages:
            onnx, tflite, offsets = fitted.graph, fitted.graph, fitted.offsets
    onnx_data = with_golden_pair(write_onnx, onnx, contract_for_file(contract, onnx, "NCHW"))
    tflite_data = with_golden_pair(
        partial(write_tflite, offsets=offsets), tflite, contract_for_file(contract, tflite, "NHWC")
    )
    return [Artifact(variant, "onnx", onnx_data), Artifact(variant, "tflite", tflite_data)]


def _check_parity(
    module: "nn.Module",
    artifacts: Sequence[Artifact],
    pixels: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    tolerance: Tolerance,
    progress: Progress,
) -> tuple[list[Parity], float | None]:
    """Compare every file with the module, and int8 files with each other and with the numpy reference.

    Returns the comparisons and the share of outputs that are equal in both int8 files. Raises ``ParityError``.
    """
    inputs = np.stack([preprocessing.normalize(image).transpose(2, 0, 1) for image in pixels])
    inputs = np.ascontiguousarray(inputs)
    with progress.task("comparing", 1 + len(artifacts)) as advance:
        expected = module_outputs(module, inputs)
        advance()
        int8 = next((artifact.variant.graph for artifact in artifacts if artifact.precision == "int8"), None)
        reference = reference_outputs(int8, pixels, preprocessing) if int8 is not None else None
        outputs, results = [], []
        for artifact in artifacts:
            exact = reference if artifact.precision == "int8" else None
            result, output = _compare_file(artifact, pixels, expected, exact)
            results.append(result)
            outputs.append(output)
            advance()
    violation = first_violation(results, outputs, tolerance)
    if violation:
        variant = next(artifact.variant for artifact in artifacts if artifact.name == violation.file)
        # An equalized network's activations differ from the module's.
        truth = None if variant.precision == "int8" else module
        divergence = first_divergence(variant.graph, variant.reference, inputs, tolerance, truth)
        raise parity_error(violation, divergence)
    return results, _identical(results, outputs)


def _compare_file(
    artifact: Artifact, pixels: Sequence[np.ndarray], expected: np.ndarray, reference: np.ndarray | None
) -> tuple[Parity, np.ndarray]:
    """Run a file and compare its outputs with the module's, and with the numpy reference's if given.

    Raises ``ParityError`` for a runtime that computes the file incorrectly.
    """
    with Session(artifact.data, check="off") as session:
        outputs = session_outputs(session, pixels)
        result = compare(artifact.name, artifact.precision, session.backend, expected, outputs)
        if reference is None:
            return result, outputs
        comparison = compare_with_reference(artifact.variant.graph, reference, outputs)
        if session.backend in EXACT_BACKENDS and not comparison.is_sound:
            raise runtime_error(artifact.name, session.facts, comparison)
        return replace(result, identical=comparison.identical), outputs


def _identical(results: Sequence[Parity], outputs: Sequence[np.ndarray]) -> float | None:
    """The share of outputs that are equal in both int8 files."""
    int8 = [output for result, output in zip(results, outputs, strict=True) if result.precision == "int8"]
    return float((int8[0] == int8[1]).mean()) if len(int8) > 1 else None


def _report(
    contract: Contract,
    artifacts: Sequence[Artifact],
    parity: Sequence[Parity],
    calibration: LabelledImages,
    gate: LabelledImages,
    config: ExportConfig,
) -> dict[str, Any]:
    return {
        "name": contract.name,
        "checkpoint_sha256": contract.checkpoint_sha256,
        "preprocessing": contract.preprocessing.to_json(),
        "files": {artifact.name: _facts(artifact) for artifact in artifacts},
        "int16_layers": list(config.int16_layers),
        "calibration": {
            "source": calibration.source if len(calibration) else "learned in training",
            "images": len(calibration),
            "seed": config.seed,
        },
        "parity": {
            "images": len(gate),
            "seen_in_calibration": bool(set(gate.names) & set(calibration.names)),
            "files": [result.to_json() for result in parity],
        },
    }


def _facts(artifact: Artifact) -> dict[str, Any]:
    planned = plan(artifact.data)
    return {
        "bytes": len(artifact.data),
        "sha256": sha256(artifact.data),
        "target": planned.target,
        "arena_bytes": planned.arena_bytes,
        "total_bytes": planned.total_bytes,
        "source": "planned",
    }
