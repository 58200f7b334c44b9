"""The protobuf-level reader of ONNX files, compared with the ``onnx`` package and on invalid bytes."""

import tracemalloc

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from strategies import GraphBuilder, graphs, in_any_8_bits
from waiting import processor_time

from firebox.export import write_onnx
from firebox.runtime.errors import FormatError
from firebox.runtime.formats.onnx_wire import OnnxMessage, matmul_model
from firebox.runtime.onnx_session import session_options

EIGHT_BITS = {TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8}


def assert_same_as_onnx(data: bytes) -> None:
    """Compare operators, 8-bit constants and inputs with the package's; without changes the file stays the same."""
    message, proto = OnnxMessage(data), onnx.load_from_string(data)
    for node, expected in zip(message.nodes, proto.graph.node, strict=True):
        assert (node.kind, node.domain, node.own_name) == (expected.op_type, expected.domain, expected.name)
        assert (node.inputs, node.outputs) == (tuple(expected.input), tuple(expected.output))
        integers = {a.name: a.i for a in expected.attribute if a.type == onnx.AttributeProto.INT}
        assert {name: node.attributes[name] for name in integers} == integers
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            tensors[node.output[0]] = node.attribute[0].t
    assert set(message.constants) == set(tensors)
    for name, tensor in tensors.items():
        found = message.constants[name]
        assert (found.shape, found.name) == (tuple(tensor.dims), name)
        assert found.dtype == EIGHT_BITS.get(tensor.data_type)
        if found.dtype is not None:
            np.testing.assert_array_equal(found.data, numpy_helper.to_array(tensor), err_msg=name)
    assert message.inputs == {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    assert onnx.load_from_string(message.with_changes({}, [])) == proto


@settings(max_examples=40)
@given(graphs(), st.integers(0, 1000))
def test_files_of_ours_are_read_as_the_package_reads_them(graph, seed):
    assert_same_as_onnx(write_onnx(graph, {"note": b"kept"}))
    assert_same_as_onnx(write_onnx(in_any_8_bits(graph, seed)))


def by_hand(weight: TensorProto, *, as_node: bool = False, name: str = "w") -> bytes:
    """One MatMulInteger of uint8 (1, 4) and a weight (4, 3)."""
    nodes = [helper.make_node("MatMulInteger", ["größe", name], ["出力"], name="knoten")]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], [name], value=weight))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("größe", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("出力", TensorProto.INT32, [1, 3])],
        [] if as_node else [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("kind", EIGHT_BITS)
@pytest.mark.parametrize("raw", [False, True])
def test_constants_are_read_in_all_encodings(as_node, kind, raw):
    limits = np.iinfo(EIGHT_BITS[kind])
    values = np.array([limits.min, limits.max, 0, 1, 127, *range(5, 12)]).astype(EIGHT_BITS[kind])
    weight = helper.make_tensor("Gewicht™", kind, (4, 3), values.tobytes() if raw else values.tolist(), raw=raw)
    data = by_hand(weight, as_node=as_node, name="Gewicht™")
    assert_same_as_onnx(data)
    assert OnnxMessage(data).constants["Gewicht™"].data.tolist() == values.reshape(4, 3).tolist()


def test_negative_integers_are_read_from_32_bit_fields():
    weight = TensorProto(name="w", data_type=TensorProto.INT8, dims=[4, 3], int32_data=[-128, -1, -127, *range(-4, 5)])
    found = OnnxMessage(by_hand(weight)).constants["w"].data
    assert found.dtype == np.int8
    assert found.ravel().tolist() == [-128, -1, -127, *range(-4, 5)]


def test_integers_that_are_not_packed_are_read_too():
    # Field 5 (int32_data) once per value: key 0x28, then the value, here -1 in ten bytes.
    minus_one = b"\x28" + b"\xff" * 9 + b"\x01"
    body = b"\x08\x02" + b"\x10\x03" + minus_one + b"\x28\x07" + b"\x42\x01w"
    graph = b"\x2a" + bytes([len(body)]) + body
    constant = OnnxMessage(b"\x3a" + bytes([len(graph)]) + graph).constants["w"]
    assert constant.data.tolist() == [-1, 7]


def test_constants_of_the_wrong_size_or_in_another_file_are_refused():
    few = TensorProto(name="few", data_type=TensorProto.INT8, dims=[4, 3], raw_data=b"1234")
    huge = TensorProto(name="huge", data_type=TensorProto.INT8, dims=[2**40, 2**40], raw_data=b"1234")
    elsewhere = TensorProto(name="elsewhere", data_type=TensorProto.INT8, dims=[4, 3])
    elsewhere.data_location = TensorProto.EXTERNAL
    reals = numpy_helper.from_array(np.ones((4, 3), np.float32), "reals")
    graph = helper.make_graph([], "graph", [], [], [few, huge, elsewhere, reals])
    constants = OnnxMessage(helper.make_model(graph).SerializeToString()).constants
    assert [constants[name].external for name in ("few", "elsewhere")] == [False, True]
    for name in constants:
        with pytest.raises(FormatError, match=repr(name)):
            _ = constants[name].data


def test_only_the_given_nodes_and_constants_change():
    weight = numpy_helper.from_array(np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "w")
    message = OnnxMessage(by_hand(weight))
    (node,) = message.nodes
    values = np.arange(12, dtype=np.uint8).reshape(4, 3)
    changed = message.with_changes({0: node.with_inputs(["größe", "neu", "", "null"])}, [("neu", values)])
    proto = onnx.load_from_string(changed)
    # The unused constant is dropped.
    assert [tensor.name for tensor in proto.graph.initializer] == ["neu"]
    np.testing.assert_array_equal(numpy_helper.to_array(proto.graph.initializer[0]), values)
    expected = onnx.load_from_string(by_hand(weight))
    expected.graph.node[0].input[:] = ["größe", "neu", "", "null"]
    expected.graph.ClearField("initializer")
    proto.graph.ClearField("initializer")
    assert proto == expected


def test_a_constant_that_is_an_input_or_output_stays():
    weight = numpy_helper.from_array(np.ones((4, 3), np.int8), "w")
    for place in ("input", "output"):
        proto = onnx.load_from_string(by_hand(weight))
        getattr(proto.graph, place).append(helper.make_tensor_value_info("w", TensorProto.INT8, [4, 3]))
        message = OnnxMessage(proto.SerializeToString())
        changed = message.with_changes(
            {0: message.nodes[0].with_inputs(["größe", "neu"])}, [("neu", np.ones((4, 3), np.int8))]
        )
        assert [tensor.name for tensor in onnx.load_from_string(changed).graph.initializer] == ["w", "neu"]


def small_file() -> bytes:
    build = GraphBuilder((1, 4, 4, 2))
    return write_onnx(in_any_8_bits(build.graph(build.linear(build.conv("input", 2, (2, 2)), 3))))


def read(data: bytes) -> None:
    """Use all functions on a file; only our own errors may be raised, without delay."""
    with processor_time(1):
        try:
            message = OnnxMessage(data)
            for node in message.nodes:
                assert isinstance(node.name, str)
                assert isinstance(node.attributes, dict)
            assert message.has_subgraphs in (True, False)
            assert message.has_functions in (True, False)
            assert isinstance(message.with_changes({}, [("new", np.zeros(2, np.int8))]), bytes)
            for constant in message.constants.values():
                if constant.dtype is not None:
                    assert constant.data.shape == constant.shape
        except FormatError as error:
            assert "\n" not in str(error)


def test_truncated_and_changed_files_raise_only_our_errors():
    data, random = small_file(), np.random.default_rng(0)
    changed = [data[:length] for length in range(0, len(data), 3)]
    for count in (1, 1, 1, 4) * 125:
        other = np.frombuffer(data, np.uint8).copy()
        other[random.integers(0, len(data), count)] = random.integers(0, 256, count)
        changed.append(other.tobytes())
    tracemalloc.start()
    try:
        for one in changed:
            read(one)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024**2


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_end_in_an_error_of_ours_or_none(data):
    read(data)
    read(b"\x3a" + bytes([len(data) % 128]) + data)


@pytest.mark.parametrize("data", [b"", b"\x08\x08", b"\x3a\x05ab", b"\xff" * 20, b"\x3b\x3c", b"TFL3", b"\x3d\x00\x00"])
def test_a_file_without_a_graph_is_refused(data):
    with pytest.raises(FormatError, match="not an ONNX file"):
        OnnxMessage(data)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("rows", "shape"), [(1, (2, 1)), (8, (64, 16)), (3, (300, 5))])
def test_matmul_model_is_valid_and_correct(dtype, rows, shape):
    random = np.random.default_rng(0)
    # Small enough that no kernel saturates.
    weight = random.integers(0, 64, shape).astype(dtype)
    data = matmul_model(weight, rows)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert_same_as_onnx(data)
    session = onnxruntime.InferenceSession(data, session_options(1), providers=["CPUExecutionProvider"])
    x = random.integers(0, 256, (rows, shape[0])).astype(np.uint8)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.astype(np.int32) @ weight.astype(np.int32))
