"""int8 files from other converters: read, planned, evaluated, and written again with the same outputs."""

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from strategies import GraphBuilder, in_any_8_bits

from firebox.export import quantize, write_onnx, write_tflite
from firebox.export.quantization import with_float16_weights, with_int8_weights
from firebox.runtime import Preprocessing, Session, plan, read_graph
from firebox.runtime.errors import FireboxError, FormatError, UnsupportedError, UsageError
from firebox.runtime.graph import Graph, ops
from firebox.runtime.graph.rewrite import integer_ends
from firebox.runtime.memory import measure_arena

KINDS = ("Conv", "MaxPool", "Conv", "Conv", "Concat", "Conv", "Add", "AveragePool", "Conv")
SHAPE = (1, 8, 8, 3)


def network() -> Graph:
    """A network with each kind of layer for which onnxruntime's quantizer has an integer operator."""
    build = GraphBuilder(SHAPE)
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.add(ops.MaxPool, x, window=(2, 2), stride=(2, 2))
    x = build.add(ops.Concat, build.conv(x, 4), build.conv(x, 6, activation="relu"))
    x = build.add(ops.Add, x, build.conv(x, 10, (3, 3), padding=(1, 1, 1, 1)))
    x = build.add(ops.AveragePool, x, window=(2, 2))
    x = build.add(ops.GlobalAveragePool, build.conv(x, 6))
    return build.graph(build.add(ops.Softmax, build.linear(build.add(ops.Reshape, x, shape=(1, 6)), 5)))


class Noise(CalibrationDataReader):
    """Calibration images."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.left = [{"input": random.standard_normal((1, 3, 8, 8), np.float32)} for _ in range(8)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.fixture(autouse=True)
def quiet():
    """Silence onnxruntime's quantizer, which logs a lot."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "float.onnx"
    path.write_bytes(write_onnx(network()))
    return path


def answers(model: bytes | Path, backend: str = "auto") -> np.ndarray:
    """Outputs for eight images of a network with float32 input and output."""
    random = np.random.default_rng(1)
    with Session(model, backend) as session:
        nchw = session.input_shape[1] == 3
        inputs = [random.standard_normal((1, 3, 8, 8), np.float32) for _ in range(8)]
        return np.stack([session.run(x if nchw else np.ascontiguousarray(x.transpose(0, 2, 3, 1))) for x in inputs])


def softmax_step(graph: Graph) -> float:
    quantization = graph.tensors[integer_ends(graph).outputs[0]].quantization
    assert quantization is not None
    return quantization.scale[0]


@pytest.mark.parametrize("format_", [QuantFormat.QOperator, QuantFormat.QDQ])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
def test_static_quantization_of_onnxruntime(source, tmp_path, format_, per_channel, activations):
    target = tmp_path / "int8.onnx"
    quantize_static(source, target, Noise(), quant_format=format_, per_channel=per_channel, activation_type=activations)
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert ("QLinearConv" in kinds) == (format_ is QuantFormat.QOperator)
    found = read_graph(target)
    inner = integer_ends(found)
    assert tuple(op.kind for op in inner.ops)[: len(KINDS)] == KINDS
    assert {tensor.dtype for tensor in inner.activations} == {"int8"}
    assert plan(inner).arena_bytes * 2 < plan(source).arena_bytes
    expected, step = answers(target), softmax_step(found)
    np.testing.assert_allclose(answers(write_onnx(found)), expected, atol=1e-6)
    for backend in ("litert", "tflite-runtime"):
        # Averages round differently, and the layers after them amplify the difference.
        steps = np.abs(answers(write_tflite(found), backend) - expected) / step
        assert np.median(steps) <= 1.01
        assert steps.max() <= 4.01


def test_tflite_files_rescale_the_inputs_of_a_concatenation_and_plans_include_that(source, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_static(source, target, Noise(), quant_format=QuantFormat.QOperator)
    found = integer_ends(read_graph(target))
    join = next(op for op in found.ops if isinstance(op, ops.Concat))
    assert len({found.tensors[name].quantization for name in (*join.inputs, join.output)}) > 1
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(found))
    written = read_graph(path)
    join = next(op for op in written.ops if isinstance(op, ops.Concat))
    assert len({written.tensors[name].quantization for name in (*join.inputs, join.output)}) == 1
    measured = measure_arena(path, "tflm", exact=True).total_bytes
    assert 0 <= (plan(found).total_bytes or 0) - measured <= 256


@pytest.mark.parametrize("activations", [QuantType.QInt16, QuantType.QUInt16])
def test_16_bit_activations_of_onnxruntime(source, tmp_path, activations):
    target = tmp_path / "int16.onnx"
    quantize_static(source, target, Noise(), quant_format=QuantFormat.QDQ, activation_type=activations)
    found = read_graph(target)
    assert {tensor.dtype for tensor in integer_ends(found).activations} == {"int16"}
    np.testing.assert_allclose(answers(write_onnx(found)), answers(target), atol=1e-5)
    with pytest.raises(UnsupportedError, match="16-bit integers with a zero point; TFLite supports none"):
        write_tflite(found)


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization_of_onnxruntime(source, tmp_path, weights, per_channel):
    target = tmp_path / "dynamic.onnx"
    quantize_dynamic(source, target, weight_type=weights, per_channel=per_channel)
    if weights is QuantType.QUInt8 and per_channel:
        with pytest.raises(UnsupportedError, match="a zero point per channel"):
            read_graph(target)
        return
    found = read_graph(target)
    assert [op.kind for op in found.ops] == [op.kind for op in network().ops]
    layers = [op for op in found.ops if isinstance(op, ops.Layer)]
    assert {found.tensors[op.inputs[1]].dtype for op in layers} == {"int8"}
    assert {tensor.dtype for tensor in found.activations} == {"float32"}
    # The original file quantizes activations at run time; the file written from its graph does not.
    np.testing.assert_allclose(answers(write_onnx(found)), answers(target), atol=0.01)
    np.testing.assert_allclose(answers(write_onnx(found)), answers(source), atol=0.02)


def test_uint8_weights_are_read_as_int8_and_keep_their_zero_point(source, tmp_path):
    target = tmp_path / "uint8.onnx"
    quantize_static(
        source, target, Noise(), activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8, per_channel=False
    )
    found = read_graph(target)
    np.testing.assert_allclose(answers(write_onnx(found)), answers(target), atol=1e-6)
    with pytest.raises(UnsupportedError, match="has a zero point; TFLite supports none"):
        write_tflite(found)


def test_a_float_layer_with_a_scale_per_output_is_not_written_as_tflite():
    build = GraphBuilder(SHAPE)
    graph = build.graph(build.linear("input", 5))
    mixed = with_int8_weights(graph)
    weight = mixed.tensors[mixed.ops[-1].inputs[1]]
    scales = tuple(float(value) for value in np.linspace(0.01, 0.02, 5))
    assert weight.quantization is not None
    many = replace(weight, quantization=replace(weight.quantization, scale=scales, axis=0))
    with pytest.raises(UnsupportedError, match="has a scale per output; TFLite supports one"):
        write_tflite(replace(mixed, tensors={**mixed.tensors, weight.name: many}))


# TFLite files in the style of TensorFlow's converter, made from ours with the generated builder of its schema.
schema = pytest.importorskip("tflite_micro.tensorflow.lite.micro.python.schema_py_generated")


def edited(data: bytes, edit) -> bytes:
    """A TFLite file after ``edit`` has changed its objects."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    edit(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operators(model, subgraph, kind: str):
    """Operators with this builtin code."""
    code = getattr(schema.BuiltinOperator, kind)
    return [
        operator for operator in subgraph.operators if model.operatorCodes[operator.opcodeIndex].builtinCode == code
    ]


def test_a_mean_without_kept_dimensions_and_a_layer_of_images_are_read():
    build = GraphBuilder(SHAPE)
    pooled = build.add(ops.GlobalAveragePool, build.conv("input", 6))
    graph = in_any_8_bits(build.graph(build.linear(pooled, 5)))

    def squeeze(model, subgraph):
        """Let MEAN drop its dimensions, (1, 6), and remove the reshape after it."""
        mean, reshape = (operators(model, subgraph, kind)[0] for kind in ("MEAN", "RESHAPE"))
        mean.builtinOptions.keepDims = False
        mean.outputs = reshape.outputs
        subgraph.operators.remove(reshape)

    def flatten(model, subgraph):
        """Let FULLY_CONNECTED read (1, 1, 1, 6)."""
        reshape, layer = (operators(model, subgraph, kind)[0] for kind in ("RESHAPE", "FULLY_CONNECTED"))
        layer.inputs = np.array([reshape.inputs[0], *layer.inputs[1:]], np.int32)
        subgraph.operators.remove(reshape)

    def keep(model, subgraph):
        """Let FULLY_CONNECTED keep the dimensions, (1, 1, 1, 5)."""
        flatten(model, subgraph)
        layer = operators(model, subgraph, "FULLY_CONNECTED")[0]
        layer.builtinOptions.keepNumDims = True
        subgraph.tensors[layer.outputs[0]].shape = np.array([1, 1, 1, 5], np.int32)

    expected = network_answers(write_tflite(graph))
    for edit in (squeeze, flatten, keep):
        data = edited(write_tflite(graph), edit)
        found = read_graph(data)
        assert [op.kind for op in found.ops if op.kind != "Reshape"] == ["Conv", "GlobalAveragePool", "FullyConnected"]
        np.testing.assert_array_equal(network_answers(data).reshape(8, -1), expected.reshape(8, -1))
        np.testing.assert_array_equal(network_answers(write_tflite(found)).reshape(8, -1), expected.reshape(8, -1))
        assert plan(data).arena_bytes >= plan(graph).arena_bytes


def network_answers(data: bytes) -> np.ndarray:
    """Outputs for eight images of integers."""
    random = np.random.default_rng(2)
    with Session(data) as session:
        return np.stack(
            [session.run(random.integers(-128, 128, session.input_shape).astype(np.int8)) for _ in range(8)]
        )


def test_constants_after_the_flatbuffer_are_read_within_the_file_only():
    build = GraphBuilder(SHAPE)
    graph = in_any_8_bits(build.graph(build.conv("input", 6)))
    plain = write_tflite(graph)
    behind = b"".join(
        bytes(buffer.data)
        for buffer in schema.ModelT.InitFromObj(schema.Model.GetRootAs(plain, 0)).buffers
        if buffer.data is not None
    )
    for cut in (0, 1):
        data = edited(plain, lambda model, _: move(model, 4096))
        assert len(data) < 4096
        data = data.ljust(4096, b"\0") + behind
        if cut:
            with pytest.raises(FormatError, match="is cut short: a buffer of"):
                read_graph(data[:-cut])
        else:
            assert read_graph(data) == read_graph(plain)
            assert (plan(data).target, plan(plain).target) == ("static", "tflm")
            with pytest.raises(UnsupportedError, match="does not find constants behind the flatbuffer"):
                plan(data, "tflm")
            for name, tensor in read_graph(plain).tensors.items():
                assert tensor.data is None or np.array_equal(tensor.data, read_graph(data).tensors[name].data)


def move(model, offset: int) -> None:
    """Move the data of all buffers to the end of the file."""
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.offset, buffer.size, buffer.data = offset, len(buffer.data), None
            offset += buffer.size


def test_transposes_around_nchw_images_are_read(tmp_path):
    build = GraphBuilder((1, 3, 12, 10))
    x = build.conv(build.add(ops.Transpose, "input", order=(0, 2, 3, 1)), 8, (3, 3), activation="relu")
    graph = build.graph(build.add(ops.Transpose, build.conv(x, 5), order=(0, 3, 1, 2)))
    path = tmp_path / "model.tflite"
    for drawn in (graph, in_any_8_bits(graph)):
        path.write_bytes(write_tflite(drawn))
        assert measure_arena(path, "tflm", exact=True).total_bytes == plan(path).total_bytes
        assert measure_arena(path, "litert").arena_bytes == plan(path, "litert").arena_bytes
        assert read_graph(write_onnx(drawn)).ops == drawn.ops
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 10), np.float32)
    onnx_answer = Session(write_onnx(graph)).run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(onnx_answer.transpose(0, 2, 3, 1), Session(write_tflite(graph)).run(x), atol=1e-5)


def test_dequantized_float16_and_integer_constants_are_read():
    graph = GraphBuilder(SHAPE)
    graph = graph.graph(graph.linear(graph.conv("input", 4, (3, 3)), 5))
    data = write_tflite(with_float16_weights(graph))
    found = read_graph(data)
    assert [op.kind for op in found.ops] == ["Conv", "Reshape", "FullyConnected"]
    assert {found.tensors[op.inputs[1]].dtype for op in found.ops if len(op.inputs) > 1} == {"float16"}
    assert write_tflite(found) == data


@pytest.fixture(scope="module")
def theirs(exported, tmp_path_factory) -> Path:
    """The exported network quantized by onnxruntime, and a TFLite file of it, both without firebox's metadata."""
    folder = tmp_path_factory.mktemp("theirs")
    with Session(exported / "model.float32.onnx") as session:
        random, name = np.random.default_rng(0), read_graph(exported / "model.float32.onnx").inputs[0]
        feeds = [{name: random.standard_normal(session.input_shape, np.float32)} for _ in range(4)]

    class Feeds(Noise):
        def __init__(self):
            self.left = list(feeds)

    quantize_static(
        exported / "model.float32.onnx", folder / "float_ends.onnx", Feeds(), quant_format=QuantFormat.QOperator
    )
    model = onnx.load(folder / "float_ends.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "float_ends.onnx")
    inner = integer_ends(read_graph(folder / "float_ends.onnx"))
    (folder / "integers.onnx").write_bytes(write_onnx(inner))
    (folder / "integers.tflite").write_bytes(write_tflite(inner))
    return folder


def test_files_without_a_contract_are_evaluated_like_a_model_that_has_one(theirs, exported, noise, command):
    ours = exported / "model.float32.onnx"
    ran = command("evaluate", ours, theirs, "--like", ours, "--data", noise, "--backend", "all", "--json")
    found = json.loads(ran.out)["models"]
    assert len(found) == 1 + 2 + 2
    assert all(model["agreement_with_first"] >= 0.75 for model in found)
    ran = command("evaluate", theirs, "--data", noise)
    assert ran.code == 2
    assert "--like" in ran.err


def test_a_session_takes_only_missing_metadata_from_another_file(theirs, exported):
    with Session(exported / "model.float32.tflite") as like:
        own = Session(exported / "model.int8.tflite", like=like)
        assert own.contract.golden is not None
        image = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        expected = Session(theirs / "float_ends.onnx", like=like).predict_pixels(image)
        for name in ("integers.onnx", "integers.tflite"):
            session = Session(theirs / name, like=like)
            assert (session.classes, session.preprocessing) == (like.classes, like.preprocessing)
            step = session.contract.output.scale
            assert step is not None
            np.testing.assert_allclose(session.predict_pixels(image), expected, atol=1.01 * step)

        class Larger:
            preprocessing = Preprocessing(size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
            classes, class_ids, predict_pixels = like.classes, (), like.predict_pixels

        with pytest.raises(UsageError, match=r"takes \(1, 3, 24, 24\), but the images .* are \(1, 48, 48, 3\)"):
            Session(theirs / "integers.onnx", like=Larger())


def hostile(*nodes, **constants: np.ndarray) -> bytes:
    """An ONNX file with these nodes from ``input`` to ``output``."""
    inputs = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, 8, 8])]
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["n", "c", "h", "w"])
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "hand", inputs, [output], values)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


ONE, ZERO = np.float32(1), np.int8(0)
WEIGHT = np.ones((4, 3, 1, 1), np.int8)
IN = helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"])
OUT = helper.make_node("DequantizeLinear", ["y", "s", "z"], ["output"])
DYNAMIC = helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "qs", "qz"])


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([IN, helper.make_node("QLinearConv", ["q", "s", "z", "w", "s"], ["y"]), OUT], "cannot be read|damaged"),
        ([IN, helper.make_node("QLinearConv", ["q"] * 9, ["y"]), OUT], "must be constant"),
        ([IN, helper.make_node("QLinearConv", ["q", "s", "z", "q", "s", "z", "s", "z"], ["y"]), OUT], "is computed"),
        ([IN, helper.make_node("QLinearConv", ["q", "n", "z", "w", "s", "z", "s", "z"], ["y"]), OUT], "not positive"),
        ([IN, helper.make_node("QLinearConv", [], ["y"]), OUT], "damaged|cannot be read|undefined"),
        ([IN, helper.make_node("QLinearSigmoid", ["q", "s", "z", "s", "z"], ["y"], domain="com.microsoft"), OUT],
         "unsupported operation QLinearSigmoid"),
        ([IN, helper.make_node("QLinearAveragePool", ["q", "s", "z", "s", "z"], ["y"], domain="com.microsoft",
                               channels_last=1), OUT], "channels_last"),
        ([IN, helper.make_node("Relu", ["q"], ["y"]), OUT], "dequantize them first"),
        ([helper.make_node("ConvInteger", ["input", "w"], ["output"])], "no DynamicQuantizeLinear computes its input"),
        ([DYNAMIC, helper.make_node("ConvInteger", ["q", "w", "qz"], ["output"])], "no operation computes|undefined"),
        ([DYNAMIC, helper.make_node("Mul", ["qs", "input"], ["f"]), helper.make_node("ConvInteger", ["q", "w"], ["i"]),
          helper.make_node("Mul", ["i", "f"], ["output"])], "must be constant"),
        ([helper.make_node("Mul", ["input", "s"], ["output"])], "unsupported operation Mul"),
        ([helper.make_node("Mul", ["input"], ["output"])], "damaged"),
        ([helper.make_node("Cast", ["input"], ["output"], to=10)], "only from float16 constants"),
        ([helper.make_node("DequantizeLinear", ["w", "many", "zeros"], ["r"], axis=0),
          helper.make_node("Conv", ["input", "r"], ["output"])], "a zero point per channel"),
    ],
)  # fmt: skip
def test_damaged_integer_operators_raise_our_errors(nodes, said):
    data = hostile(
        *nodes,
        s=ONE,
        z=ZERO,
        n=np.float32(-1),
        w=WEIGHT,
        many=np.ones(4, np.float32),
        zeros=np.arange(4, dtype=np.int8),
    )
    with pytest.raises(FireboxError, match=said) as error:
        plan(data)
    assert "\n" not in str(error.value)


def test_a_changed_byte_of_an_integer_model_never_raises_a_foreign_error(source, tmp_path):
    files = []
    quantize_static(source, tmp_path / "q.onnx", Noise(), quant_format=QuantFormat.QOperator)
    quantize_dynamic(source, tmp_path / "d.onnx")
    files = [bytearray((tmp_path / name).read_bytes()) for name in ("q.onnx", "d.onnx")]
    files += [bytearray(write_tflite(make(network()))) for make in (with_float16_weights, quantized)]
    random = np.random.default_rng(0)
    for data in files:
        for _ in range(100):
            changed = bytearray(data)
            for position in random.integers(8, len(data), 3):
                changed[position] = random.integers(0, 256)
            try:
                plan(bytes(changed))
            except FireboxError as error:
                assert "\n" not in str(error)
        for start, _ in pairwise(range(0, len(data), len(data) // 20)):
            with pytest.raises(FireboxError):
                plan(bytes(data[:start]))


def quantized(graph: Graph) -> Graph:
    from firebox.export import calibrate

    return quantize(graph, calibrate(graph, [np.random.default_rng(0).standard_normal(SHAPE, np.float32)]))
