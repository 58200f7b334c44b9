"""The parity gate: an export is written only if every file reproduces the network's outputs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..runtime.errors import ParityError, UsageError
from ..runtime.graph import Graph
from ..runtime.inference import Session
from .activations import run_activations
from .trace import device_of, in_eval_mode, one_thread

if TYPE_CHECKING:
    from torch import nn


# ``dynamic``: int8 weights, float32 activations.
Precision = Literal["float32", "float16", "dynamic", "int8"]


@dataclass(frozen=True)
class Tolerance:
    """Largest deviation of exported files from the network.

    ``float_error`` limits the largest difference of a float32 output as a share of the largest output,
    ``float16_error`` the same for float16 weights. Quantized files must have at least ``sqnr_db`` and the network's
    class on the share ``agreement`` of the images; the two int8 files must agree with each other on
    ``formats_agreement``.
    """

    float_error: float = 1e-3
    float16_error: float = 1e-2
    sqnr_db: float = 12.0
    agreement: float = 0.8
    formats_agreement: float = 0.98

    def __post_init__(self) -> None:
        for name in ("float_error", "float16_error", "agreement", "formats_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if self.sqnr_db != self.sqnr_db:
            raise UsageError("sqnr_db is not a number")


@dataclass(frozen=True)
class Parity:
    """Comparison of one file with the network.

    ``max_abs`` is the largest difference and ``relative`` its share of the largest output; ``sqnr_db`` is the
    signal-to-quantization-noise ratio (``None``: no difference); ``agreement`` is the share of images with the same
    top-1 class. ``identical`` is the share of outputs that equal the reference's, ``None`` for files that the reference
    does not compute: floats and 16-bit layers.
    """

    file: str
    precision: Precision
    backend: str
    max_abs: float
    relative: float
    sqnr_db: float | None
    agreement: float
    identical: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return asdict(self)


@dataclass(frozen=True)
class Violation:
    """The file that exceeds its tolerance, and an account of it that begins with the file's name."""

    file: str
    text: str


def compare(file: str, precision: Precision, backend: str, expected: np.ndarray, outputs: np.ndarray) -> Parity:
    """Compare a file's outputs, shape (images, classes), with the network's."""
    largest = float(np.abs(expected).max())
    error = float(np.abs(outputs - expected).max())
    noise = float(((outputs - expected).astype(np.float64) ** 2).sum())
    signal = float((expected.astype(np.float64) ** 2).sum())
    sqnr = None if noise == 0 else 10 * np.log10(max(signal, np.finfo(float).tiny) / noise)
    same = float((outputs.argmax(1) == expected.argmax(1)).mean())
    return Parity(file, precision, backend, error, error / largest if largest else error, sqnr, same)


def session_outputs(session: Session, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Real-valued outputs of a file, shape (images, classes)."""
    return np.stack([session.predict_pixels(image) for image in pixels])


def module_outputs(module: "nn.Module", inputs: np.ndarray) -> np.ndarray:
    """Outputs of a module, shape (images, classes), for normalized inputs (images, channels, height, width)."""
    import torch

    device = device_of(module)
    with in_eval_mode(module), one_thread(), torch.inference_mode():
        values = [module(torch.from_numpy(x[None]).to(device)).float().cpu().numpy() for x in inputs]
    return np.concatenate(values).reshape(len(inputs), -1)


def first_violation(results: Sequence[Parity], outputs: Sequence[np.ndarray], tolerance: Tolerance) -> Violation | None:
    """The first file that exceeds its tolerance; ``results[i]`` was computed from ``outputs[i]``."""
    for result, output in zip(results, outputs, strict=True):
        text = _violation(result, output, tolerance)
        if text:
            return Violation(result.file, f"{result.file} {text}")
    pairs = zip(results, outputs, strict=True)
    int8 = [(result.file, output) for result, output in pairs if result.precision == "int8"]
    for file, output in int8[1:]:
        first, expected = int8[0]
        same = float((output.argmax(1) == expected.argmax(1)).mean())
        if same < tolerance.formats_agreement:
            return Violation(
                file, f"{file} predicts the class of {first} on {same:.1%} (limit {tolerance.formats_agreement:.1%})"
            )
    return None


def _violation(result: Parity, output: np.ndarray, limit: Tolerance) -> str:
    """The rest of a sentence that begins with the file's name; empty within the tolerance."""
    if not np.isfinite(output).all():
        return "has outputs that are not finite"
    if result.precision in ("float32", "float16"):
        most = limit.float_error if result.precision == "float32" else limit.float16_error
        exceeds = result.relative > most
        return f"is off by {result.relative:.2g} of the largest output (limit {most:g})" if exceeds else ""
    if result.sqnr_db is not None and result.sqnr_db < limit.sqnr_db:
        return f"has an SQNR of {result.sqnr_db:.1f} dB (limit {limit.sqnr_db:g} dB)"
    if result.agreement < limit.agreement:
        return f"predicts the network's class on {result.agreement:.1%} (limit {limit.agreement:.1%})"
    return ""


def first_divergence(
    graph: Graph, reference: Graph, inputs: np.ndarray, tolerance: Tolerance, module: "nn.Module | None" = None
) -> str:
    """Describe the first layer, in execution order, whose output exceeds the tolerance against ``reference``.

    ``inputs`` are normalized images (images, channels, height, width); ``reference`` is the float graph. Layers that
    correspond to a submodule of ``module`` are compared with that submodule's output instead.
    """
    samples = [x.transpose(1, 2, 0)[None] for x in inputs[:8]]
    modules = [_module_activations(module, reference, x[None]) if module else {} for x in inputs[:8]]
    signal = dict.fromkeys((op.output for op in graph.ops), 0.0)
    noise = dict(signal)
    for found, floats, truth in zip(
        run_activations(graph, samples), run_activations(reference, samples), modules, strict=True
    ):
        for name in signal:
            # Absent for operations that only this graph has.
            expected = truth.get(name, floats.get(name))
            if expected is not None:
                signal[name] += float((expected.astype(np.float64) ** 2).sum())
                noise[name] += float(((found[name].reshape(expected.shape) - expected).astype(np.float64) ** 2).sum())
    integer = any(tensor.quantization for tensor in graph.tensors.values())
    half = any(tensor.dtype == "float16" for tensor in graph.tensors.values())
    error = tolerance.float16_error if half else tolerance.float_error
    least = tolerance.sqnr_db if integer else -20 * np.log10(max(error, 1e-12))
    ratios = {
        name: 10 * np.log10(signal[name] / noise[name]) for name in signal if noise[name] > 0 and signal[name] > 0
    }
    below = [name for name, ratio in ratios.items() if ratio < least]
    if not ratios:
        return "no layer output differs; the difference arises outside the layers"
    if below:
        return f"the first layer to diverge is {below[0]!r} ({ratios[below[0]]:.1f} dB)"
    worst = min(ratios, key=lambda name: ratios[name])
    return f"every single layer is within the tolerance; the worst is {worst!r} ({ratios[worst]:.1f} dB)"


def parity_error(violation: Violation, divergence: str) -> ParityError:
    """The error for a file that exceeds its tolerance; ``divergence`` is the text of ``first_divergence``."""
    return ParityError(
        f"{violation.text}; {divergence}; nothing was written: calibrate with more images, or relax the tolerance"
    )


def _module_activations(module: "nn.Module", graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the submodules that tensors of the graph are named after, with the activation fused in the graph."""
    import torch

    found: dict[str, np.ndarray] = {}
    hooks = []
    for name, part in module.named_modules():
        if name in graph.producers:
            hooks.append(
                part.register_forward_hook(
                    lambda _m, _i, out, name=name: found.__setitem__(name, out.numpy(force=True))
                )
            )
    try:
        with in_eval_mode(module), torch.inference_mode():
            module(torch.from_numpy(x).to(device_of(module)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, value in found.items():
        activation = getattr(graph.producers[name], "activation", "none")
        if activation != "none":
            found[name] = value.clip(0, 6 if activation == "relu6" else None)
    return found
