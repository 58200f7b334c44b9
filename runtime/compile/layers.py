"""Convolutions as numbers: weights in panels, float32 multipliers, and biases that include the zero points."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UnsupportedError
from ..graph import Graph, Quantization, ops
from ..memory.rows import RowPlan
from ..memory.rows.graph import quantization_of
from .tiles.spec import PANEL, ConvSpec

# A window of up to so many bytes is gathered pixel by pixel if its runs waste this share of the multiplications.
_GATHERED_BYTES = 256
_WASTE = 1.15
_INT32 = 2**31

Form = Literal["runs", "gathered", "depthwise"]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of one group of channels after another, in the ``form`` that its kernel reads.

    *runs*: ``taps`` are the beginnings of the runs of a window as (row, column); a run has ``run_bytes`` bytes.
    *gathered*: the runs of a pixel are copied side by side first, since they are short.
    *depthwise*: one weight for each tap and channel.

    ``weights`` are int8 as the kernel reads them, group after group; ``scale`` is float32 and ``bias`` int64, both
    padded to whole panels; ``weight_sums`` are the sums of each channel's weights, for zero points.
    """

    op: ops.Conv
    spec: ConvSpec
    form: Form
    taps: tuple[tuple[int, int], ...]
    run_bytes: int
    weights: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    weight_sums: np.ndarray
    zero_point: int

    @property
    def groups(self) -> int:
        """Groups that run one after another."""
        return 1 if self.form == "depthwise" else self.op.groups

    def stored_bias(self, shift: int) -> np.ndarray:
        """The bias for activations stored as int8 plus ``shift``: int32."""
        return (self.bias - (self.zero_point + shift) * self.weight_sums).astype(np.int32)


def conv_layer(plan: RowPlan, op: ops.Conv) -> ConvLayer:
    """The numbers of a convolution. Raises ``UnsupportedError`` if its sums do not fit 32 bits."""
    graph = plan.graph
    weight, bias = graph.tensors[op.inputs[1]], graph.tensors[op.inputs[2]]
    assert weight.data is not None and bias.data is not None
    raw = graph.tensors[op.output].dtype == "int32"
    x = quantization_of(graph, op.inputs[0])
    y = Quantization((1.0,)) if raw else quantization_of(graph, op.output)
    outputs, _, _, channels = weight.shape
    is_depthwise = channels == 1 and op.groups == outputs == graph.tensors[op.inputs[0]].shape[3] and outputs > 1
    pixel = plan.roots[plan.places[op.inputs[0]].root].channels
    taps, run = _taps(op, weight.shape, pixel)
    weight_scale = quantization_of(graph, op.inputs[1]).scale
    with np.errstate(all="ignore"):
        scale = np.float32(x.scale[0]) * np.asarray(weight_scale, np.float32) / np.float32(y.scale[0])
        # A sum times its scale is a float32, too.
        largest = np.abs(scale) * np.float32(_INT32)
    if not np.isfinite(largest).all():
        raise UnsupportedError(f"Conv {op.name!r} has weights with the scale {max(weight_scale):g}, beyond float32")
    scale = np.broadcast_to(scale, (outputs,))
    kernel = weight.data.reshape(outputs, len(taps), run) if not is_depthwise else weight.data.reshape(outputs, -1)
    gathered = not is_depthwise and _gathers(len(taps), run)
    form: Form = "depthwise" if is_depthwise else "gathered" if gathered else "runs"
    per_group = outputs // (1 if is_depthwise else op.groups)
    length = _multiple(len(taps) * run if gathered else run, 4)
    low, high = (-128, 127) if raw else limits(graph, op)
    sums = np.abs(weight.data.astype(np.int64)).reshape(outputs, -1).sum(1)
    worst = 255 * sums + np.abs(bias.data.astype(np.int64)) + 256 * sums
    if worst.max() >= _INT32:
        raise UnsupportedError(f"Conv {op.name!r} has sums beyond 32 bits; use fewer channels or a smaller window")
    spec = ConvSpec(
        segments=1 if gathered else len(taps),
        length=length,
        step=length if gathered else op.stride[1] * pixel,
        out_step=plan.roots[plan.places[op.output].root].channels * (4 if raw else 1),
        channels=per_group,
        zero_point=y.zero_point,
        low=low,
        high=high,
        clamps=bool((worst * scale.astype(np.float64)).max() >= _INT32 // 2),
        raw=raw,
        symmetric=bool(weight.data.min() > -128),
    )
    packed = _depthwise(kernel) if is_depthwise else _panels(kernel, 1 if is_depthwise else op.groups, spec)
    groups = 1 if is_depthwise else op.groups
    return ConvLayer(
        op,
        spec,
        form,
        taps,
        run,
        packed,
        _padded(scale.astype(np.float32), groups),
        _padded(bias.data.astype(np.int64), groups),
        _padded(weight.data.astype(np.int64).reshape(outputs, -1).sum(1), groups),
        x.zero_point,
    )


def layers_of(plan: RowPlan) -> dict[str, ConvLayer]:
    """The numbers of all convolutions of a plan."""
    return {op.output: conv_layer(plan, op) for op in plan.graph.ops if isinstance(op, ops.Conv)}


def limits(graph: Graph, op: ops.Op) -> tuple[int, int]:
    """The least and the greatest output integer of an operation with a fused activation."""
    y = quantization_of(graph, op.output)
    activation = getattr(op, "activation", "none")
    high = int(y.quantize(np.array(6.0), "int8")) if activation == "relu6" else 127
    return (-128 if activation == "none" else y.zero_point), high


def _taps(op: ops.Conv, shape: tuple[int, ...], pixel: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """The runs of a window, (row, column) of each, and their bytes: whole rows where the pixels lie side by side."""
    _, rows, columns, channels = shape
    if channels == pixel and op.dilation[1] == 1:
        return tuple((row * op.dilation[0], 0) for row in range(rows)), columns * channels
    found = ((row * op.dilation[0], column * op.dilation[1]) for row in range(rows) for column in range(columns))
    return tuple(found), channels


def _gathers(runs: int, run: int) -> bool:
    real = runs * run
    return runs > 1 and real <= _GATHERED_BYTES and runs * _multiple(run, 4) > _WASTE * _multiple(real, 4)


def _panels(kernel: np.ndarray, groups: int, spec: ConvSpec) -> np.ndarray:
    """[group][panel][segment][length / 4][16 channels][4 inputs], from (outputs, runs, run bytes)."""
    outputs = spec.channels
    values = kernel.reshape(groups, outputs, spec.segments, -1)
    full = np.zeros((groups, spec.panels * PANEL, spec.segments, spec.length), np.int8)
    full[:, :outputs, :, : values.shape[3]] = values
    shape = (groups, spec.panels, PANEL, spec.segments, spec.length // 4, 4)
    return np.ascontiguousarray(full.reshape(shape).transpose(0, 1, 3, 4, 2, 5))


def _depthwise(kernel: np.ndarray) -> np.ndarray:
    """[tap][channel], channels padded to whole panels, from (channels, taps)."""
    full = np.zeros((kernel.shape[1], _multiple(kernel.shape[0], PANEL)), np.int8)
    full[:, : kernel.shape[0]] = kernel.T
    return full


def _padded(values: np.ndarray, groups: int) -> np.ndarray:
    """Values of each group's channels, padded with zeros to whole panels."""
    per_group = values.reshape(groups, -1)
    full = np.zeros((groups, _multiple(per_group.shape[1], PANEL)), values.dtype)
    full[:, : per_group.shape[1]] = per_group
    return full.reshape(-1)


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of
