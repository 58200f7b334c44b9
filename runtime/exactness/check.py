"""Saturation check of a file: whether its integer layers can saturate on x86, and the effect on given images."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import FormatError, UsageError
from ..files import read_file
from ..formats.onnx_wire import STANDARD_DOMAINS, Node, OnnxMessage
from ..formats.read import format_of, read_graph
from ..graph import Graph, Op, ops
from ..graph.reference import LayerSums, exact_sums, run_operation, run_reference
from ..progress import SILENT, Progress
from .saturation import (
    INTEGER_OPS,
    LIMIT,
    MICROSOFT_DOMAIN,
    IntegerLayer,
    integer_layers,
    weight_pairs,
)

Verdict = Literal["cannot saturate", "can saturate", "undecided"]
EXIT_CODES: dict[Verdict, int] = {"cannot saturate": 0, "can saturate": 1, "undecided": 4}

# Operators of onnxruntime's own domain that do not multiply integers.
_HARMLESS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul", "QLinearConcat",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
    "QLinearReduceMean", "QLinearWhere", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "FastGelu", "QuickGelu",
    "BiasGelu", "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "Attention",
    "MultiHeadAttention", "EmbedLayerNormalization", "NhwcMaxPool",
}  # fmt: skip
_LOWEST, _HIGHEST = np.iinfo(np.int16).min, np.iinfo(np.int16).max


@dataclass(frozen=True)
class LayerCheck:
    """One layer with uint8 activations and int8 weights.

    Kernels add the products of ``pairs`` of weights in 16 bits, and ``saturating`` of these can overflow (``None``:
    unknown, for the reason ``why``). ``largest`` is the largest sum of two weights; up to 128 is safe.
    """

    layer: str
    kind: str
    pairs: int
    saturating: int | None
    largest: int
    why: str = ""


@dataclass(frozen=True)
class SaturationCheck:
    """The layers of a file that multiply uint8 by int8, and open questions that leave the verdict undecided."""

    layers: tuple[LayerCheck, ...]
    open_questions: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict for the file, which can saturate if one layer can."""
        if any(layer.saturating for layer in self.layers):
            return "can saturate"
        undecided = self.open_questions or any(layer.saturating is None for layer in self.layers)
        return "undecided" if undecided else "cannot saturate"

    @property
    def exit_code(self) -> int:
        """0: cannot saturate, 1: can saturate, 4: undecided."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return {
            "verdict": self.verdict,
            "layers": [asdict(layer) for layer in self.layers],
            "open_questions": list(self.open_questions),
        }


@dataclass(frozen=True)
class LayerDamage:
    """Effect of saturation on one layer: share of changed outputs, and the largest change in steps of the output."""

    layer: str
    changed: float
    largest_steps: int


@dataclass(frozen=True)
class Damage:
    """Effect of saturation on a network.

    ``layers`` lists the affected layers, each computed from the exact network's activations. ``same_class`` (a share of
    the images) and ``largest_steps`` compare the network's outputs, with saturation in all layers.
    """

    layers: tuple[LayerDamage, ...]
    images: int
    same_class: float
    largest_steps: int

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return asdict(self)


def check_saturation(model: str | Path | bytes) -> SaturationCheck:
    """Check a file of either format. TFLite's kernels add in 32 bits, so that TFLite files cannot saturate.

    Raises ``UsageError`` if the file does not exist and ``FormatError`` if its contents do not match its format.
    """
    kind = format_of(model)
    data = model if isinstance(model, bytes) else read_file(model)
    try:
        if kind == "tflite":
            from ..formats.tflite_reader import read_tflite

            read_tflite(data)
            return SaturationCheck((), ())
        message = OnnxMessage(data)
        if not message.nodes:
            raise FormatError("not an ONNX file: it has no operators")
        layers = tuple(_checked(layer) for layer in integer_layers(message))
    except FormatError as error:
        raise FormatError(f"{'the file' if isinstance(model, bytes) else model}: {error}") from error
    return SaturationCheck(layers, tuple(_open_questions(message)))


def measure_saturation(data: bytes, inputs: Sequence[np.ndarray], progress: Progress = SILENT) -> Damage:
    """Compare saturating kernels with exact ones on ``inputs`` of an ONNX file's network, each as its graph takes it.

    Only layers with int8 weights saturate. Raises ``UsageError`` without inputs and ``UnsupportedError`` for a graph
    that the reference does not compute.
    """
    if not len(inputs):
        raise UsageError("there are no images to measure saturation on; pass at least one")
    graph = read_graph(data)
    weights = {layer.weight.name for layer in integer_layers(OnnxMessage(data)) if layer.weight is not None}
    layers = [op for op in graph.ops if isinstance(op, ops.Layer) and _weight_name(op) in weights]
    (output,) = graph.outputs
    changed, largest = dict.fromkeys(graph.producers, 0.0), dict.fromkeys(graph.producers, 0)
    same, worst, sums = 0, 0, saturating_sums(graph, {op.name for op in layers})
    with progress.task("measuring saturation", len(inputs)) as advance:
        for x in inputs:
            exact, saturated = run_reference(graph, x), run_reference(graph, x, sums)
            for op in layers:
                steps = _steps(graph, op.output, exact[op.output], run_operation(graph, op, exact, sums))
                changed[op.name] += float((steps > 0).mean()) / len(inputs)
                largest[op.name] = max(largest[op.name], int(steps.max()))
            worst = max(worst, int(_steps(graph, output, exact[output], saturated[output]).max()))
            same += int(exact[output].argmax() == saturated[output].argmax())
            advance()
    damages = [LayerDamage(op.name, changed[op.name], largest[op.name]) for op in layers if largest[op.name]]
    return Damage(tuple(damages), len(inputs), same / len(inputs), worst)


def saturating_sums(graph: Graph, layers: Container[str] | None = None) -> LayerSums:
    """``layer_sums`` for the reference that add pairs of products in 16 bits, as onnxruntime does with AVX2.

    ``layers`` names the layers with int8 weights in the file; by default all layers.
    """

    def sums(op: Op, windows: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
        assert isinstance(op, ops.Layer)
        found = exact_sums(op, windows, weight, zero_point)
        if layers is not None and op.name not in layers:
            return found
        # Kernels multiply integers with their zero points; activations are unsigned in the file.
        quantization = graph.tensors[op.inputs[1]].quantization
        weight = weight + (quantization.zero_point if quantization else 0)
        x = windows + (zero_point - int(np.iinfo(graph.tensors[op.inputs[0]].dtype).min))
        for left, right in next(iter(weight_pairs(graph, op)), np.empty((0, 2), int)).tolist():
            rows = np.flatnonzero(np.abs(weight[:, left] + weight[:, right]) > LIMIT)
            products = x[:, left, None] * weight[rows, left] + x[:, right, None] * weight[rows, right]
            found[:, rows] += np.clip(products, _LOWEST, _HIGHEST) - products
        return found

    return sums


def _weight_name(op: Op) -> str:
    # The reader appends "'" to the name of a constant that it needs in a second layout.
    return op.inputs[1].rstrip("'")


def _steps(graph: Graph, name: str, right: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Differences between integers, or between multiples of a scale, in steps."""
    tensor, op = graph.tensors[name], graph.producers.get(name)
    step = 1.0
    if tensor.quantization is None and op is not None:
        quantization = graph.tensors[op.inputs[0]].quantization
        step = quantization.scale[0] if quantization else 1.0
    return np.rint(np.abs(right.astype(np.float64) - found.astype(np.float64)) / step)


def _checked(layer: IntegerLayer) -> LayerCheck:
    if layer.weight is None or layer.weight.external:
        why = "the int8 operand is computed" if layer.weight is None else "the weights are in another file"
        return LayerCheck(layer.name, layer.kind, 0, None, 0, why)
    why = ""
    if layer.saturating is None:
        why = "an operator reorders the weights" if layer.reordered else "it may compute in float32"
    return LayerCheck(layer.name, layer.kind, layer.sums.size, layer.saturating, layer.largest, why)


def _open_questions(message: OnnxMessage) -> Iterator[str]:
    """Parts of a file that may contain unchecked integer layers."""
    if message.has_subgraphs:
        yield "subgraphs (If, Loop, Scan) are not checked"
    if message.has_functions:
        yield "the file's own functions are not checked"
    unknown = {f"{node.kind} of domain {node.domain}" for node in message.nodes if not _is_known(node)}
    yield from (f"operator {name} is unknown" for name in sorted(unknown))


def _is_known(node: Node) -> bool:
    if node.domain in STANDARD_DOMAINS:
        return True
    return node.domain == MICROSOFT_DOMAIN and (node.kind in _HARMLESS or node.kind in INTEGER_OPS)
