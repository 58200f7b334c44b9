"""Post-training quantization: calibrators, equalization, GPTQ and tuned weights."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from recorder import Recorder
from strategies import GraphBuilder, graphs

from firebox.export import calibrate, quantize
from firebox.export.activations import run_outputs
from firebox.export.formats.onnx_writer import write_onnx
from firebox.export.quantization import CALIBRATORS, Range, calibration_samples, input_moments, quantize_network
from firebox.export.quantization.calibration import collect_histograms
from firebox.export.quantization.equalization import channel_peaks, equalize
from firebox.export.quantization.quantize import compensate_layers
from firebox.export.quantization.ranges import Histogram
from firebox.export.quantization.weight_tuning import tune_weights
from firebox.runtime import Preprocessing
from firebox.runtime.errors import QuantizationError, UsageError
from firebox.runtime.graph import Graph, Tensor, ops

SIZE = 12


def fire(seed: int = 0) -> Graph:
    """A small network with a concatenation and a bypass, whose tensors share scales."""
    build = GraphBuilder((1, SIZE, SIZE, 3), seed)
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    squeeze = build.conv(x, 4, activation="relu")
    left = build.conv(squeeze, 4, activation="relu")
    right = build.conv(squeeze, 4, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.add(ops.Add, build.add(ops.Concat, left, right), x)
    x = build.add(ops.MaxPool, x, window=(2, 2), stride=(2, 2))
    x = build.conv(x, 6, activation="relu")
    x = build.add(ops.GlobalAveragePool, x)
    return build.graph(build.add(ops.Reshape, x, shape=(1, 6)))


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 1, SIZE // 2, SIZE // 2, 3), np.float32)
    return [image.repeat(2, axis=1).repeat(2, axis=2) for image in coarse]


def uneven(graph: Graph, factor: float = 100.0) -> Graph:
    """The same function with every other channel of the first layer multiplied by ``factor``."""
    first, second = (op for op in graph.ops[:2] if isinstance(op, ops.Conv))
    factors = np.where(np.arange(4) % 2, factor, 1.0)
    tensors = dict(graph.tensors)
    takers = graph.consumers[second.output]
    for name, by in (
        (second.inputs[1], factors[:, None, None, None]),
        (second.inputs[2], factors),
        *((op.inputs[1], 1 / factors) for op in takers),
    ):
        tensors[name] = replace(tensors[name], data=(graph.constant(name).real() * by).astype(np.float32))
    assert first.output == second.inputs[0]
    return replace(graph, tensors=tensors)


def noise(graph: Graph, found: Graph, samples: list[np.ndarray]) -> float:
    expected = run_outputs(graph, samples)
    return float(((run_outputs(found, samples) - expected) ** 2).sum() / (expected**2).sum())


@given(graphs())
@settings(max_examples=25)
def test_an_equalized_network_is_the_same_function(graph):
    shape = graph.tensors[graph.inputs[0]].shape
    samples = list(np.random.default_rng(0).standard_normal((3, *shape), np.float32))
    found = equalize(graph, channel_peaks(graph, samples))
    expected = run_outputs(graph, samples)
    np.testing.assert_allclose(run_outputs(found, samples), expected, atol=1e-4 * max(np.abs(expected).max(), 1e-3))


def test_equalization_evens_out_channels():
    graph, samples = uneven(fire()), images(10)
    peaks = [channel_peaks(network, samples) for network in (graph, equalize(graph, channel_peaks(graph, samples)))]
    squeeze = graph.ops[1].output
    before, after = (found[squeeze][found[squeeze] > 0] for found in peaks)
    assert after.max() / after.min() < before.max() / before.min() / 5


def histogram(values: np.ndarray) -> Histogram:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return Histogram(Range(low, high), np.histogram(values, 2048, (low, high))[0])


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("signed", [True, False])
def test_calibrators_keep_the_bulk_and_only_minmax_an_outlier(name, signed):
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    values = np.append(values if signed else np.abs(values), 40.0)
    found = CALIBRATORS[name](histogram(values))
    assert found.high == 40 if name == "minmax" else 2 < found.high < 36
    assert found.low <= 0 if signed else found.low == 0


def test_tensors_that_share_a_scale_share_a_histogram():
    graph, samples = fire(), images(6)
    join = next(op for op in graph.ops if isinstance(op, ops.Concat))
    ranges = calibrate(graph, samples, "mse")
    assert {ranges[name] for name in join.inputs} == {ranges[join.output]}
    # The concatenation only forwards values: they are counted once.
    (counted,) = (
        found for name, found in collect_histograms(graph, samples).items() if name in (*join.inputs, join.output)
    )
    assert int(counted.counts.sum()) == 2 * SIZE * SIZE * 4 * len(samples)


def test_good_equalizes_if_that_helps():
    graph, samples = uneven(fire()), images(24)
    fast, good = (quantize_network(graph, samples, effort) for effort in ("fast", "good"))
    assert good.equalized
    assert not fast.equalized
    assert set(good.divergence) == {f"{name}{how}" for name in CALIBRATORS for how in ("", ", equalized")}
    fresh = images(24, seed=5)
    assert noise(graph, good.graph, fresh) < noise(graph, fast.graph, fresh) / 2


def test_a_given_calibrator_is_used():
    for effort in ("fast", "good", "best"):
        assert quantize_network(fire(), images(4), effort, "percentile").calibrator == "percentile"


def test_tuned_weights_are_better_and_deterministic():
    graph, samples = fire(3), images(30)
    ranges = calibrate(graph, samples)
    once, again = (quantize(tune_weights(graph, ranges, samples, seed=2), ranges) for _ in range(2))
    assert write_onnx(once) == write_onnx(again)
    assert noise(graph, once, images(30, seed=7)) < noise(graph, quantize(graph, ranges), images(30, seed=7))


def test_layers_that_share_weights_are_tuned():
    build = GraphBuilder((1, SIZE, SIZE, 3))
    once = build.conv("input", 3, (3, 3), padding=(1, 1, 1, 1), groups=3)
    graph = build.graph(build.conv(build.conv(once, 3, (3, 3), padding=(1, 1, 1, 1), groups=3), 5))
    first, second = graph.ops[:2]
    shared = replace(second, inputs=(once, *first.inputs[1:]))
    graph = replace(graph, ops=(first, shared, *graph.ops[2:]))
    samples = images(30)
    ranges = calibrate(graph, samples)
    learned = quantize(tune_weights(graph, ranges, samples), ranges)
    assert noise(graph, learned, images(30, seed=7)) < noise(graph, quantize(graph, ranges), images(30, seed=7))


def test_compensated_weights_round_to_what_quantize_gives():
    graph, samples = fire(1), images(12)
    ranges, moments = calibrate(graph, samples), input_moments(graph, samples)
    found = quantize(compensate_layers(graph, ranges, moments), ranges)
    expected = quantize(graph, ranges, moments)
    for op in graph.ops:
        if isinstance(op, ops.Conv):
            rounded, wanted = (network.tensors[f"{op.output}/weight"] for network in (found, expected))
            assert wanted.quantization is not None
            # If the largest weight of a channel was lowered, the channel's steps are slightly finer.
            np.testing.assert_allclose(rounded.real(), wanted.real(), atol=2 * max(wanted.quantization.scale))


def test_images_that_give_no_range_are_refused():
    preprocessing = Preprocessing(size=(SIZE, SIZE))
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    with pytest.raises(QuantizationError, match="no calibration images"):
        calibration_samples([], preprocessing)
    with pytest.raises(QuantizationError, match=r"each of the 3 .* has a single pixel value \(all black\?\)"):
        calibration_samples([np.zeros_like(image)] * 3, preprocessing)
    recorder = Recorder()
    assert len(calibration_samples([image], preprocessing, recorder)) == 1
    (note,) = recorder.notes
    assert note.startswith("few calibration images (1)")
    with pytest.raises(UsageError, match="calibrator 'all' is not one of minmax, percentile, mse, kl"):
        quantize_network(fire(), images(2), "fast", "all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="effort 'most' is not one of fast, good, best"):
        quantize_network(fire(), images(2), "most")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="seed -1 is negative"):
        quantize_network(fire(), images(2), "fast", seed=-1)


@pytest.mark.parametrize("sample", [np.zeros((1, 2, 2, 3)), np.zeros((SIZE, SIZE, 3)), np.zeros((2, SIZE, SIZE, 3))])
def test_samples_of_another_shape_are_refused(sample):
    with pytest.raises(UsageError, match=r"a sample has shape \(.*\), but the network's input is \(1, "):
        quantize_network(fire(), [sample])


def test_a_network_that_is_int8_already_is_not_quantized_again():
    graph = fire()
    ranges = calibrate(graph, images(2))
    for again in (
        lambda found: quantize(found, ranges),
        lambda found: quantize_network(found, images(2)),
    ):
        with pytest.raises(QuantizationError, match="quantized already; pass the float network"):
            again(quantize(graph, ranges))


@pytest.mark.parametrize("effort", ["fast", "good", "best"])
def test_an_activation_that_is_not_finite_is_named(effort):
    graph = fire()
    op = graph.ops[1]
    bias = graph.constant(op.inputs[2])
    broken = replace(bias, data=np.full(bias.shape, np.inf, np.float32))
    with pytest.raises(QuantizationError, match=rf"activation '{op.output}' is not finite"):
        quantize_network(replace(graph, tensors={**graph.tensors, bias.name: broken}), images(3), effort)


@pytest.mark.parametrize("effort", ["fast", "good", "best"])
def test_a_constant_activation_causes_a_note(effort):
    graph = fire()
    op = graph.ops[1]
    recorder = Recorder()
    silent = {
        name: Tensor(name, graph.tensors[name].shape, data=np.full(graph.tensors[name].shape, value, np.float32))
        for name, value in zip(op.inputs[1:], (0.0, -1.0), strict=True)
    }
    found = quantize_network(replace(graph, tensors={**graph.tensors, **silent}), images(12), effort, progress=recorder)
    (note,) = recorder.notes
    assert note.startswith(f"activation {op.output!r} is 0 on all calibration images")
    assert np.isfinite(run_outputs(found.graph, images(2))).all()
