import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import GraphBuilder, graphs

from firebox.export import quantize, write_onnx, write_tflite
from firebox.export.quantization import Range
from firebox.runtime import plan
from firebox.runtime.graph import Graph, Tensor, ops
from firebox.runtime.memory import scenarios
from firebox.runtime.memory.energy import energy
from firebox.runtime.memory.traffic import Traffic, entropy_bytes, precisions, traffic, weight_bytes

PLENTY = 2**62
sizes = st.integers(0, 20_000)


def in_8_bits(graph: Graph) -> Graph:
    return quantize(graph, {tensor.name: Range(-1, 1) for tensor in graph.activations})


def wide() -> Graph:
    """Three convolutions with 8x8 activations: 128 values in the input, then 1024, 256 and 128."""
    build = GraphBuilder((1, 8, 8, 2))
    return build.graph(build.conv(build.conv(build.conv("input", 16), 4), 2))


def test_without_spilling_only_input_and_output_move():
    moved = traffic(wide(), 1024 + 256, "int8", "resident")
    assert moved == Traffic(
        dram_read_bytes=128,
        dram_written_bytes=128,
        weight_bytes=0,
        # Activations, weights and 32-bit biases.
        operand_bytes=(128 + 1024) + (1024 + 256) + (256 + 128) + (32 + 64 + 8) + 4 * (16 + 4 + 2),
        spilled=(),
    )


def test_the_largest_tensor_at_the_peak_is_spilled_first():
    moved = traffic(wide(), 1024 + 256 - 1, "int8", "resident")
    assert moved.spilled == ("conv0",)
    assert (moved.dram_read_bytes, moved.dram_written_bytes) == (128 + 1024, 1024 + 128)
    least = traffic(wide(), 0, "int8", "resident")
    assert least.spilled == ("conv0", "conv1", "input", "conv2")
    assert (least.dram_read_bytes, least.dram_written_bytes) == (128 + 1024 + 256, 1024 + 256 + 128)


def test_streamed_weights_are_read_with_their_biases():
    weights = 32 + 64 + 8 + 4 * (16 + 4 + 2)
    resident, streamed = (traffic(wide(), PLENTY, "int8", weights) for weights in ("resident", "streamed"))
    assert streamed == replace(resident, dram_read_bytes=resident.dram_read_bytes + weights, weight_bytes=weights)
    assert weight_bytes(wide(), "int8") == weights
    assert weight_bytes(wide(), "float32") == 4 * (32 + 64 + 8 + 16 + 4 + 2)


def test_spilled_tensors_are_read_once_per_use():
    build = GraphBuilder((1, 4, 4, 4))
    wide = build.conv("input", 8)
    graph = build.graph(build.add(ops.Concat, build.conv(wide, 1), build.conv(wide, 1), wide))
    # The output is spilled first, at no cost: it goes to DRAM anyway.
    assert traffic(graph, 64 + 128, "int8", "resident").spilled == ("concat3",)
    assert traffic(graph, 64 + 128, "int8", "resident").dram_bytes == 64 + 160
    moved = traffic(graph, 0, "int8", "resident")
    # Input 64, output 160. 128 and twice 16 are spilled; three operations read the first, one each the others.
    assert moved.dram_read_bytes == 64 + 3 * 128 + 2 * 16
    assert moved.dram_written_bytes == 128 + 2 * 16 + 160


def tiled() -> Graph:
    """A 3x3 convolution of 8x8x2 values to 16 channels, followed by a pool, in two stripes of rows."""
    build = GraphBuilder((1, 8, 8, 2))
    weight, bias = build.constant(16, 3, 3, 2), build.constant(16)
    stripes = []
    for begin, rows, padding in ((0, 5, (1, 0, 1, 1)), (3, 5, (0, 1, 1, 1))):
        stripe = build.add(ops.Slice, "input", begin=(0, begin, 0, 0), size=(1, rows, 8, 2))
        x = build.add(ops.Conv, stripe, weight, bias, padding=padding)
        stripes.append(build.add(ops.MaxPool, x, window=(2, 2), stride=(2, 2)))
    return build.graph(build.add(ops.Concat, *stripes, axis=1))


def test_stripes_read_their_own_rows_and_their_weights_again():
    weights = 16 * 9 * 2 + 4 * 16
    moved = traffic(tiled(), PLENTY, "int8", "streamed")
    assert moved.weight_bytes == 2 * weights
    assert moved.dram_bytes == 128 + 256 + 2 * weights
    spilled = traffic(tiled(), 0, "int8", "resident")
    stripe = 5 * 8 * 2
    assert spilled.dram_read_bytes == 2 * (stripe + stripe + 4 * 8 * 16 + 128)
    # Live at the second pool: the output rows of both pools, and those of the convolution.
    needed = 128 + 128 + 4 * 8 * 16
    assert traffic(tiled(), needed, "int8", "resident").spilled == ()
    assert traffic(tiled(), needed - 1, "int8", "resident").spilled


@settings(max_examples=60)
# A network that slices its input reads only a part of it.
@given(graphs(leave_out=("slice",)), st.sampled_from(["float32", "int8"]))
def test_without_limit_the_traffic_is_compulsory(graph, precision):
    width = 4 if precision == "float32" else 1
    ends = [int(np.prod(graph.tensors[name].shape)) for name in (*graph.inputs, *graph.outputs)]
    resident, streamed = (traffic(graph, PLENTY, precision, weights) for weights in ("resident", "streamed"))
    assert resident.spilled == ()
    assert resident.dram_bytes == width * sum(ends)
    assert streamed.dram_bytes == resident.dram_bytes + weight_bytes(graph, precision)
    if precision == "float32":
        assert weight_bytes(graph, precision) == graph.weight_bytes


@settings(max_examples=60)
@given(graphs(), sizes, sizes)
def test_less_sram_never_moves_less(graph, one, other):
    less, more = sorted((one, other))
    tight, roomy = (traffic(graph, sram, "int8", "streamed") for sram in (less, more))
    assert tight.spilled[: len(roomy.spilled)] == roomy.spilled
    assert tight.dram_read_bytes >= roomy.dram_read_bytes
    assert tight.dram_written_bytes >= roomy.dram_written_bytes
    assert tight.operand_bytes == roomy.operand_bytes
    assert energy(tight, graph.macs, "int8").low_mj >= energy(roomy, graph.macs, "int8").low_mj


@settings(max_examples=60)
# An average pool over an even number of values has weights in int8 but not in float.
@given(graphs(("average",)), sizes)
def test_int8_moves_a_quarter_of_float32(graph, sram):
    narrow = traffic(graph, sram, "int8", "resident")
    broad = traffic(graph, 4 * sram, "float32", "resident")
    assert broad.spilled == narrow.spilled
    assert broad.dram_bytes == 4 * narrow.dram_bytes
    assert traffic(graph, sram, "float32", "resident").dram_bytes >= 4 * narrow.dram_bytes
    quantized = in_8_bits(graph)
    if {tensor.dtype for tensor in quantized.activations} == {"int8"}:
        assert traffic(quantized, sram, "int8", "resident") == narrow


@settings(max_examples=60)
@given(graphs())
def test_nothing_is_spilled_if_the_plan_fits(graph):
    assert traffic(graph, plan(graph).arena_bytes, "float32", "resident").spilled == ()


@settings(max_examples=60)
@given(graphs(), sizes)
def test_the_low_end_is_below_the_high_end(graph, sram):
    for scenario in scenarios(graph, sram):
        found = scenario.energy
        assert 0 < found.dram_mj + found.arithmetic_mj < found.low_mj <= found.high_mj
        assert found.high_mj - found.low_mj == pytest.approx(2 * graph.macs * 5e-9)


def test_a_billion_connections_at_20_hz_take_12_8_watts_of_dram():
    """Han et al., Deep Compression (arXiv 1510.00149), section 1: 20 Hz x 1 G x 640 pJ = 12.8 W."""
    inputs, outputs = 40_000, 25_000
    # A single zero, broadcast to a billion weights.
    weight = Tensor("weight", (outputs, inputs), data=np.broadcast_to(np.float32(0), (outputs, inputs)))
    bias = Tensor("bias", (outputs,), data=np.zeros(outputs, np.float32))
    ends = [Tensor("input", (1, inputs)), Tensor("output", (1, outputs))]
    op = ops.FullyConnected(("input", "weight", "bias"), "output")
    graph = Graph.of("billion", [*ends, weight, bias], [op], ["input"], ["output"])
    assert graph.macs == 10**9
    moved = traffic(graph, PLENTY, "float32", "streamed")
    connections = replace(moved, dram_read_bytes=moved.weight_bytes - 4 * outputs, dram_written_bytes=0)
    assert 20 * energy(connections, graph.macs, "float32").dram_mj / 1000 == pytest.approx(12.8)
    assert 20 * energy(moved, graph.macs, "float32").dram_mj / 1000 == pytest.approx(12.8, rel=2e-4)


def test_the_table_of_45_nm():
    nothing = Traffic(0, 0, 0, 0, ())
    # 0.9 + 3.7 pJ and 0.1 + 3.1 pJ; the high end adds two accesses of 5 pJ.
    assert energy(nothing, 10**9, "float32").low_mj == pytest.approx(4.6)
    assert energy(nothing, 10**9, "int8").low_mj == pytest.approx(3.2)
    assert energy(nothing, 10**9, "int8").high_mj == pytest.approx(13.2)
    assert energy(replace(nothing, operand_bytes=4 * 10**9), 0, "int8").low_mj == pytest.approx(5)
    assert energy(replace(nothing, dram_written_bytes=4 * 10**9), 0, "int8").high_mj == pytest.approx(640)


def test_entropy_is_the_bound_of_shannon():
    assert entropy_bytes(np.zeros((5, 5), np.int8)) == 0
    assert entropy_bytes(np.arange(256, dtype=np.uint8)) == 256
    assert entropy_bytes(np.array([0, 1] * 32, np.int8)) == 8
    # 3/4 and 1/4: 0.8113 bits each.
    assert entropy_bytes(np.array([0, 0, 0, 1] * 1000, np.int8)) == 406


def test_only_int8_weights_are_entropy_coded():
    assert precisions(wide()) == ("float32", "int8")
    graph = in_8_bits(wide())
    assert precisions(graph)[2] == "int8 entropy-coded"
    coded = weight_bytes(graph, "int8 entropy-coded")
    assert 4 * (16 + 4 + 2) < coded < weight_bytes(graph, "int8")
    moved = traffic(graph, PLENTY, "int8 entropy-coded", "streamed")
    assert (moved.weight_bytes, moved.dram_bytes) == (coded, 128 + 128 + coded)


@pytest.mark.parametrize("write", [write_onnx, write_tflite])
def test_files_of_both_formats_and_of_stripes_are_compared(write):
    found = scenarios(write(in_8_bits(tiled())), 700, write(in_8_bits(tiled())))
    assert [scenario.schedule for scenario in found] == ["layer by layer"] * 6 + ["tiled"] * 6
    for scenario in found:
        assert scenario.to_json()["dram_bytes"] == scenario.traffic.dram_bytes


def test_the_command(command, exported, tmp_path):
    model = exported / "model.int8.tflite"
    values = json.loads(command("energy", model, "--sram", "8KiB", "--tiled", model, "--json").out)
    assert values["sram_bytes"] == 8192
    assert len(values["scenarios"]) == 12
    for scenario in values["scenarios"]:
        assert scenario["source"] == "planned"
        assert scenario["dram_bytes"] == scenario["dram_read_bytes"] + scenario["dram_written_bytes"] > 0
        assert 0 < scenario["energy_low_mj"] < scenario["energy_high_mj"]
    people = command("energy", exported / "model.float32.onnx", "--device", "stm32f411")
    assert people.code == 0
    assert people.out.count("planned") == 4
    assert "128.0 KiB for activations" in people.out


def test_the_command_needs_one_budget(command, exported, tmp_path):
    model = exported / "model.int8.tflite"
    none = command("energy", model)
    assert (none.code, none.err.count("\n")) == (2, 1)
    assert "energy needs a budget" in none.err
    assert command("energy", model, "--sram", "1MiB", "--device", "stm32f411").code == 2
    mine = tmp_path / "mine.toml"
    mine.write_text('[mine]\nname = "m"\nkind = "DSP"\nmemory = "TCM"\nsram = 4096\nsource = "me"\n')
    ran = command("energy", model, "--device", "mine", "--devices", mine, "--json")
    assert json.loads(ran.out)["sram_bytes"] == 4096
