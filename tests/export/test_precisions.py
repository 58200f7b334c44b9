"""float16 weights, int8 weights with float activations, 16-bit layers: results, sizes and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from strategies import GraphBuilder, graphs, in_any_8_bits

from firebox.export import ExportConfig, Tolerance, calibrate, export, quantize, write_onnx, write_tflite
from firebox.export.quantization import (
    input_moments,
    with_float16_weights,
    with_input_type,
    with_int8_weights,
    with_int16_layers,
)
from firebox.model_zoo import load_network
from firebox.runtime import Session, open_images, plan, profile, read_graph
from firebox.runtime.errors import FormatError, QuantizationError, UnsupportedError, UsageError
from firebox.runtime.graph import Graph, ops
from firebox.runtime.memory import measure_arena

runs = settings(max_examples=30)


def images(graph: Graph, count: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(graph.tensors["input"].shape, np.float32) for _ in range(count)]


def run_onnx(data: bytes, x: np.ndarray) -> np.ndarray:
    """The output, NHWC."""
    with Session(data) as session:
        y = session.run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def run_tflite(data: bytes, x: np.ndarray, backend: str = "litert") -> np.ndarray:
    with Session(data, backend) as session:
        return session.run(x)


def run_micro(data: bytes, x: np.ndarray) -> np.ndarray:
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1024**2)
    interpreter.set_input(x, 0)
    interpreter.invoke()
    return interpreter.get_output(0)


def fire(softmax: bool = False) -> Graph:
    """A network with every kind of layer that has weights."""
    build = GraphBuilder((1, 12, 12, 3))
    x = build.conv("input", 8, (3, 3), stride=(2, 2), activation="relu")
    x = build.conv(x, 8, (3, 3), 8, padding=(1, 1, 1, 1), activation="relu6")
    x = build.add(ops.Concat, build.conv(x, 4, activation="relu"), build.conv(x, 4, (3, 3), padding=(1, 1, 1, 1)))
    x = build.add(ops.Add, build.add(ops.MaxPool, x, window=(1, 1)), build.conv(x, 8), activation="relu")
    x = build.linear(x, 5)
    return build.graph(build.add(ops.Softmax, x) if softmax else x)


@runs
@given(graphs(leave_out=("average",)))
def test_float16_weights_equal_the_same_values_in_float32(graph):
    half = with_float16_weights(graph)
    tensors = {
        name: replace(tensor, dtype="float32", data=tensor.real()) if tensor.dtype == "float16" else tensor
        for name, tensor in half.tensors.items()
    }
    expected = run_onnx(write_onnx(replace(half, tensors=tensors)), images(graph)[0])
    (x, _) = images(graph)
    np.testing.assert_allclose(run_onnx(write_onnx(half), x), expected, atol=1e-4)
    for backend in ("litert", "tflite-runtime"):
        np.testing.assert_allclose(run_tflite(write_tflite(half), x, backend), expected, atol=1e-4)


@runs
@given(graphs())
def test_mixed_graphs_round_trip_in_both_formats(graph):
    for mixed in (with_float16_weights(graph), with_int8_weights(graph)):
        for data in (write_onnx(mixed), write_tflite(mixed)):
            found = read_graph(data)
            weights = {tensor.dtype for tensor in found.tensors.values() if tensor.data is not None}
            assert weights == {tensor.dtype for tensor in mixed.tensors.values() if tensor.data is not None}
            assert found.weight_bytes == mixed.weight_bytes
            assert [op.kind for op in found.ops if op.kind != "Pad"] == [
                op.kind for op in mixed.ops if op.kind != "Pad"
            ]


def test_int8_weights_take_a_quarter_and_stay_close_in_every_runtime():
    graph = fire()
    samples = images(graph, 16)
    mixed = with_int8_weights(graph, input_moments(graph, samples))
    weights = [mixed.tensors[op.inputs[1]] for op in mixed.ops if isinstance(op, ops.Layer)]
    assert {(tensor.dtype, tensor.nbytes * 4) for tensor in weights} == {
        ("int8", graph.tensors[op.inputs[1]].nbytes) for op in graph.ops if isinstance(op, ops.Layer)
    }
    for x in samples[:4]:
        expected = run_onnx(write_onnx(graph), x)
        limit = 0.03 * np.abs(expected).max()
        assert np.abs(run_onnx(write_onnx(mixed), x) - expected).max() < limit
        for backend in ("litert", "tflite-runtime"):
            assert np.abs(run_tflite(write_tflite(mixed), x, backend) - expected).max() < limit


def test_calibration_images_improve_int8_weights():
    graph = fire()
    samples, unseen = images(graph, 64)[:32], images(graph, 64)[32:]
    expected = [run_onnx(write_onnx(graph), x) for x in unseen]

    def error(found: Graph) -> float:
        data = write_onnx(found)
        return sum(float(((run_onnx(data, x) - y) ** 2).sum()) for x, y in zip(unseen, expected, strict=True))

    assert error(with_int8_weights(graph, input_moments(graph, samples))) < error(with_int8_weights(graph))


@runs
@given(graphs(leave_out=("average", "groups")))
def test_16_bit_layers_are_identical_in_three_runtimes(graph):
    small = quantize(graph, calibrate(graph, images(graph)))
    wide = with_int16_layers(small, ["*"])
    assert {tensor.dtype for tensor in wide.activations[1:]} == {"int16"}
    x = small.tensors["input"].quantization.quantize(images(graph)[0], "int8")
    expected = run_onnx(write_onnx(wide), (x.astype(np.int16) + 128).astype(np.uint8)).astype(int)
    for answer in (run_tflite(write_tflite(wide), x), run_micro(write_tflite(wide), x)):
        # Fixed-point rescaling is occasionally off by one 16-bit step.
        assert np.abs(answer.astype(int) - expected).max() <= 12


def test_16_bit_layers_are_closer_to_float_than_8_bit_ones():
    graph = fire()
    samples = images(graph, 8)
    small = quantize(graph, calibrate(graph, samples))
    errors = []
    for layers in ([], ["fullyconnected*", "reshape*", "add*"], ["*"]):
        found = with_int16_layers(small, layers)
        output, data = found.tensors[found.outputs[0]].quantization, write_tflite(found)
        integers = [small.tensors["input"].quantization.quantize(x, "int8") for x in samples]
        answers = [output.dequantize(run_tflite(data, x)) for x in integers]
        floats = [run_onnx(write_onnx(graph), x) for x in samples]
        errors.append(sum(float(((a - b) ** 2).sum()) for a, b in zip(answers, floats, strict=True)))
    assert errors[0] > errors[1] > errors[2]


def test_a_quantize_stands_only_between_8_and_16_bits():
    graph = fire(softmax=True)
    small = quantize(graph, calibrate(graph, images(graph)))
    conv = small.ops[0].name
    wide = with_int16_layers(small, [conv])
    assert [op.output for op in wide.ops if isinstance(op, ops.Quantize)] == ["input/int16", f"{conv}/int8"]
    assert wide.tensors[wide.ops[1].inputs[2]].dtype == "int64"
    last = with_int16_layers(small, ["softmax*"])
    assert last.tensors[last.outputs[0]].quantization.scale == (1 / 32768,)
    both = with_input_type(wide, "uint8")
    x = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        run_tflite(write_tflite(both), x), run_tflite(write_tflite(wide), (x.astype(np.int16) - 128).astype(np.int8))
    )


def test_tflite_runtime_refuses_16_bit_layers():
    graph = fire()
    wide = with_int16_layers(quantize(graph, calibrate(graph, images(graph))), ["*"])
    with pytest.raises(FormatError, match="tflite-runtime cannot load the file"):
        Session(write_tflite(wide), "tflite-runtime")


def test_random_networks_of_16_bits_are_planned_to_the_byte(tmp_path):
    path = tmp_path / "model.tflite"

    @settings(max_examples=4, phases=[Phase.generate])
    @given(graphs())
    def check(graph):
        path.write_bytes(write_tflite(with_int16_layers(in_any_8_bits(graph), ["*"])))
        planned = plan(path)
        found = measure_arena(path, "tflm", exact=True)
        assert planned.target == "tflm"
        assert planned.total_bytes is not None
        assert 0 <= planned.total_bytes - found.total_bytes <= 256
        reference = "litert-reference"
        assert plan(path, reference).arena_bytes == measure_arena(path, reference).arena_bytes

    check()


def test_plans_refuse_targets_with_unknown_kernels(tmp_path):
    graph = fire()
    path = tmp_path / "half.tflite"
    half = with_float16_weights(graph)
    path.write_bytes(write_tflite(half))
    for target in ("litert-reference", "litert"):
        assert plan(path, target).arena_bytes == measure_arena(path, target).arena_bytes
    lines = {line.name: (line.nbytes, line.source) for line in plan(path, "litert-reference").account()}
    stored = sum(tensor.nbytes for tensor in half.tensors.values() if tensor.dtype == "float16")
    assert lines["float16 weights as float32"] == (2 * stored, "planned")
    planned = plan(path)
    assert (planned.target, planned.total_bytes) == ("static", None)
    assert planned.verdict(planned.arena_bytes).about == "arena"
    with pytest.raises(
        UnsupportedError, match=r"tflite-micro has no kernel for float16 weights .*; plan it for another"
    ):
        plan(path, "tflm")
    with pytest.raises(FormatError, match="tflm cannot run"):
        measure_arena(path, "tflm")
    path.write_bytes(write_tflite(with_int8_weights(graph)))
    assert plan(path).target == "static"
    for target in ("tflm", "litert", "litert-reference"):
        with pytest.raises(UnsupportedError, match="int8 weights between float32 activations"):
            plan(path, target)
    with pytest.raises(FormatError, match="arena cannot be separated from its buffers"):
        measure_arena(path, "litert-reference")
    assert profile(path, max_seconds=0.2).target == "static"
    path.write_bytes(write_tflite(with_int16_layers(in_any_8_bits(graph), ["*"])))
    with pytest.raises(UnsupportedError, match=r"16-bit activations .* is unknown; plan it for another target: tflm"):
        plan(path, "litert")


def test_unsupported_precisions_are_refused():
    graph = fire()
    small = in_any_8_bits(graph)
    with pytest.raises(UsageError, match=r"no layer is called 'fire\*'; names run from conv0 to fullyconnected"):
        with_int16_layers(small, ["conv*", "fire*"])
    with pytest.raises(QuantizationError, match="has float32 activations; only int8 layers"):
        with_int16_layers(graph, ["*"])
    with pytest.raises(QuantizationError, match="has int8 weights already"):
        with_float16_weights(small)
    with pytest.raises(QuantizationError, match="has float16 weights already"):
        with_int8_weights(with_float16_weights(graph))
    weight = graph.tensors[graph.ops[0].inputs[1]]
    for value, said in ((1e6, "not finite in float16"), (np.nan, "not finite in float16")):
        spoilt = replace(weight, data=np.full(weight.shape, value, np.float32))
        with pytest.raises(QuantizationError, match=f"a weight of 'conv0' is {said}"):
            with_float16_weights(replace(graph, tensors={**graph.tensors, weight.name: spoilt}))
    spoilt = replace(weight, data=np.full(weight.shape, np.inf, np.float32))
    with pytest.raises(QuantizationError, match="weights of 'conv0' are not finite"):
        with_int8_weights(replace(graph, tensors={**graph.tensors, weight.name: spoilt}))
    with pytest.raises(UsageError, match=r"16-bit layers \(conv\*\) need an int8 file"):
        ExportConfig(precisions=("float32",), int16_layers=("conv*",))
    with pytest.raises(UsageError, match="16-bit layers cannot be fitted"):
        ExportConfig(int16_layers=("conv*",), sram_bytes=1024)


def test_zero_weights_and_layers_without_weights_are_unchanged():
    build = GraphBuilder((1, 4, 4, 2))
    graph = build.graph(build.linear(build.conv("input", 3), 4))
    zeros = {
        op.inputs[1]: replace(graph.tensors[op.inputs[1]], data=np.zeros(graph.tensors[op.inputs[1]].shape, np.float32))
        for op in graph.ops
        if isinstance(op, ops.Layer)
    }
    graph = replace(graph, tensors={**graph.tensors, **zeros})
    x = images(graph)[0]
    for backend in ("litert", "tflite-runtime"):
        found = run_tflite(write_tflite(with_int8_weights(graph)), x, backend)
        np.testing.assert_allclose(found, run_onnx(write_onnx(graph), x), atol=1e-6)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, noise):
    """squeezenet_micro in every precision, with its last layers in 16 bits."""
    network = load_network("squeezenet_micro", random_init=True, num_classes=3, input_size=(24, 24))
    anything = Tolerance(sqnr_db=-100, agreement=0, formats_agreement=0)
    return export(
        network.module,
        tmp_path_factory.mktemp("mixed"),
        preprocessing=network.preprocessing,
        images=open_images(noise),
        classes=("class0", "class1", "class2"),
        config=ExportConfig(
            calibration_images=4,
            precisions=("float32", "float16", "dynamic", "int8"),
            int16_layers=("classifier*", "output"),
            tolerance=anything,
        ),
    )


def test_every_precision_is_exported_with_size_and_agreement(mixed):
    report = json.loads((mixed.out / "export.json").read_text())
    assert report["int16_layers"] == ["classifier*", "output"]
    sizes = {path.name: path.stat().st_size for path in mixed.files}
    assert {name: facts["bytes"] for name, facts in report["files"].items()} == sizes
    assert sizes["model.dynamic.tflite"] < sizes["model.float16.tflite"] < sizes["model.float32.tflite"]
    found = {entry["file"]: entry for entry in report["parity"]["files"]}
    assert set(found) == set(sizes)
    for ending in ("onnx", "tflite"):
        assert found[f"model.float16.{ending}"]["relative"] < 0.01
        assert found[f"model.dynamic.{ending}"]["sqnr_db"] > found[f"model.int8.{ending}"]["sqnr_db"] - 3
        for precision in ("float32", "float16", "dynamic", "int8"):
            with Session(mixed.out / f"model.{precision}.{ending}") as session:
                assert session.check().passed
    assert Session(mixed.out / "model.int8.tflite").contract.output.dtype == "int16"
    assert {report["files"][f"model.{name}.tflite"]["target"] for name in ("float16", "dynamic")} == {"static"}


def test_other_runtimes_pass_the_golden_check_of_mixed_files(mixed):
    for precision in ("float16", "dynamic"):
        with Session(mixed.out / f"model.{precision}.tflite", "tflite-runtime") as session:
            assert session.check().passed


def test_commands_accept_every_precision_or_give_the_reason(mixed, command, noise, tmp_path):
    for precision in ("float16", "dynamic", "int8"):
        file = mixed.out / f"model.{precision}.tflite"
        assert json.loads(command("plan", file, "--json").out)["arena_bytes"] > 0
        assert command("report", file, "-o", tmp_path / "page.html").code == 0
        ran = command("fit", file, "--sram", "8KiB", "--out", tmp_path / "fitted")
        assert ran.code == 2
        assert "fit supports int8 only" in ran.err
    ran = command("evaluate", mixed.out, "--data", noise, "--json")
    assert len(json.loads(ran.out)["models"]) == 8
    ran = command("export", "squeezenet_micro", "--precision", "bfloat16")
    assert ran.code == 2
