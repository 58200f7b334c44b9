"""Whether the runtimes of this machine compute what an int8 graph says, by the reference in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.errors import ParityError, UnsupportedError
from ..runtime.graph import Graph
from ..runtime.graph.reference import run_reference
from ..runtime.images import Preprocessing
from ..runtime.inference import Facts

# Images that the reference computes: it is exact on each, and slow.
REFERENCE_IMAGES = 8
# Backends whose kernels bring sums to the output's scale as the reference does; tflite-runtime's are in fixed point.
EXACT_BACKENDS = ("onnxruntime", "litert")
# Steps of the output that kernels may be off by that round in other ways, such as in fixed point; as much as a file's
# golden pair allows.
MAX_STEPS = 6


@dataclass(frozen=True)
class Exactness:
    """Outputs of a file beside the reference's, on ``images``: the share that is identical, and the largest
    difference in steps of the output."""

    images: int
    identical: float
    largest_steps: float

    @property
    def is_sound(self) -> bool:
        """Whether other ways of rounding explain the difference."""
        return self.largest_steps <= MAX_STEPS


def reference_outputs(graph: Graph, pixels: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray | None:
    """Real outputs (images, values) of an int8 graph for the first images; ``None`` for one with float layers, or
    layers of 16 bits, which the reference does not compute."""
    (name,) = graph.outputs
    tensor = graph.tensors[name]
    found = []
    try:
        for image in pixels[:REFERENCE_IMAGES]:
            values = run_reference(graph, graph.input_values(preprocessing.normalize(image)[None]))[name].ravel()
            found.append(tensor.quantization.dequantize(values) if tensor.quantization else values)
    except UnsupportedError:
        return None
    return np.stack(found)


def exactness(graph: Graph, expected: np.ndarray, found: np.ndarray) -> Exactness:
    """A file's real outputs (images, values) beside the reference's; all images that the reference has computed."""
    quantization = graph.tensors[graph.outputs[0]].quantization
    step = quantization.scale[0] if quantization else 1.0
    differences = np.abs(found[: len(expected)] - expected) / step
    return Exactness(len(expected), float((differences < 0.5).mean()), float(differences.max()))


def wrong_runtime(file: str, facts: Facts, found: Exactness) -> ParityError:
    """The error for a runtime that does not compute what a file says: more images would not help."""
    runtime = f"{facts.backend} {facts.version} on {facts.processor}"
    shares = f"{found.identical:.1%} of its outputs are the reference's on {found.images} images"
    return ParityError(
        f"{runtime} does not compute what {file} says: {shares}, others are up to {found.largest_steps:.0f} steps off; "
        f"nothing was written: export with another version of {facts.backend}, or on another processor"
    )
