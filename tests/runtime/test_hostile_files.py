"""Truncated, changed and malicious files: a graph or one of our errors, in little time and memory."""

import resource
import struct

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from strategies import GraphBuilder
from waiting import processor_time

from firebox.export import calibrate, quantize, write_onnx, write_tflite
from firebox.runtime import Session, plan, read_graph
from firebox.runtime.errors import FireboxError, FormatError, UnsupportedError, UsageError
from firebox.runtime.formats.tflite_schema import read_model
from firebox.runtime.graph import Graph, ops


def network() -> Graph:
    """A small 8-bit network of all operations."""
    build = GraphBuilder((1, 8, 8, 3))
    x = build.conv("input", 4, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1))
    x = build.conv(x, 4, (3, 3), groups=4)
    x = build.add(ops.Pad, build.add(ops.Concat, x, build.conv(x, 2)), padding=(1, 1, 0, 0))
    x = build.add(ops.AveragePool, build.conv(x, 3), window=(2, 2))
    graph = build.graph(build.add(ops.Softmax, build.linear(x, 5)))
    sample = np.random.default_rng(0).standard_normal((1, 8, 8, 3), np.float32)
    return quantize(graph, calibrate(graph, [sample]))


FILES = {"onnx": write_onnx(network()), "tflite": write_tflite(network())}


def read(data: bytes) -> Graph | None:
    """Plan the bytes; only our own errors may be raised, within a second."""
    with processor_time(1):
        try:
            return plan(data).graph
        except FireboxError as error:
            assert "\n" not in str(error)
            return None


@pytest.mark.parametrize("kind", FILES)
def test_no_cut_file_is_a_network(kind):
    data = FILES[kind]
    whole = read(data)
    assert whole is not None
    for length in {*range(64), *range(0, len(data), 23), *range(len(data) - 40, len(data))}:
        # Data after the network may be missing.
        assert read(data[:length]) in (None, whole)
    with pytest.raises(FormatError):
        read_graph(b"")
    with pytest.raises(FormatError):
        read_graph(data[: len(data) // 2])


@settings(max_examples=500)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4))
def test_no_changed_byte_ends_in_someone_elses_error(kind, changes):
    data = bytearray(FILES[kind])
    for position, value in changes:
        data[position % len(data)] = value
    if kind == "tflite":
        data[4:8] = b"TFL3"
    read(bytes(data))


@settings(max_examples=100)
@given(st.binary(max_size=200))
@example(b"\x08\x00\x00\x00TFL3")
@example(b"\xff\xff\xff\xffTFL3" + bytes(16))
@example(b"\x08\x00\x00\x00TFL3" + b"\xff" * 64)
def test_random_bytes_are_no_network(data):
    assert read(data) is None
    assert read(b"\x08\x00\x00\x00TFL3" + data) is None


def test_wrong_lengths_and_offsets_in_a_tflite_file_raise_our_errors():
    data = FILES["tflite"]
    for position in range(0, len(data) - 4, 4):
        for value in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC):
            changed = bytearray(data)
            struct.pack_into("<I", changed, position, value)
            changed[4:8] = b"TFL3"
            read(bytes(changed))


def test_huge_sizes_in_a_small_file_allocate_no_memory():
    """The process grows little over all of them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = [
        model_of([], inputs=[helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 2**31 - 1, 2**31 - 1])]),
        model_of([], inputs=[helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 30_000, 30_000])]),
        model_of(
            [helper.make_node("Pad", ["input", "pads"], ["output"])],
            constants=[integers("pads", 0, 0, 2**40, 0, 0, 0, 2**40, 0)],
        ),
        model_of(
            [helper.make_node("Conv", ["input", "weight"], ["output"])],
            constants=[TensorProto(name="weight", data_type=1, dims=[2**20, 3, 2**10, 2**10], raw_data=b"1234")],
        ),
    ]
    for data in huge:
        assert read(data) is None or data is huge[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def model_of(nodes, constants=(), inputs=None) -> bytes:
    """An ONNX file with these nodes from ``input`` to ``output``."""
    inputs = inputs or [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", "c", "h", "w"])
    nodes = nodes or [helper.make_node("Relu", ["input"], ["output"])]
    graph = helper.make_graph(nodes, "hand", inputs, [output], list(constants))
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values), name)


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


@pytest.mark.parametrize(
    ("node", "constants", "error", "said"),
    [
        (("Gelu", ["input"], {}), [], UnsupportedError, "unsupported operation Gelu"),
        (("Conv", ["input", "none"], {}), [], UnsupportedError, "'none' must be constant"),
        (("Conv", ["input", "w"], {}), [constant("w", 4, 5, 1, 1)], FormatError, "Conv .* cannot be read"),
        (("Conv", ["input", "w"], {"strides": [0, 0]}), [constant("w", 4, 3, 1, 1)], FormatError, "stride"),
        (("Conv", ["input", "w"], {"group": 0}), [constant("w", 4, 3, 1, 1)], FormatError, "cannot be read"),
        (("Conv", ["input", "w"], {"auto_pad": "SAME"}), [constant("w", 4, 3, 1, 1)], UnsupportedError, "auto_pad"),
        (("Conv", ["input", "w"], {}), [constant("w", 4, 3, 9, 9)], UnsupportedError, "all dimensions"),
        (("MaxPool", ["input"], {}), [], FormatError, "kernel_shape"),
        (("MaxPool", ["input"], {"kernel_shape": [2, 2], "dilations": [2, 2]}), [], UnsupportedError, "dilation"),
        (("MaxPool", ["nothing"], {"kernel_shape": [2, 2]}), [], UnsupportedError, "undefined"),
        (("Clip", ["input", "low"], {}), [constant("low")], UnsupportedError, "only ReLU and ReLU6"),
        (("Add", ["input", "other"], {}), [constant("other", 1, 3, 8, 8)], UnsupportedError, "is constant"),
        (("Softmax", ["input"], {"axis": 2}), [], UnsupportedError, "only over the channels"),
        (("Flatten", ["input"], {}), [], UnsupportedError, "flattened image"),
        (("Reshape", ["input", "to"], {}), [integers("to", 1, -1, 7)], UnsupportedError, "only flattening"),
    ],
)  # fmt: skip
def test_the_error_names_what_is_unsupported(node, constants, error, said):
    kind, inputs, attributes = node
    data = model_of([helper.make_node(kind, inputs, ["output"], **attributes)], constants)
    with pytest.raises(error, match=said):
        read_graph(data)


def test_cycles_dynamic_shapes_and_external_weights_are_refused():
    again = [helper.make_node("Relu", ["output"], ["middle"]), helper.make_node("Relu", ["middle"], ["output"])]
    assert read(model_of(again)) is None
    with pytest.raises(FormatError, match="two operations compute"):
        read_graph(model_of([helper.make_node("Relu", ["input"], ["output"])] * 2))
    any_batch = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])
    for use in (read_graph, Session):
        with pytest.raises(FireboxError, match="dynamic shape"):
            use(model_of([], inputs=[any_batch]))
    elsewhere = constant("w", 1)
    elsewhere.data_location = TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="are in another file"):
        read_graph(model_of([], [elsewhere]))


def test_a_file_must_match_its_suffix(tmp_path):
    (tmp_path / "letter.onnx").write_text("Dear Sir or Madam")
    (tmp_path / "letter.tflite").write_text("Dear Sir or Madam")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "swapped.onnx").write_bytes(FILES["tflite"])
    (tmp_path / "swapped.tflite").write_bytes(FILES["onnx"])
    (tmp_path / "cut.tflite").write_bytes(FILES["tflite"][:1000])
    (tmp_path / "cut.onnx").write_bytes(FILES["onnx"][:-1])
    for path in sorted(tmp_path.iterdir()):
        for use in (read_graph, plan, Session):
            with pytest.raises(FormatError, match=path.name) as error:
                use(path)
            assert "\n" not in str(error.value)
    for name, said in (("none.onnx", "no such file"), ("model.pt", "ends neither"), ("folder.onnx", "is a folder")):
        (tmp_path / "folder.onnx").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=said):
            read_graph(tmp_path / name)


def offsets(data: bytes) -> tuple[int, int, int]:
    """Position of a file's vector of subgraphs, of its first entry, and its length."""
    root = struct.unpack_from("<I", data, 0)[0]
    vtable = root - struct.unpack_from("<i", data, root)[0]
    field = root + struct.unpack_from("<H", data, vtable + 4 + 2 * 2)[0]
    vector = field + struct.unpack_from("<I", data, field)[0]
    return vector, vector + 4, struct.unpack_from("<I", data, vector)[0]


def test_tables_that_refer_to_each_other_do_not_loop():
    data = bytearray(FILES["tflite"])
    vector, _, count = offsets(bytes(data))
    assert count == 1
    # A vector of a thousand references to one subgraph at the end of the file.
    target = vector + 4 + struct.unpack_from("<I", data, vector + 4)[0]
    root = struct.unpack_from("<I", data, 0)[0]
    field = root + struct.unpack_from("<H", data, root - struct.unpack_from("<i", data, root)[0] + 8)[0]
    data += b"\0" * (-len(data) % 4)
    new = len(data)
    data += struct.pack("<I", 1000)
    for index in range(1000):
        data += struct.pack("<I", (target - (new + 4 + 4 * index)) & 0xFFFFFFFF)
    struct.pack_into("<I", data, field, new - field)
    # Offsets are unsigned, so that a backward one points past the end.
    with pytest.raises(FormatError, match=r"cut short|damaged"):
        read_graph(bytes(data))


def test_a_table_shared_by_ten_thousand_entries_is_refused():
    # A root table with one field, operator_codes: a vector of offsets to one table after it.
    entries = 10_000
    head = struct.pack("<I4s", 20, b"TFL3") + struct.pack("<HHHHHH", 8, 8, 0, 4, 0, 0)
    root = struct.pack("<iI", 20 - 8, 4)
    vector = struct.pack("<I", entries)
    table = 20 + 8 + 4 + 4 * entries + 4
    places = b"".join(struct.pack("<I", table - (20 + 8 + 4 + 4 * index)) for index in range(entries))
    data = head + root + vector + places + struct.pack("<HH", 4, 4) + struct.pack("<i", 4)
    with processor_time(1), pytest.raises(FormatError, match="refer to the same bytes too often"):
        read_model(data + bytes(8))


def test_a_model_that_onnxruntime_quantized_is_read_planned_and_rewritten(tmp_path):
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    build = GraphBuilder((1, 8, 8, 3))
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.add(ops.MaxPool, x, window=(2, 2), stride=(2, 2))
    x = build.add(ops.Concat, build.conv(x, 4), build.conv(x, 6, activation="relu"))
    graph = build.graph(build.linear(x, 5))
    (tmp_path / "float.onnx").write_bytes(write_onnx(graph))
    random = np.random.default_rng(0)

    class Reader(CalibrationDataReader):
        left = 8

        def get_next(self):
            self.left -= 1
            return {"input": random.standard_normal((1, 3, 8, 8), np.float32)} if self.left >= 0 else None

    logging.disable(logging.WARNING)
    for per_channel in (False, True):
        target = tmp_path / f"int8-{per_channel}.onnx"
        quantize_static(
            tmp_path / "float.onnx", target, Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel
        )
        found = read_graph(target)
        assert sum(isinstance(op, ops.Conv) for op in found.ops) == 3
        inner = [tensor for tensor in found.activations if tensor.name not in (*found.inputs, *found.outputs)]
        assert {tensor.dtype for tensor in inner} == {"int8"}
        assert 0 < plan(target).arena_bytes < plan(tmp_path / "float.onnx").arena_bytes
        x = random.standard_normal((1, 3, 8, 8), np.float32)
        expected = Session(target).run(x)
        again = Session(write_onnx(found)).run(x)
        tensors = [tensor for tensor in found.activations if tensor.shape == (1, 5) and tensor.quantization]
        step = tensors[-1].quantization.scale[0]
        np.testing.assert_allclose(again, expected, atol=1.01 * step)
    logging.disable(logging.NOTSET)


def test_the_unchanged_files_are_valid():
    onnx.checker.check_model(FILES["onnx"], full_check=True)
    assert read(FILES["onnx"]) is not None
    assert read(FILES["tflite"]) is not None


def test_an_axis_that_is_not_an_integer_is_refused():
    scales = numpy_helper.from_array(np.ones(4, np.float32), "scales")
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "q")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scales"], ["w"], axis="rows"),
        helper.make_node("Conv", ["input", "w"], ["output"]),
    ]
    with pytest.raises(FormatError, match="axis that is not an integer"):
        read_graph(model_of(nodes, [scales, weight]))
