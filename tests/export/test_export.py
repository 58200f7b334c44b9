"""The exporter: its files and report, and everything that the parity gate refuses."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from strategies import GraphBuilder
from torch import nn

from firebox.export import ExportConfig, Tolerance, calibrate, export, quantize
from firebox.export.parity import compare
from firebox.export.quantization import WeightRange, input_moments
from firebox.runtime import LabelledImages, Preprocessing, Session, open_images, plan
from firebox.runtime.errors import (
    DataError,
    ParityError,
    QuantizationError,
    UnsupportedError,
    UsageError,
    WriteError,
)
from firebox.runtime.files import sha256
from firebox.runtime.graph import Graph, ops
from firebox.runtime.inference.backends import OnnxRuntime
from firebox.runtime.processor import this_processor

PREPROCESSING = Preprocessing(size=(12, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
ANYTHING = Tolerance(float_error=1, sqnr_db=-100, agreement=0, formats_agreement=0)


def tiny(last: nn.Module | None = None, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), last or nn.Identity(), nn.Conv2d(6, classes, 1)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def shown(*images: np.ndarray) -> LabelledImages:
    """Images of two classes, in memory."""
    names = tuple(str(index) for index in range(len(images)))
    labels = np.arange(len(images)) % 2
    return LabelledImages(
        "memory", ("a", "b"), names, labels, ("all",) * len(names), "RGB", lambda name: images[int(name)]
    )


def send(module: nn.Module, out, images: LabelledImages, **options):
    config = ExportConfig(calibration_images=4, tolerance=options.pop("tolerance", ANYTHING))
    config = replace(config, **options.pop("config", {}))
    options = {"preprocessing": PREPROCESSING, "classes": ("x", "y", "z"), **options}
    return export(module, out, images=images, config=config, **options)


def test_the_report_describes_the_written_files(exported):
    report = json.loads((exported / "export.json").read_text())
    assert sorted(report["files"]) == sorted(path.name for path in exported.glob("model.*"))
    for name, facts in report["files"].items():
        data = (exported / name).read_bytes()
        assert (facts["bytes"], facts["sha256"]) == (len(data), sha256(data))
        assert (facts["arena_bytes"], facts["source"]) == (plan(data).arena_bytes, "planned")
    assert report["calibration"]["images"] == 4
    assert report["parity"]["images"] == 8
    assert report["parity"]["seen_in_calibration"] is False
    found = {entry["file"]: entry for entry in report["parity"]["files"]}
    assert found["model.float32.onnx"]["relative"] < 1e-4
    assert found["model.int8.onnx"]["sqnr_db"] > 10
    assert found["model.int8.onnx"]["max_abs"] == pytest.approx(found["model.int8.tflite"]["max_abs"])


def test_the_same_input_gives_the_same_bytes(noise, tmp_path):
    written = [send(tiny(), tmp_path / name, open_images(noise), name="tiny") for name in ("first", "again")]
    for one, other in zip(*(found.files for found in written), strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert written[0].report == written[1].report


def test_files_carry_classes_ids_and_origin(noise, tmp_path):
    options = {"class_ids": ("n0", "n1", "n2"), "checkpoint_sha256": "ab" * 32, "name": "ours"}
    found = send(tiny(), tmp_path, open_images(noise), config={"precisions": ("int8",)}, **options)
    assert [path.name for path in found.files] == ["model.int8.onnx", "model.int8.tflite"]
    for path in found.files:
        contract = Session(path).contract
        assert (contract.name, contract.classes, contract.class_ids) == ("ours", ("x", "y", "z"), ("n0", "n1", "n2"))
        assert contract.checkpoint_sha256 == "ab" * 32
        assert contract.preprocessing == PREPROCESSING
        assert contract.answer == "logits"


def test_a_final_softmax_is_declared(noise, tmp_path):
    found = send(tiny().append(nn.Softmax(1)), tmp_path, open_images(noise))
    for path in found.files:
        with Session(path) as session:
            assert session.contract.answer == "probabilities"
            assert session.predict(np.zeros((12, 12, 3), np.uint8)).sum() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("tolerance", "said"),
    [
        (Tolerance(sqnr_db=200), r"model.int8.onnx has an SQNR .* dB \(limit 200 dB\); the first layer to diverge is"),
        (Tolerance(float_error=0), r"model.float32.\w+ is off by .* \(limit 0\); "),
    ],
)  # fmt: skip
def test_past_the_tolerance_nothing_is_written(noise, tmp_path, tolerance, said):
    out = tmp_path / "new" / "out"
    with pytest.raises(ParityError, match=said) as error:
        send(tiny(), out, open_images(noise), tolerance=tolerance)
    assert "nothing was written" in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.parent.exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "model.int8.onnx").write_text("from before")
    with pytest.raises(ParityError):
        send(tiny(), tmp_path / "kept", open_images(noise), tolerance=tolerance)
    assert [path.read_text() for path in (tmp_path / "kept").iterdir()] == ["from before"]


def test_the_first_layer_to_diverge_is_the_corrupted_one(noise, tmp_path, monkeypatch):
    from firebox.export.quantization import ptq

    def corrupt(graph: Graph, *arguments) -> Graph:
        found = quantize(graph, *arguments)
        op = found.ops[1]
        assert isinstance(op, ops.Conv)
        weight = found.tensors[op.inputs[1]]
        assert weight.data is not None
        corrupted = replace(weight, data=-weight.data)
        return replace(found, tensors={**found.tensors, weight.name: corrupted})

    monkeypatch.setattr(ptq, "quantize", corrupt)
    with pytest.raises(ParityError, match=r"model.int8.onnx .*; the first layer to diverge is '4' \(-\d"):
        send(tiny(), tmp_path / "out", open_images(noise), tolerance=Tolerance())


def test_a_disagreement_is_counted(noise, tmp_path):
    with pytest.raises(ParityError, match=r"model\.int8\.onnx predicts the network's class on"):
        # All classes have nearly equal logits, so 8 bits choose differently.
        module = tiny()
        with torch.no_grad():
            module[4].weight[1:] = module[4].weight[:1] * (1 + 1e-6)
            module[4].bias[:] = 0
        send(module, tmp_path / "out", open_images(noise), tolerance=Tolerance(sqnr_db=-100, agreement=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("last", "said"),
    [(nn.GELU(), r"Gelu|at '3'"), (nn.Hardswish(), r"HardSwish \(Hardswish at '3'\)")],
    ids=["gelu", "hardswish"],
)
def test_an_unknown_operation_is_reported_before_any_image_is_read(last, said, noise, tmp_path):
    images = replace(open_images(noise), read=lambda name: pytest.fail("an image was read"))
    with pytest.raises(UnsupportedError, match=said):
        send(tiny(last), tmp_path / "out", images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, noise, tmp_path):
    module = tiny()
    with torch.no_grad():
        module[4].weight[0, 0] = value
    with pytest.raises(QuantizationError, match="not finite"):
        send(module, tmp_path / "out", open_images(noise))
    assert not (tmp_path / "out").exists()


def test_float_files_with_weights_that_are_not_finite_are_refused(noise, tmp_path):
    module = tiny()
    with torch.no_grad():
        module[4].weight[0, 0] = np.nan
    with pytest.raises(ParityError, match="not finite; check the weights"):
        send(module, tmp_path / "out", open_images(noise), config={"precisions": ("float32",)}, tolerance=Tolerance())
    assert not (tmp_path / "out").exists()


def test_no_images_one_image_and_black_ones(tmp_path):
    with pytest.raises(QuantizationError, match="no calibration images"):
        send(tiny(), tmp_path / "none", shown())
    one = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    found = send(tiny(), tmp_path / "one", shown(one), tolerance=Tolerance())
    expected = {"images": 1, "seen_in_calibration": True, "files": [], "identical_outputs": 1.0}
    assert found.report["parity"] | {"files": []} == expected
    black = [np.zeros((20, 20, 3), np.uint8)] * 6
    with pytest.raises(QuantizationError, match=r"each of the \d .* has a single pixel value \(all black\?\)"):
        send(tiny(), tmp_path / "black", shown(*black))
    assert not (tmp_path / "black").exists()


def test_an_unreadable_image_is_named(noise, tmp_path):
    images = replace(open_images(noise), read=lambda name: b"not an image")
    with pytest.raises(DataError, match=r"class\d/\d.png is not an image"):
        send(tiny(), tmp_path / "out", images)


def test_a_dead_network_is_quantized_without_a_warning(noise, tmp_path):
    module = tiny()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    found = send(module, tmp_path, open_images(noise))
    assert not Session(found.files[2]).predict(np.zeros((12, 12, 3), np.uint8)).any()


def test_classes_must_match_the_outputs(noise, tmp_path):
    with pytest.raises(UsageError, match="does not give one value for each of its 2 classes"):
        send(tiny(), tmp_path / "out", open_images(noise), classes=("a", "b"))


def test_an_unwritable_folder_is_refused(noise, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        send(tiny(), tmp_path / "file" / "out", open_images(noise), config={"precisions": ("float32",)})


@pytest.mark.parametrize("training", [True, False])
def test_the_module_keeps_its_mode(noise, tmp_path, training):
    module = tiny().train(training)
    send(module, tmp_path / "out", open_images(noise), config={"precisions": ("int8",)})
    assert all(part.training == training for part in module.modules())
    with pytest.raises(ParityError):
        send(module, tmp_path / "out", open_images(noise), tolerance=Tolerance(sqnr_db=200))
    assert all(part.training == training for part in module.modules())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration_images": 0}, "0 calibration images"),
        ({"input_type": "float16"}, "input type 'float16' is not one of int8, uint8"),
        ({"precisions": ()}, "precisions"),
        ({"precisions": ("int4",)}, "precisions"),
    ],
)
def test_options_are_checked_first(options, said):
    with pytest.raises(UsageError, match=said):
        ExportConfig(**options)


def test_tolerances_must_be_shares():
    with pytest.raises(UsageError, match=r"agreement 1\.5"):
        Tolerance(agreement=1.5)


def graph_and_samples() -> tuple[Graph, list[np.ndarray]]:
    build = GraphBuilder((1, 10, 10, 3), seed=4)
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    x = build.conv(x, 8, (3, 3), groups=8)
    x = build.conv(x, 6, (3, 3), stride=(2, 2), activation="relu")
    random = np.random.default_rng(0)
    return build.graph(build.linear(x, 7)), smooth(random, 16)


def smooth(random: np.random.Generator, count: int) -> list[np.ndarray]:
    """Images with similar neighbouring pixels, as in photographs."""
    coarse = random.standard_normal((count, 1, 5, 5, 3), np.float32)
    return [image.repeat(2, axis=1).repeat(2, axis=2) for image in coarse]


def noise_of(graph: Graph, network: Graph, samples: list[np.ndarray]) -> float:
    from firebox.export.activations import run_activations

    pairs = zip(run_activations(graph, samples), run_activations(network, samples), strict=True)
    name = graph.outputs[0]
    return float(np.mean([((found[name] - expected[name]) ** 2).mean() for expected, found in pairs]))


def test_gptq_is_better_than_rounding_to_nearest():
    graph, samples = graph_and_samples()
    ranges = calibrate(graph, samples)
    moments = input_moments(graph, samples)
    assert {op.name for op in graph.ops if isinstance(op, ops.Conv) and op.groups == 1} < set(moments)
    fresh = smooth(np.random.default_rng(9), 16)
    found = {
        weight_range: (quantize(graph, ranges, moments, weight_range), quantize(graph, ranges, None, weight_range))
        for weight_range in get_args(WeightRange)
    }
    for weight_range, (better, nearest) in found.items():
        assert noise_of(graph, better, fresh) < noise_of(graph, nearest, fresh)
        # Random weights have many excessive pairs, which are reduced whichever way weights are rounded.
        if weight_range != "saturation-free":
            assert noise_of(graph, better, samples) < noise_of(graph, nearest, samples)
    for network in (network for pair in found.values() for network in pair):
        for op in network.ops:
            if isinstance(op, ops.Conv):
                weight = network.tensors[op.inputs[1]]
                assert weight.data is not None
                assert weight.data.min() >= -127


def test_a_faulty_runtime_is_blamed_instead_of_the_calibration(noise, tmp_path, monkeypatch):
    right = OnnxRuntime.run

    def faulty(self, x):
        """Outputs a third too small, as saturated sums are."""
        answer = right(self, x)
        return answer - answer // 3 if answer.dtype == np.uint8 else answer

    monkeypatch.setattr(OnnxRuntime, "run", faulty)
    with pytest.raises(ParityError) as error:
        send(tiny(), tmp_path / "out", open_images(noise), config={"calibration_images": 4})
    said = str(error.value)
    assert said.startswith("onnxruntime ")
    assert "computes model.int8.onnx incorrectly" in said
    assert str(this_processor()) in said
    assert "calibrat" not in said
    assert not (tmp_path / "out").exists()


def test_the_gate_reports_the_share_of_identical_outputs(exported):
    parity = json.loads((exported / "export.json").read_text())["parity"]
    assert parity["identical_outputs"] == 1
    shares = {file["file"]: file["identical"] for file in parity["files"]}
    assert shares["model.int8.onnx"] == shares["model.int8.tflite"] == 1
    assert shares["model.float32.onnx"] is None


@pytest.mark.parametrize("calibrator", ["percentile", "mse", "kl"])
def test_calibrators(calibrator):
    graph, samples = graph_and_samples()
    widest, tight = (calibrate(graph, samples, name) for name in ("minmax", calibrator))
    for name in widest:
        assert widest[name].low <= tight[name].low <= 0 <= tight[name].high <= widest[name].high
    assert widest != tight
    for name in (*graph.inputs, *graph.outputs):
        assert widest[name] == tight[name]
    assert widest["input"].high == max(float(sample.max()) for sample in samples)
    with pytest.raises(UsageError, match="'max' is not one of minmax, percentile, mse, kl"):
        calibrate(graph, samples, "max")  # pyright: ignore[reportArgumentType]


def test_figures_of_parity():
    expected = np.array([[1.0, 2.0], [4.0, 0.0]], np.float32)
    same = compare("f", "float32", "b", expected, expected)
    assert (same.max_abs, same.sqnr_db, same.agreement) == (0.0, None, 1.0)
    off = compare("f", "float32", "b", expected, np.array([[2.0, 1.0], [4.0, 0.0]], np.float32))
    assert (off.max_abs, off.relative, off.agreement) == (1.0, 0.25, 0.5)
    assert off.sqnr_db == pytest.approx(10 * np.log10(21 / 2))
