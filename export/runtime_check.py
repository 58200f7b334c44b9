"""Comparison of an int8 file's outputs, as a runtime computes them, with the numpy reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.errors import ParityError, UnsupportedError
from ..runtime.graph import Graph
from ..runtime.graph.reference import run_reference
from ..runtime.images import Preprocessing
from ..runtime.inference import Facts

# Images that the reference computes: it is exact, and slow.
REFERENCE_IMAGES = 8
# Backends whose kernels requantize as the reference does; tflite-runtime's use fixed point.
EXACT_BACKENDS = ("onnxruntime", "litert")
# Steps of the output by which kernels that round differently, such as in fixed point, may deviate; the tolerance of a
# file's golden pair is the same.
MAX_STEPS = 6


@dataclass(frozen=True)
class ReferenceComparison:
    """Outputs of a file against the reference's on ``images``: the share that is identical, and the largest difference
    in steps of the output's scale."""

    images: int
    identical: float
    largest_steps: float

    @property
    def is_sound(self) -> bool:
        """True if a different way of rounding explains the difference."""
        return self.largest_steps <= MAX_STEPS


def reference_outputs(graph: Graph, pixels: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray | None:
    """Real-valued outputs (images, values) of an int8 graph for the first ``REFERENCE_IMAGES`` images.

    ``None`` for a graph with float or 16-bit layers, which the reference does not compute.
    """
    (name,) = graph.outputs
    tensor = graph.tensors[name]
    outputs = []
    try:
        for image in pixels[:REFERENCE_IMAGES]:
            values = run_reference(graph, graph.input_values(preprocessing.normalize(image)[None]))[name].ravel()
            outputs.append(tensor.quantization.dequantize(values) if tensor.quantization else values)
    except UnsupportedError:
        return None
    return np.stack(outputs)


def compare_with_reference(graph: Graph, expected: np.ndarray, outputs: np.ndarray) -> ReferenceComparison:
    """Compare a file's real-valued outputs (images, values) with the reference's, which may cover fewer images."""
    quantization = graph.tensors[graph.outputs[0]].quantization
    step = quantization.scale[0] if quantization else 1.0
    differences = np.abs(outputs[: len(expected)] - expected) / step
    return ReferenceComparison(len(expected), float((differences < 0.5).mean()), float(differences.max()))


def runtime_error(file: str, facts: Facts, found: ReferenceComparison) -> ParityError:
    """The error for a runtime that computes a file incorrectly; more calibration images would not help."""
    runtime = f"{facts.backend} {facts.version} on {facts.processor}"
    return ParityError(
        f"{runtime} computes {file} incorrectly: {found.identical:.1%} of the outputs equal the reference's on "
        f"{found.images} images, others differ by up to {found.largest_steps:.0f} steps; nothing was written: export "
        f"with another version of {facts.backend}, or on another processor"
    )
