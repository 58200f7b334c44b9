"""The gate: exported files must answer as the network does, or nothing is written."""

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


# ``dynamic`` is int8 weights between float32 activations.
Precision = Literal["float32", "float16", "dynamic", "int8"]


@dataclass(frozen=True)
class Tolerance:
    """How far exported files may be from the network.

    ``float_error`` is the largest difference of a float32 output as a share of the largest output, ``float16_error``
    that of a file with float16 weights; ``sqnr_db`` and ``agreement`` (share of images with the same class) are the
    least that a file of integers must keep of the network; ``formats_agreement`` the least that the int8 files must
    have in common.
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
    """One file against the network: largest difference (also as a share of the largest output), signal to noise in dB
    (``None``: no difference at all), share of images with the same best class; ``identical`` is the share of its
    outputs that are the reference's (``None`` where that computes nothing: floats, layers of 16 bits)."""

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
class Complaint:
    """What is past its tolerance, in words, and in the files of which precision."""

    precision: Precision
    text: str


def compare(file: str, precision: Precision, backend: str, expected: np.ndarray, found: np.ndarray) -> Parity:
    """Outputs of a file, shape (images, classes), against those of the network."""
    largest = float(np.abs(expected).max())
    error = float(np.abs(found - expected).max())
    noise = float(((found - expected).astype(np.float64) ** 2).sum())
    signal = float((expected.astype(np.float64) ** 2).sum())
    sqnr = None if noise == 0 else 10 * np.log10(max(signal, np.finfo(float).tiny) / noise)
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    return Parity(file, precision, backend, error, error / largest if largest else error, sqnr, same)


def session_outputs(session: Session, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Real-valued outputs (images, classes) of a file."""
    return np.stack([session.predict_pixels(image) for image in pixels])


def module_outputs(module: "nn.Module", inputs: np.ndarray) -> np.ndarray:
    """Outputs (images, classes) of the module for normalized inputs (images, channels, height, width)."""
    import torch

    device = device_of(module)
    with in_eval_mode(module), one_thread(), torch.inference_mode():
        values = [module(torch.from_numpy(x[None]).to(device)).float().cpu().numpy() for x in inputs]
    return np.concatenate(values).reshape(len(inputs), -1)


def judge(results: Sequence[Parity], outputs: Sequence[np.ndarray], tolerance: Tolerance) -> Complaint | None:
    """What is past its tolerance first; ``outputs`` are the answers that ``results`` were found from."""
    for result, output in zip(results, outputs, strict=True):
        text = _complaint(result, output, tolerance)
        if text:
            return Complaint(result.precision, f"{result.file} {text}")
    first, *others = [
        (result.file, output) for result, output in zip(results, outputs, strict=True) if result.precision == "int8"
    ] or [("", np.empty(0))]
    for file, output in others:
        same = float((output.argmax(1) == first[1].argmax(1)).mean())
        if same < tolerance.formats_agreement:
            limit = f"limit {tolerance.formats_agreement:.1%}"
            return Complaint("int8", f"{file} names the class of {first[0]} on {same:.1%} ({limit})")
    return None


def _complaint(result: Parity, output: np.ndarray, limit: Tolerance) -> str:
    """What is wrong with one file, as the end of a sentence, or nothing."""
    if not np.isfinite(output).all():
        return "answers with values that are not finite"
    if result.precision in ("float32", "float16"):
        most = limit.float_error if result.precision == "float32" else limit.float16_error
        off = result.relative > most
        return f"is off by {result.relative:.2g} of the largest output (limit {most:g})" if off else ""
    if result.sqnr_db is not None and result.sqnr_db < limit.sqnr_db:
        return f"has an SQNR of {result.sqnr_db:.1f} dB (limit {limit.sqnr_db:g} dB)"
    if result.agreement < limit.agreement:
        return f"names the network's class on {result.agreement:.1%} (limit {limit.agreement:.1%})"
    return ""


def first_divergence(
    graph: Graph, reference: Graph, inputs: np.ndarray, tolerance: Tolerance, module: "nn.Module | None" = None
) -> str:
    """The first layer, in the order of the network, at which a graph leaves the float graph ``reference``, in words.

    Where the layer is a module of torch in ``module``, that is the reference.
    """
    samples = [x.transpose(1, 2, 0)[None] for x in inputs[:8]]
    modules = [_module_activations(module, reference, x[None]) if module else {} for x in inputs[:8]]
    signal = dict.fromkeys((op.output for op in graph.ops), 0.0)
    noise = dict(signal)
    for found, floats, truth in zip(
        run_activations(graph, samples), run_activations(reference, samples), modules, strict=True
    ):
        for name in signal:
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
        return "no layer differs on its own; the difference lies outside the layers"
    if below:
        return f"the first layer to leave is {below[0]!r} ({ratios[below[0]]:.1f} dB)"
    worst = min(ratios, key=lambda name: ratios[name])
    return f"no single layer is past the tolerance; the worst is {worst!r} ({ratios[worst]:.1f} dB)"


def refuse(complaint: Complaint, culprit: str) -> ParityError:
    """The error that closes the gate."""
    return ParityError(f"{complaint.text}; {culprit}; nothing was written: calibrate with more images, or allow more")


def _module_activations(module: "nn.Module", graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """What torch's modules give, for those that tensors of the graph are called after; rectified as in the graph."""
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
