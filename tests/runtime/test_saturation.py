"""Layers that saturate, and the equivalent file without saturation.

On a machine whose kernels add in 16 bits, their outputs match the predicted ones bit for bit; the exact form is correct
on all machines.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from runners import some_input
from strategies import GraphBuilder

from firebox.export import quantize, write_onnx
from firebox.export.quantization import Range
from firebox.runtime import Session
from firebox.runtime.errors import FormatError
from firebox.runtime.exactness.check import saturating_sums
from firebox.runtime.exactness.saturation import ExactForm, exact_form, integer_layers, neighbours, weight_pairs
from firebox.runtime.formats.onnx_wire import OnnxMessage
from firebox.runtime.graph import Graph, ops
from firebox.runtime.graph.reference import run_reference
from firebox.runtime.onnx_session import kernels_saturate, open_onnx, session_options


@pytest.mark.parametrize(
    ("positions", "channels", "walks"),
    [
        (1, 1, [[]]),
        (1, 4, [[[0, 1], [2, 3]]]),
        (1, 5, [[[0, 1], [2, 3]]]),
        (4, 2, [[[0, 1], [2, 3], [4, 5], [6, 7]]]),
        (2, 3, [[[0, 1], [2, 3], [4, 5]], [[0, 1], [3, 4]]]),
        (3, 3, [[[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1], [3, 4], [6, 7]]]),
        (3, 1, [[[0, 1]], []]),
    ],
)
def test_neighbours_are_those_of_each_walk(positions, channels, walks):
    assert [walk.tolist() for walk in neighbours(positions, channels)] == walks


def test_pairs_of_a_layer_are_in_the_order_of_the_graph():
    build = GraphBuilder((1, 2, 2, 4))
    flat = build.linear(build.conv("input", 4, (1, 1), 2), 3)
    graph = build.graph(build.add(ops.Add, flat, flat))
    conv, linear = (op for op in graph.ops if isinstance(op, ops.Layer))
    assert [walk.tolist() for walk in weight_pairs(graph, conv)] == [[[0, 1]]]
    # Pixels of one channel are neighbours in the file and four columns apart in the graph.
    (walk,) = weight_pairs(graph, linear)
    assert walk.tolist() == [[0, 4], [8, 12], [1, 5], [9, 13], [2, 6], [10, 14], [3, 7], [11, 15]]
    build = GraphBuilder((1, 4, 4, 4))
    depthwise = build.graph(build.conv("input", 4, (3, 3), 4))
    assert sum(map(len, weight_pairs(depthwise, depthwise.ops[0]))) == 0


def all_of_8_bits(graph: Graph, seed: int) -> Graph:
    """The graph in int8, with weights that saturate and random ranges of activations."""
    random = np.random.default_rng(seed)
    ranges = {t.name: Range(-float(random.uniform(0, 1.5)), float(random.uniform(0.5, 2))) for t in graph.activations}
    return quantize(graph, ranges, None, "full")


def two(build: GraphBuilder) -> str:
    return build.conv(build.conv("input", 5, (3, 2)), 4)


def fire(build: GraphBuilder) -> str:
    squeezed = build.conv("input", 3)
    joined = build.add(ops.Concat, build.conv(squeezed, 4), build.conv(squeezed, 4, (3, 3), padding=(1, 1, 1, 1)))
    return build.linear(build.add(ops.MaxPool, joined, window=(2, 2), stride=(2, 2)), 5)


LAYERS: dict[str, tuple[tuple[int, ...], Callable[[GraphBuilder], str]]] = {
    "1x1": ((1, 8, 8, 4), lambda build: build.conv("input", 6)),
    "1x1 of 5 channels": ((1, 8, 8, 5), lambda build: build.conv("input", 6)),
    "1x1 of 1 channel": ((1, 8, 8, 1), lambda build: build.conv("input", 6)),
    "3x3": ((1, 8, 8, 4), lambda build: build.conv("input", 6, (3, 3))),
    "3x3 of 1 channel": ((1, 8, 8, 1), lambda build: build.conv("input", 6, (3, 3))),
    "3x2 of 3 channels": ((1, 8, 8, 3), lambda build: build.conv("input", 5, (3, 2))),
    "padded": ((1, 8, 8, 4), lambda build: build.conv("input", 6, (3, 3), padding=(1, 1, 1, 1))),
    "strided": ((1, 8, 8, 4), lambda build: build.conv("input", 6, (3, 3), stride=(2, 2))),
    "dilated": ((1, 8, 8, 4), lambda build: build.conv("input", 6, (3, 3), dilation=(2, 2))),
    "groups": ((1, 8, 8, 4), lambda build: build.conv("input", 6, (3, 3), 2)),
    "depthwise": ((1, 8, 8, 4), lambda build: build.conv("input", 4, (3, 3), 4)),
    "two for each channel": ((1, 8, 8, 4), lambda build: build.conv("input", 8, (3, 3), 4)),
    "one output": ((1, 8, 8, 4), lambda build: build.conv("input", 1, (3, 3))),
    "one pixel": ((1, 1, 1, 8), lambda build: build.conv("input", 5)),
    "linear": ((1, 8, 8, 4), lambda build: build.linear("input", 5)),
    "mean": ((1, 8, 8, 4), lambda build: build.add(ops.GlobalAveragePool, build.conv("input", 5))),
    "two": ((1, 8, 8, 3), two),
    "fire": ((1, 8, 8, 4), fire),
}


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_compute_the_predicted_sums(name):
    shape, make = LAYERS[name]
    differ = 0
    for seed in range(6):
        build = GraphBuilder(shape, seed)
        graph = all_of_8_bits(build.graph(make(build)), seed)
        data, x = write_onnx(graph), some_input(graph, seed)
        (output,) = graph.outputs
        right, saturated = run_reference(graph, x)[output], run_reference(graph, x, saturating_sums(graph))[output]
        differ += int((right != saturated).any())
        np.testing.assert_array_equal(run_int8(exact_form(data).data, x), right)
        np.testing.assert_array_equal(run_int8(data, x, exact=True), right)
        np.testing.assert_array_equal(run_int8(data, x), saturated if kernels_saturate() else right)
    # Some of these weights saturate, except in layers with other kernels.
    assert bool(differ) is (name not in ("depthwise", "1x1 of 1 channel"))


def run_int8(data: bytes, x: np.ndarray, exact: bool = False) -> np.ndarray:
    """The output in NHWC and int8, as in the graph."""
    session = open_onnx(data, session_options(1), exact=exact).session
    image = np.ascontiguousarray((x.astype(np.int16) + 128).astype(np.uint8).transpose(0, 3, 1, 2))
    y = session.run(None, {session.get_inputs()[0].name: image})[0]
    return ((y.transpose(0, 2, 3, 1) if y.ndim == 4 else y).astype(np.int16) - 128).astype(np.int8)


def test_sessions_load_what_can_saturate_as_uint8(monkeypatch):
    build = GraphBuilder((1, 8, 8, 4))
    graph = all_of_8_bits(build.graph(two(build)), 0)
    data, x = write_onnx(graph), np.zeros((1, 4, 8, 8), np.uint8)
    for saturate, exact, weights in (
        (True, True, "uint8 in 2 layers"),
        (True, False, "as in the file"),
        (False, True, "as in the file"),
    ):
        monkeypatch.setattr("firebox.runtime.onnx_session.kernels_saturate", lambda answer=saturate: answer)
        with Session(data, exact=exact) as session:
            assert session.facts.weights == weights
            # Products of zeros do not saturate.
            np.testing.assert_array_equal(
                session.run(x).transpose(0, 2, 3, 1).astype(int) - 128,
                run_reference(graph, np.full((1, 8, 8, 4), -128, np.int8))[graph.outputs[0]],
            )


# Files from other converters, with inputs of 255 and weights of 127, whose sums overflow 16 bits.
CHANNELS, OUTPUTS, SIDE = 6, 4, 5
IMAGE, ROWS = (1, CHANNELS, SIDE, SIDE), (3, CHANNELS)
# Sums of one window of a convolution and of one row of a product.
WINDOW, ROW = 255 * 127 * CHANNELS * 9, 255 * 127 * CHANNELS
CONV, MATMUL = np.full((OUTPUTS, CHANNELS, 3, 3), 127, np.int8), np.full((CHANNELS, OUTPUTS), 127, np.int8)
# Output scales for which no result lies halfway between two integers or reaches 255.
CONV_STEP, MATMUL_STEP = np.float32(8192), np.float32(1024)
ONE, ZERO = np.float32(1), np.uint8(0)


def node(kind: str, inputs: str, output: str = "y", domain: str = "", **attributes: Any) -> Any:
    """A node; ``-`` is an omitted input."""
    names = [name.strip("-") for name in inputs.split()]
    return helper.make_node(kind, names, [output], name=f"{kind} of {output}", domain=domain, **attributes)


def microsoft(kind: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return node(kind, inputs, output, "com.microsoft", **attributes)


def model(
    nodes: Sequence[Any], shape: Sequence[int], kinds: tuple[int, int] = (TensorProto.UINT8,) * 2, **constants: Any
) -> bytes:
    """A model from ``x`` to ``y``; ``kinds`` are their types."""
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info("x", kinds[0], shape)],
        [helper.make_tensor_value_info("y", kinds[1], None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def qdq(nodes: Sequence[Any], shape: Sequence[int], step: np.float32, weight: str = "w s z", **constants: Any) -> bytes:
    """A model of operators from the real values ``xr`` and ``wr`` to ``yr``, between integers."""
    axis = {"axis": 0} if np.ndim(constants.get("s", ONE)) else {}
    ends = [
        node("DequantizeLinear", "x one zero", "xr"),
        node("DequantizeLinear", weight, "wr", **axis),
        *nodes,
        node("QuantizeLinear", "yr step zero"),
    ]
    return model(ends, shape, one=ONE, zero=ZERO, step=step, **{"s": ONE, "z": np.int8(0)} | constants)


def run(data: bytes, dtype: Any = np.uint8) -> np.ndarray:
    """The output for inputs of the largest values."""
    session = onnxruntime.InferenceSession(data, session_options(1), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    top = 255 if dtype == np.float32 else np.iinfo(dtype).max
    return session.run(None, {source.name: np.full(source.shape, top, dtype)})[0]


def assert_exact(data: bytes, expected: Any, layers: int = 1, dtype: Any = np.uint8) -> None:
    """The exact form rewrites this many layers, is stable, and computes these integers."""
    form = exact_form(data)
    found, count = form.data, form.rewritten
    assert count == layers
    assert (found == data) is (layers == 0)
    answer = run(found, dtype)
    np.testing.assert_array_equal(answer, np.broadcast_to(expected, answer.shape))
    assert exact_form(found) == ExactForm(found, 0, 0)


def conv(inputs: str = "x one zero w s z step zero", weight: np.ndarray = CONV, **constants: Any) -> bytes:
    given = {"one": ONE, "zero": ZERO, "s": ONE, "z": np.int8(0), "step": CONV_STEP} | constants
    return model([node("QLinearConv", inputs)], IMAGE, w=weight, **given)


INTEGERS = (TensorProto.UINT8, TensorProto.INT32)
OF_OPERATORS: dict[str, tuple[Callable[[], bytes], float]] = {
    "QLinearConv": (conv, WINDOW / CONV_STEP),
    "QLinearConv with a zero point": (lambda: conv(z=np.int8(27)), WINDOW * 100 / 127 / CONV_STEP),
    "QLinearConv per channel": (
        lambda: conv(s=np.float32([1, 2, 0.5, 1]), z=np.zeros(4, np.int8), step=np.float32(2) * CONV_STEP),
        WINDOW / CONV_STEP / 2 * np.array([1, 2, 0.5, 1]).reshape(1, 4, 1, 1),
    ),
    "ConvInteger": (lambda: model([node("ConvInteger", "x w")], IMAGE, INTEGERS, w=CONV), WINDOW),
    "ConvInteger with zero points": (
        lambda: model([node("ConvInteger", "x w zero z")], IMAGE, INTEGERS, w=CONV, zero=np.uint8(5), z=np.int8(7)),
        250 * 120 * CHANNELS * 9,
    ),
    "MatMulInteger": (lambda: model([node("MatMulInteger", "x w")], ROWS, INTEGERS, w=MATMUL), ROW),
    "MatMulInteger with one zero point": (
        lambda: model([node("MatMulInteger", "x w - z")], ROWS, INTEGERS, w=MATMUL, z=np.int8(-27)),
        255 * 154 * CHANNELS,
    ),
    "MatMulInteger with zero points": (
        lambda: model(
            [node("MatMulInteger", "x w zero z")], ROWS, INTEGERS, w=MATMUL, zero=np.uint8(5), z=np.int8([0, 1, -2, 99])
        ),
        250 * CHANNELS * np.array([127, 126, 129, 28]),
    ),
    "QLinearMatMul": (
        lambda: model(
            [node("QLinearMatMul", "x one zero w one z step zero")],
            ROWS, w=MATMUL, one=ONE, zero=ZERO, z=np.int8(0), step=MATMUL_STEP,
        ),
        ROW / MATMUL_STEP,
    ),
    "QGemm": (
        lambda: model(
            [microsoft("QGemm", "x one zero w one z - step zero")],
            ROWS, w=MATMUL, one=ONE, zero=ZERO, z=np.int8(0), step=MATMUL_STEP,
        ),
        ROW / MATMUL_STEP,
    ),
    "QGemm transposed": (
        lambda: model(
            [microsoft("QGemm", "x one zero w one z bias step zero", transB=1)],
            ROWS, w=MATMUL.T, one=ONE, zero=ZERO, z=np.int8(0), step=MATMUL_STEP, bias=np.full(4, 2048, np.int32),
        ),
        ROW / MATMUL_STEP + 2,
    ),
    "MatMulIntegerToFloat": (
        lambda: model(
            [microsoft("MatMulIntegerToFloat", "x w one one zero z")],
            ROWS, (TensorProto.UINT8, TensorProto.FLOAT), w=MATMUL, one=ONE, zero=ZERO, z=np.int8(0),
        ),
        ROW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_OPERATORS)
def test_integer_operators_become_exact(name):
    make, expected = OF_OPERATORS[name]
    assert_exact(make(), np.rint(expected))


def test_a_product_that_quantizes_its_input_itself_becomes_exact():
    nodes, kinds = [microsoft("DynamicQuantizeMatMul", "x w one z")], (TensorProto.FLOAT, TensorProto.FLOAT)
    assert_exact(model(nodes, ROWS, kinds, w=MATMUL, one=ONE, z=np.int8(0)), ROW, dtype=np.float32)
    # Weights without a zero point are symmetric.
    symmetric = model([microsoft("DynamicQuantizeMatMul", "x w one")], ROWS, kinds, w=MATMUL, one=ONE)
    assert_exact(symmetric, ROW, dtype=np.float32)


PER_CHANNEL = np.float32([1, 0.5, 1, 0.25])
OF_REALS: dict[str, tuple[Callable[[], bytes], Any]] = {
    "Conv": (lambda: qdq([node("Conv", "xr wr", "yr")], IMAGE, CONV_STEP, w=CONV), WINDOW / CONV_STEP),
    "Conv of a weight without zero point": (
        lambda: qdq([node("Conv", "xr wr", "yr")], IMAGE, CONV_STEP, "w s", w=CONV),
        WINDOW / CONV_STEP,
    ),
    "Conv per channel": (
        lambda: qdq([node("Conv", "xr wr", "yr")], IMAGE, CONV_STEP, w=CONV, s=PER_CHANNEL, z=np.zeros(4, np.int8)),
        WINDOW / CONV_STEP * PER_CHANNEL.reshape(1, 4, 1, 1),
    ),
    "Conv per channel without zero points": (
        lambda: qdq([node("Conv", "xr wr", "yr")], IMAGE, CONV_STEP, "w s", w=CONV, s=PER_CHANNEL),
        WINDOW / CONV_STEP * PER_CHANNEL.reshape(1, 4, 1, 1),
    ),
    "Conv with a zero point": (
        lambda: qdq([node("Conv", "xr wr", "yr")], IMAGE, CONV_STEP, w=CONV, z=np.int8(27)),
        WINDOW * 100 / 127 / CONV_STEP,
    ),
    "Gemm": (lambda: qdq([node("Gemm", "xr wr", "yr")], ROWS, MATMUL_STEP, w=MATMUL), ROW / MATMUL_STEP),
    "Gemm transposed": (
        lambda: qdq([node("Gemm", "xr wr", "yr", transB=1)], ROWS, MATMUL_STEP, w=MATMUL.T),
        ROW / MATMUL_STEP,
    ),
    "MatMul": (lambda: qdq([node("MatMul", "xr wr", "yr")], ROWS, MATMUL_STEP, w=MATMUL), ROW / MATMUL_STEP),
    "MatMul behind a Transpose": (
        lambda: qdq(
            [node("Transpose", "wr", "turned", perm=[1, 0]), node("MatMul", "xr turned", "yr")],
            ROWS, MATMUL_STEP, w=MATMUL.T,
        ),
        ROW / MATMUL_STEP,
    ),
    "Gemm behind a Flatten": (
        lambda: qdq(
            [node("Flatten", "xr", "flat"), node("Gemm", "flat wr", "yr")], (3, CHANNELS, 1, 1), MATMUL_STEP, w=MATMUL
        ),
        ROW / MATMUL_STEP,
    ),
    "MatMul from the left": (
        lambda: qdq([node("MatMul", "wr xr", "yr")], (CHANNELS, 3), MATMUL_STEP, w=MATMUL.T),
        ROW / MATMUL_STEP,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_REALS)
def test_float_operators_between_integers_become_exact(name):
    make, expected = OF_REALS[name]
    assert_exact(make(), np.rint(expected))


@pytest.mark.parametrize("weight", ["w s", "w s z"])
def test_layers_with_float_outputs_become_exact(weight):
    nodes = [
        node("DequantizeLinear", "x one zero", "xr"),
        node("DequantizeLinear", weight, "wr", axis=0),
        node("Conv", "xr wr"),
    ]
    kinds = (TensorProto.UINT8, TensorProto.FLOAT)
    data = model(nodes, IMAGE, kinds, w=CONV, s=PER_CHANNEL, z=np.zeros(4, np.int8), one=ONE, zero=ZERO)
    assert_exact(data, WINDOW * PER_CHANNEL.reshape(1, 4, 1, 1))


def test_two_layers_may_share_a_weight_or_its_dequantize_linear():
    weight = np.full((CHANNELS, CHANNELS, 3, 3), 127, np.int8)
    small = np.float32(2.0**-12)
    given = {"w": weight, "one": ONE, "zero": ZERO, "s": small, "z": np.int8(0), "step": np.float32(4)}
    first = np.rint(WINDOW / 4096 / 4)
    inner = np.rint(first * 127 * CHANNELS * 9 / 4096)
    shared = [
        node("QLinearConv", "x one zero w s z step zero", "middle"),
        node("QLinearConv", "middle step zero w s z step zero"),
    ]
    assert_exact(model(shared, IMAGE, **given), inner, 2)
    twice = [
        node("DequantizeLinear", "x one zero", "xr"),
        node("DequantizeLinear", "w s z", "wr"),
        node("Conv", "xr wr", "mr"),
        node("QuantizeLinear", "mr step zero", "m"),
        node("DequantizeLinear", "m step zero", "mr2"),
        node("Conv", "mr2 wr", "yr"),
        node("QuantizeLinear", "yr step zero"),
    ]
    assert_exact(model(twice, IMAGE, **given), inner, 2)


def test_weights_in_constant_nodes_become_exact():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(CONV, "inside"))
    ends = [constant, node("QLinearConv", "x one zero w one z step zero")]
    given = {"one": ONE, "zero": ZERO, "z": np.int8(0), "step": CONV_STEP}
    assert_exact(model(ends, IMAGE, **given), np.rint(WINDOW / CONV_STEP))
    zero = helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.int8(27), "inside"))
    del given["z"]
    assert_exact(model([constant, zero, ends[1]], IMAGE, **given), np.rint(WINDOW * 100 / 127 / CONV_STEP))


def test_a_weight_that_is_also_an_input_stays_in_the_file():
    proto = onnx.load_from_string(conv())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT8, CONV.shape))
    data = proto.SerializeToString()
    assert_exact(data, np.rint(WINDOW / CONV_STEP))
    assert "w" in OnnxMessage(exact_form(data).data).constants


def test_new_constants_get_unused_names():
    taken = [node("Relu", "r", "w/uint8"), node("Identity", "zero", "z/uint8")]
    nodes = [*taken, node("QLinearConv", "x one z/uint8 w one z step zero")]
    data = model(nodes, IMAGE, w=CONV, one=ONE, zero=ZERO, z=np.int8(0), step=CONV_STEP, r=ONE)
    assert_exact(data, np.rint(WINDOW / CONV_STEP))
    again = model(
        [node("QLinearConv", "x one zero w one z step zero")],
        IMAGE, w=CONV, one=ONE, zero=ZERO, z=np.int8(0), step=CONV_STEP, **{"w/uint8": ONE, "z/uint8": ONE},
    )  # fmt: skip
    assert_exact(again, np.rint(WINDOW / CONV_STEP))


def test_a_layer_with_a_computed_zero_point_is_left_and_counted(monkeypatch):
    nodes = [node("Identity", "z", "computed"), node("MatMulInteger", "x w - computed")]
    data = model(nodes, ROWS, INTEGERS, w=MATMUL, z=np.int8(27))
    assert exact_form(data) == ExactForm(data, 0, 1)
    monkeypatch.setattr("firebox.runtime.onnx_session.kernels_saturate", lambda: True)
    assert open_onnx(data, session_options(1)).weights == "as in the file; 1 layer may saturate"


def test_layers_with_int8_activations_stay_unchanged():
    nodes = [node("QLinearConv", "x one zero w one zero step zero")]
    given = {"w": CONV, "one": ONE, "zero": np.int8(0), "step": CONV_STEP}
    signed = model(nodes, IMAGE, (TensorProto.INT8,) * 2, **given)
    assert_exact(signed, np.rint(WINDOW / 255 * 127 / CONV_STEP), 0, np.int8)
    reals = [
        node("DequantizeLinear", "x one zero", "xr"),
        node("DequantizeLinear", "w one zero", "wr"),
        node("Conv", "xr wr", "yr"),
        node("QuantizeLinear", "yr step zero"),
    ]
    signed = model(reals, IMAGE, (TensorProto.INT8,) * 2, **given)
    assert_exact(signed, np.rint(WINDOW / 255 * 127 / CONV_STEP), 0, np.int8)


def test_uint8_depthwise_and_small_weights_stay_unchanged():
    assert_exact(conv(weight=CONV.view(np.uint8), z=np.uint8(0)), np.rint(WINDOW / CONV_STEP), 0)
    assert_exact(conv(weight=CONV // 2 + np.int8(1)), np.rint(WINDOW * 64 / 127 / CONV_STEP), 0)
    depthwise = model(
        [node("QLinearConv", "x one zero w one z step zero", group=CHANNELS)],
        IMAGE, w=CONV[:1, :].transpose(1, 0, 2, 3), one=ONE, zero=ZERO, z=np.int8(0), step=CONV_STEP,
    )  # fmt: skip
    assert_exact(depthwise, np.rint(WINDOW / CHANNELS / CONV_STEP), 0)


def test_weights_in_another_file_stay_unchanged():
    proto = onnx.load_from_string(conv())
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    data = proto.SerializeToString()
    assert exact_form(data) == ExactForm(data, 0, 1)
    (layer,) = integer_layers(OnnxMessage(data))
    assert layer.saturating is None


@pytest.mark.parametrize(
    ("pair", "over"),
    [((127, 1), 0), ((64, 64), 0), ((-64, -64), 0), ((127, 2), 3), ((-128, -1), 3), ((-128, 127), 0), ((65, 64), 3)],
)
def test_pairs_up_to_128_are_safe(pair, over):
    weight = np.tile(np.array(pair, np.int8), 3)[:, None]
    (layer,) = integer_layers(OnnxMessage(model([node("MatMulInteger", "x w")], ROWS, INTEGERS, w=weight)))
    assert (layer.over, layer.saturating, layer.largest) == (over, over, abs(sum(pair)))


def test_exact_form_refuses_bytes_that_are_not_an_onnx_file():
    with pytest.raises(FormatError, match="not an ONNX file"):
        exact_form(b"none")


def test_malicious_files_raise_only_our_errors():
    # A field of the graph with the number of an operator and another wire type.
    data = conv()
    proto = onnx.load_from_string(data)
    graph = proto.graph.SerializeToString() + b"\x08\x00"
    proto.ClearField("graph")
    head = proto.SerializeToString()
    size = len(graph)
    hostile = head + b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7]) + graph
    with suppress(FormatError):
        assert exact_form(hostile).rewritten == 1


# Operators that onnxruntime moves or drops between a DequantizeLinear and the layer.
BETWEEN = {
    "MaxPool": node("MaxPool", "r", "m", kernel_shape=[1, 1]),
    "Slice": node("Slice", "r begin end axis", "m"),
    "Dropout": node("Dropout", "r", "m"),
    "Pad": node("Pad", "r pads", "m"),
    "Expand": node("Expand", "r sizes", "m"),
    "Cast": node("Cast", "r", "m", to=TensorProto.FLOAT),
    "Add of 0": node("Add", "r nothing", "m"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_after_moved_operators_are_found(name):
    nodes = [
        node("DequantizeLinear", "x one zero", "r"),
        BETWEEN[name],
        node("DequantizeLinear", "w one z", "wr"),
        node("Conv", "m wr", "yr"),
        node("QuantizeLinear", "yr step zero"),
    ]
    constants = {
        "begin": np.array([0]), "end": np.array([SIDE]), "axis": np.array([2]), "pads": np.zeros(8, np.int64),
        "sizes": np.array(IMAGE), "nothing": np.float32(0),
    }  # fmt: skip
    used = {key: value for key, value in constants.items() if key in BETWEEN[name].input}
    data = model(nodes, IMAGE, w=CONV, one=ONE, zero=ZERO, z=np.int8(0), step=CONV_STEP, **used)
    assert_exact(data, np.rint(WINDOW / CONV_STEP))
    (layer,) = integer_layers(OnnxMessage(data))
    assert layer.saturating is None or layer.saturating > 0


def test_cyclic_graphs_do_not_loop():
    circle = [node("Identity", "l", "l"), node("Conv", "l l")]
    proto = onnx.helper.make_model(onnx.helper.make_graph(circle, "circle", [], [], []))
    assert exact_form(proto.SerializeToString()).rewritten == 0


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (2, -1), (1,) * 70])
def test_impossible_shapes_are_refused(shape):
    proto = onnx.load_from_string(conv())
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.ClearField("dims")
    weight.dims.extend(shape)
    with pytest.raises(FormatError, match="'w' has shape"):
        exact_form(proto.SerializeToString())
