import json

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import GraphBuilder, graphs

from firebox.export import quantize, trace, write_onnx, write_tflite
from firebox.export.quantization import Range
from firebox.model_zoo import load_network
from firebox.runtime import plan
from firebox.runtime.formats.tflite_legalize import explicit_padding
from firebox.runtime.graph import Graph, Op, Tensor, ops
from firebox.runtime.memory import measure_arena, tflm


def in_8_bits(graph: Graph) -> Graph:
    """Quantized with arbitrary ranges: live ranges and sizes do not depend on values."""
    return quantize(graph, {tensor.name: Range(-1, 1) for tensor in graph.activations})


ARENAS = {
    "squeezenet1_0": 1_492_992,
    "squeezenet1_0_complex_bypass": 2_612_736,
    "squeezenet1_0_simple_bypass": 1_492_992,
    "squeezenet1_1": 982_144,
    "squeezenet_cifar": 98_304,
    "squeezenet_cifar_small": 49_152,
    "squeezenet_micro": 49_152,
}


@pytest.mark.parametrize("name", sorted(ARENAS))
def test_the_plan_of_every_network_is_its_measured_memory(name, tmp_path):
    network = load_network(name, random_init=True)
    size = network.preprocessing.size
    graph = in_8_bits(trace(network.module, (1, network.preprocessing.depth, *size), name))
    data = write_tflite(graph)
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    planned = plan(data)
    assert planned.arena_bytes == ARENAS[name]
    assert plan(graph) == planned
    assert plan(write_onnx(graph)).total_bytes == planned.total_bytes
    found = measure_arena(path, "tflm", exact=True)
    assert (found.arena_bytes, found.arena_bytes + (found.tail_bytes or 0)) == (planned.arena_bytes, found.total_bytes)
    assert found.total_bytes == planned.total_bytes
    assert measure_arena(path, "litert-reference").arena_bytes == plan(data, "litert-reference").arena_bytes
    assert measure_arena(path, "litert").arena_bytes == plan(data, "litert").arena_bytes


def test_random_networks_are_planned_as_tflite_micro_allocates_them(arena_head):
    @settings(max_examples=60)
    @given(graphs())
    def check(graph):
        for drawn in (graph, in_8_bits(graph)):
            data = write_tflite(drawn)
            assert arena_head(data) == plan(data).arena_bytes == plan(drawn).arena_bytes
            assert plan(drawn).total_bytes == plan(data).total_bytes

    check()


def test_random_networks_run_in_the_planned_arena_and_not_in_a_much_smaller_one(tmp_path):
    path = tmp_path / "model.tflite"

    # Each measurement is a process, so failing examples are not shrunk.
    @settings(max_examples=20, phases=[Phase.generate])
    @given(graphs(), st.booleans())
    def check(graph, floats):
        path.write_bytes(write_tflite(graph if floats else in_8_bits(graph)))
        total = plan(path).total_bytes
        assert total is not None
        assert 0 <= total - measure_arena(path, "tflm", exact=True).total_bytes <= 256
        for target in ("litert-reference", "litert"):
            assert plan(path, target).arena_bytes == measure_arena(path, target).arena_bytes

    check()


def test_the_tail_is_a_sum_over_operations():
    @settings(max_examples=100)
    @given(graphs())
    def check(graph):
        graph = explicit_padding(in_8_bits(graph))
        small = {constant for op in graph.ops for constant in tflm.constants(op)}
        constants = len(graph.tensors) - len(graph.activations) + len(small)
        added = sum(tflm.op_tail_bytes(graph, op) for op in graph.ops) + 24 * (len(graph.inputs) + constants)
        fixed = tflm.tail_bytes(graph) - added
        # Allocators, planner, one input and one output; the rest is alignment.
        assert 690 <= fixed <= 730

    check()


@st.composite
def live_ranges(draw) -> Graph:
    """Graphs of additions and concats in any order, so that sizes and live ranges vary."""
    tensors = [Tensor("input", (1, 1, 1, draw(st.integers(1, 40))))]
    operations: list[Op] = []
    for index in range(draw(st.integers(1, 25))):
        chosen = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))
        names = tuple(tensor.name for tensor in chosen)
        op: Op = ops.Concat(names, f"t{index}") if len(chosen) > 1 else ops.Relu(names, f"t{index}")
        if len(chosen) == 2 and chosen[0].shape == chosen[1].shape:
            op = ops.Add(names, f"t{index}")
        shape = op.output_shape(*(tensor.shape for tensor in chosen))
        if shape[3] <= 4096:
            operations.append(op)
            tensors.append(Tensor(op.output, shape))
    outputs = draw(st.lists(st.sampled_from([tensor.name for tensor in tensors]), min_size=1, max_size=2, unique=True))
    return Graph("drawn", {tensor.name: tensor for tensor in tensors}, tuple(operations), ("input",), tuple(outputs))


@settings(max_examples=200)
@given(live_ranges())
def test_live_buffers_do_not_overlap(graph):
    planned = plan(graph)
    # Without operations that no output depends on.
    graph = planned.graph
    assert [buffer.tensor for buffer in planned.buffers] == [tensor.name for tensor in graph.activations]
    spans = {buffer.tensor: (buffer.first, buffer.last) for buffer in planned.buffers}
    for step, op in enumerate(graph.ops):
        for name in (*op.inputs, op.output):
            assert spans[name][0] <= step <= spans[name][1], f"{name} is not alive in {op.name}"
    for name in graph.outputs:
        assert spans[name][1] >= len(graph.ops) - 1
    for one in planned.buffers:
        assert one.offset % 16 == 0
        for other in planned.buffers:
            if one is not other and one.first <= other.last and other.first <= one.last:
                assert one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
    peak = max(planned.alive_bytes(step) for step in range(max(1, len(graph.ops))))
    assert planned.alive_bytes(planned.peak_step) == peak <= planned.arena_bytes
    assert plan(graph) == planned


def test_the_peak_is_reported_with_its_live_tensors():
    build = GraphBuilder((1, 8, 8, 2))
    wide = build.conv(build.conv("input", 16), 4)
    planned = plan(build.graph(build.conv(wide, 2)))
    assert planned.peak_op is not None
    assert planned.peak_op.name == "conv1"
    assert [buffer.tensor for buffer in planned.alive(planned.peak_step)] == ["conv0", "conv1"]
    assert planned.arena_bytes == 8 * 8 * (16 + 4) * 4
    found = json.loads(json.dumps(planned.to_json()))
    assert found["peak"] == {"op": "conv1", "alive": {"conv0": 4096, "conv1": 1024}}
    assert found["macs"] == sum(op["macs"] for op in found["ops"]) == 64 * (2 * 16 + 16 * 4 + 4 * 2)
    assert found["memory"]["weights"]["bytes"] == 4 * (2 * 16 + 16 + 16 * 4 + 4 + 4 * 2 + 2)


def test_operations_without_effect_on_the_output_need_no_memory():
    build = GraphBuilder((1, 8, 8, 2))
    x = build.conv("input", 2)
    build.conv("input", 64)
    assert plan(build.graph(x)).arena_bytes == 2 * 8 * 8 * 2 * 4
    assert np.prod(build.shape("conv1")) == 8 * 8 * 64
