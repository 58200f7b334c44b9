"""Hypothesis strategies for random networks and tilings."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from firebox.export import quantize
from firebox.export.fit.tiling import Region
from firebox.export.quantization import Range, with_input_type
from firebox.runtime.graph import Graph, Op, Tensor, ops
from firebox.runtime.graph.rewrite import fuse_activations

_FIRE_KINDS = (
    "pooled fire", "fire", "simple", "complex", "uneven",
    "ceil pool", "valid pool", "padded pool", "average", "depthwise", "dilated",
)  # fmt: skip
_KINDS = ("conv", "depthwise", "groups", "max", "average", "relu", "fire", "residual", "pad", "rows", "slice")


class GraphBuilder:
    """A graph under construction: each method adds an operation on ``x`` and returns the name of its output."""

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
        return self.add(ops.Conv, x, weight, self.constant(channels), groups=groups, **attributes)

    def linear(self, x: str, classes: int) -> str:
        if len(self.shape(x)) == 4:
            x = self.add(ops.Reshape, x, shape=(1, int(np.prod(self.shape(x)))))
        return self.add(ops.FullyConnected, x, self.constant(classes, self.shape(x)[1]), self.constant(classes))

    def graph(self, *outputs: str) -> Graph:
        return Graph.of("drawn", self.tensors.values(), self.ops, ["input"], outputs)


@st.composite
def graphs(draw, leave_out: tuple[str, ...] = ()) -> Graph:
    """Small networks of all kinds of operations except ``leave_out``, with activations fused as readers fuse them."""
    size = st.integers(5, 12)
    build = GraphBuilder((1, draw(size), draw(size), draw(st.integers(1, 4))), draw(st.integers(0, 1000)))
    x = "input"
    for _ in range(draw(st.integers(1, 4))):
        x = _grow(draw, build, x, draw(st.sampled_from([kind for kind in _KINDS if kind not in leave_out])))
    return fuse_activations(build.graph(_end(draw, build, x)))


@st.composite
def fire_networks(draw, sizes: tuple[int, int] = (6, 15), channels: int = 4, parts: int = 4) -> Graph:
    """SqueezeNets in 8 bits: a first convolution, Fire modules with other parts in between, and a classifier.

    Inputs have ``sizes[0]`` to ``sizes[1]`` rows and columns, squeeze layers at most ``channels`` channels.
    """
    size = st.integers(*sizes)
    build = GraphBuilder((1, draw(size), draw(size), draw(st.integers(1, 4))), draw(st.integers(0, 1000)))
    kernel, stride = draw(st.sampled_from([(1, 1), (3, 3), (3, 2), (5, 5)])), draw(st.sampled_from([1, 1, 2]))
    padding = draw(_paddings(build.shape("input")[1:3], kernel, (stride, stride)))
    x = build.conv("input", 2 * channels, kernel, stride=(stride, stride), padding=padding, activation="relu")
    for kind in draw(st.lists(st.sampled_from(_FIRE_KINDS), min_size=1, max_size=parts, unique=True)):
        if min(build.shape(x)[1:3]) < 3:
            break
        x = _fire_part(draw, build, x, kind, channels)
    end = draw(st.sampled_from(["conv", "pool", "linear"]))
    if end == "linear":
        x = build.add(ops.Softmax, build.linear(x, 5))
    else:
        x = build.conv(x, draw(st.integers(1, 9)), activation="relu")
        x = build.add(ops.GlobalAveragePool, x) if end == "pool" else x
    graph = in_any_8_bits(build.graph(x), draw(st.integers(0, 1000)))
    return with_input_type(graph, "uint8") if draw(st.integers(0, 4)) == 4 else graph


def in_any_8_bits(graph: Graph, seed: int = 0) -> Graph:
    """The graph quantized with random ranges, so that zero points differ from 0 and wrong padding shows."""
    random = np.random.default_rng(seed)
    lows, highs = random.uniform(-1.5, 0, len(graph.activations)), random.uniform(0.5, 2, len(graph.activations))
    tensors = zip(graph.activations, lows.tolist(), highs.tolist(), strict=True)
    return quantize(graph, {tensor.name: Range(low, high) for tensor, low, high in tensors})


def _fire_part(draw, build: GraphBuilder, x: str, kind: str, channels: int) -> str:
    _, rows, columns, depth = build.shape(x)
    if kind == "pooled fire":
        return _fire_part(draw, build, _fire_part(draw, build, x, "fire", channels), "ceil pool", channels)
    if kind in ("fire", "simple", "complex"):
        squeezed = build.conv(x, draw(st.integers(1, channels)), activation="relu")
        narrow = depth // 2 if kind == "simple" else draw(st.integers(1, 2 * channels))
        wide = depth - narrow if kind == "simple" else draw(st.integers(1, 2 * channels))
        if not narrow:
            return squeezed
        left = build.conv(squeezed, narrow, activation="relu")
        right = build.conv(squeezed, wide, (3, 3), padding=(1, 1, 1, 1), activation="relu")
        joined = build.add(ops.Concat, left, right)
        if kind == "fire":
            return joined
        return build.add(ops.Add, x if kind == "simple" else build.conv(x, narrow + wide), joined)
    if kind == "uneven":
        # More padding before than after, of a tensor that another operation reads without padding.
        return build.add(ops.Add, build.conv(x, depth, (3, 3), padding=(2, 0, 1, 1), activation="relu"), x)
    stride = draw(st.sampled_from([1, 2]))
    if kind == "depthwise":
        return build.conv(x, depth, (3, 3), depth, stride=(stride, stride), padding=(1, 1, 1, 1), activation="relu6")
    if kind == "dilated":
        return build.conv(x, depth, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2), activation="relu")
    if kind == "average":
        window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        return build.add(ops.AveragePool, x, window=window, stride=(stride, draw(st.integers(1, 2))))
    if kind == "valid pool":
        return build.add(ops.MaxPool, x, window=(3, 2), stride=(stride, 2))
    if kind == "padded pool":
        return build.add(ops.MaxPool, x, window=(3, 3), stride=(stride, stride), padding=(1, 1, 1, 1))
    # A ceil-mode pool: padding at the end if the last window would be incomplete.
    behind = (0, (rows - 3) % 2, 0, (columns - 3) % 2)
    return build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2), padding=behind)


@st.composite
def tilings(draw, shape: tuple[int, ...]) -> list[list[Region]]:
    """Bands of one or more tiles, of any height and in any order, that cover a tensor once."""
    bands = []
    for top, bottom in _pieces(draw, shape[1]):
        columns = _pieces(draw, shape[2]) if draw(st.booleans()) else [(0, shape[2])]
        bands.append([Region(top, bottom, left, right) for left, right in columns])
    return draw(st.one_of(st.just(bands), st.just(bands[::-1]), st.permutations(bands)))


def _pieces(draw, extent: int) -> Sequence[tuple[int, int]]:
    cuts = draw(st.sets(st.integers(1, extent - 1), max_size=12)) if extent > 1 else set()
    edges = [0, *sorted(cuts), extent]
    return list(pairwise(edges))


def _grow(draw, build: GraphBuilder, x: str, kind: str) -> str:
    _, rows, columns, channels = build.shape(x)
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    activation = draw(st.sampled_from(["none", "relu", "relu6"]))
    if kind in ("conv", "depthwise", "groups"):
        kernel = draw(st.tuples(st.integers(1, min(3, rows)), st.integers(1, min(3, columns))))
        dilation = draw(pair) if min(rows, columns) >= 5 else (1, 1)
        window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        # TFLite's kernels do not support dilation together with a stride.
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
        pool = ops.MaxPool if kind == "max" else ops.AveragePool
        if build.ops and isinstance(build.ops[-1], ops.Pad):
            # onnxruntime 1.31 fuses a Pad of zeros into the pool after it, where padding does not count.
            x = build.add(ops.Relu, x)
        return build.add(pool, x, window=window, stride=stride, padding=padding)
    if kind == "relu":
        return build.add(ops.Relu, x, activation=draw(st.sampled_from(["relu", "relu6"])))
    if kind == "fire":
        squeezed = build.conv(x, 2, activation="relu")
        left = build.conv(squeezed, 3, activation="relu")
        right = build.conv(squeezed, 2, (3, 3), padding=(1, 1, 1, 1), activation="relu")
        return build.add(ops.Concat, left, right)
    if kind == "residual":
        other = build.conv(x, channels, (3, 3), padding=(1, 1, 1, 1))
        return build.add(ops.Add, x, other, activation=activation)
    if kind == "rows":
        return build.add(ops.Concat, x, build.conv(x, channels), axis=draw(st.integers(1, 2)))
    if kind == "slice":
        size = (1, *(draw(st.integers(max(1, extent - 2), extent)) for extent in (rows, columns, channels)))
        begin = (0, *(draw(st.integers(0, build.shape(x)[axis] - size[axis])) for axis in (1, 2, 3)))
        return build.add(ops.Slice, x, begin=begin, size=size)
    return build.add(ops.Pad, x, padding=draw(st.tuples(*[st.integers(0, 2)] * 4)))


def _paddings(size, window, stride, only_same: bool = False):
    same = (*ops.same_pads(size[0], window[0], stride[0]), *ops.same_pads(size[1], window[1], stride[1]))
    choices = [st.just(ops.NO_PADS), st.just(same)]
    if not only_same:
        # Less than the window, so that no window holds padding only.
        (rows, columns) = (st.integers(0, extent - 1) for extent in window)
        choices.append(st.tuples(rows, rows, columns, columns))
    return st.one_of(choices)


def _end(draw, build: GraphBuilder, x: str) -> str:
    end = draw(st.sampled_from(["pool", "flatten", "conv"]))
    if end == "pool":
        x = build.add(ops.GlobalAveragePool, build.conv(x, 5))
        x = build.add(ops.Reshape, x, shape=(1, 5))
    elif end == "flatten":
        x = build.linear(x, 5)
    else:
        return build.conv(x, 5)
    return build.add(ops.Softmax, x) if draw(st.booleans()) else x
