"""The C of all operations but convolutions, and the table of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Graph, Op, ops
from ..memory.rows.graph import Mean, Real, Sums, quantization_of, table_of
from .convolutions import convolution
from .engine import Engine, Spot, c_float, indented, stored
from .layers import limits


def _max_pool(engine: Engine, op: ops.MaxPool, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A pool over rows of a ring."""
    channels, step, out_step = engine.steps(op)
    width = engine.graph.tensors[op.inputs[0]].shape[2]
    yield "{"
    yield from indented(engine.row_pointers(op, spot))
    yield f"  fb_t *out = {engine.address(op.output, spot)};"
    yield f"  fb_fill(out, {out_step}, {spot.count}, {channels}, FB_SHIFT - 128);"
    columns = f"{spot.first} * {op.stride[1]} - {op.padding[2]}"
    window = f"{columns}, {op.window[1]}, {op.stride[1]}, 0, {width}"
    taken = f"rows[r], {step}, {spot.count}, {channels}, {window}"
    yield f"  for (int r = 0; r < count; r++) fb_max(out, {out_step}, {taken});"
    yield "}"


def _average_pool(engine: Engine, op: ops.AveragePool, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A mean over the rows of a ring."""
    channels, step, out_step = engine.steps(op)
    x, y = quantization_of(engine.graph, op.inputs[0]), quantization_of(engine.graph, op.output)
    ratio = np.float32(x.scale[0]) * np.float32(1.0) / np.float32(y.scale[0])
    width = engine.graph.tensors[op.inputs[0]].shape[2]
    yield "{"
    yield from indented(engine.row_pointers(op, spot))
    columns = f"{spot.first} * {op.stride[1]} - {op.padding[2]}, {op.window[1]}, {op.stride[1]}, {width}"
    yield (
        f"  fb_average({engine.address(op.output, spot)}, {out_step}, rows, count, {step}, {spot.count}, {channels}, "
        f"{columns}, {c_float(ratio)}, {x.zero_point} + FB_SHIFT, {y.zero_point});"
    )
    yield "}"


def _add(engine: Engine, op: ops.Add, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A sum of two rows."""
    channels = engine.graph.tensors[op.output].shape[3]
    y = quantization_of(engine.graph, op.output)
    found = [quantization_of(engine.graph, name) for name in op.inputs]
    scales = [np.float32(q.scale[0]) * np.float32(1.0) / np.float32(y.scale[0]) for q in found]
    terms = ", ".join(f"{engine.address(name, spot)}, {engine.step_of(name)}" for name in op.inputs)
    low, high = limits(engine.graph, op)
    zeros = ", ".join(f"{q.zero_point} + FB_SHIFT" for q in found)
    yield (
        f"fb_add({engine.address(op.output, spot)}, {engine.step_of(op.output)}, {terms}, {spot.count}, {channels}, "
        f"{c_float(scales[0])}, {c_float(scales[1])}, {zeros}, {y.zero_point}, {low}, {high});"
    )


def elementwise(engine: Engine, op: Op, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A table of 256 values, or a copy."""
    channels, step, out_step = engine.steps(op)
    where = f"{engine.address(op.output, spot)}, {out_step}, {engine.address(op.inputs[0], spot)}, {step}"
    table = changing_table(engine.graph, op)
    if table is None:
        yield f"fb_copy({where}, {spot.count}, {channels});"
    else:
        yield f"fb_table({where}, {spot.count}, {channels}, fb_t{engine.index[op.output]});"


def changing_table(graph: Graph, op: Op) -> np.ndarray | None:
    """The table of an elementwise operation (``table_of``), or ``None`` if it changes no value."""
    found = table_of(graph, op)
    return None if np.array_equal(found, np.arange(-128, 128)) else found


def _sums(engine: Engine, op: Sums, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Sums over the image."""
    x = op.inputs[0]
    channels, zero = engine.graph.tensors[x].shape[3], quantization_of(engine.graph, x).zero_point
    root = engine.plan.roots[engine.plan.places[op.output].root]
    kernel, kind = ("fb_sum16", "uint16_t") if root.sum_bytes == 2 else ("fb_sum", "int32_t")
    sums = f"({kind} *)(a + {engine.plan.offset(root.name)})"
    yield f"if ({spot.row} == 0 && {spot.first} == 0) memset({sums}, 0, {root.nbytes});"
    values = f"{engine.address(x, spot)}, {engine.step_of(x)}, {spot.count}, {channels}"
    yield f"{kernel}({sums}, {values}, {zero} + FB_SHIFT);"


def _read_sums(engine: Engine, op: Op) -> str:
    """Where the sums lie, the bytes of each, and the least that sums of 16 bits can be."""
    before, root = engine.graph.producers[op.inputs[0]], engine.plan.roots[engine.plan.places[op.inputs[0]].root]
    least = 0
    if isinstance(before, Sums):
        _, height, width, _ = engine.graph.tensors[before.inputs[0]].shape
        least = height * width * (-128 - quantization_of(engine.graph, before.inputs[0]).zero_point)
    return f"a + {engine.plan.offset(root.name)}, {root.sum_bytes}, {least}"


def _mean(engine: Engine, op: Mean, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Means of the sums."""
    sums = _read_sums(engine, op)
    channels, zero = engine.graph.tensors[op.output].shape[3], quantization_of(engine.graph, op.output).zero_point
    border = f"fb_t{engine.index[op.output]}" if op.outside else "0"
    out = engine.address(op.output, spot)
    yield f"fb_mean({out}, {sums}, {channels}, {c_float(op.scale)}, {zero}, {border}, {op.outside});"


def _real(engine: Engine, op: Real, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Real numbers of the sums."""
    sums = _read_sums(engine, op)
    channels, number = engine.graph.tensors[op.output].shape[3], engine.index[op.output]
    border = f"fb_t{number}" if op.outside else "0"
    out = f"(float *)(a + {engine.plan.offset(engine.plan.places[op.output].root)})"
    high = {"none": "3.4e38f", "relu": "3.4e38f", "relu6": "6.0f"}[op.activation]
    low = "-3.4e38f" if op.activation == "none" else "0.0f"
    yield f"fb_real({out}, {sums}, {channels}, fb_k{number}, {border}, {op.outside}, {low}, {high});"


def _pad(engine: Engine, op: ops.Pad, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Rows and columns of one value around an image."""
    channels, step, out_step = engine.steps(op)
    _, height, width, _ = engine.graph.tensors[op.inputs[0]].shape
    top, _, left, right = op.padding
    value = stored(int(quantization_of(engine.graph, op.output).quantize(np.array(op.value), "int8")))
    out = f"{engine.address(op.output, spot)}, {out_step}"
    within = f"{spot.row} >= {top} && {spot.row} < {top + height}"
    fill = f"fb_fill({out}, {spot.count}, {channels}, {value});"
    yield fill if left or right else f"if (!({within})) {fill}"
    source = engine.address(op.inputs[0], replace(spot, row=f"({spot.row} - {top})", first="0", start="0"))
    yield f"if ({within})"
    yield f"  fb_columns({out}, {spot.first}, {spot.count}, {source}, {step}, {left}, {width}, {channels});"


def _slice(engine: Engine, op: ops.Slice, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Part of an image."""
    channels, step, out_step = engine.steps(op)
    _, row, column, channel = op.begin
    # A strip holds the columns of the spot alone; a slice of some columns reads a ring.
    first = spot if not column else replace(spot, first=f"({spot.first} + {column})")
    source = engine.address(op.inputs[0], replace(first, row=f"({spot.row} + {row})") if row else first)
    out = engine.address(op.output, spot)
    yield f"fb_copy({out}, {out_step}, {source} + {channel}, {step}, {spot.count}, {channels});"


def _concat(engine: Engine, op: ops.Concat, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Images one below the other, or side by side."""
    at, channels = 0, engine.graph.tensors[op.output].shape[3]
    for name in op.inputs:
        _, height, width, _ = engine.graph.tensors[name].shape
        row, column = (f"({spot.row} - {at})", 0) if op.axis == 1 else (spot.row, at)
        source = f"{engine.address(name, replace(spot, row=row, first='0', start='0'))}, {engine.step_of(name)}"
        out = f"{engine.address(op.output, spot)}, {engine.step_of(op.output)}, {spot.first}, {spot.count}"
        copy = f"fb_columns({out}, {source}, {column}, {width}, {channels});"
        within = f"if ({spot.row} >= {at} && {spot.row} < {at + height}) " if op.axis == 1 else ""
        yield within + copy
        at += height if op.axis == 1 else width


def _reshape(engine: Engine, op: ops.Reshape, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """The bytes of a whole image in another shape."""
    _, _, width, channels = engine.graph.tensors[op.output].shape
    x = op.inputs[0]
    _, _, in_width, in_channels = engine.graph.tensors[x].shape
    root = engine.plan.roots[engine.plan.places[x].root]
    ring = engine.address(x, replace(spot, row="0", first="0", start="0"))
    yield (
        f"fb_flat({engine.address(op.output, spot)}, {engine.step_of(op.output)}, {width}, {channels}, "
        f"{spot.row} * {width * channels}, {ring}, {root.pitch}, {root.channels}, {in_width}, {in_channels});"
    )


def _transpose(engine: Engine, op: ops.Transpose, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A permutation of rows, columns and channels of a whole image."""
    _, _, width, channels = engine.graph.tensors[op.output].shape
    x = op.inputs[0]
    root = engine.plan.roots[engine.plan.places[x].root]
    # Bytes between neighbours along the axes of the input, in the order of the output.
    step = {1: root.pitch, 2: root.channels, 3: 1}
    down, along, inner = (step[axis] for axis in op.order[1:])
    ring = engine.address(x, replace(spot, row="0", first="0", start="0"))
    yield f"for (int x = 0; x < {width}; x++)"
    yield f"  for (int c = 0; c < {channels}; c++)"
    out = f"({engine.address(op.output, spot)})[x * {engine.step_of(op.output)} + c]"
    yield f"    {out} = ({ring})[{spot.row} * {down} + x * {along} + c * {inner}];"


def _softmax(engine: Engine, op: ops.Softmax, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """Shares of the exponentials."""
    channels, step, out_step = engine.steps(op)
    y = quantization_of(engine.graph, op.output)
    where = f"{engine.address(op.output, spot)}, {out_step}, {engine.address(op.inputs[0], spot)}, {step}"
    scale = float(np.float64(y.scale[0])).hex()
    yield f"fb_softmax({where}, {spot.count}, {channels}, fb_t{engine.index[op.output]}, {scale}, {y.zero_point});"


WRITERS: Mapping[type[Op], Callable[[Engine, Any, Spot, Sequence[int]], Iterator[str]]] = {
    ops.Conv: convolution,
    ops.MaxPool: _max_pool,
    ops.AveragePool: _average_pool,
    ops.Add: _add,
    Sums: _sums,
    Mean: _mean,
    Real: _real,
    ops.Pad: _pad,
    ops.Slice: _slice,
    ops.Concat: _concat,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Softmax: _softmax,
}


def powers(graph: Graph, op: ops.Softmax) -> np.ndarray:
    """exp of the differences -255 to 0 of an input and the largest one: float64, shape (256,)."""
    scale = np.float64(quantization_of(graph, op.inputs[0]).scale[0])
    return np.exp(np.arange(-255, 1) * scale)
