"""Fake quantization in torch: a float graph that computes with the integers of ``quantize`` and has gradients.

Activations are the integers themselves, minus the zero point, as floats: sums of their products are exact up to 2**24,
as in the runtimes, and each activation is exact in bfloat16 too. Gradients pass through rounding unchanged unless a
value is clipped (straight-through estimator: Bengio et al., arXiv 1308.3432). Activation scales are learned (LSQ: Esser
et al., arXiv 1902.08153, section 2) with fixed zero points; weight scales follow the weights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...runtime.errors import QuantizationError, UnsupportedError
from ...runtime.graph import Graph, Op, Quantization, ops
from ...runtime.graph import Tensor as GraphTensor
from .exact_scales import exact_scales
from .quantize import quantize_layer
from .ranges import Range
from .scales import activation_scales, fixed_groups, scale_groups
from .weight_grid import DEFAULT_RANGE, WeightRange, layer_grid

_LEVELS = 255
_SMALLEST = float(np.finfo(np.float32).tiny)
# Positions of the axes of one image layout in the other.
_NHWC_IN_NCHW, _NCHW_IN_NHWC = (0, 2, 3, 1), (0, 3, 1, 2)
_OHWI_TO_OIHW, _OIHW_TO_OHWI = (0, 3, 1, 2), (0, 2, 3, 1)


class FakeQuantized(nn.Module):
    """A float graph with int8 arithmetic: normalized images (N, C, H, W) to real-valued outputs.

    ``quantize(module.graph(), module.ranges())`` has the same integers. ``weights`` are parameters for the graph's
    constants, by name: OIHW for convolutions, otherwise as in the graph. Construction and forward raise
    ``QuantizationError`` as ``quantize`` does; construction raises ``UnsupportedError`` for an unsupported operation.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, Range],
        weights: Mapping[str, nn.Parameter] | None = None,
        *,
        weight_range: WeightRange = DEFAULT_RANGE,
    ):
        super().__init__()
        self._graph = graph
        for op in graph.ops:
            if type(op) not in _RUNNERS:
                raise UnsupportedError(f"{op.kind} {op.name!r} has no gradient here; pass the float network")
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UnsupportedError(
                f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; fake quantization "
                "needs one of each"
            )
        # Caches of the latest pass: exact scales, and each layer's integers, which change in training only.
        self._exact: tuple[list[float], list[float]] = ([], [])
        self._integers: dict[str, tuple[Quantization, tuple[GraphTensor, GraphTensor], list[np.ndarray]]] = {}
        self._last_use = {name: op for op in graph.ops for name in op.inputs}
        layers = [op for op in graph.ops if isinstance(op, ops.Layer)]
        self._grids = {op.name: layer_grid(graph, op, weight_range) for op in layers}
        names = dict.fromkeys(name for op in layers for name in op.inputs[1:])
        self._constants = {name: index for index, name in enumerate(names)}
        self.weights = nn.ParameterList((weights or {}).get(name, _parameter(graph, name)) for name in names)
        scales, groups = activation_scales(graph, ranges, exact=False), scale_groups(graph)
        roots = list(dict.fromkeys(groups.values()))
        self._group = {name: roots.index(root) for name, root in groups.items()}
        self._fixed = {roots.index(root) for root in fixed_groups(graph, groups)}
        self._zero_points = [scales[root].zero_point for root in roots]
        self.scales = nn.Parameter(torch.tensor([scales[root].scale[0] for root in roots]))
        self.register_buffer(
            "_gradient_scale", torch.tensor(_gradient_scales(graph, self._group, self._fixed)), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the graph's output for N images; an image output is NCHW."""
        graph, run = self._graph, _Run(self)
        (source,), (result,) = graph.inputs, graph.outputs
        # A division, as when inputs are quantized: pixels are often ties between two integers.
        values = {source: run.requantized(x / run.scale(source), source)}
        for op in graph.ops:
            inputs = [values[name] for name in op.inputs if name in values]
            values[op.output] = _RUNNERS[type(op)](run, op, *inputs)
            for name in set(op.inputs) - {result}:
                if self._last_use[name] is op:
                    values.pop(name, None)
        return values[result].float() * run.scale(result)

    def exact(self, scales: list[float]) -> list[float]:
        """The scales, one per group, adjusted to exact ratios as by ``quantize``."""
        if self._exact[0] == scales:
            return self._exact[1]
        names = [str(index) for index in range(len(scales))]
        groups = {name: str(group) for name, group in self._group.items()}
        free = {name: scale for name, scale in zip(names, scales, strict=True) if int(name) not in self._fixed}
        found = exact_scales(self._graph, groups, free)
        self._exact = scales, [found.get(name, scale) for name, scale in zip(names, scales, strict=True)]
        return self._exact[1]

    def parameter_of(self, name: str) -> nn.Parameter:
        """The parameter that replaces a constant of the graph."""
        return self.weights[self._constants[name]]

    def ranges(self) -> dict[str, Range]:
        """Activation ranges from which ``quantize`` derives the current scales and zero points."""
        learned = _Run(self).learned
        low_high = {name: (learned[group], self._zero_points[group]) for name, group in self._group.items()}
        return {name: Range((-128 - zero) * scale, (127 - zero) * scale) for name, (scale, zero) in low_high.items()}

    def graph(self) -> Graph:
        """The float graph with the current weights."""
        tensors = dict(self._graph.tensors)
        for name, index in self._constants.items():
            data = self.weights[index].detach().cpu().numpy()
            data = data.transpose(_OIHW_TO_OHWI) if data.ndim == 4 else data
            tensors[name] = replace(tensors[name], data=np.ascontiguousarray(data, np.float32))
        return replace(self._graph, tensors=tensors)


class _Run:
    """One forward pass with its scales."""

    def __init__(self, module: FakeQuantized):
        self.module, self.graph = module, module._graph
        self.learned = learned = list(map(float, module.scales.tolist()))
        for name, group in module._group.items():
            if not _SMALLEST <= learned[group] < math.inf:
                raise QuantizationError(
                    f"activation {name!r} has scale {learned[group]:g}, not a positive number; lower the learning rate"
                )
        # Exact ratios, as in the file; the adjustment has no gradient.
        self.numbers = module.exact(learned)
        exact = torch.tensor(self.numbers, device=module.scales.device)
        self._scales = module.scales + (exact - module.scales).detach()
        if self._scales.requires_grad:
            factor = module._gradient_scale
            self._scales.register_hook(lambda gradient: gradient * factor)

    def scale(self, name: str) -> Tensor:
        """The scale of an activation, shape ()."""
        return self._scales[self.module._group[name]]

    def quantization(self, name: str) -> Quantization:
        """Scale and zero point of an activation."""
        group = self.module._group[name]
        return Quantization((self.numbers[group],), self.module._zero_points[group])

    def limits(self, name: str, activation: str = "none") -> tuple[int, int]:
        """The smallest and largest integer of an activation, minus the zero point; a fused ReLU narrows them."""
        quantization = self.quantization(name)
        low, high = -128 - quantization.zero_point, 127 - quantization.zero_point
        if activation == "relu6":
            high = min(high, round(6 / quantization.scale[0]))
        return (low if activation == "none" else 0), high

    def requantized(self, x: Tensor, name: str, activation: str = "none") -> Tensor:
        """Integers of an activation from its real values divided by its scale."""
        one = torch.ones((), device=x.device)
        return _Requantize.apply(x, 0 * one, one, *self.limits(name, activation))  # pyright: ignore[reportReturnType]

    def rescaled(self, sums: Tensor, op: ops.Layer, bias: Tensor, multiplier: Tensor) -> Tensor:
        """Integers of a layer's output from its accumulators, which are overwritten."""
        kernels = -1, *[1] * (sums.ndim - 2)
        limits = self.limits(op.output, op.activation)
        return _Requantize.apply(sums, bias.view(kernels), multiplier.view(kernels), *limits)  # pyright: ignore[reportReturnType]

    def layer(self, op: ops.Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Integer weight and bias of a layer, and the per-channel multiplier that requantizes its accumulators."""
        weight, bias = (self.module.weights[self.module._constants[name]] for name in op.inputs[1:])
        found = self._constants(op, weight, bias)
        assert found[0].quantization is not None
        values = [np.asarray(tensor.data, np.float32) for tensor in found]
        if weight.ndim == 4:
            values[0] = np.ascontiguousarray(values[0].transpose(_OHWI_TO_OIHW))
        integers = [torch.from_numpy(array).to(weight.device) for array in values]
        scale = torch.tensor(found[0].quantization.scale, device=weight.device)
        product = self.scale(op.inputs[0]) * scale
        multiplier = product / self.scale(op.output)
        # Equal to one, but carries the multiplier's gradient: a weight has fewer values than the accumulators.
        one = multiplier / multiplier.detach()
        kernels = -1, *[1] * (weight.ndim - 1)
        return (
            _straight_through(weight / scale.view(kernels), integers[0]) * one.view(kernels),
            _straight_through(bias / product, integers[1]) * one,
            multiplier.detach(),
        )

    def _constants(self, op: ops.Layer, weight: Tensor, bias: Tensor) -> tuple[GraphTensor, GraphTensor]:
        """A layer's weight (in the graph's layout) and bias, quantized as by ``quantize``."""
        x, arrays = self.quantization(op.inputs[0]), [weight.detach().cpu().numpy(), bias.detach().cpu().numpy()]
        kept = self.module._integers.get(op.name)
        if kept is None or kept[0] != x or not all(map(np.array_equal, kept[2], arrays)):
            data = arrays[0].transpose(_OIHW_TO_OHWI) if arrays[0].ndim == 4 else arrays[0]
            # A diverging network overflows here before its loss becomes infinite.
            with np.errstate(over="ignore", invalid="ignore"):
                found = quantize_layer(op.name, data, arrays[1], x, grid=self.module._grids[op.name])
            kept = self.module._integers[op.name] = x, found, [array.copy() for array in arrays]
        return kept[1]


class _Requantize(torch.autograd.Function):
    """``(sums + bias) * multiplier``, rounded and clipped; gradients pass where nothing is clipped.

    float32 sums are overwritten: allocating fresh memory costs more than the computation.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor, multiplier: Tensor, low: int, high: int) -> Tensor:
        real = sums.float().add_(bias).mul_(multiplier)
        ctx.save_for_backward(real, bias, multiplier)
        ctx.limits = low, high
        integers = real.round().clamp_(low, high)
        return integers.bfloat16() if torch.is_autocast_enabled(sums.device.type) else integers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        real, bias, multiplier = ctx.saved_tensors
        gradient = torch.ops.aten.hardtanh_backward(gradients[0].to(real.dtype), real, *ctx.limits).mul_(multiplier)
        return gradient, gradient.sum_to_size(bias.shape), None, None, None


def _straight_through(real: Tensor, integers: Tensor) -> Tensor:
    # Exact: the difference of a value and its nearest integer is exact, and so is their sum.
    return real + (integers - real).detach()


def _parameter(graph: Graph, name: str) -> nn.Parameter:
    data = graph.constant(name).real()
    return nn.Parameter(torch.tensor(data.transpose(_OHWI_TO_OIHW) if data.ndim == 4 else data))


def _gradient_scales(graph: Graph, group: Mapping[str, int], fixed: set[int]) -> list[float]:
    """Factors for the gradients of the scales, so that they learn as fast as weights (LSQ, section 2.2)."""
    values = [0] * (max(group.values()) + 1)
    for tensor in graph.activations:
        values[group[tensor.name]] += math.prod(tensor.shape)
    # TFLite fixes the scale of a softmax.
    return [0.0 if index in fixed else (count * _LEVELS) ** -0.5 for index, count in enumerate(values)]


def _padded(x: Tensor, padding: ops.Pads, value: float = 0.0) -> Tensor:
    top, bottom, left, right = padding
    return functional.pad(x, (left, right, top, bottom), value=value) if padding != ops.NO_PADS else x


def _conv(run: _Run, op: ops.Conv, x: Tensor) -> Tensor:
    weight, *rest = run.layer(op)
    top, bottom, left, right = op.padding
    if (top, left) != (bottom, right):
        x, top, left = _padded(x, op.padding), 0, 0
    sums = functional.conv2d(x, weight, None, op.stride, (top, left), op.dilation, op.groups)
    return run.rescaled(sums, op, *rest)


def _fully_connected(run: _Run, op: ops.FullyConnected, x: Tensor) -> Tensor:
    weight, *rest = run.layer(op)
    return run.rescaled(functional.linear(x, weight), op, *rest)


def _max_pool(run: _Run, op: ops.MaxPool, x: Tensor) -> Tensor:
    return functional.max_pool2d(_padded(x, op.padding, -math.inf), op.window, op.stride)


def _average_pool(run: _Run, op: ops.AveragePool, x: Tensor) -> Tensor:
    def sums(x: Tensor) -> Tensor:
        return functional.avg_pool2d(_padded(x, op.padding), op.window, op.stride, divisor_override=1)

    return run.requantized(sums(x.float()) / sums(torch.ones_like(x[:1, :1], dtype=torch.float32)), op.output)


def _global_average(run: _Run, op: ops.GlobalAveragePool, x: Tensor) -> Tensor:
    mean = x.float().mean((2, 3), keepdim=True)
    return run.requantized(mean * (run.scale(op.inputs[0]) / run.scale(op.output)), op.output)


def _relu(run: _Run, op: ops.Relu, x: Tensor) -> Tensor:
    return x.clamp(*run.limits(op.output, op.activation))


def _add(run: _Run, op: ops.Add, left: Tensor, right: Tensor) -> Tensor:
    factors = [run.scale(name) / run.scale(op.output) for name in op.inputs]
    return run.requantized(left.float() * factors[0] + right.float() * factors[1], op.output, op.activation)


def _concat(run: _Run, op: ops.Concat, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, _axis(op.axis, inputs[0]))


def _reshape(run: _Run, op: ops.Reshape, x: Tensor) -> Tensor:
    flat = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(len(x), *op.shape[1:])
    return flat.permute(0, 3, 1, 2) if flat.ndim == 4 else flat


def _pad(run: _Run, op: ops.Pad, x: Tensor) -> Tensor:
    quantization = run.quantization(op.output)
    return _padded(x, op.padding, int(quantization.quantize(np.array(op.value), "int8")) - quantization.zero_point)


def _slice(run: _Run, op: ops.Slice, x: Tensor) -> Tensor:
    for axis in range(1, len(op.size)):
        x = x.narrow(_axis(axis, x), op.begin[axis], op.size[axis])
    return x


def _transpose(run: _Run, op: ops.Transpose, x: Tensor) -> Tensor:
    if x.ndim != 4:
        return x.permute(op.order)
    return x.permute([_NHWC_IN_NCHW[op.order[axis]] for axis in _NCHW_IN_NHWC])


def _softmax(run: _Run, op: ops.Softmax, x: Tensor) -> Tensor:
    shares = torch.softmax(x.float() * run.scale(op.inputs[0]), 1)
    return run.requantized(shares / run.scale(op.output), op.output)


def _axis(axis: int, x: Tensor) -> int:
    """An axis of the graph's layout in torch's."""
    return _NHWC_IN_NCHW[axis] if x.ndim == 4 else axis


_RUNNERS: Mapping[type[Op], Callable[..., Tensor]] = {
    ops.Add: _add,
    ops.AveragePool: _average_pool,
    ops.Concat: _concat,
    ops.Conv: _conv,
    ops.FullyConnected: _fully_connected,
    ops.GlobalAveragePool: _global_average,
    ops.MaxPool: _max_pool,
    ops.Pad: _pad,
    ops.Relu: _relu,
    ops.Reshape: _reshape,
    ops.Slice: _slice,
    ops.Softmax: _softmax,
    ops.Transpose: _transpose,
}
