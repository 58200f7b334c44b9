"""Random networks."""

import numpy as np
from firebox.runtime.graph import (
    NO_PADS,
    Add,
    AveragePool,
    Concat,
    Conv,
    FullyConnected,
    GlobalAveragePool,
    Graph,
    MaxPool,
    Op,
    Pad,
    Relu,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    same_pads,
)  # fmt: skip
from firebox.runtime.rewrite import fuse_activations
from hypothesis import strategies as st

_KINDS = ("conv", "depthwise", "groups", "max", "average", "relu", "fire", "residual", "pad", "rows", "slice")


class GraphBuilder:
    """A graph in the making: each method adds one operation behind ``x`` and returns the name of what it makes."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.tensors = {"input": Tensor("input", shape)}
        self.ops: list[Op] = []

    def shape(self, x: str) -> tuple[int, ...]:
        return self.tensors[x].shape

    def add(self, kind: type[Op], *inputs: str, **attributes) -> str:
        output = f"{kind.__name__.lower()}{len(self.ops)}"
        op = kind(inputs, output, **attributes)
        self.ops.append(op)
        self.tensors[output] = Tensor(output, op.output_shape(*map(self.shape, inputs)))
        return output

    def constant(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        data = self.random.normal(0, fan_in**-0.5, shape).astype(np.float32)
        name = f"constant{len(self.tensors)}"
        self.tensors[name] = Tensor(name, shape, data=data)
        return name

    def conv(self, x: str, channels: int, kernel: tuple[int, int] = (1, 1), groups: int = 1, **attributes) -> str:
        weight = self.constant(channels, *kernel, self.shape(x)[3] // groups)
        return self.add(Conv, x, weight, self.constant(channels), groups=groups, **attributes)

    def linear(self, x: str, classes: int) -> str:
        if len(self.shape(x)) == 4:
            x = self.add(Reshape, x, shape=(1, int(np.prod(self.shape(x)))))
        return self.add(FullyConnected, x, self.constant(classes, self.shape(x)[1]), self.constant(classes))

    def graph(self, *outputs: str) -> Graph:
        return Graph.of("drawn", self.tensors.values(), self.ops, ["input"], outputs)


@st.composite
def graphs(draw, leave_out: tuple[str, ...] = ()) -> Graph:
    """Small networks of every kind of operation but those left out, rectifiers fused as every reader fuses them."""
    size = st.integers(5, 12)
    build = GraphBuilder((1, draw(size), draw(size), draw(st.integers(1, 4))), draw(st.integers(0, 1000)))
    x = "input"
    for _ in range(draw(st.integers(1, 4))):
        x = _grow(draw, build, x, draw(st.sampled_from([kind for kind in _KINDS if kind not in leave_out])))
    return fuse_activations(build.graph(_end(draw, build, x)))


def _grow(draw, build: GraphBuilder, x: str, kind: str) -> str:
    _, rows, columns, channels = build.shape(x)
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    activation = draw(st.sampled_from(["none", "relu", "relu6"]))
    if kind in ("conv", "depthwise", "groups"):
        kernel = draw(st.tuples(st.integers(1, min(3, rows)), st.integers(1, min(3, columns))))
        dilation = draw(pair) if min(rows, columns) >= 5 else (1, 1)
        window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        # A dilated convolution that also skips is more than TFLite's kernels promise.
        stride = draw(pair) if dilation == (1, 1) else (1, 1)
        padding = draw(_paddings((rows, columns), (window[0], window[1]), stride))
        groups = {"conv": 1, "depthwise": channels, "groups": 2}[kind]
        if kind == "groups" and channels % 2:
            x, channels = build.conv(x, 4), 4
        outputs = channels * draw(st.integers(1, 2)) if kind != "conv" else draw(st.integers(1, 6))
        return build.conv(
            x, outputs, kernel, groups, stride=stride, padding=padding, dilation=dilation, activation=activation
        )
    if kind in ("max", "average"):
        window = draw(st.tuples(st.integers(1, min(3, rows)), st.integers(1, min(3, columns))))
        stride = draw(pair)
        padding = draw(_paddings((rows, columns), window, stride, only_same=kind == "average"))
        pool = MaxPool if kind == "max" else AveragePool
        if build.ops and isinstance(build.ops[-1], Pad):
            # onnxruntime 1.31 takes a Pad of zeros into the pool behind it, where padding does not count.
            x = build.add(Relu, x)
        return build.add(pool, x, window=window, stride=stride, padding=padding)
    if kind == "relu":
        return build.add(Relu, x, activation=draw(st.sampled_from(["relu", "relu6"])))
    if kind == "fire":
        squeezed = build.conv(x, 2, activation="relu")
        left = build.conv(squeezed, 3, activation="relu")
        right = build.conv(squeezed, 2, (3, 3), padding=(1, 1, 1, 1), activation="relu")
        return build.add(Concat, left, right)
    if kind == "residual":
        other = build.conv(x, channels, (3, 3), padding=(1, 1, 1, 1))
        return build.add(Add, x, other, activation=activation)
    if kind == "rows":
        return build.add(Concat, x, build.conv(x, channels), axis=draw(st.integers(1, 2)))
    if kind == "slice":
        size = (1, *(draw(st.integers(max(1, extent - 2), extent)) for extent in (rows, columns, channels)))
        begin = (0, *(draw(st.integers(0, build.shape(x)[axis] - size[axis])) for axis in (1, 2, 3)))
        return build.add(Slice, x, begin=begin, size=size)
    return build.add(Pad, x, padding=draw(st.tuples(*[st.integers(0, 2)] * 4)))


def _paddings(size, window, stride, only_same: bool = False):
    same = (*same_pads(size[0], window[0], stride[0]), *same_pads(size[1], window[1], stride[1]))
    choices = [st.just(NO_PADS), st.just(same)]
    if not only_same:
        # Less than the window: a pool never sees padding alone.
        (rows, columns) = (st.integers(0, extent - 1) for extent in window)
        choices.append(st.tuples(rows, rows, columns, columns))
    return st.one_of(choices)


def _end(draw, build: GraphBuilder, x: str) -> str:
    end = draw(st.sampled_from(["pool", "flatten", "conv"]))
    if end == "pool":
        x = build.add(GlobalAveragePool, build.conv(x, 5))
        x = build.add(Reshape, x, shape=(1, 5))
    elif end == "flatten":
        x = build.linear(x, 5)
    else:
        return build.conv(x, 5)
    return build.add(Softmax, x) if draw(st.booleans()) else x
