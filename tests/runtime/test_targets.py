import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from strategies import GraphBuilder, graphs
from waiting import CEILING

from firebox.export import quantize, write_onnx, write_tflite
from firebox.export.quantization import Range
from firebox.runtime import plan
from firebox.runtime.errors import FormatError, MissingExtraError, UnsupportedError, UsageError
from firebox.runtime.graph import Graph, ops
from firebox.runtime.memory import TARGETS, measure_arena
from firebox.runtime.memory import measure as arena


def fire() -> Graph:
    """A Fire module: 4, 4 and 8 KiB are alive at the concat."""
    build = GraphBuilder((1, 16, 16, 2))
    squeezed = build.conv("input", 2)
    joined = build.add(ops.Concat, build.conv(squeezed, 4), build.conv(squeezed, 4))
    return build.graph(build.conv(joined, 1))


def test_a_static_compiler_writes_into_the_output_of_a_concat():
    planned = plan(fire(), "static")
    assert dict(planned.layout.views) == {"conv1": "concat3", "conv2": "concat3"}
    assert planned.arena_bytes == planned.total_bytes == 16 * 16 * (8 + 2) * 4
    assert plan(fire()).arena_bytes == 16 * 16 * (4 + 4 + 8) * 4


def test_for_a_static_compiler_row_slices_and_reshapes_are_views():
    build = GraphBuilder((1, 8, 8, 2))
    x = build.conv("input", 4)
    top = build.add(ops.Slice, x, begin=(0, 0, 0, 0), size=(1, 4, 8, 4))
    left = build.add(ops.Slice, x, begin=(0, 0, 0, 0), size=(1, 8, 4, 4))
    flat = build.add(ops.Reshape, build.conv(top, 1), shape=(1, 32))
    planned = plan(build.graph(build.linear(flat, 3), build.conv(left, 1)), "static")
    # Columns are not contiguous.
    assert dict(planned.layout.views) == {"slice1": "conv0", "reshape4": "conv3"}


@settings(max_examples=100)
@given(graphs())
def test_every_activation_is_allocated_on_every_target(graph):
    for target in (name for name, found in TARGETS.items() if found.unplanned(graph) is None):
        planned = plan(graph, target)
        places = {buffer.tensor: buffer for buffer in planned.buffers}
        views = planned.layout.views
        assert not places.keys() & views.keys()
        for step, op in enumerate(planned.graph.ops):
            for name in (*op.inputs, op.output):
                if planned.graph.tensors[name].data is None and (target != "litert" or name in places):
                    place = places.get(views.get(name, name))
                    assert (place is None) == (target == "onnxruntime" and name in graph.inputs), name
                    assert place is None or place.first <= step <= place.last
        for one in planned.buffers:
            for other in planned.buffers:
                if one is not other and one.first <= other.last and other.first <= one.last:
                    assert one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
        assert json.loads(json.dumps(planned.to_json()))["target"] == target


def test_litert_runs_operations_in_place_as_planned(tmp_path):
    build = GraphBuilder((1, 8, 8, 4))
    x = build.add(ops.AveragePool, "input", window=(1, 1))
    total = build.add(ops.Add, build.conv(x, 4), x)
    flat = build.add(ops.Reshape, build.add(ops.Relu, total), shape=(1, 256))
    graph = build.graph(build.linear(build.add(ops.Softmax, flat), 3))
    planned = plan(graph, "litert-reference")
    assert dict(planned.layout.views) == {"add2": "conv1", "reshape4": "relu3", "softmax5": "relu3"}
    path = tmp_path / "model.tflite"
    path.write_bytes(write_tflite(graph))
    assert measure_arena(path, "litert-reference").arena_bytes == planned.arena_bytes


def test_the_memory_of_a_float_network_in_onnxruntime_is_as_planned(tmp_path):
    build = GraphBuilder((1, 64, 64, 3))
    graph = build.graph(build.conv(build.conv(build.conv("input", 16), 32), 4))
    path = tmp_path / "model.onnx"
    path.write_bytes(write_onnx(graph))
    found = measure_arena(path, "onnxruntime")
    assert plan(path, "onnxruntime").arena_bytes == 64 * 64 * (16 + 32) * 4
    assert 1 <= found.arena_bytes / plan(path, "onnxruntime").arena_bytes < 1.05
    assert found.verdict(found.total_bytes).fits
    assert not found.verdict(found.total_bytes - 1).fits


def test_networks_with_two_inputs_are_measured_in_onnxruntime(tmp_path):
    build = GraphBuilder((1, 8, 8, 3))
    graph = build.graph(build.add(ops.Add, build.conv("input", 3), "input"))
    two = Graph(graph.name, graph.tensors, graph.ops[1:], ("input", graph.ops[0].output), graph.outputs)
    path = tmp_path / "two.onnx"
    path.write_bytes(write_onnx(two))
    assert measure_arena(path, "onnxruntime").arena_bytes >= 8 * 8 * 3 * 4


def test_an_arena_of_more_than_256_mib_is_measured(tmp_path):
    build = GraphBuilder((1, 6000, 8000, 1))
    path = tmp_path / "large.tflite"
    graph = build.graph(
        build.add(ops.MaxPool, build.add(ops.Relu, build.conv("input", 1)), window=(2, 2), stride=(2, 2))
    )
    path.write_bytes(write_tflite(graph))
    assert measure_arena(path, "tflm").arena_bytes == plan(path).arena_bytes > 2**28


def test_tiny_networks_need_more_than_head_and_tail(tmp_path):
    build = GraphBuilder((1, 2, 2, 2))
    graph = build.graph(build.conv(build.conv("input", 2), 2))
    path = tmp_path / "model.tflite"
    path.write_bytes(write_tflite(quantize(graph, {tensor.name: Range(-1, 1) for tensor in graph.activations})))
    reported, exact = measure_arena(path, "tflm"), measure_arena(path, "tflm", exact=True)
    assert reported.total_bytes == reported.arena_bytes + (reported.tail_bytes or 0) < exact.total_bytes
    assert 0 <= (plan(path).total_bytes or 0) - exact.total_bytes <= 256


def test_targets_and_files_that_cannot_be_measured_are_errors(tmp_path, exported, monkeypatch):
    with pytest.raises(UsageError, match="target 'esp' is not one of tflm, "):
        plan(fire(), "esp")
    with pytest.raises(UnsupportedError, match="'static' is planned only"):
        measure_arena(exported / "model.int8.tflite", "static")
    with pytest.raises(UsageError, match="onnxruntime runs"):
        measure_arena(exported / "model.int8.tflite", "onnxruntime")
    with pytest.raises(UsageError, match="nothing"):
        measure_arena(tmp_path / "nothing.tflite", "tflm")
    for target, name in (("tflm", "model.tflite"), ("litert", "model.tflite"), ("onnxruntime", "model.onnx")):
        (tmp_path / name).write_bytes(b"1234TFL3" + bytes(100))
        with pytest.raises(FormatError, match=f"{target} cannot run"):
            measure_arena(tmp_path / name, target)
    monkeypatch.setattr(arena, "find_spec", lambda name: None if name == "tflite_micro" else find_spec(name))
    with pytest.raises(MissingExtraError, match="tflite-micro is not installed"):
        measure_arena(exported / "model.int8.tflite", "tflm")


def test_the_command_plans_and_measures(command, exported):
    model = exported / "model.int8.tflite"
    ran = command("plan", model, "--measure", "--json", "--sram", "1MiB")
    values = json.loads(ran.out)
    assert values["measured"]["total_bytes"] == values["total_bytes"] > values["arena_bytes"]
    assert (values["verdict"]["arena_source"], values["verdict"]["about"]) == ("measured", "total")
    people = command("plan", model, "--target", "litert", "--sram", "1B")
    assert people.code == 3
    assert "does not fit 1 B" in people.out
    assert "(arena alone)" in people.out
    assert command("plan", exported / "model.int8.onnx", "--measure").code == 2


TOY = """
from firebox.runtime.memory import Layout, allocate, live_ranges
from firebox.runtime.memory import Target, register

def lay_out(graph, offsets):
    buffers = allocate(live_ranges(graph))
    return Layout(graph, buffers, (), max(buffer.end for buffer in buffers) + 1000)

register(Target("toy", "a toy compiler", lay_out, plans_all=True))
from firebox.runtime.commands.main import main; main()
"""


def toy(*arguments: object) -> str:
    """Output of a command in a process that has registered one more target."""
    command = [sys.executable, "-c", TOY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=CEILING).stdout


def test_one_registration_adds_a_target_to_the_plan_the_fit_and_their_help(exported, tmp_path):
    model = exported / "model.int8.tflite"
    for name in ("plan", "fit"):
        assert "|toy]" in toy(name, "--help")
    planned = json.loads(toy("plan", model, "--target", "toy", "--json"))
    assert (planned["target"], planned["total_bytes"]) == ("toy", planned["arena_bytes"] + 1000)
    assert "Memory on toy" in toy("plan", model, "--target", "toy")
    budget = planned["total_bytes"] * 9 // 10
    fitted = json.loads(toy("fit", model, "--target", "toy", "--sram", budget, "-o", tmp_path / "out", "--json"))
    assert fitted["after"]["total_bytes"] <= budget < fitted["before"]["total_bytes"]
    assert (fitted["target"], fitted["measured"]) == ("toy", None)
    assert "planned for</dt><dd>toy" in (tmp_path / "out" / "report.html").read_text()
