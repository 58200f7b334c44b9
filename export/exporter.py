"""From a trained module to the files that ship, through the gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..runtime.commands.console import progress, progress_unless
from ..runtime.contract import Contract, TensorSpec
from ..runtime.errors import UsageError
from ..runtime.files import check_writable, sha256, write_files
from ..runtime.graph import Graph, ops
from ..runtime.images import LabelledImages, Preprocessing, sample
from ..runtime.inference import Session
from ..runtime.memory.plan import plan
from ..runtime.memory.targets import Target
from .fit.files import judged, summaries
from .fit.search import Fit, fit
from .formats.contract_writer import complete, for_file
from .formats.onnx_writer import write_onnx
from .formats.tflite_writer import write_tflite
from .parity import (
    Parity,
    Precision,
    Tolerance,
    compare,
    first_divergence,
    judge,
    module_outputs,
    refuse,
    session_outputs,
)
from .quantization.gptq import input_moments
from .quantization.precisions import find_layers, with_float16_weights, with_int8_weights, with_int16_layers
from .quantization.ptq import Effort, PTQResult, calibration_samples, check_effort, quantize_network
from .quantization.quantize import quantize, with_input_type
from .quantization.ranges import Calibrator, Range
from .quantization.weight_grid import DEFAULT_RANGE, WeightRange
from .runtime_check import EXACT_BACKENDS, exactness, reference_outputs, wrong_runtime
from .trace import trace

if TYPE_CHECKING:
    from torch import nn

InputType = Literal["int8", "uint8"]

# Images that the gate looks at: enough that chance alone does not close it.
_GATE_IMAGES = 100


@dataclass(frozen=True)
class ExportConfig:
    """What to write and how to quantize.

    ``calibration_images`` images are drawn by ``seed``; ``effort`` is the work that goes into the int8 network, with
    ``calibrator`` no calibrator is left to choose; ``weight_range`` says which integers int8 weights may be (by default
    those on which no kernel saturates, also in applications without firebox); ``input_type`` is that of the int8
    TFLite file, and ``int16_layers`` names the layers of the int8 files (patterns too) that have activations of 16
    bits. With ``sram_bytes`` the int8 files are rewritten until all that ``target`` needs for an inference fits.
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
    target: Target = "tflm"
    tolerance: Tolerance = field(default_factory=Tolerance)

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise UsageError(f"{self.calibration_images} calibration images are not enough; give at least 1")
        check_effort(self.effort, self.calibrator)
        if self.weight_range not in get_args(WeightRange):
            raise UsageError(f"weight range {self.weight_range!r} is not one of {', '.join(get_args(WeightRange))}")
        if self.input_type not in get_args(InputType):
            raise UsageError(f"input type {self.input_type!r} is not one of {', '.join(get_args(InputType))}")
        if not self.precisions or not set(self.precisions) <= set(get_args(Precision)):
            raise UsageError(f"precisions {self.precisions} are not among {', '.join(get_args(Precision))}")
        if self.int16_layers and "int8" not in self.precisions:
            raise UsageError(f"16-bit layers {', '.join(self.int16_layers)} are those of int8 files; export int8 too")
        if self.int16_layers and self.sram_bytes is not None:
            raise UsageError("layers of 16 bits are not fitted into a budget; leave one of the two out")


@dataclass(frozen=True)
class Export:
    """The files that were written and how they compare with the network; ``report`` is what ``export.json`` holds."""

    out: Path
    files: tuple[Path, ...]
    parity: tuple[Parity, ...]
    report: dict[str, Any]


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
    quiet: bool = False,
) -> Export:
    """Trace, quantize, write ``model.PRECISION.{onnx,tflite}`` and compare all of them with the module.

    ``images`` are used without their labels: some to calibrate, others (where there are enough) for the gate.
    Int8 files are also compared with the reference in numpy, so that a runtime's fault is not taken for the network's.
    ``ranges`` that training has learned take the place of calibration; weights are then rounded to the nearest, as
    they were in training. Raises ``UnsupportedError`` for a network that cannot be traced, ``QuantizationError`` for
    one that cannot be quantized, ``DoesNotFitError`` for one that does not fit its budget and ``ParityError`` past the
    tolerance; then nothing is written.
    """
    config = config or ExportConfig()
    check_writable(out)
    with progress("tracing", 1, quiet=quiet) as advance:
        graph = trace(module, (1, preprocessing.depth, *preprocessing.size), name)
        advance()
    contract = _contract(graph, name, preprocessing, tuple(classes), tuple(class_ids), checkpoint_sha256)
    find_layers(graph, config.int16_layers)
    calibration, gate = _draw(images, config)
    if ranges:
        calibration = calibration.subset(())
    graphs: dict[Precision, Graph] = {"float32": graph}
    quantized: PTQResult | None = None
    seen = _crops(calibration, preprocessing) if {"int8", "dynamic"} & set(config.precisions) else []
    if "int8" in config.precisions:
        if ranges:
            graphs["int8"] = quantize(graph, ranges, None, config.weight_range)
        else:
            samples = calibration_samples(seen, preprocessing, quiet)
            quantized = quantize_network(
                graph,
                samples,
                config.effort,
                config.calibrator,
                config.seed,
                weight_range=config.weight_range,
                quiet=quiet,
            )
            graphs["int8"] = quantized.graph
        graphs["int8"] = with_int16_layers(graphs["int8"], config.int16_layers)
    if "float16" in config.precisions:
        graphs["float16"] = with_float16_weights(graph)
    if "dynamic" in config.precisions:
        graphs["dynamic"] = _rounded(graph, seen, preprocessing, config, quiet)
    fitted = _fitted(graphs, config, quiet)
    files: dict[str, tuple[Precision, bytes]] = {}
    for precision in config.precisions:
        onnx = tflite = graphs[precision]
        offsets = None
        if precision == "int8":
            tflite = with_input_type(tflite, config.input_type)
        if precision == "int8" and fitted and fitted.stages:
            onnx, tflite, offsets = fitted.graph, fitted.graph, fitted.offsets
        onnx_file = complete(write_onnx, onnx, for_file(contract, onnx, "NCHW"))
        tflite_file = complete(partial(write_tflite, offsets=offsets), tflite, for_file(contract, tflite, "NHWC"))
        files[f"model.{precision}.onnx"] = precision, onnx_file
        files[f"model.{precision}.tflite"] = precision, tflite_file
    pixels = _crops(gate, preprocessing)
    reference = quantized.reference if quantized else graph
    parity, identical = _through_gate(module, files, graphs, reference, pixels, preprocessing, config.tolerance, quiet)
    contents: dict[str, bytes | str] = {file: data for file, (_, data) in files.items()}
    report = _report(contract, {file: data for file, (_, data) in files.items()}, parity, calibration, gate, config)
    report["parity"]["identical_outputs"] = identical
    report["calibration"] |= quantized.to_json() if quantized else {}
    if fitted:
        after = {"tflite": files["model.int8.tflite"][1], "onnx": files["model.int8.onnx"][1]}
        report["fit"] = judged(fitted, contract, after, pixels, quiet=quiet)
        contents |= summaries(fitted, "model.int8", after, quiet=quiet)
    written = write_files(out, {**contents, "export.json": json.dumps(report, indent=2) + "\n"})
    return Export(Path(out), tuple(written[:-1]), tuple(parity), report)


def _fitted(graphs: Mapping[Precision, Graph], config: ExportConfig, quiet: bool) -> Fit | None:
    if config.sram_bytes is None:
        return None
    if "int8" not in graphs:
        raise UsageError(f"only int8 is fitted, and {', '.join(graphs)} is exported; export int8 too")
    graph = with_input_type(graphs["int8"], config.input_type)
    return fit(graph, config.sram_bytes, config.target, progress=progress_unless(quiet))


def _draw(images: LabelledImages, config: ExportConfig) -> tuple[LabelledImages, LabelledImages]:
    """Images to calibrate with, and others for the gate; the same ones where there are too few."""
    drawn = sample(images, config.calibration_images + _GATE_IMAGES, config.seed)
    calibration = drawn.subset(range(min(len(drawn), config.calibration_images)))
    rest = drawn.subset(range(len(calibration), len(drawn)))
    return calibration, rest if len(rest) else calibration.subset(range(min(len(calibration), _GATE_IMAGES)))


def _crops(images: LabelledImages, preprocessing: Preprocessing) -> list[np.ndarray]:
    return [preprocessing.crop(images.read(name), images.where(name)) for name in images.names]


def _rounded(
    graph: Graph, pixels: Sequence[np.ndarray], preprocessing: Preprocessing, config: ExportConfig, quiet: bool
) -> Graph:
    """int8 weights between floats, rounded by the images that there are."""
    samples = [preprocessing.normalize(image)[None] for image in pixels]
    with progress("rounding weights", len(samples), quiet=quiet) as advance:
        moments = input_moments(graph, samples, config.seed, advance) if samples else None
    return with_int8_weights(graph, moments)


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


def _through_gate(
    module: "nn.Module",
    files: Mapping[str, tuple[Precision, bytes]],
    graphs: Mapping[Precision, Graph],
    reference: Graph,
    pixels: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    tolerance: Tolerance,
    quiet: bool,
) -> tuple[list[Parity], float | None]:
    """Compare every file with the module, int8 files also with each other and with what their integers say.

    ``reference`` is the float network that int8 began with. Gives what was found, and the share of outputs that both
    int8 files have in common. Raises ``ParityError``.
    """
    inputs = np.stack([preprocessing.normalize(image).transpose(2, 0, 1) for image in pixels])
    inputs = np.ascontiguousarray(inputs)
    with progress("comparing", 1 + len(files), quiet=quiet) as advance:
        expected = module_outputs(module, inputs)
        advance()
        exact = reference_outputs(graphs["int8"], pixels, preprocessing) if "int8" in graphs else None
        outputs, results = [], []
        for file, (precision, data) in files.items():
            with Session(data, check="off") as session:
                outputs.append(session_outputs(session, pixels))
                result = compare(file, precision, session.backend, expected, outputs[-1])
                if exact is not None and precision == "int8":
                    beside = exactness(graphs["int8"], exact, outputs[-1])
                    if session.backend in EXACT_BACKENDS and not beside.is_sound:
                        raise wrong_runtime(file, session.facts, beside)
                    result = replace(result, identical=beside.identical)
                results.append(result)
            advance()
    complaint = judge(results, outputs, tolerance)
    if complaint:
        graph, integer = graphs[complaint.precision], complaint.precision == "int8"
        # An equalized network has other activations than the module.
        floats, truth = (reference, None) if integer else (graphs["float32"], module)
        raise refuse(complaint, first_divergence(graph, floats, inputs, tolerance, truth))
    return results, _identical(results, outputs)


def _identical(results: Sequence[Parity], outputs: Sequence[np.ndarray]) -> float | None:
    """The share of the outputs that are the same in both int8 files."""
    int8 = [output for result, output in zip(results, outputs, strict=True) if result.precision == "int8"]
    return float((int8[0] == int8[1]).mean()) if len(int8) > 1 else None


def _report(
    contract: Contract,
    files: dict[str, bytes],
    parity: Sequence[Parity],
    calibration: LabelledImages,
    gate: LabelledImages,
    config: ExportConfig,
) -> dict[str, Any]:
    sizes = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    plans = {name: plan(data) for name, data in files.items()}
    arenas = {
        name: {
            "target": planned.target,
            "arena_bytes": planned.arena_bytes,
            "total_bytes": planned.total_bytes,
            "source": "planned",
        }
        for name, planned in plans.items()
    }
    return {
        "name": contract.name,
        "checkpoint_sha256": contract.checkpoint_sha256,
        "preprocessing": contract.preprocessing.to_json(),
        "files": {name: {**sizes[name], **arenas[name]} for name in files},
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
