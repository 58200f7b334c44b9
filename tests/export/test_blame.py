"""Blame and repair: broken layers are found and fixed, known figures are exact, bad input ends in one line."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strategies import GraphBuilder, graphs

from firebox.export import blame, calibrate, fit, quantize, write_onnx, write_tflite
from firebox.export.activations import run_outputs
from firebox.export.blame.float_layers import adjacent_ops, keep_float, quantizers, with_float_layer
from firebox.export.blame.matching import match
from firebox.export.blame.sensitivity import class_agreement, sqnr
from firebox.export.formats.contract_writer import contract_for_file
from firebox.export.quantization import Range
from firebox.runtime import Session, plan
from firebox.runtime.contract import KEY, Contract, TensorSpec
from firebox.runtime.errors import FireboxError, QuantizationError, UsageError
from firebox.runtime.formats.read import read_graph
from firebox.runtime.graph import Graph, ops
from firebox.runtime.images import Preprocessing

SIZE = 16
CLASSES = 10
PREPROCESSING = Preprocessing((SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)


@cache
def network(seed: int = 0) -> Graph:
    """conv0 to conv3 with ReLU, a pool and a classifier fitted to the images' classes."""
    build = GraphBuilder((1, SIZE, SIZE, 3), seed)
    x = build.conv("input", 16, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), activation="relu")
    x = build.conv(x, 12, activation="relu")
    x = build.conv(x, 16, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    pooled = build.add(ops.GlobalAveragePool, build.conv(x, 24, activation="relu"))
    graph = build.graph(build.linear(pooled, CLASSES))
    features = run_outputs(build.graph(pooled), samples(200, seed=3))
    scores = np.eye(CLASSES)[np.arange(200) % CLASSES] - 0.1
    centred = features - features.mean(0)
    solved = np.linalg.solve(centred.T @ centred + 1e-3 * np.eye(24) * (centred**2).sum() / 24, centred.T @ scores)
    constants = solved.T, -features.mean(0) @ solved
    tensors = dict(graph.tensors)
    for name, data in zip(graph.producers[graph.outputs[0]].inputs[1:], constants, strict=True):
        tensors[name] = replace(tensors[name], data=data.astype(np.float32))
    return replace(graph, tensors=tensors)


def fire_network() -> Graph:
    build = GraphBuilder((1, SIZE, SIZE, 3), 3)
    x = build.conv("input", 8, (3, 3), activation="relu")
    x = build.conv(x, 4, activation="relu")
    wide = [build.conv(x, 6, activation="relu"), build.conv(x, 6, (3, 3), padding=(1, 1, 1, 1), activation="relu")]
    x = build.add(ops.MaxPool, build.add(ops.Concat, *wide), window=(2, 2), stride=(2, 2))
    x = build.conv(x, 5, activation="relu")
    return build.graph(build.linear(build.add(ops.GlobalAveragePool, x), CLASSES))


def rescaled(graph: Graph, first: str, second: str, factors: np.ndarray) -> Graph:
    """Multiply a layer's output channels by factors and divide the next layer's inputs: the same function."""
    tensors = dict(graph.tensors)
    (weight, bias), taker = (graph.producers[first].inputs[1:], graph.producers[second].inputs[1])
    for name, factor in ((weight, factors[:, None, None, None]), (bias, factors), (taker, 1 / factors)):
        data = (graph.constant(name).real() * factor).astype(np.float32)
        tensors[name] = replace(tensors[name], data=data)
    return replace(graph, tensors=tensors)


def scaled_by_64(graph: Graph) -> Graph:
    """Multiply every other channel of conv1 by 64 and divide the weights of conv2 for it."""
    return rescaled(graph, "conv1", "conv2", np.where(np.arange(12) % 2, 64.0, 1.0))


def with_an_outlier(graph: Graph) -> Graph:
    """Widen one channel of conv1 by a factor of hundreds."""
    return rescaled(graph, "conv1", "conv2", np.where(np.arange(12) == 3, 300.0, 1.0))


def pixels(count: int, seed: int = 0) -> list[np.ndarray]:
    """Noisy gratings, the classes in turn; each class has its colours, directions and frequencies."""
    random, classes = np.random.default_rng(seed), np.random.default_rng(77)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = classes.uniform(0.5, 5, (CLASSES, 2, 1, 1)) * classes.choice([-1, 1], (CLASSES, 2, 1, 1))
    colours = classes.normal(0, 50, (CLASSES, 2, 3))
    found = []
    for index in range(count):
        (down, along), (stripes, ground) = waves[index % CLASSES], colours[index % CLASSES]
        phase = down * rows + along * columns + random.uniform()
        image = 128 + ground + np.sin(2 * np.pi * phase)[..., None] * stripes + random.normal(0, 20, (SIZE, SIZE, 3))
        found.append(np.clip(image, 0, 255).astype(np.uint8))
    return found


def samples(count: int, seed: int = 0) -> list[np.ndarray]:
    return [PREPROCESSING.normalize(image)[None] for image in pixels(count, seed)]


def in_int8(graph: Graph, method="minmax") -> Graph:
    return quantize(graph, calibrate(graph, samples(40), method))


def saved(folder: Path, name: str, graph: Graph) -> None:
    """Write both formats, each with its contract, as firebox does."""
    none = TensorSpec("float32", ())
    classes = tuple(f"class {index}" for index in range(CLASSES))
    contract = Contract(name, PREPROCESSING, classes, (), "NHWC", "logits", none, none)
    metadata = {layout: {KEY: contract_for_file(contract, graph, layout).to_bytes()} for layout in ("NCHW", "NHWC")}
    (folder / f"{name}.onnx").write_bytes(write_onnx(graph, metadata["NCHW"]))
    (folder / f"{name}.tflite").write_bytes(write_tflite(graph, metadata["NHWC"]))


@pytest.fixture(scope="module")
def gratings(tmp_path_factory) -> Path:
    """A folder of images in two class folders."""
    folder = tmp_path_factory.mktemp("gratings")
    for label in range(2):
        (folder / f"class{label}").mkdir()
    for index, image in enumerate(pixels(120, seed=5)):
        Image.fromarray(image).save(folder / f"class{index % 2}" / f"{index}.png")
    return folder


@pytest.mark.parametrize("breaking", [scaled_by_64, with_an_outlier])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_broken_layer_is_ranked_first_with_the_right_fix(breaking, seed):
    whole, broken = network(seed), breaking(network(seed))
    found = blame(broken, in_int8(broken), samples(50, seed=1))
    assert found.layers[0].layer in ("conv1", "conv2")
    assert found.layers[0].advice.fix == "equalize"
    assert found.layers[0].recovered > 0.4
    sound = blame(whole, in_int8(whole), samples(50, seed=1))
    assert all(layer.advice.fix != "equalize" for layer in sound.layers)
    assert sound.sqnr_db > found.sqnr_db + 3


@pytest.mark.parametrize("breaking", [scaled_by_64, with_an_outlier])
def test_the_command_repairs_a_broken_network(command, gratings, tmp_path, breaking):
    broken = breaking(network())
    saved(tmp_path, "float", broken)
    saved(tmp_path, "int8", in_int8(broken))
    files = (tmp_path / "float.onnx", tmp_path / "int8.tflite")
    options = ("--data", gratings, "--images", 60, "--fix", "--target-agreement", 0.96, "-o", tmp_path / "out")
    ran = command("blame", *files, *options, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["agreement"] < 0.96
    assert report["layers"][0]["advice"]["fix"] == "equalize"
    assert report["repair"]["reached"]
    assert report["repair"]["calibration_images"] == 60
    assert report["repair"]["float_layers"] == []
    last = report["repair"]["steps"][-1]
    assert (last["fix"], last["kept"]) == ("equalize", True)
    assert min(report["repair"]["files_agreement"].values()) >= 0.96
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"int8.{figure}.json" for figure in ("recovered", "agreement_gain", "sqnr_db")}
    assert written == {"blame.json", "int8.fixed.onnx", "int8.fixed.tflite", *figures}
    assert {Path(path).name for path in report["files"]} == written
    for name in ("int8.fixed.onnx", "int8.fixed.tflite"):
        with Session(tmp_path / "out" / name) as session:
            assert session.check().passed
    nodes = json.loads((tmp_path / "out" / "int8.recovered.json").read_text())["results"]
    assert set(nodes) <= set(read_graph(files[1]).tensors)


def test_the_command_prints_layers_and_fixes(command, gratings, tmp_path):
    broken = with_an_outlier(network())
    saved(tmp_path, "float", broken)
    saved(tmp_path, "int8", in_int8(broken))
    files = (tmp_path / "float.tflite", tmp_path / "int8.onnx")
    ran = command("blame", *files, "--data", gratings, "--images", 30)
    assert ran.code == 0, ran.err
    layers, _, advised = ran.out.partition("Suggested fixes")
    assert "conv" in layers
    worst = next(line for line in advised.splitlines() if "conv" in line)
    assert "equalize" in worst
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "float.onnx",
        "float.tflite",
        "int8.onnx",
        "int8.tflite",
    ]


def with_twins(graph: Graph) -> Graph:
    """A network in which two classes differ by less than a step of the output, and all others are out of reach."""
    weight, bias = graph.producers[graph.outputs[0]].inputs[1:]
    rows, offsets = graph.constant(weight).real().copy(), graph.constant(bias).real().copy()
    rows[1], offsets[1] = rows[0] + 1e-5 * rows[2], offsets[0] + 1e-5 * offsets[2]
    offsets[2:] -= 100
    tensors = {weight: replace(graph.tensors[weight], data=rows), bias: replace(graph.tensors[bias], data=offsets)}
    return replace(graph, tensors={**graph.tensors, **tensors})


def test_a_missed_target_reports_the_closest_result(command, gratings, tmp_path):
    broken = with_twins(network())
    saved(tmp_path, "float", broken)
    saved(tmp_path, "int8", in_int8(broken))
    files = (tmp_path / "float.onnx", tmp_path / "int8.onnx")
    ran = command("blame", *files, "--data", gratings, "--images", 20, "--fix", "--json")
    assert ran.code == 1
    assert "--target-agreement 0.97 was not reached: the closest result agrees on" in ran.err
    report = json.loads(ran.out)
    out = tmp_path / "int8.onnx.fixed"
    assert json.loads((out / "blame.json").read_text()) == {k: v for k, v in report.items() if k != "files"}
    assert not list(out.glob("*.fixed.*"))
    assert report["repair"]["reached"] is False
    tried = [step["fix"] for step in report["repair"]["steps"]]
    assert list(dict.fromkeys(tried))[:4] == ["calibrate", "equalize", "correct bias", "round weights"]
    assert report["repair"]["agreement"] == max(
        report["agreement"], *(step["agreement"] for step in report["repair"]["steps"])
    )


def test_a_sound_network_is_not_fixed(command, gratings, tmp_path):
    saved(tmp_path, "float", network())
    saved(tmp_path, "int8", in_int8(network()))
    files = (tmp_path / "float.onnx", tmp_path / "int8.onnx")
    ran = command("blame", *files, "--data", gratings, "--images", 20, "--fix", "-o", tmp_path / "out")
    assert ran.code == 0
    assert "already agrees on" in ran.err
    assert not list((tmp_path / "out").glob("*.fixed.*"))


def test_layers_stay_float_if_no_scale_helps():
    """The tensor with an outlier and its neighbours stay float in an otherwise int8 network."""
    graph, judged = with_an_outlier(network()), samples(40, seed=1)
    found = match(graph, in_int8(graph))
    ranked = blame(graph, in_int8(graph), samples(20, seed=2))
    layer = ranked.layers[0].layer
    island = keep_float(found, adjacent_ops(found.quantized, quantizers(found.quantized)[layer]))
    expected = run_outputs(graph, judged)
    assert (
        class_agreement(expected, run_outputs(island, judged))
        > class_agreement(expected, run_outputs(found.quantized, judged)) + 0.5
    )


def test_a_network_without_rounding_has_no_error():
    """Weights and inputs are multiples of their scales: the int8 network equals the float network."""
    build = GraphBuilder((1, 4, 4, 2))
    x = build.conv("input", 3)
    graph = build.graph(x)
    weight, bias = graph.producers[x].inputs[1:]
    tensors = dict(graph.tensors)
    data = np.array([[127, 1], [-127, 5], [127, -3]], np.float32).reshape(3, 1, 1, 2)
    tensors |= {weight: replace(tensors[weight], data=data), bias: replace(tensors[bias], data=np.zeros(3, np.float32))}
    graph = replace(graph, tensors=tensors)
    ranges = {"input": Range(-128, 127), x: Range(-128 * 256, 127 * 256)}
    whole = [np.zeros((1, 4, 4, 2), np.float32)] * 2
    whole[1] = np.full_like(whole[1], 0) + np.array([0, 0], np.float32)
    found = blame(graph, quantize(graph, ranges), whole)
    assert found.agreement == 1
    assert found.sqnr_db is None
    assert all(layer.recovered == 0 and layer.advice.fix == "none" for layer in found.layers)
    assert all(tensor.cosine == 1 and tensor.kl == 0 and tensor.clipped == 0 for tensor in found.tensors)
    json.dumps(found.to_json(), allow_nan=False)


def test_figures_of_a_tensor_that_are_known():
    """An identity layer: its noise comes from the input's scale, and values outside the range are clipped."""
    build = GraphBuilder((1, 1, 1, 1))
    x = build.conv("input", 1)
    graph = build.graph(x)
    weight, bias = graph.producers[x].inputs[1:]
    tensors = dict(graph.tensors)
    tensors[weight] = replace(tensors[weight], data=np.ones((1, 1, 1, 1), np.float32))
    tensors[bias] = replace(tensors[bias], data=np.zeros(1, np.float32))
    graph = replace(graph, tensors=tensors)
    values = np.linspace(-1, 1, 401)
    fed = [np.full((1, 1, 1, 1), value, np.float32) for value in values]
    found = blame(graph, quantize(graph, {"input": Range(-1, 1), x: Range(-0.5, 0.5)}), fed)
    given, made = found.tensors
    assert given.clipped == 0
    assert given.quantizer_db == given.sqnr_db == pytest.approx(10 * np.log10((1 / 3) / ((2 / 255) ** 2 / 12)), abs=0.3)
    # A quarter lies outside each end, off by 0 to 1/2: the noise is 1/2 * (1/2)² / 3.
    assert made.clipped == pytest.approx(0.5, abs=0.02)
    assert made.quantizer_db == pytest.approx(10 * np.log10((1 / 3) / (1 / 24)), abs=0.1)
    assert made.weights_db is None or made.weights_db > 60
    (first, *_) = found.layers
    assert (first.layer, first.advice.fix) == (x, "calibrate")
    assert "are clipped" in first.advice.reason


def test_a_range_far_wider_than_its_values_is_reported():
    graph, fed = network(), samples(40)
    fed[0][0, 5, 5] = 60
    found = blame(graph, quantize(graph, calibrate(graph, fed)), fed)
    (advice,) = [layer.advice for layer in found.layers if layer.layer == "input"]
    assert advice.fix == "calibrate"
    assert "times the bulk's" in advice.reason


@settings(max_examples=25)
@given(graphs(), st.integers(0, 100))
def test_any_network_is_matched_in_both_formats(graph, seed):
    random = np.random.default_rng(seed)
    fed = [random.normal(size=graph.tensors["input"].shape).astype(np.float32) for _ in range(2)]
    integers = quantize(graph, calibrate(graph, fed))
    for floats in (read_graph(write_onnx(graph)), read_graph(write_tflite(graph))):
        for quantized in (read_graph(write_onnx(integers)), read_graph(write_tflite(integers))):
            found = match(floats, quantized)
            shared = {name for name in found.names if name in floats.tensors}
            assert shared
            assert all(found.names[name] == name for name in shared if not name.endswith("/pad"))


def test_an_equalized_network_is_compared_on_its_own_scale():
    whole, fed = network(), samples(30)
    factors = np.random.default_rng(0).uniform(0.2, 6, 12)
    equalized = rescaled(whole, "conv1", "conv2", factors)
    quantized = quantize(equalized, calibrate(equalized, fed))
    found, same = blame(whole, quantized, fed), blame(equalized, quantized, fed)
    assert found.agreement == same.agreement
    for one, other in zip(found.tensors, same.tensors, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_files_of_another_quantizer(tmp_path, form, per_channel):
    from onnxruntime import quantization

    whole, broken = network(), with_an_outlier(network())

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(samples(40))

        def get_next(self) -> dict | None:
            sample = next(self.left, None)
            return None if sample is None else {"input": np.ascontiguousarray(sample.transpose(0, 3, 1, 2))}

    ranked = []
    for graph in (whole, broken):
        (tmp_path / "float.onnx").write_bytes(write_onnx(graph))
        quantization.quantize_static(
            tmp_path / "float.onnx",
            tmp_path / "int8.onnx",
            Reader(),
            quant_format=quantization.QuantFormat[form],
            per_channel=per_channel,
        )
        found = blame(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples(30, seed=1))
        # A ReLU that the integers' range implies stays in the float layer.
        assert all(layer.recovered > -0.5 for layer in found.layers if layer.kind == "Conv")
        ranked.append(found)
    sound, hurt = ranked
    assert sound.sqnr_db > hurt.sqnr_db + 3
    assert hurt.layers[0].layer.startswith("conv1")
    assert hurt.layers[0].advice.fix == "equalize"


def test_layers_in_float_run_in_both_formats_and_give_the_same():
    graph, fed = fire_network(), samples(10)
    quantized = quantize(graph, calibrate(graph, fed))
    found = match(graph, quantized)
    expected = run_outputs(graph, fed)
    before = sqnr(expected, run_outputs(quantized, fed))
    squeeze = "conv1"
    for layers in ({"conv0"}, {squeeze}, adjacent_ops(quantized, squeeze), {op.name for op in quantized.ops}):
        island = keep_float(found, layers)
        assert (island.inputs, island.outputs) == (quantized.inputs, quantized.outputs)
        onnx, tflite = read_graph(write_onnx(island)), read_graph(write_tflite(island))
        np.testing.assert_array_equal(run_outputs(onnx, fed), run_outputs(island, fed))
        np.testing.assert_array_equal(run_outputs(tflite, fed), run_outputs(island, fed))
        source, target = (island.tensors[name].quantization for name in (*island.inputs, *island.outputs))
        assert source is not None and target is not None
        with Session(write_tflite(island), "litert") as session:
            given = [target.dequantize(session.run(source.quantize(x, "int8"))).ravel() for x in fed]
        assert np.abs(np.stack(given) - run_outputs(island, fed)).max() <= target.scale[0] * 1.01
    # All layers in float; only input and output are integers.
    assert sqnr(expected, run_outputs(keep_float(found, {op.name for op in quantized.ops}), fed)) > before
    assert run_outputs(keep_float(found, set()), fed).tolist() == run_outputs(quantized, fed).tolist()


def test_a_layer_without_its_quantizer_is_the_float_layer():
    """Only the rounding of the input remains in a one-layer network without its quantizer."""
    build = GraphBuilder((1, 4, 4, 2))
    graph = build.graph(build.conv("input", 3))
    fed = [np.random.default_rng(0).normal(size=(1, 4, 4, 2)).astype(np.float32)]
    quantized = quantize(graph, calibrate(graph, fed))
    found = match(graph, quantized)
    assert list(quantizers(quantized)) == ["input", "conv0"]
    source = quantized.tensors["input"].quantization
    assert source is not None
    rounded = [source.dequantize(source.quantize(fed[0], "int8"))]
    np.testing.assert_allclose(
        run_outputs(with_float_layer(found, "conv0"), fed), run_outputs(graph, rounded), rtol=1e-4, atol=1e-5
    )


def test_files_of_different_networks_are_refused(tmp_path):
    graph, other = network(), network(seed=1)
    quantized, fed = in_int8(graph), samples(2)
    for first, second, said in (
        (quantized, quantized, "is quantized; pass the float network first"),
        (graph, graph, "is a float network; pass the int8 network second"),
        (other, quantized, "the weights of .* differ; pass two files of one network"),
        (fire_network(), quantized, "is not .* in int8: "),
    ):
        with pytest.raises(UsageError, match=said):
            blame(first, second, fed)
    with pytest.raises(UsageError, match="no such file"):
        blame(graph, tmp_path / "none.onnx", fed)


def test_a_fitted_file_is_refused_with_the_hint():
    build = GraphBuilder((1, SIZE, SIZE, 3))
    x = build.conv(build.conv("input", 16, (3, 3), padding=(1, 1, 1, 1), activation="relu"), 2, activation="relu")
    graph = build.graph(build.linear(build.add(ops.GlobalAveragePool, x), CLASSES))
    quantized = in_int8(graph)
    tiled = fit(quantized, round(plan(quantized, "static").arena_bytes * 0.7), "static")
    assert tiled.stages
    with pytest.raises(UsageError, match="it seems to be fitted: pass the file before the fit"):
        blame(graph, tiled.graph, samples(2))


def poisoned(graph: Graph, layer: str, value: float) -> Graph:
    name = graph.producers[layer].inputs[1]
    data = graph.constant(name).real().copy()
    data.flat[0] = value
    return replace(graph, tensors={**graph.tensors, name: replace(graph.tensors[name], data=data)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_layer(value):
    graph = network()
    quantized = in_int8(graph)
    with pytest.raises(QuantizationError, match="weights of 'conv2' are not finite"):
        blame(poisoned(graph, "conv2", value), quantized, samples(2))
    fed = samples(3)
    fed[1][0, 3, 3, 0] = value
    with pytest.raises(QuantizationError, match="activation 'input' is not finite"):
        blame(graph, quantized, fed)


def test_activations_that_overflow_name_the_layer():
    graph = poisoned(poisoned(network(), "conv1", 3e38), "conv0", 3e38)
    quantized = in_int8(network())
    with pytest.raises(FireboxError, match=r"'conv[01]'"):
        blame(graph, quantized, samples(2))


def test_unreliable_images_cause_a_note():
    graph = network()
    quantized = in_int8(graph)
    with pytest.raises(QuantizationError, match="no calibration images"):
        blame(graph, quantized, [])
    black = [np.full((1, SIZE, SIZE, 3), -2, np.float32)] * 3
    for fed, said in ((black, ("are the same", "of one colour")), (samples(1), ("unreliable",))):
        found = blame(graph, quantized, fed)
        assert all(any(word in text for text in found.notes) for word in said)
        json.dumps(found.to_json(), allow_nan=False)
    dead = replace(graph, tensors=dict(graph.tensors))
    for name in dead.producers["conv1"].inputs[1:]:
        data = np.zeros(dead.tensors[name].shape, np.float32)
        dead = replace(dead, tensors={**dead.tensors, name: replace(dead.tensors[name], data=data)})
    found = blame(dead, in_int8(dead), samples(3))
    assert {tensor.name: tensor.sqnr_db for tensor in found.tensors}["conv1"] is None
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("int8.onnx", "int8.onnx"), 2, "is quantized; pass the float network first"),
        (("float.onnx", "float.tflite"), 2, "is a float network; pass the int8 network second"),
        (("float.onnx", "int8.onnx", "--images", "0"), 2, "a sample of 0"),
        (("float.onnx", "int8.onnx", "--seed", "-1"), 2, "seed -1"),
        (("float.onnx", "int8.onnx", "--fix", "--target-agreement", "1.5"), 2, "1.5 is not between 0 and 1"),
        (("float.onnx", "int8.onnx", "--fix", "--target-agreement", "nan"), 2, "nan is not between 0 and 1"),
        (("float.onnx", "int8.onnx", "--target-agreement", "0.9"), 2, "add --fix"),
        (("bare.onnx", "bare8.onnx"), 2, "has firebox metadata"),
        (("none.onnx", "int8.onnx"), 2, "no such file"),
    ],
)
def test_bad_usage_is_one_line(command, gratings, tmp_path, arguments, code, said):
    graph = network()
    saved(tmp_path, "float", graph)
    saved(tmp_path, "int8", quantize(graph, calibrate(graph, samples(2))))
    (tmp_path / "bare.onnx").write_bytes(write_onnx(graph))
    (tmp_path / "bare8.onnx").write_bytes(write_onnx(quantize(graph, calibrate(graph, samples(2)))))
    before = {path.name for path in tmp_path.iterdir()}
    ran = command("blame", *arguments, "--data", gratings, cwd=tmp_path)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_real_files_of_squeezenet(data_dir, tmp_path):
    from firebox.export import trace
    from firebox.model_zoo import load_network
    from firebox.runtime import open_images, sample

    loaded = load_network("squeezenet1_1", data_dir / "squeezenet1_1.pth")
    graph = trace(loaded.module, (1, 3, 224, 224), "v11")
    images = sample(open_images(data_dir / "imagenet-samples.tar"), 8, seed=2)
    crops = [loaded.preprocessing.crop(images.read(name), name) for name in images.names]
    fed = [loaded.preprocessing.normalize(crop)[None] for crop in crops]
    quantized = quantize(graph, calibrate(graph, fed[:4], "mse"))
    (tmp_path / "float.tflite").write_bytes(write_tflite(graph))
    (tmp_path / "int8.onnx").write_bytes(write_onnx(quantized))
    found = blame(tmp_path / "float.tflite", tmp_path / "int8.onnx", fed[4:])
    # 26 convolutions, the input and the last pool.
    assert len(found.layers) == 28
    assert found.sqnr_db is not None and found.sqnr_db > 20
    assert found.layers[0].recovered > 0.05
    assert all(layer.advice.fix != "equalize" for layer in found.layers)
