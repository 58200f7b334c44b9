"""Weight grids: free of saturation in kernels with 16-bit sums, full 8-bit, or 7-bit."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import some_input
from strategies import GraphBuilder, graphs

from firebox.export import calibrate, quantize, write_onnx
from firebox.export.quantization import FakeQuantized, Moments, Range, WeightRange, input_moments
from firebox.export.quantization.gptq import round_weight
from firebox.export.quantization.weight_grid import FULL, WeightGrid, fit_scales, layer_grid, round_to_grid
from firebox.runtime.exactness.saturation import LIMIT, ExactForm, exact_form, integer_layers, weight_pairs
from firebox.runtime.formats.onnx_wire import OnnxMessage
from firebox.runtime.graph import Graph, Quantization, Tensor, ops

RANGES = get_args(WeightRange)


def some_ranges(graph: Graph, seed: int) -> dict[str, Range]:
    random = np.random.default_rng(seed)
    return {t.name: Range(-float(random.uniform(0, 1.5)), float(random.uniform(0.5, 2))) for t in graph.activations}


def layers(graph: Graph) -> list[ops.Layer]:
    return [op for op in graph.ops if isinstance(op, ops.Layer)]


def constant(graph: Graph, op: ops.Layer) -> Tensor:
    """The weight of a layer; it has the same name in the float and the int8 graph."""
    return graph.constant(graph.producers[op.output].inputs[1])


def weight(graph: Graph, op: ops.Layer) -> np.ndarray:
    """Integer weights of a layer, (outputs, columns)."""
    data = constant(graph, op).data
    assert data is not None
    return data.reshape(len(data), -1).astype(int)


def real(graph: Graph, op: ops.Layer) -> np.ndarray:
    found = constant(graph, op).real()
    return found.reshape(len(found), -1)


def largest_sum(graph: Graph) -> int:
    """The largest sum of a pair that any kernel adds, over all layers."""
    sums = [
        np.abs(weight(graph, op)[:, walk].sum(axis=2)).max(initial=0)
        for op in layers(graph)
        for walk in weight_pairs(graph, op)
    ]
    return int(max(sums, default=0))


def assert_cannot_saturate(graph: Graph) -> None:
    assert largest_sum(graph) <= LIMIT
    data = write_onnx(graph)
    assert [layer.saturating for layer in integer_layers(OnnxMessage(data))] == [0] * len(layers(graph))
    assert exact_form(data) == ExactForm(data, 0, 0)


def graph_of(name: str, seed: int) -> Graph:
    """A network of one layer; ``everything`` is a sequence of one of each kind."""
    build = GraphBuilder((1, 6, 6, {"odd": 5, "one": 1}.get(name, 6)), seed)
    if name == "linear":
        return build.graph(build.linear("input", 7))
    if name == "everything":
        x = build.conv(build.conv("input", 9, (3, 3)), 6, (2, 2), 3)
        return build.graph(build.linear(build.conv(x, 6, (3, 3), 6), 5))
    return build.graph(build.conv("input", 12, (3, 3), {"groups": 2, "odd groups": 2, "depthwise": 6}.get(name, 1)))


LAYERS = ("even", "odd", "one", "groups", "linear", "everything")


@pytest.mark.parametrize("name", LAYERS)
def test_no_pair_saturates_and_little_is_lost(name):
    for seed in range(5):
        graph = graph_of(name, seed)
        ranges = some_ranges(graph, seed)
        safe, full, narrow = (quantize(graph, ranges, None, kind) for kind in ("saturation-free", "full", "7-bit"))
        assert quantize(graph, ranges).ops == safe.ops
        assert_cannot_saturate(safe)
        for op in layers(graph):
            expected = real(graph, op)
            lost, most = (((real(network, op) - expected) ** 2).sum(axis=1) for network in (safe, narrow))
            assert (lost <= most * (1 + 1e-5)).all()
    # On the full grid it would saturate.
    assert largest_sum(full) > LIMIT


@settings(max_examples=30)
@given(graphs(), st.integers(0, 1000))
def test_no_network_saturates_by_default_or_in_7_bits(graph, seed):
    assert_cannot_saturate(quantize(graph, some_ranges(graph, seed)))
    assert_cannot_saturate(quantize(graph, some_ranges(graph, seed), None, "7-bit"))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_use_the_whole_range(name):
    graph = graph_of(name, 1)
    for kind, largest in (("full", 127), ("7-bit", 64)):
        network = quantize(graph, some_ranges(graph, 1), None, kind)
        for op in layers(network):
            assert (np.abs(weight(network, op)).max(axis=1) == largest).all()
            scale = constant(network, op).quantization.scale
            np.testing.assert_allclose(np.array(scale) * largest, np.abs(real(graph, op)).max(axis=1), rtol=1e-6)


def test_depthwise_layers_use_all_8_bits():
    build = GraphBuilder((1, 6, 6, 6))
    graph = build.graph(build.conv("input", 6, (3, 3), 6))
    safe, full = (quantize(graph, some_ranges(graph, 0), None, kind) for kind in ("saturation-free", "full"))
    np.testing.assert_array_equal(weight(safe, safe.ops[0]), weight(full, full.ops[0]))
    assert np.abs(weight(safe, safe.ops[0])).max() == 127
    assert_cannot_saturate(safe)


def test_a_channel_without_excessive_pairs_keeps_its_scale():
    build = GraphBuilder((1, 1, 1, 4))
    graph = build.graph(build.conv("input", 3))
    name = graph.ops[0].inputs[1]
    # The largest weight next to the smallest, to an equal one, and to its negative.
    graph.tensors[name].data[:] = np.float32(
        [[1, 0.001, 0.3, -0.3], [1, 1, 0.5, -0.5], [1, -1, 0.2, 0.2]]
    ).reshape(3, 1, 1, 4)  # fmt: skip
    safe, full = (quantize(graph, some_ranges(graph, 0), None, kind) for kind in ("saturation-free", "full"))
    before, after = (np.array(constant(network, safe.ops[0]).quantization.scale) for network in (full, safe))
    assert (before == after).tolist() == [True, False, True]
    assert weight(safe, safe.ops[0]).tolist() == [[127, 0, 38, -38], [64, 64, 32, -32], [127, -127, 25, 25]]


def test_the_less_important_weight_of_a_pair_is_reduced():
    grid = WeightGrid(pairs=(np.array([[0, 1]]),))
    steps = np.array([[100.0, 100.0], [-100.0, -100.0], [100.0, -100.0], [127.4, 2.6]])
    assert round_to_grid(steps, grid, np.array([1.0, 1.0])).tolist() == [[64, 64], [-64, -64], [100, -100], [126, 2]]
    found = round_to_grid(steps, grid, np.array([1.0, 1e9]))
    assert found.tolist() == [[28, 100], [-28, -100], [100, -100], [125, 3]]
    assert round_to_grid(steps, FULL, np.ones(2)).tolist() == [[100, 100], [-100, -100], [100, -100], [127, 3]]
    assert round_to_grid(steps, WeightGrid(64), np.ones(2)).max() == 64


def test_scales_are_widened_if_reducing_pairs_costs_more():
    grid = WeightGrid(pairs=(np.array([[0, 1]]),))
    rows = np.float32([[1, 1], [1, 0.001]])
    scales = np.float32([1 / 127, 1 / 127])
    assert fit_scales(rows, scales, FULL, np.ones(2)).tolist() == scales.tolist()
    found = fit_scales(rows, scales, grid, np.ones(2))
    assert found[0] == pytest.approx(1 / 64)
    assert found[1] == scales[1]
    # A column with zero input is reduced in favour of its partner.
    rows = np.float32([[1, 1, 1 / 127]])
    assert fit_scales(rows, scales[:1], grid, np.array([1.0, 1e-9, 1.0])) == scales[0]


def correlated(columns: int, seed: int) -> Moments:
    random = np.random.default_rng(seed)
    windows = random.normal(0, 1, (400, columns)) @ random.normal(0, 1, (columns, columns))
    return Moments(windows.mean(0), np.cov(windows.T))


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("name", ["even", "odd", "one", "linear"])
def test_compensated_weights_stay_within_their_range(name, kind):
    for seed in range(3):
        graph = graph_of(name, seed)
        moments = {op.name: correlated(real(graph, op).shape[1], seed) for op in layers(graph)}
        network = quantize(graph, some_ranges(graph, seed), moments, kind)
        for op in layers(network):
            assert np.abs(weight(network, op)).max() <= (64 if kind == "7-bit" else 127)
        if kind != "full":
            assert_cannot_saturate(network)


def test_compensation_reduces_the_error_on_every_grid():
    graph = graph_of("odd", 0)
    (op,) = layers(graph)
    expected, moments = real(graph, op), correlated(45, 0)

    def output_error(found: np.ndarray) -> float:
        return float(np.einsum("ij,jk,ik->", found - expected, moments.covariance, found - expected))

    for kind in RANGES:
        found = quantize(graph, some_ranges(graph, 0), {op.name: moments}, kind)
        nearest = quantize(graph, some_ranges(graph, 0), None, kind)
        assert output_error(real(found, op)) < 0.7 * output_error(real(nearest, op))


def test_moments_of_real_inputs_leave_no_excessive_pair():
    graph = graph_of("everything", 0)
    random = np.random.default_rng(0)
    samples = [random.standard_normal((1, 6, 6, 6), np.float32) for _ in range(4)]
    network = quantize(graph, calibrate(graph, samples), input_moments(graph, samples))
    assert_cannot_saturate(network)


def test_rounding_keeps_the_shape_and_the_grid():
    random = np.random.default_rng(0)
    data = random.normal(0, 1, (5, 3, 3, 3)).astype(np.float32)
    scale = Quantization(tuple((np.abs(data).reshape(5, -1).max(axis=1) / 127).tolist()), 0, 0)
    build = GraphBuilder((1, 6, 6, 3))
    graph = build.graph(build.conv("input", 5, (3, 3)))
    grid = layer_grid(graph, layers(graph)[0], "saturation-free")
    assert len(grid.pairs) == 2
    for moments in (None, correlated(27, 1)):
        found = round_weight(data, scale, moments, grid)
        assert (found.dtype, found.shape) == (np.int8, data.shape)
        flat = found.reshape(5, -1).astype(int)
        assert all(np.abs(flat[:, walk].sum(axis=2)).max() <= LIMIT for walk in grid.pairs)


@pytest.mark.parametrize("kind", RANGES)
@settings(max_examples=10)
@given(graph=graphs(leave_out=("average",)), seed=st.integers(0, 1000))
def test_training_computes_with_the_integers_of_the_file(kind, graph, seed):
    module = FakeQuantized(graph, some_ranges(graph, seed), weight_range=kind)
    network = quantize(module.graph(), module.ranges(), None, kind)
    found, expected = integers_in_training(module, network, seed), [weight(network, op) for op in layers(network)]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def integers_in_training(module: FakeQuantized, network: Graph, seed: int) -> list[np.ndarray]:
    """The integer weights of one forward pass, layer by layer, in the graph's order."""
    found = []
    functional = torch.nn.functional
    with pytest.MonkeyPatch.context() as patch:

        def recorded(kind):
            run = getattr(functional, kind)

            def record(x, integers, *rest, **options):
                data = integers.detach().numpy()
                found.append((data.transpose(0, 2, 3, 1) if data.ndim == 4 else data).reshape(len(data), -1))
                return run(x, integers, *rest, **options)

            patch.setattr(functional, kind, record)

        recorded("conv2d")
        recorded("linear")
        source = network.tensors["input"].quantization
        assert source is not None
        x = source.dequantize(some_input(network, seed)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(x)))
    return found
