"""The numpy reference: by hand, against the runtimes, and the agreement that ``rounding`` promises."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import answers, some_input
from strategies import GraphBuilder, fire_networks, graphs, in_any_8_bits

from firebox.export import quantize
from firebox.export.quantization import Range, with_input_type
from firebox.runtime.errors import UnsupportedError, UsageError
from firebox.runtime.exactness.rounding import add_margin, mean_margin, promise, window_counts
from firebox.runtime.graph import Graph, Op, Quantization, Tensor, ops
from firebox.runtime.graph.reference import run_reference


def assert_as_promised(graph: Graph, seed: int) -> bool:
    """Check outputs for equality if all operations promise it; return whether they do."""
    x = some_input(graph, seed)
    (output,) = graph.outputs
    expected = run_reference(graph, x)[output]
    found = answers(graph, x, ("litert-reference", "tflite-micro"))
    assert {answer.dtype for answer in found.values()} == {expected.dtype}
    if any(promise(graph, op) != "identical" for op in graph.ops):
        return False
    for name, answer in found.items():
        np.testing.assert_array_equal(answer, expected, err_msg=name)
    return True


@settings(max_examples=60)
@given(graphs(), st.integers(0, 1000))
def test_runtimes_compute_what_the_reference_does(graph, seed):
    assert_as_promised(in_any_8_bits(graph, seed), seed)


@settings(max_examples=25)
@given(fire_networks(), st.integers(0, 1000))
def test_runtimes_compute_fire_networks_as_the_reference_does(graph, seed):
    assert_as_promised(graph, seed)


def test_most_networks_are_promised_identical_outputs():
    """All small networks without a softmax, except those with padded average pools."""
    build = GraphBuilder((1, 8, 8, 3), 5)
    x = build.conv("input", 4, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.add(ops.Add, build.conv(x, 4), build.conv(x, 4, (3, 3), 4, padding=(1, 1, 1, 1)), activation="relu6")
    x = build.add(ops.AveragePool, x, window=(2, 2), stride=(2, 2))
    x = build.add(ops.Concat, x, build.conv(x, 3))
    graph = build.graph(build.add(ops.GlobalAveragePool, x))
    assert all(assert_as_promised(in_any_8_bits(graph, seed), seed) for seed in range(5))


def integers(graph: Graph, op: Op, x: np.ndarray) -> list[int]:
    return run_reference(graph, x)[op.output].ravel().tolist()


def eight_bits(name: str, shape: Sequence[int], scale: float, zero_point: int = 0, dtype: str = "int8") -> Tensor:
    return Tensor(name, tuple(shape), dtype, Quantization((scale,), zero_point))


def network(op: Op, *tensors: Tensor) -> Graph:
    inputs = [tensor.name for tensor in tensors if tensor.data is None and tensor.name != op.output]
    return Graph.of("hand", tensors, [op], inputs, [op.output])


def layer(op: Op, x: Tensor, weight: np.ndarray, bias: Sequence[int], scales: Sequence[float], y: Tensor) -> Graph:
    steps = Quantization(tuple(scales), 0, 0)
    bias_steps = Quantization(tuple(x.quantization.scale[0] * scale for scale in scales), 0, 0)
    return network(
        op,
        x,
        Tensor("w", weight.shape, "int8", steps, weight.astype(np.int8)),
        Tensor("b", (len(bias),), "int32", bias_steps, np.array(bias, np.int32)),
        y,
    )


def test_a_convolution_by_hand():
    # One row, a window of 2 of one channel, two outputs; x - zero point is 10, -20, 30.
    op = ops.Conv(("x", "w", "b"), "y")
    weight = np.array([[[[1], [2]]], [[[-3], [4]]]])
    source, target = eight_bits("x", (1, 1, 3, 1), 0.5, 10), eight_bits("y", (1, 1, 2, 2), 1.0, 3)
    graph = layer(op, source, weight, [4, -6], [1.0, 0.25], target)
    x = np.array([20, -10, 40], np.int8).reshape(1, 1, 3, 1)
    # First output: (10 - 40 + 4) / 2 + 3 and (-20 + 60 + 4) / 2 + 3; second: (-30 - 80 - 6) / 8 + 3, (60 + 120 - 6) / 8
    # + 3, of which -14.5 is rounded to even.
    assert integers(graph, op, x) == [-10, -11, 25, 25]
    rectified = replace(op, activation="relu")
    assert integers(layer(rectified, source, weight, [4, -6], [1.0, 0.25], target), op, x) == [3, 3, 25, 25]
    six = replace(op, activation="relu6")
    assert integers(layer(six, source, weight, [4, -6], [1.0, 0.25], target), op, x) == [3, 3, 9, 9]


def test_padding_of_a_convolution_is_zero_and_integers_saturate():
    op = ops.Conv(("x", "w", "b"), "y", padding=(0, 0, 1, 1))
    weight = np.array([[[[100], [100]]]])
    graph = layer(op, eight_bits("x", (1, 1, 2, 1), 1.0, 27), weight, [0], [0.5], eight_bits("y", (1, 1, 3, 1), 50.0))
    assert integers(graph, op, np.array([27, 127], np.int8).reshape(1, 1, 2, 1)) == [0, 100, 100]
    assert integers(graph, op, np.array([-128, 127], np.int8).reshape(1, 1, 2, 1)) == [-128, -55, 100]


def test_a_fully_connected_layer_by_hand():
    op = ops.FullyConnected(("x", "w", "b"), "y")
    graph = layer(
        op, eight_bits("x", (1, 3), 1.0, -1), np.array([[1, 2, 3], [127, 127, 127]]), [0, 0], [1.0, 1.0],
        eight_bits("y", (1, 2), 2.0, -5),
    )  # fmt: skip
    assert integers(graph, op, np.array([[0, 1, 2]], np.int8)) == [2, 127]


def test_an_addition_by_hand():
    op = ops.Add(("a", "b"), "y")
    tensors = eight_bits("a", (1, 4), 0.5, 1), eight_bits("b", (1, 4), 0.25, -2), eight_bits("y", (1, 4), 1.0, 7)
    a = Graph.of("hand", [tensors[0], replace(tensors[1], data=None), tensors[2]], [op], ["a", "b"], ["y"])
    from firebox.runtime.graph.reference import run_operation

    values = {"a": np.array([[1, 5, 127, -128]], np.int8), "b": np.array([[-2, 2, 127, -128]], np.int8)}
    # 0 + 0, 2 + 1, 63 + 32.25, -64.5 - 31.5
    assert run_operation(a, op, values).tolist() == [[7, 10, 102, -89]]
    rectified = replace(op, activation="relu6")
    six = Graph.of("hand", tensors, [rectified], ["a", "b"], ["y"])
    assert run_operation(six, rectified, values).tolist() == [[7, 10, 13, 7]]


def test_means_by_hand():
    x = np.array([[1, 2], [4, 8]], np.int8).reshape(1, 2, 2, 1)
    source = eight_bits("x", (1, 2, 2, 1), 1.0, -1)
    pool = ops.AveragePool(("x",), "y", (2, 2), (1, 1), (0, 1, 0, 1))
    # 19 / 4, (3 + 9) / 2, (5 + 9) / 2 and 9: padding does not count.
    assert integers(network(pool, source, eight_bits("y", (1, 2, 2, 1), 1.0)), pool, x) == [5, 6, 7, 9]
    mean = ops.GlobalAveragePool(("x",), "y")
    # 4.75 in steps of 0.25, and rounded half to even.
    assert integers(network(mean, source, eight_bits("y", (1, 1, 1, 1), 0.25, 100)), mean, x) == [119]
    assert integers(network(mean, source, eight_bits("y", (1, 1, 1, 1), 0.5, 100)), mean, x) == [110]


def test_other_operations_by_hand():
    source = eight_bits("x", (1, 2, 2, 1), 0.5, -3)
    x = np.array([[-128, -3], [5, 127]], np.int8).reshape(1, 2, 2, 1)
    for op, target, expected in (
        (ops.MaxPool(("x",), "y", (2, 2), (1, 1), (1, 0, 1, 0)), replace(source, name="y"), [-128, -3, 5, 127]),
        (ops.Relu(("x",), "y"), replace(source, name="y"), [-3, -3, 5, 127]),
        (ops.Relu(("x",), "y", "relu6"), replace(source, name="y"), [-3, -3, 5, 9]),
        (ops.Pad(("x",), "y", (1, 0, 0, 0), 1.0), eight_bits("y", (1, 3, 2, 1), 0.5, -3), [-1, -1, -128, -3, 5, 127]),
        (ops.Slice(("x",), "y", (0, 1, 0, 0), (1, 1, 2, 1)), eight_bits("y", (1, 1, 2, 1), 0.5, -3), [5, 127]),
        (ops.Reshape(("x",), "y", (1, 4)), eight_bits("y", (1, 4), 0.5, -3), [-128, -3, 5, 127]),
        (ops.Transpose(("x",), "y", (0, 2, 1, 3)), replace(source, name="y"), [-128, 5, -3, 127]),
        (ops.Quantize(("x",), "y"), eight_bits("y", (1, 2, 2, 1), 0.5, 125, "uint8"), [0, 125, 133, 255]),
        (ops.Quantize(("x",), "y"), eight_bits("y", (1, 2, 2, 1), 1.0, 0), [-62, 0, 4, 65]),
        (ops.Concat(("x", "x"), "y", 1), eight_bits("y", (1, 4, 2, 1), 1.0, 0), [-62, 0, 4, 65] * 2),
    ):
        assert integers(network(op, source, target), op, x) == expected, op


def test_a_softmax_sums_to_one():
    op = ops.Softmax(("x",), "y")
    graph = network(op, eight_bits("x", (1, 3), 1.0, 4), eight_bits("y", (1, 3), 1 / 256, -128))
    assert integers(graph, op, np.array([[4, 4, 4]], np.int8)) == [-43, -43, -43]
    assert integers(graph, op, np.array([[127, 4, 4]], np.int8)) == [127, -128, -128]


def test_a_network_may_have_float_input_and_output():
    operations = [ops.Quantize(("x",), "q"), ops.Dequantize(("q",), "y")]
    tensors = [Tensor("x", (1, 3)), eight_bits("q", (1, 3), 0.5, 1), Tensor("y", (1, 3))]
    graph = Graph.of("ends", tensors, operations, ["x"], ["y"])
    found = run_reference(graph, np.array([[0.25, 0.8, -1e9]], np.float32))
    assert found["q"].tolist() == [[1, 3, -128]]
    assert found["y"].tolist() == [[0.0, 1.0, -64.5]]


def test_other_inputs_and_float_networks_are_refused():
    build = GraphBuilder((1, 4, 4, 2))
    real = build.graph(build.conv("input", 3))
    graph = in_any_8_bits(real)
    for x in (np.zeros((1, 4, 4, 2), np.uint8), np.zeros((2, 4, 4, 2), np.int8)):
        with pytest.raises(UsageError, match=r"the input must be int8 \(1, 4, 4, 2\), got"):
            run_reference(graph, x)
    with pytest.raises(UnsupportedError, match="Conv 'conv0' is not between 8-bit integers"):
        run_reference(real, np.zeros((1, 4, 4, 2), np.float32))
    wide = {**graph.tensors, "conv0": replace(graph.tensors["conv0"], dtype="int16")}
    with pytest.raises(UnsupportedError, match="Conv 'conv0' is not between"):
        run_reference(replace(graph, tensors=wide), np.zeros((1, 4, 4, 2), np.int8))
    weight = graph.ops[0].inputs[1]
    floats = {**graph.tensors, weight: replace(real.tensors["constant1"], name=weight)}
    with pytest.raises(UnsupportedError, match="has float weights"):
        run_reference(replace(graph, tensors=floats), np.zeros((1, 4, 4, 2), np.int8))


def test_uint8_input_gives_the_same_output():
    build = GraphBuilder((1, 6, 6, 2))
    graph = in_any_8_bits(build.graph(build.conv("input", 3, (3, 3))))
    x = some_input(graph)
    shifted = (x.astype(np.int16) + 128).astype(np.uint8)
    found = run_reference(with_input_type(graph, "uint8"), shifted)
    np.testing.assert_array_equal(found["conv0"], run_reference(graph, x)["conv0"])


@pytest.mark.parametrize(
    ("scales", "margin", "promised"),
    [
        ((1.0, 1.0, 1.0), 0.5, "identical"),
        ((1.0, 2.0, 3.0), 1 / 6, "identical"),
        ((1.0, 1.0, 2.0), 0, "one step"),
        ((0.5, 1.0, 1.0), 0, "one step"),
        ((4.0, 2.0, 1.0), 0.5, "identical"),
        ((0.02173, 0.04219, 0.04888), None, "one step"),
    ],
)
def test_promise_of_an_addition(scales, margin, promised):
    tensors = [eight_bits(name, (1, 4), scale, 5) for name, scale in zip("aby", scales, strict=True)]
    op = ops.Add(("a", "b"), "y")
    graph = Graph.of("hand", tensors, [op], ["a", "b"], ["y"])
    assert promise(graph, op) == promised
    if margin is not None:
        assert add_margin(*tensors) == pytest.approx(margin, abs=1e-12)


@pytest.mark.parametrize(
    ("side", "scales", "promised"),
    [
        (1, (1.0, 1.0), "identical"),
        (2, (1.0, 1.0), "one step"),
        (2, (4.0, 1.0), "identical"),
        (3, (1.0, 1.0), "identical"),
        (3, (1.0, 2.0), "one step"),
        (99, (1.0, 1.0), "one step"),
    ],
)
def test_promise_of_a_mean(side, scales, promised):
    op = ops.GlobalAveragePool(("x",), "y")
    graph = network(op, eight_bits("x", (1, side, side, 2), scales[0]), eight_bits("y", (1, 1, 1, 2), scales[1]))
    assert promise(graph, op) == promised
    assert (mean_margin(graph, op) > 1e-4) is (promised == "identical")


@pytest.mark.parametrize(
    ("pool", "counts", "promised"),
    [
        (ops.AveragePool(("x",), "y", (3, 3), (1, 1)), {9}, "identical"),
        (ops.AveragePool(("x",), "y", (3, 1), (2, 2)), {3}, "identical"),
        (ops.AveragePool(("x",), "y", (2, 2), (2, 2)), {4}, "one step"),
        (ops.AveragePool(("x",), "y", (3, 3), (1, 1), (1, 1, 1, 1)), {9, 6, 4}, "one step"),
        (ops.AveragePool(("x",), "y", (3, 3), (2, 2), (0, 1, 0, 1)), {9, 6, 4}, "one step"),
    ],
)
def test_promise_of_an_average_pool(pool, counts, promised):
    source = eight_bits("x", (1, 6, 6, 1), 1.0)
    assert window_counts(pool, 6, 6) == counts
    target = eight_bits("y", pool.output_shape(source.shape), 1.0)
    assert promise(network(pool, source, target), pool) == promised


def test_promise_of_the_other_operations():
    source, same = eight_bits("x", (1, 2, 2, 1), 0.5, -3), eight_bits("y", (1, 2, 2, 1), 0.5, -3)
    other, real = eight_bits("y", (1, 2, 2, 1), 0.25, -3), Tensor("y", (1, 2, 2, 1))
    unsigned = eight_bits("y", (1, 2, 2, 1), 0.5, 125, "uint8")
    joined = eight_bits("y", (1, 2, 2, 2), 0.5, -3)
    for op, target, promised in (
        (ops.Relu(("x",), "y"), same, "identical"),
        (ops.Relu(("x",), "y"), other, "one step"),
        (ops.Quantize(("x",), "y"), unsigned, "identical"),
        (ops.Quantize(("x",), "y"), other, "one step"),
        (ops.Concat(("x", "x"), "y"), joined, "identical"),
        (ops.Concat(("x", "x"), "y"), replace(joined, quantization=Quantization((0.6,), -3)), "one step"),
        (ops.MaxPool(("x",), "y"), same, "identical"),
        (ops.Softmax(("x",), "y"), same, "one step"),
        (ops.Dequantize(("x",), "y"), real, "one step"),
    ):
        assert promise(network(op, source, target), op) == promised, op
    build = GraphBuilder((1, 4, 4, 2))
    floats = build.graph(build.conv("input", 3))
    assert promise(floats, floats.ops[0]) == "none"
    graph = quantize(floats, {name: Range(-1.0, 1.0) for name in ("input", "conv0")})
    assert promise(graph, graph.ops[0]) == "identical"
