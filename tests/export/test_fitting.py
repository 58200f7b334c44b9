"""Networks rewritten to fit: the same integers within the budget, or a smallest budget that can be reached."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import run_litert, run_micro, run_onnx, run_reference, some_input
from strategies import GraphBuilder, fire_networks, in_any_8_bits

from firebox.export import trace, write_onnx, write_tflite
from firebox.export.fit import DoesNotFitError, Fit, fit
from firebox.export.quantization import with_input_type
from firebox.model_zoo import load_network
from firebox.runtime import plan, read_graph
from firebox.runtime.errors import UsageError
from firebox.runtime.formats.tflite_legalize import explicit_padding
from firebox.runtime.graph import Graph, Op, ops

# The same networks every time, as in test_formats.py.
runs = settings(max_examples=16)
# Large enough for activations to outweigh the memory that tflite-micro needs for operations.
networks = fire_networks((28, 40), 8, 2)


def written(found: Fit) -> bytes:
    return write_tflite(found.graph, None, found.offsets)


def total_bytes(graph: Graph) -> int:
    total = plan(graph).total_bytes
    assert total is not None
    return total


def assert_runs_within(found: Fit, budget: int, graph: Graph) -> None:
    """Check that tflite-micro runs the file in an arena of the budget, as planned, with the same integers."""
    data, x = written(found), some_input(graph)
    planned = plan(data)
    assert planned.total_bytes == found.after.total_bytes
    assert planned.total_bytes is not None
    assert planned.total_bytes <= budget
    assert planned.buffers == found.after.buffers
    np.testing.assert_array_equal(run_micro(data, x, budget), run_micro(write_tflite(graph), x))
    np.testing.assert_array_equal(run_litert(data, x), run_litert(write_tflite(graph), x))


@runs
@given(networks, st.integers(40, 110))
def test_a_network_fits_its_budget_to_the_byte_or_says_which_it_would_fit(graph, percent):
    total = total_bytes(graph)
    budget = total * percent // 100
    try:
        found = fit(graph, budget)
    except DoesNotFitError as error:
        assert budget < error.smallest_bytes <= total
        assert error.exit_code == 3
        budget = error.smallest_bytes
        found = fit(graph, budget)
    assert found.before.total_bytes == total
    assert found.sram_bytes == budget
    assert_runs_within(found, budget, graph)


@settings(runs, max_examples=12)
@given(networks, st.integers(40, 110), st.sampled_from(["litert-reference", "static"]))
def test_other_targets_are_fitted_by_their_own_plan(graph, percent, target):
    before = plan(graph, target)
    budget = before.arena_bytes * percent // 100
    try:
        found = fit(graph, budget, target)
    except DoesNotFitError as error:
        assert budget < error.smallest_bytes <= before.arena_bytes
        budget = error.smallest_bytes
        found = fit(graph, budget, target)
    # These targets read no offsets from a file.
    assert found.offsets is None
    data, x = written(found), some_input(graph)
    # A compiler needs no separate operation for padding that TFLite cannot express; the file does.
    planned = plan(data if target == "litert-reference" else found.graph, target)
    assert planned.arena_bytes == found.after.arena_bytes <= budget
    for run in (run_litert, run_reference):
        np.testing.assert_array_equal(run(data, x), run(write_tflite(graph), x))


def chain(rows: int = 32, channels: int = 8) -> GraphBuilder:
    """A padded convolution, a Fire module and a pool, which need 3 to 5 times the memory of input and output."""
    build = GraphBuilder((1, rows, rows, 3))
    x = build.conv("input", channels, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    squeezed = build.conv(x, 2, activation="relu")
    right = build.conv(squeezed, channels, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    joined = build.add(ops.Concat, build.conv(squeezed, channels, activation="relu"), right)
    build.add(ops.MaxPool, joined, window=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1))
    return build


def tight(graph: Graph) -> int:
    """A budget that a chain of 32 rows fits only in tiles."""
    return total_bytes(graph) * 41 // 100


def least(graph: Graph) -> int:
    """The smallest budget that the error reports."""
    with pytest.raises(DoesNotFitError, match="the smallest rewrite found needs") as caught:
        fit(graph, 512)
    return caught.value.smallest_bytes


def last(build: GraphBuilder) -> str:
    return build.ops[-1].output


def test_two_calls_give_the_same_bytes():
    build = chain()
    graph = in_any_8_bits(build.graph(build.conv(last(build), 4)))
    budget = tight(graph)
    one, other = fit(graph, budget), fit(graph, budget)
    assert one.graph != graph
    assert written(one) == written(other)


def test_a_refusal_names_the_peak_operation_and_is_reproducible():
    build = chain(rows=12)
    graph = in_any_8_bits(build.graph(build.conv(last(build), 4)))
    messages = set()
    for _ in range(2):
        with pytest.raises(DoesNotFitError) as caught:
            fit(graph, 1000)
        messages.add(str(caught.value))
        assert caught.value.binding.split("/")[0] in {op.name for op in graph.ops}
        assert f"{caught.value.binding!r} is its peak" in str(caught.value)
        assert f"{caught.value.smallest_bytes:,} bytes" in str(caught.value)
    assert len(messages) == 1


def test_a_network_that_fits_is_returned_unchanged():
    build = chain()
    graph = in_any_8_bits(build.graph(last(build)))
    total = total_bytes(graph)
    for budget in (total, total + 1, 10 * total):
        found = fit(graph, budget)
        assert found.graph == graph
        assert (found.extra_macs, found.offsets) == (0, None)
        assert found.before == found.after
    assert fit(graph, total - 1).graph != graph


def test_the_smallest_budget_and_all_larger_ones_fit():
    build = chain(rows=24)
    graph = in_any_8_bits(build.graph(build.conv(last(build), 4)))
    smallest, total = least(graph), total_bytes(graph)
    assert smallest < total // 2
    for percent in (0, 3, 50):
        budget = smallest + (total - smallest) * percent // 100
        assert_runs_within(fit(graph, budget), budget, graph)


def of_kind(graph: Graph, *kinds: type[Op]) -> list[Op]:
    return [op for op in graph.ops if isinstance(op, kinds)]


def test_operations_that_cannot_be_tiled_stay_around_tiled_ones():
    build = chain()
    graph = in_any_8_bits(build.graph(build.add(ops.Softmax, build.linear(last(build), 5))))
    budget = tight(graph)
    found = fit(graph, budget)
    around = (ops.Reshape, ops.FullyConnected, ops.Softmax)
    assert of_kind(found.graph, *around) == of_kind(graph, *around)
    assert of_kind(found.graph, ops.Slice)
    assert len(of_kind(found.graph, ops.Conv)) > len(of_kind(graph, ops.Conv))
    assert_runs_within(found, budget, graph)


def test_networks_with_dilated_and_grouped_convolutions_are_tiled():
    build = chain(rows=36)
    dilated = build.conv(last(build), 4, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2))
    graph = in_any_8_bits(build.graph(build.conv(dilated, 4, (3, 3), groups=2)))
    budget = plan(graph, "litert-reference").arena_bytes * 6 // 10
    found = fit(graph, budget, "litert-reference")
    assert len(found.graph.ops) > len(graph.ops)
    assert found.after.arena_bytes <= budget
    x = some_input(graph)
    for run in (run_litert, run_reference):
        np.testing.assert_array_equal(run(written(found), x), run(write_tflite(graph), x))
    np.testing.assert_array_equal(run_onnx(write_onnx(found.graph), x), run_onnx(write_onnx(graph), x))


def test_uint8_input_is_requantized_before_tiling():
    build = chain()
    graph = with_input_type(in_any_8_bits(build.graph(build.conv(last(build), 4))), "uint8")
    budget = tight(graph)
    found = fit(graph, budget)
    cut = {name for op in of_kind(found.graph, ops.Slice) for name in op.inputs}
    assert cut
    assert not cut & {"input"}
    assert isinstance(found.graph.ops[0], ops.Quantize)
    assert_runs_within(found, budget, graph)


def test_a_network_without_multiplications_is_fitted():
    build = GraphBuilder((1, 64, 64, 4))
    x = build.add(ops.MaxPool, "input", window=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    graph = in_any_8_bits(build.graph(build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2))))
    budget = total_bytes(graph) * 9 // 10
    found = fit(graph, budget)
    assert found.stages
    assert found.extra_macs == 0
    assert_runs_within(found, budget, graph)


def test_a_written_fit_is_read_back_with_its_offsets():
    build = chain()
    graph = in_any_8_bits(build.graph(build.conv(last(build), 4)))
    found = fit(graph, tight(graph))
    assert found.offsets
    data = written(found)
    assert plan(data).offsets == found.offsets
    assert read_graph(data).ops == explicit_padding(found.graph).ops
    # The same network without its offsets needs more than the budget.
    alone = plan(found.graph).total_bytes
    assert alone is not None
    assert alone > found.sram_bytes


def test_only_int8_networks_with_one_input_and_output_are_fitted():
    build = chain()
    graph = build.graph(last(build))
    with pytest.raises(UsageError, match="is a float32 network, first 'input'; fit supports int8 only"):
        fit(graph, 10_000)
    pools = GraphBuilder((1, 8, 8, 4))
    with pytest.raises(UsageError, match="is a float32 network"):
        fit(pools.graph(pools.add(ops.MaxPool, "input", window=(2, 2), stride=(2, 2))), 10_000)
    two = in_any_8_bits(build.graph(last(build), "conv1"))
    with pytest.raises(UsageError, match="1 inputs and 2 outputs; fit supports one of each"):
        fit(two, 10_000)
    small = in_any_8_bits(graph)
    double = Graph(small.name, small.tensors, small.ops[1:], ("input", small.ops[0].output), small.outputs)
    with pytest.raises(UsageError, match="2 inputs and 1 outputs"):
        fit(double, 10_000)
    for target in ("litert", "onnxruntime"):
        with pytest.raises(UsageError, match=f"memory on '{target}' cannot be planned in advance; use one of tflm, "):
            fit(small, 10_000, target)
    with pytest.raises(UsageError, match="target 'esp' is not one of tflm, "):
        fit(small, 10_000, "esp")


@pytest.mark.parametrize(("name", "size", "percent"), [("squeezenet1_1", 96, 60), ("squeezenet_micro", 32, 85)])
def test_a_real_network_fits_a_fraction_of_its_memory(name, size, percent):
    network = load_network(name, random_init=True)
    graph = in_any_8_bits(trace(network.module, (1, network.preprocessing.depth, size, size), name))
    budget = total_bytes(graph) * percent // 100
    found = fit(graph, budget)
    assert found.extra_macs < 0.15
    assert_runs_within(found, budget, graph)
    x = some_input(graph)
    np.testing.assert_array_equal(run_onnx(write_onnx(found.graph), x), run_onnx(write_onnx(graph), x))
