"""``firebox check``: whether a file can saturate, in which layers, and the effect on images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runners import some_input
from strategies import GraphBuilder

from firebox.export import calibrate, quantize, write_onnx, write_tflite
from firebox.export.formats.contract_writer import contract_for_file
from firebox.export.quantization import Range
from firebox.runtime import Contract, Preprocessing, Session, read_graph
from firebox.runtime.contract import KEY, TensorSpec
from firebox.runtime.errors import UsageError
from firebox.runtime.exactness.check import check_saturation, measure_saturation, saturating_sums
from firebox.runtime.exactness.saturation import exact_form
from firebox.runtime.graph import Graph, ops
from firebox.runtime.graph.reference import run_reference
from firebox.runtime.progress import Advance, Progress

CANNOT, CAN, UNDECIDED = 0, 1, 4


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with a small Fire network for digits: in float, and in int8 with weights of full range."""
    folder = tmp_path_factory.mktemp("digits")
    build = GraphBuilder((1, 8, 8, 3))
    squeezed = build.conv(build.conv("input", 8, (3, 3)), 4)
    joined = build.add(ops.Concat, build.conv(squeezed, 6), build.conv(squeezed, 6, (3, 3), padding=(1, 1, 1, 1)))
    graph = build.graph(build.linear(joined, 10))
    samples = [np.random.default_rng(seed).standard_normal((1, 8, 8, 3), np.float32) for seed in range(4)]
    network = quantize(graph, calibrate(graph, samples), None, "full")
    ends = TensorSpec("float32", (1, 8, 8, 3)), TensorSpec("float32", (1, 10))
    contract = Contract("digits", Preprocessing((8, 8)), tuple("0123456789"), (), "NHWC", "logits", *ends)
    for name, one in (("model.float32.onnx", graph), ("model.int8.onnx", network)):
        (folder / name).write_bytes(write_onnx(one, {KEY: contract_for_file(contract, one, "NCHW").to_bytes()}))
    return folder


def model(nodes: Sequence[Any], kinds: tuple[int, int], shape: Sequence[int], **constants: np.ndarray) -> bytes:
    """A file from another converter, from ``x`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info("x", kinds[0], shape)],
        [helper.make_tensor_value_info("y", kinds[1], None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("our.own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


INTEGERS, BYTES, REALS = (TensorProto.UINT8, TensorProto.INT32), (TensorProto.UINT8,) * 2, (TensorProto.FLOAT,) * 2
LARGEST = np.full((6, 4), 127, np.int8)


def product(weight: np.ndarray = LARGEST, *more: Any) -> bytes:
    return model(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product"), *more], INTEGERS, (3, 6), w=weight
    )


def branches() -> bytes:
    """An If operator with two subgraphs."""
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    parts = [helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], name, [], [value]) for name in ("a", "b")]
    choose = helper.make_node("If", ["c"], ["y"], then_branch=parts[0], else_branch=parts[1])
    return model([choose], REALS, (1,), c=np.array(True))


def of_two_activations() -> bytes:
    """A product whose int8 operand is computed."""
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["x", "s"], ["y"], name="scores"),
    ]
    return model(nodes, INTEGERS, (4, 4))


def dequantized_activations() -> bytes:
    """A product of computed int8 values after DequantizeLinear."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["xr"]),
        helper.make_node("QuantizeLinear", ["xr", "one", "signed"], ["s"]),
        helper.make_node("DequantizeLinear", ["s", "one", "signed"], ["sr"]),
        helper.make_node("MatMul", ["xr", "sr"], ["y"], name="scores"),
    ]
    kinds = TensorProto.UINT8, TensorProto.FLOAT
    return model(nodes, kinds, (4, 4), one=np.float32(1), zero=np.uint8(0), signed=np.int8(0))


def foreign_operator(domain: str, kind: str) -> bytes:
    return model([helper.make_node(kind, ["x"], ["y"], domain=domain)], REALS, (1,))


def with_function() -> bytes:
    """A function that the file defines."""
    proto = onnx.load_from_string(foreign_operator("our.own", "Twice"))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("our.own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    return proto.SerializeToString()


def floats() -> Graph:
    build = GraphBuilder((1, 6, 6, 3))
    return build.graph(build.linear(build.conv("input", 4, (3, 3)), 5))


def integers(weight_range: Any) -> Graph:
    return quantize(floats(), {tensor.name: Range(-1, 1) for tensor in floats().activations}, None, weight_range)


FILES = {
    "all of 127": (product(), CAN, None),
    "up to 64": (product(np.full((6, 4), 64, np.int8)), CANNOT, None),
    "uint8": (product(LARGEST.view(np.uint8)), CANNOT, None),
    "full": (write_onnx(integers("full")), CAN, None),
    "saturation-free": (write_onnx(integers("saturation-free")), CANNOT, None),
    "7-bit": (write_onnx(integers("7-bit")), CANNOT, None),
    "float": (write_onnx(floats()), CANNOT, None),
    "computed": (of_two_activations(), UNDECIDED, "scores"),
    "computed between reals": (dequantized_activations(), UNDECIDED, "scores"),
    "of an unknown domain": (foreign_operator("our.own", "Twice"), UNDECIDED, "Twice of domain our.own"),
    "integers of a known domain": (foreign_operator("com.microsoft", "QMoE"), UNDECIDED, "QMoE of domain com.micro"),
    "reals of a known domain": (foreign_operator("com.microsoft", "Gelu"), CANNOT, None),
    "branches": (branches(), UNDECIDED, "If, Loop, Scan"),
    "function": (with_function(), UNDECIDED, "the file's own functions"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_verdict_of_a_file(name):
    data, code, question = FILES[name]
    found = check_saturation(data)
    assert found.exit_code == code
    assert found.verdict == {CANNOT: "cannot saturate", CAN: "can saturate", UNDECIDED: "undecided"}[code]
    asked = [*found.open_questions, *(layer.layer for layer in found.layers if layer.why)]
    assert bool(asked) is (question is not None)
    assert question is None or any(question in one for one in asked)
    assert json.loads(json.dumps(found.to_json()))["verdict"] == found.verdict


def test_a_layer_that_saturates_decides_despite_open_questions():
    own = helper.make_node("Twice", ["y"], ["z"], domain="our.own")
    found = check_saturation(product(LARGEST, own))
    assert (found.exit_code, len(found.open_questions)) == (CAN, 1)


def test_the_check_counts_the_layers_that_the_exact_form_rewrites(monkeypatch):
    monkeypatch.setattr("firebox.runtime.onnx_session.kernels_saturate", lambda: True)
    for name in ("all of 127", "full", "saturation-free"):
        data = FILES[name][0]
        count = sum(bool(layer.saturating) for layer in check_saturation(data).layers)
        with Session(data) as session:
            assert session.facts.weights == (
                f"uint8 in {count} layer{'s' if count > 1 else ''}" if count else "as in the file"
            )
    with Session(product()) as session:
        np.testing.assert_array_equal(session.run(np.full((3, 6), 255, np.uint8)), np.full((3, 4), 255 * 127 * 6))


def test_tables_name_the_layer_and_the_remedy(command, tmp_path):
    path = tmp_path / "theirs.onnx"
    path.write_bytes(product())
    ran = command("check", path)
    assert ran.code == CAN
    assert ran.err == ""
    (row,) = [line.split() for line in ran.out.splitlines() if line.split()[:1] == ["product"]]
    assert row == ["product", "MatMulInteger", "12", "12", "254"]
    assert ran.out.splitlines()[-1].startswith(f"{path}: can saturate; firebox sessions load it in an exact form")
    path.write_bytes(of_two_activations())
    ran = command("check", path)
    assert ran.code == UNDECIDED
    assert "unknown" in ran.out
    assert ran.err == "scores: the int8 operand is computed\n"
    path.write_bytes(branches())
    ran = command("check", path)
    assert (ran.code, ran.err[:6]) == (UNDECIDED, "open: ")


def test_json_is_one_object(command, tmp_path):
    path = tmp_path / "theirs.onnx"
    path.write_bytes(product())
    ran = command("check", path, "--json")
    assert (ran.code, ran.err) == (CAN, "")
    assert json.loads(ran.out) == {
        "verdict": "can saturate",
        "layers": [
            {"layer": "product", "kind": "MatMulInteger", "pairs": 12, "saturating": 12, "largest": 254, "why": ""}
        ],
        "open_questions": [],
        "images": None,
        "not_measured": None,
    }


def test_files_without_such_layers_cannot_saturate(command, exported, tmp_path):
    for name in ("model.int8.tflite", "model.float32.onnx", "model.float32.tflite", "model.int8.onnx"):
        found = check_saturation(exported / name)
        assert (found.verdict, found.exit_code) == ("cannot saturate", CANNOT)
        assert bool(found.layers) is (name == "model.int8.onnx")
        assert max((layer.largest for layer in found.layers), default=0) <= 128
    ran = command("check", exported / "model.int8.onnx")
    assert ran.code == CANNOT
    assert ran.out.splitlines()[-1] == f"{exported / 'model.int8.onnx'}: cannot saturate"


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("none.onnx", None, 2, "no such file"),
        ("letter.onnx", b"Dear Sir or Madam", 1, "not an ONNX file"),
        ("empty.onnx", b"", 1, "not an ONNX file"),
        ("letter.tflite", b"Dear Sir or Madam", 1, "not a TFLite file"),
        ("model.pt", b"", 2, "ends neither"),
        ("swapped.onnx", write_tflite(integers("full")), 1, "not an ONNX file"),
        ("cut.onnx", product()[:60], 1, "not an ONNX file"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_invalid_files_end_in_a_one_line_error(command, tmp_path, name, content, code, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ran = command("check", tmp_path / name)
    assert (ran.code, ran.out) == (code, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert name in line


def test_images_show_the_effect_of_saturation(command, digits, noise):
    path = digits / "model.int8.onnx"
    assert check_saturation(path).exit_code == CAN
    ran = command("check", path, "--images", "digits", "--count", 3, "--json")
    assert (ran.code, ran.err) == (CAN, "")
    damage = json.loads(ran.out)["images"]
    assert damage["images"] == 3
    assert 0 <= damage["same_class"] <= 1
    layers = {layer["layer"] for layer in json.loads(ran.out)["layers"]}
    assert damage["layers"]
    for layer in damage["layers"]:
        assert 0 < layer["changed"] <= 1
        assert layer["largest_steps"] >= 1
        assert any(layer["layer"] in name for name in layers)
    shown = command("check", path, "--images", noise, "--count", 3)
    assert shown.code == CAN
    assert "With saturation, on 3 images" in shown.out
    assert "of the images; outputs differ by up to" in shown.out


def test_a_file_from_another_converter_is_measured_like_ours(command, digits, noise, tmp_path):
    path = digits / "model.int8.onnx"
    foreign = tmp_path / "foreign.onnx"
    proto = onnx.load(path)
    kept = [entry for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    foreign.write_bytes(proto.SerializeToString())
    arguments = ("--images", noise, "--count", 2, "--json")
    alone = command("check", foreign, *arguments)
    assert alone.code == 2
    assert "has no firebox metadata" in alone.err
    ours = command("check", path, *arguments)
    theirs = command("check", foreign, *arguments, "--like", digits / "model.float32.onnx")
    assert json.loads(theirs.out) == json.loads(ours.out)


def test_the_reason_is_given_if_a_network_is_not_measured(command, digits, noise):
    path = digits / "model.float32.onnx"
    ran = command("check", path, "--images", noise, "--count", 1)
    assert ran.code == CANNOT
    (line,) = [line for line in ran.err.splitlines() if line.startswith("not measured on images")]
    assert "is not between 8-bit integers" in line
    report = json.loads(command("check", path, "--images", noise, "--count", 1, "--json").out)
    assert report["images"] is None
    assert "is not between 8-bit integers" in report["not_measured"]
    assert command("check", digits / "model.int8.onnx", "--images", "nowhere").code == 2


class CountingProgress(Progress):
    """Progress that counts the steps of all tasks."""

    steps = 0

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        def advance(steps: int = 1, text: str = "") -> None:
            self.steps += steps

        yield advance


def test_damage_matches_the_kernels():
    graph = integers("full")
    x = [some_input(graph, seed) for seed in range(4)]
    progress = CountingProgress()
    damage = measure_saturation(write_onnx(graph), x, progress)
    assert (damage.images, progress.steps) == (4, 4)
    (output,) = graph.outputs
    sums = saturating_sums(graph)
    pairs = [(run_reference(graph, one)[output], run_reference(graph, one, sums)[output]) for one in x]
    assert damage.largest_steps == max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
    assert damage.same_class == np.mean([a.argmax() == b.argmax() for a, b in pairs])
    assert damage.largest_steps > 0
    for data in (write_onnx(integers("saturation-free")), exact_form(write_onnx(graph)).data):
        safe = measure_saturation(data, x)
        assert (safe.layers, safe.same_class, safe.largest_steps) == ((), 1.0, 0)
    with pytest.raises(UsageError, match="no images"):
        measure_saturation(write_onnx(graph), [])


def test_measured_layers_are_the_checked_ones(digits):
    path = digits / "model.int8.onnx"
    graph = read_graph(path)
    damaged = {layer.layer for layer in measure_saturation(path.read_bytes(), [some_input(graph, 0)]).layers}
    risky = [layer.layer for layer in check_saturation(path).layers if layer.saturating]
    assert damaged
    assert all(any(name in layer for layer in risky) for name in damaged)
