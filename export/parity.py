"""The gate: exported files must answer as the network does, or nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.errors import ParityError, UsageError
from ..runtime.graph import Graph
from ..runtime.session import Session
from .calibration import run_activations
from .tracing import evaluating

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Tolerance:
    """How far exported files may be from the network.

    ``float_error`` is the largest difference of a float32 output as a share of the largest output; ``sqnr_db`` and
    ``agreement`` (share of pictures with the same class) are the least an int8 file must keep of the network;
    ``formats_agreement`` the least that the int8 files must have in common.
    """

    float_error: float = 1e-3
    sqnr_db: float = 12.0
    agreement: float = 0.85
    formats_agreement: float = 0.98

    def __post_init__(self) -> None:
        for name in ("float_error", "agreement", "formats_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is not between 0 and 1")


@dataclass(frozen=True)
class Parity:
    """One file against the network: largest difference, signal to quantization noise in dB, same best class."""

    file: str
    backend: str
    max_abs: float
    relative: float
    sqnr_db: float | None
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Figures for programs; a noise of zero has no ratio."""
        return asdict(self)


def compare(file: str, backend: str, expected: np.ndarray, found: np.ndarray) -> Parity:
    """Outputs of a file, shape (pictures, classes), against those of the network."""
    largest = float(np.abs(expected).max())
    error = float(np.abs(found - expected).max())
    noise = float(((found - expected).astype(np.float64) ** 2).sum())
    signal = float((expected.astype(np.float64) ** 2).sum())
    sqnr = 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else None
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    return Parity(file, backend, error, error / largest if largest else error, sqnr, same)


def answers(
    module: "nn.Module", session: Session | None, pixels: Sequence[np.ndarray], inputs: np.ndarray
) -> np.ndarray:
    """Outputs (pictures, classes) of a session for ``pixels``, or of the module for normalized NCHW ``inputs``."""
    if session is not None:
        return np.stack([session.predict_pixels(picture) for picture in pixels])
    import torch

    device = _device(module)
    with evaluating(module), torch.inference_mode():
        values = [module(torch.from_numpy(x[None]).to(device)).float().cpu().numpy() for x in inputs]
    return np.concatenate(values).reshape(len(inputs), -1)


def judge(results: Sequence[Parity], outputs: Mapping[str, np.ndarray], tolerance: Tolerance) -> str | None:
    """What is past its tolerance first, in words, with the file's name at the start; or ``None``."""
    limit = tolerance
    for result in results:
        if "float32" in result.file:
            if result.relative > limit.float_error:
                return (
                    f"{result.file} is off by {result.relative:.2g} of the largest output (limit {limit.float_error:g})"
                )
        elif result.sqnr_db is not None and result.sqnr_db < limit.sqnr_db:
            return f"{result.file} has an SQNR of {result.sqnr_db:.1f} dB (limit {limit.sqnr_db:g} dB)"
        elif result.agreement < limit.agreement:
            return f"{result.file} names the network's class on {result.agreement:.1%} (limit {limit.agreement:.1%})"
    integer = [name for name in outputs if "int8" in name]
    for name in integer[1:]:
        same = float((outputs[name].argmax(1) == outputs[integer[0]].argmax(1)).mean())
        if same < limit.formats_agreement:
            return f"{name} names the class of {integer[0]} on {same:.1%} (limit {limit.formats_agreement:.1%})"
    return None


def first_to_leave(
    module: "nn.Module", graph: Graph, reference: Graph, inputs: np.ndarray, tolerance: Tolerance
) -> str:
    """The first layer, in the order of the network, at which a graph leaves the network, in words.

    Where the layer is a module of torch, the module is the reference, elsewhere the float graph.
    """
    samples = [x.transpose(1, 2, 0)[None] for x in inputs[:8]]
    modules = [_module_activations(module, reference, x[None]) for x in inputs[:8]]
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
    least = tolerance.sqnr_db if integer else -20 * np.log10(max(tolerance.float_error, 1e-12))
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


def refuse(complaint: str, culprit: str) -> ParityError:
    """The error that closes the gate."""
    return ParityError(f"{complaint}; {culprit}; nothing was written: calibrate with more pictures, or allow more")


def _device(module: "nn.Module") -> Any:
    return next((parameter.device for parameter in module.parameters()), None)


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
        with evaluating(module), torch.inference_mode():
            module(torch.from_numpy(x).to(_device(module)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, value in found.items():
        activation = getattr(graph.producers[name], "activation", "none")
        if activation != "none":
            found[name] = value.clip(0, 6 if activation == "relu6" else None)
    return found
