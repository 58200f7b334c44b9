"""Random 8-bit networks for row plans and compiled code: every operation that C has, in every combination."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import GraphBuilder, in_any_8_bits

from firebox.export.quantization import with_input_type
from firebox.runtime.graph import Graph, Quantization, ops
from firebox.runtime.graph.rewrite import fuse_activations

# A choice of one of so many: by Hypothesis, or by a generator of random numbers.
Choose = Callable[[int], int]

_PARTS = (
    "conv", "conv", "conv", "pointwise", "depthwise", "groups", "max", "max", "average", "relu", "fire", "inception",
    "dense", "residual", "complex", "pad", "rows", "columns", "slice", "global", "reshape", "transpose", "softmax",
    "pooled fire", "bottleneck",
)  # fmt: skip
_ENDS = ("conv", "average", "padded average", "linear", "softmax", "as it is")
_MOST_PIXELS = 500


@st.composite
def row_networks(draw) -> Graph:
    """Networks drawn by Hypothesis."""
    return network(lambda count: draw(st.integers(0, count - 1)))


def seeded_network(seed: int) -> Graph:
    """The network of a seed."""
    random = np.random.default_rng(seed)
    return network(lambda count: int(random.integers(count)))


def network(choose: Choose) -> Graph:
    """A random 8-bit network."""
    return _Network(choose).graph()


class _Network:
    """A network under construction; ``choose`` decides on everything."""

    def __init__(self, choose: Choose):
        self.choose = choose
        extents = (
            [self.number(1, 15), self.number(1, 15)] if self.choose(4) else [self.number(1, 3), self.number(1, 40)]
        )
        self.build = GraphBuilder((1, *extents, self.number(1, 5)), self.choose(1000))

    def number(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def pick(self, values: Sequence[Any]) -> Any:
        return values[self.choose(len(values))]

    def graph(self) -> Graph:
        x = "input"
        for _ in range(self.number(1, 6)):
            _, rows, columns, channels = self.build.shape(x)
            if rows * columns > _MOST_PIXELS:
                x = self.build.add(ops.MaxPool, x, window=(2, 2), stride=(2, 2)) if min(rows, columns) > 1 else x
            elif channels > 80:
                x = self.conv(x, self.channels(), (1, 1))
            x = self.part(x, self.pick(_PARTS))
        x = self.end(x, self.pick(_ENDS))
        if not self.build.ops:
            x = self.conv(x, 3, (1, 1))
        graph = in_any_8_bits(fuse_activations(self.build.graph(x)), self.choose(1000))
        if self.choose(3) == 0:
            graph = with_own_scales(graph, self.choose(1000))
        return with_input_type(graph, "uint8") if self.choose(5) == 0 else graph

    def channels(self) -> int:
        return self.pick([self.number(1, 6), self.number(1, 70), 16 * self.number(1, 3)])

    def activation(self) -> str:
        return self.pick(["none", "relu", "relu6"])

    def conv(self, x: str, channels: int, kernel: tuple[int, int], groups: int = 1, **attributes) -> str:
        return self.build.conv(x, channels, kernel, groups, activation=self.activation(), **attributes)

    def window(self, x: str, *, dilates: bool = True) -> dict[str, Any]:
        """A random window with stride, padding and dilation, of which at least one position exists."""
        found: dict[str, list[int]] = {"kernel": [], "stride": [], "dilation": [], "padding": []}
        for size in self.build.shape(x)[1:3]:
            kernel = self.number(1, self.pick([1, 3, 3, 7]))
            dilation = self.number(1, 3) if dilates and self.choose(5) == 0 else 1
            extent = (kernel - 1) * dilation + 1
            before, behind = self.choose(extent), self.choose(extent)
            if self.choose(4) == 0:
                before = behind = extent // 2
            elif self.choose(3) == 0:
                before = behind = 0
            if size + before + behind < extent:
                before = behind = min(extent - 1, extent - size)
            found["kernel"].append(kernel)
            found["stride"].append(self.pick([1, 1, 1, 2, 2, 3, 4]))
            found["dilation"].append(dilation)
            found["padding"] += [before, behind]
        return {name: tuple(values) for name, values in found.items()}

    def pool(self, x: str, kind: Any) -> str:
        window = self.window(x, dilates=False)
        if self.choose(2):
            # A ceil-mode pool of a SqueezeNet.
            sizes = self.build.shape(x)[1:3]
            behind = [(size - 3) % 2 if size >= 3 else 3 - size for size in sizes]
            window = {"kernel": (3, 3), "stride": (2, 2), "padding": (0, behind[0], 0, behind[1])}
        return self.build.add(kind, x, window=window["kernel"], stride=window["stride"], padding=window["padding"])

    def part(self, x: str, kind: str) -> str:
        build = self.build
        _, rows, columns, channels = build.shape(x)
        if kind == "conv":
            return self.conv(x, self.channels(), **self.window(x))
        if kind == "pointwise":
            return self.conv(x, self.channels(), (1, 1))
        if kind == "depthwise":
            return self.conv(x, channels * self.pick([1, 1, 2]), groups=channels, **self.window(x))
        if kind == "groups":
            groups = self.number(2, 3)
            x = self.conv(x, groups * self.number(1, 20), (1, 1))
            return self.conv(x, groups * self.number(1, 20), groups=groups, **self.window(x))
        if kind == "max":
            return self.pool(x, ops.MaxPool)
        if kind == "average":
            return self.pool(x, ops.AveragePool)
        if kind == "relu":
            return build.add(ops.Relu, x, activation=self.pick(["relu", "relu6"]))
        if kind == "pooled fire":
            return self.pool(self.part(x, "fire"), ops.MaxPool)
        if kind == "fire":
            squeezed = self.conv(x, self.number(1, 16), (1, 1))
            left = self.conv(squeezed, self.channels(), (1, 1))
            return build.add(ops.Concat, left, self.same(squeezed, self.channels()))
        if kind == "inception":
            parts = [self.branch(x) for _ in range(self.number(2, 4))]
            return build.add(ops.Concat, *parts)
        if kind == "dense":
            for _ in range(self.number(1, 3)):
                x = build.add(ops.Concat, *self.pick([(x, self.same(x, 4)), (self.same(x, 5), x)]))
            return x
        if kind == "bottleneck":
            # As in DenseNet-BC: each 3x3 convolution reads a 1x1 convolution of all that is there.
            for _ in range(self.number(1, 3)):
                inner = self.conv(x, self.channels(), (1, 1))
                x = build.add(ops.Concat, x, self.same(inner, 4))
            return self.conv(x, channels, (1, 1)) if self.choose(2) else x
        if kind in ("residual", "complex"):
            other = self.same(x, channels)
            if self.choose(2):
                other = self.same(other, channels)
            x = self.conv(x, channels, (1, 1)) if kind == "complex" else x
            return build.add(ops.Add, *self.pick([(x, other), (other, x)]), activation=self.activation())
        if kind == "pad":
            padding = tuple(self.choose(3) for _ in range(4))
            return build.add(ops.Pad, x, padding=padding, value=self.pick([0.0, 0.0, 0.3, -1.0]))
        if kind in ("rows", "columns"):
            axis = 1 if kind == "rows" else 2
            parts = [x, self.conv(x, channels, (1, 1)), self.same(x, channels)][: self.number(2, 3)]
            return build.add(ops.Concat, *self.pick([parts, parts[::-1]]), axis=axis)
        if kind == "slice":
            size = (1, *(self.number(max(1, extent - 3), extent) for extent in (rows, columns, channels)))
            begin = (0, *(self.choose(build.shape(x)[axis] - size[axis] + 1) for axis in (1, 2, 3)))
            return build.add(ops.Slice, x, begin=begin, size=size)
        if kind == "global":
            x = self.conv(
                x, self.channels(), (1, 1), padding=self.pick([(0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0)])
            )
            return build.add(ops.GlobalAveragePool, x)
        if kind == "reshape":
            shape = self.pick(
                [(1, columns, rows, channels), (1, rows * columns, 1, channels), (1, rows, channels, columns)]
            )
            return build.add(ops.Reshape, x, shape=shape)
        if kind == "transpose":
            return build.add(
                ops.Transpose, x, order=self.pick([(0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 3, 1), (0, 1, 3, 2)])
            )
        return build.add(ops.Softmax, x)

    def same(self, x: str, channels: int) -> str:
        """A convolution that keeps the size of the image."""
        kernel = self.pick([(3, 3), (3, 3), (1, 1), (5, 5), (1, 3), (7, 1)])
        padding = (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2)
        return self.conv(x, channels, kernel, padding=padding)

    def branch(self, x: str) -> str:
        """One branch of an inception module; a part of the input, or another concat, may be one."""
        kind = self.choose(6)
        if kind == 0:
            pooled = self.build.add(ops.MaxPool, x, window=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
            return self.conv(pooled, self.channels(), (1, 1)) if self.choose(2) else pooled
        if kind == 1:
            return self.build.add(ops.AveragePool, x, window=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
        if kind == 2:
            return self.build.add(ops.Concat, self.same(x, 4), self.same(x, self.number(1, 20)))
        if kind == 3:
            return x
        return self.same(self.conv(x, self.number(1, 8), (1, 1)) if self.choose(2) else x, self.channels())

    def end(self, x: str, kind: str) -> str:
        build = self.build
        if kind in ("average", "padded average"):
            padding = (1, 1, 1, 1) if kind == "padded average" else ops.NO_PADS
            x = build.add(ops.GlobalAveragePool, self.conv(x, self.channels(), (1, 1), padding=padding))
            return build.add(ops.Reshape, x, shape=(1, build.shape(x)[3])) if self.choose(2) else x
        if kind in ("linear", "softmax"):
            x = build.linear(x, self.channels())
            return build.add(ops.Softmax, x) if kind == "softmax" else x
        return self.conv(x, self.channels(), **self.window(x)) if kind == "conv" else x


def with_own_scales(graph: Graph, seed: int) -> Graph:
    """The graph with a scale of its own for each activation whose operation may change it."""
    random = np.random.default_rng(seed)
    kept = ops.MaxPool | ops.Slice | ops.Reshape | ops.Transpose | ops.Softmax
    tensors = dict(graph.tensors)
    for op in graph.ops:
        tensor = tensors[op.output]
        if isinstance(op, ops.Softmax) or tensor.quantization is None:
            continue
        if isinstance(op, kept):
            quantization = tensors[op.inputs[0]].quantization
        else:
            scale = tensor.quantization.scale[0] * float(random.uniform(0.7, 1.4))
            quantization = Quantization((scale,), int(random.integers(-128, 128)))
        tensors[op.output] = replace(tensor, quantization=quantization)
    return Graph.of(graph.name, tensors.values(), graph.ops, graph.inputs, graph.outputs)
