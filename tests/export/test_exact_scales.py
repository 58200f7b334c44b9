"""Exact scales: every runtime rounds additions and means to the same integers."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import answers, some_input
from strategies import GraphBuilder, graphs, in_any_8_bits

from firebox.export import quantize
from firebox.export.blame.matching import match
from firebox.export.quantization import Range, scale_groups
from firebox.export.quantization.exact_scales import exact_scales
from firebox.export.quantization.scales import activation_scales, fixed_groups
from firebox.runtime.exactness.rounding import add_margin, mean_margin, promise
from firebox.runtime.graph import Graph, ops
from firebox.runtime.graph.reference import run_reference
from firebox.runtime.graph.rewrite import averages_as_convolutions


def some_ranges(graph: Graph, seed: int) -> dict[str, Range]:
    """Ranges of very different widths, unlike those of a real sum and its terms."""
    random = np.random.default_rng(seed)
    return {
        t.name: Range(-float(random.uniform(0.1, 3)), float(random.uniform(0.3, 6))) for t in graph.activations
    }  # fmt: skip


def own_scales(graph: Graph, seed: int) -> tuple[dict[str, str], dict[str, float]]:
    """Scale groups, and the scale that each group's range alone gives."""
    groups = scale_groups(graph)
    fixed, free = fixed_groups(graph, groups), activation_scales(graph, some_ranges(graph, seed), exact=False)
    return groups, {group: free[name].scale[0] for name, group in groups.items() if group not in fixed}


def chain(build: GraphBuilder) -> str:
    """Additions in which each sum is a term of the next."""
    x = "input"
    for _ in range(4):
        x = build.add(ops.Add, x, build.conv(x, 3), activation="relu")
    return x


def circle(build: GraphBuilder) -> str:
    """A concatenation forces a sum and its terms to share a scale."""
    left = build.conv("input", 3)
    total = build.add(ops.Add, left, build.conv("input", 3))
    return build.add(ops.Add, build.add(ops.Concat, total, left), build.conv(total, 6))


def twice(build: GraphBuilder) -> str:
    x = build.conv("input", 3)
    return build.add(ops.Add, x, x)


def residual(build: GraphBuilder) -> str:
    x = build.conv("input", 4)
    x = build.add(ops.Add, x, build.conv(x, 4, (3, 3), padding=(1, 1, 1, 1)))
    return build.linear(build.add(ops.GlobalAveragePool, x), 5)


def means(build: GraphBuilder) -> str:
    """The sum of two means: of a sum and of one of its terms."""
    x = build.conv("input", 3)
    total = build.add(ops.Add, x, build.conv(x, 3))
    return build.add(ops.Add, build.add(ops.GlobalAveragePool, total), build.add(ops.GlobalAveragePool, x))


NETWORKS: dict[str, Callable[[GraphBuilder], str]] = {
    function.__name__: function for function in (chain, circle, twice, residual, means)
}


def sums(graph: Graph) -> list[ops.Add | ops.GlobalAveragePool]:
    return [op for op in graph.ops if isinstance(op, ops.Add | ops.GlobalAveragePool)]


def assert_identical(graph: Graph, seed: int) -> None:
    """Compare the reference, onnxruntime and LiteRT bit by bit."""
    x = some_input(graph, seed)
    expected = run_reference(graph, x)[graph.outputs[0]]
    for name, answer in answers(graph, x, ("litert-reference", "tflite-micro")).items():
        np.testing.assert_array_equal(answer, expected, err_msg=name)


def assert_small_and_idempotent(graph: Graph, seed: int) -> dict[str, float]:
    """The adjusted scales; the change is small, and adjusting them again changes nothing."""
    groups, before = own_scales(graph, seed)
    after = exact_scales(graph, groups, before)
    assert set(after) == set(before)
    assert max(abs(after[group] / before[group] - 1) for group in before) < 0.03
    assert all(np.float32(scale) == scale for scale in after.values())
    assert exact_scales(graph, groups, after) == after
    summed = {groups[name] for op in sums(graph) for name in (*op.inputs, op.output)}
    assert all(after[group] == before[group] for group in set(before) - summed)
    return after


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_and_means_are_identical_everywhere(name):
    for seed in range(8):
        build = GraphBuilder((1, 6, 7, 3), seed)
        graph = build.graph(NETWORKS[name](build))
        after = assert_small_and_idempotent(graph, seed)
        network = quantize(graph, some_ranges(graph, seed))
        groups = scale_groups(graph)
        for tensor in graph.activations:
            assert network.tensors[tensor.name].quantization.scale == (after[groups[tensor.name]],)
        assert [promise(network, op) for op in sums(network)] == ["identical"] * len(sums(graph))
        assert_identical(network, seed)


@settings(max_examples=60)
@given(graphs(leave_out=("average",)), st.integers(0, 1000))
def test_scales_of_random_networks_change_little_and_once(graph, seed):
    assert_small_and_idempotent(graph, seed)
    network = quantize(graph, some_ranges(graph, seed))
    assert [promise(network, op) for op in sums(network)] == ["identical"] * len(sums(graph))


def test_margins_exceed_the_rounding_errors_of_runtimes():
    for seed in range(20):
        build = GraphBuilder((1, 5, 8, 3), seed)
        network = quantize(graph := build.graph(means(build)), some_ranges(graph, seed))
        for op in sums(network):
            if isinstance(op, ops.Add):
                assert add_margin(*(network.tensors[name] for name in (*op.inputs, op.output))) > 4.4e-4
            else:
                assert mean_margin(network, op) > 1.1e-4


def test_exact_scales_are_kept_bit_for_bit():
    build = GraphBuilder((1, 4, 4, 3))
    graph = build.graph(twice(build))
    groups = scale_groups(graph)
    given = dict.fromkeys(groups.values(), float(np.float32(0.0123)))
    assert exact_scales(graph, groups, given) == given
    # A sum at twice the scale has ties.
    doubled = given | {groups[graph.outputs[0]]: 2 * float(np.float32(0.0123))}
    moved = exact_scales(graph, groups, doubled)
    assert moved != doubled
    assert exact_scales(graph, groups, moved) == moved


def test_networks_without_sums_keep_the_scales_of_their_ranges():
    build = GraphBuilder((1, 6, 6, 2))
    graph = build.graph(build.linear(build.conv("input", 3, (3, 3)), 4))
    groups, before = own_scales(graph, 0)
    assert exact_scales(graph, groups, before) == before


def test_the_scale_of_a_softmax_is_fixed():
    build = GraphBuilder((1, 1, 1, 4))
    shares = build.add(ops.Softmax, build.linear("input", 3))
    graph = build.graph(build.add(ops.Add, shares, build.linear("input", 3)))
    network = quantize(graph, some_ranges(graph, 0))
    assert network.tensors[shares].quantization.scale == (1 / 256,)
    # Scales linked to a fixed scale are not adjusted.
    groups, before = own_scales(graph, 0)
    assert exact_scales(graph, groups, before) == before
    build = GraphBuilder((1, 4, 4, 3))
    graph = build.graph(build.add(ops.Softmax, build.add(ops.GlobalAveragePool, build.conv("input", 3))))
    network = quantize(graph, some_ranges(graph, 0))
    assert network.tensors[graph.outputs[0]].quantization.scale == (1 / 256,)
    assert promise(network, sums(network)[0]) == "identical"


def test_means_of_too_many_values_keep_their_scale():
    build = GraphBuilder((1, 65, 77, 1))
    x = build.conv("input", 2)
    total = build.add(ops.Add, x, build.conv("input", 2))
    graph = build.graph(build.add(ops.GlobalAveragePool, total))
    groups, before = own_scales(graph, 3)
    after = exact_scales(graph, groups, before)
    end = groups[graph.outputs[0]]
    assert after[end] == before[end]
    network = quantize(graph, some_ranges(graph, 3))
    assert [promise(network, op) for op in sums(network)] == ["identical", "one step"]


def test_means_of_many_pixels_are_exact_if_the_count_is_mostly_twos():
    for side in (8, 16, 13):
        build = GraphBuilder((1, side, side, 2), side)
        graph = build.graph(build.add(ops.GlobalAveragePool, build.conv("input", 3)))
        assert_small_and_idempotent(graph, side)
        network = quantize(graph, some_ranges(graph, side))
        assert promise(network, sums(network)[0]) == "identical"
        assert_identical(network, side)


@pytest.mark.parametrize("window", [(2, 2), (2, 1), (3, 2), (4, 4), (2, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_even_average_pools_become_convolutions_with_identical_rounding(window, stride):
    build = GraphBuilder((1, 9, 8, 3), 1)
    x = build.add(ops.AveragePool, build.conv("input", 5), window=window, stride=stride)
    graph = build.graph(build.conv(x, 2))
    network = quantize(graph, some_ranges(graph, 2))
    assert [op.kind for op in network.ops] == ["Conv", "Conv", "Conv"]
    pool = network.ops[1]
    assert isinstance(pool, ops.Conv)
    assert (pool.groups, pool.stride, network.tensors[x].shape) == (5, stride, graph.tensors[x].shape)
    assert (network.constant(pool.inputs[1]).data == 127).all()
    assert all(promise(network, op) == "identical" for op in network.ops)
    assert_identical(network, 0)
    # A mean is off at most by the rounding of the pool and of its weights.
    values = run_reference(network, some_input(network, 1))
    quantization = network.tensors[x].quantization
    real = quantization.dequantize(values[pool.inputs[0]])
    windows = np.lib.stride_tricks.sliding_window_view(real, window, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    assert np.abs(quantization.dequantize(values[x]) - windows.mean(axis=(4, 5))).max() <= 0.51 * quantization.scale[0]


@pytest.mark.parametrize(
    ("window", "padding", "kind"),
    [((3, 3), (0, 0, 0, 0), "AveragePool"), ((2, 2), (0, 1, 0, 1), "AveragePool"), ((2, 2), (0, 0, 0, 0), "Conv")],
)
def test_other_average_pools_are_kept(window, padding, kind):
    build = GraphBuilder((1, 7, 7, 3), 1)
    graph = build.graph(build.add(ops.AveragePool, "input", window=window, padding=padding))
    assert [op.kind for op in averages_as_convolutions(graph).ops] == [kind]
    network = quantize(graph, some_ranges(graph, 1))
    assert promise(network, network.ops[0]) == ("one step" if any(padding) else "identical")
    if not any(padding):
        assert_identical(network, 1)
    if kind == "AveragePool":
        assert averages_as_convolutions(graph) is graph


@settings(max_examples=25)
@given(graphs(), st.integers(0, 1000))
def test_quantized_networks_are_identical_in_runtimes(graph, seed):
    network = quantize(graph, some_ranges(graph, seed))
    if all(promise(network, op) == "identical" for op in network.ops):
        assert_identical(network, seed)


def test_pools_of_both_kinds_are_matched_with_the_float_network():
    build = GraphBuilder((1, 12, 12, 3))
    even = build.add(ops.AveragePool, build.conv("input", 4), window=(2, 2), stride=(2, 2))
    odd = build.add(ops.AveragePool, build.conv(even, 4), window=(3, 3), stride=(1, 1))
    graph = build.graph(build.linear(odd, 3))
    network = in_any_8_bits(graph)
    assert [op.kind for op in network.ops][:4] == ["Conv", "Conv", "Conv", "AveragePool"]
    found = match(graph, network)
    assert [op.kind for op in found.reference.ops] == [op.kind for op in network.ops]
    assert found.names[odd] == odd
