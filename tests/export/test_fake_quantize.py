"""Fake quantization in torch against the runtimes on the int8 graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import alone, answers, some_input
from strategies import GraphBuilder, graphs

from firebox.export import calibrate, quantize
from firebox.export.quantization import FakeQuantized, Range, with_input_type
from firebox.runtime.errors import QuantizationError, UnsupportedError
from firebox.runtime.exactness.rounding import promise
from firebox.runtime.formats.tflite_legalize import legalize
from firebox.runtime.graph import Graph, ops
from firebox.runtime.graph.reference import run_reference


def drawn_ranges(graph: Graph, seed: int) -> dict[str, Range]:
    """Random ranges, with zero inside or at an end."""
    random = np.random.default_rng(seed)
    lows = random.uniform(-1.5, 1.5, len(graph.activations)).clip(max=0)
    return {tensor.name: Range(float(low), 2.0) for tensor, low in zip(graph.activations, lows, strict=True)}


def fire_network() -> Graph:
    build = GraphBuilder((1, 8, 8, 3))
    squeezed = build.conv(build.conv("input", 6, (3, 3), activation="relu"), 4, activation="relu")
    left = build.conv(squeezed, 6, activation="relu")
    right = build.conv(squeezed, 6, (3, 3), padding=(1, 1, 1, 1), activation="relu6")
    joined = build.add(
        ops.MaxPool, build.add(ops.Concat, left, right), window=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1)
    )
    return build.graph(build.add(ops.GlobalAveragePool, build.conv(joined, 5)))


def samples(graph: Graph, count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, *graph.tensors["input"].shape)).astype(np.float32)


def in_torch(module: FakeQuantized, images: np.ndarray) -> torch.Tensor:
    return module(torch.from_numpy(images[:, 0].transpose(0, 3, 1, 2)))


@settings(max_examples=40)
@given(graphs(), st.integers(0, 1000))
def test_runtimes_compute_what_training_computed(graph, seed):
    same_as_runtimes(graph, seed)


def test_transposed_images_keep_their_scale():
    build = GraphBuilder((1, 6, 4, 3))
    turned = build.add(ops.Transpose, build.conv("input", 5, (3, 3)), order=(0, 2, 3, 1))
    graph = build.graph(build.conv(turned, 4))
    network = same_as_runtimes(graph, 1)
    assert [op.kind for op in legalize(network).ops] == ["Conv", "Transpose", "Conv"]


def same_as_runtimes(graph: Graph, seed: int) -> Graph:
    """The int8 graph, after comparing torch and all runtimes within the documented steps."""
    module = FakeQuantized(graph, drawn_ranges(graph, seed))
    network = quantize(module.graph(), module.ranges())
    source, result = (network.tensors[name].quantization for name in graph.inputs + graph.outputs)
    assert source is not None and result is not None
    x = some_input(network, seed)
    values = run_reference(network, x)
    with torch.no_grad():
        real = module(torch.from_numpy(source.dequantize(x).transpose(0, 3, 1, 2))).numpy()
    trained = result.quantize(real.transpose(0, 2, 3, 1) if real.ndim == 4 else real, "int8").astype(int)
    # Softmax, always last, uses each runtime's own exponential.
    promises = {promise(network, op) for op in network.ops if not isinstance(op, ops.Softmax)}
    most = 1 if any(isinstance(op, ops.Softmax) for op in network.ops) else 0
    expected = values[network.outputs[0]].astype(int)
    assert np.abs(trained - expected).max() <= most
    if promises <= {"identical"}:
        for name, answer in answers(network, x, ("litert-reference", "tflite-micro")).items():
            assert np.abs(answer - expected).max() <= most, name
    return network


@settings(max_examples=10)
@given(graphs(), st.integers(0, 1000))
def test_each_operation_alone_is_within_a_step_of_the_reference_in_every_runtime(graph, seed):
    """Runtimes with fixed-point rescaling are included; later layers would amplify their differences."""
    network = quantize(graph, drawn_ranges(graph, seed))
    values = run_reference(network, some_input(network, seed))
    for op in network.ops:
        if not isinstance(op, ops.Layer | ops.Pool | ops.Add | ops.GlobalAveragePool | ops.Softmax):
            continue
        x, single = values[op.inputs[0]], alone(network, op)
        expected = run_reference(single, x)[op.output].astype(int)
        left_out = ("onnxruntime",) if x.ndim == 2 else ()
        for name, answer in answers(single, x, left_out).items():
            assert np.abs(answer - expected).max() <= 1, (name, op)


@settings(max_examples=20)
@given(graphs(), st.integers(0, 1000))
def test_ranges_and_weights_round_trip(graph, seed):
    ranges = drawn_ranges(graph, seed)
    module = FakeQuantized(graph, ranges)
    before, after = quantize(graph, ranges), quantize(module.graph(), module.ranges())
    assert (before.tensors, before.ops) == (after.tensors, after.ops)
    for name, tensor in before.tensors.items():
        assert tensor.data is None or np.array_equal(tensor.data, after.tensors[name].data)


def test_scales_and_weights_are_learned():
    graph = fire_network()
    images = samples(graph, 8)
    exact = {name: Range(2 * found.low, 4 * found.high) for name, found in calibrate(graph, list(images)).items()}
    module = FakeQuantized(graph, exact)
    wanted = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (8, 5, 1, 1)).astype(np.float32))
    optimizer = torch.optim.SGD(module.parameters(), 0.02, 0.9)
    before, losses = module.scales.detach().clone(), []
    for _ in range(60):
        loss = ((in_torch(module, images) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (module.scales != before).all()
    learned = quantize(module.graph(), module.ranges())
    # Exact ratios, as in the file.
    exact = module.exact(module.scales.tolist())
    assert np.abs(np.array(exact) / module.scales.detach().numpy() - 1).max() < 0.03
    for tensor in graph.activations:
        quantization = learned.tensors[tensor.name].quantization
        assert quantization is not None
        assert quantization.scale[0] in exact


def test_learning_a_single_scale_minimizes_the_error():
    build = GraphBuilder((1, 4, 4, 3))
    graph = build.graph(build.conv("input", 5, (3, 3)))
    images = samples(graph, 200)
    ranges = calibrate(graph, list(images), "minmax")
    (result,) = graph.outputs
    with torch.no_grad():
        wanted = in_torch(FakeQuantized(graph, ranges), images)
    wide = FakeQuantized(graph, ranges | {result: Range(20 * ranges[result].low, 20 * ranges[result].high)})
    optimizer, errors = torch.optim.SGD([wide.scales], 0.5), []
    for _ in range(100):
        error = ((in_torch(wide, images) - wanted) ** 2).sum() / len(images)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]


def test_the_scale_of_a_softmax_is_fixed():
    build = GraphBuilder((1, 4, 4, 2))
    graph = build.graph(build.add(ops.Softmax, build.linear("input", 4)))
    module = FakeQuantized(graph, drawn_ranges(graph, 0))
    in_torch(module, samples(graph, 4)).square().sum().backward()
    assert module.scales.grad is not None
    fixed = module.scales == 1 / 256
    assert (module.scales.grad[fixed] == 0).all()
    assert fixed.sum() == 1
    assert (module.scales.grad[~fixed] != 0).all()


def test_bfloat16_changes_outputs_little():
    graph = fire_network()
    images = samples(graph, 8)
    module = FakeQuantized(graph, calibrate(graph, list(images)))
    with torch.no_grad():
        exact = in_torch(module, images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = in_torch(module, images)
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_unsupported_graphs_are_refused():
    graph = fire_network()
    ranges = drawn_ranges(graph, 0)
    with pytest.raises(UnsupportedError, match="pass the float network"):
        FakeQuantized(quantized_inside(graph), ranges)
    with pytest.raises(UnsupportedError, match="1 inputs and 2 outputs"):
        FakeQuantized(replace(graph, outputs=(graph.ops[0].output, *graph.outputs)), ranges)
    with pytest.raises(QuantizationError, match="was not calibrated"):
        FakeQuantized(graph, {})
    module = FakeQuantized(graph, ranges)
    with torch.no_grad():
        module.scales[0] = -1
    with pytest.raises(QuantizationError, match="activation 'input' has scale -1"):
        in_torch(module, samples(graph, 1))
    with torch.no_grad():
        module.scales[0] = 1
        module.weights[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=f"{graph.ops[0].name}.*not finite"):
        in_torch(module, samples(graph, 1))


def quantized_inside(graph: Graph) -> Graph:
    return with_input_type(quantize(graph, drawn_ranges(graph, 0)), "uint8")
