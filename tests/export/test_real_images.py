"""SqueezeNet v1.1 with its published weights on real images, from torch to every file and runtime."""

import json

import numpy as np
import pytest

from firebox.export import Export, ExportConfig, export
from firebox.model_zoo import Network, TorchClassifier, load_network
from firebox.runtime import Session, evaluate, open_images, plan, sample

FILES = ("model.float32.onnx", "model.float32.tflite", "model.int8.onnx", "model.int8.tflite")


@pytest.fixture(scope="module")
def network(data_dir) -> Network:
    return load_network("squeezenet1_1", data_dir / "squeezenet1_1.pth")


@pytest.fixture(scope="module")
def published(data_dir, network, tmp_path_factory) -> Export:
    """The four files, exported with the default tolerance."""
    return export(
        network.module,
        tmp_path_factory.mktemp("v11"),
        preprocessing=network.preprocessing,
        images=open_images(data_dir / "imagenet-samples.tar"),
        classes=network.classes,
        class_ids=network.class_ids,
        name=network.name,
        checkpoint_sha256=network.sha256,
        config=ExportConfig(calibration_images=30),
    )


@pytest.fixture(scope="module")
def pixels(data_dir, network) -> list[np.ndarray]:
    """Forty images, mostly not used for calibration."""
    images = sample(open_images(data_dir / "imagenet-samples.tar"), 40, seed=7)
    return [network.preprocessing.crop(images.read(name), name) for name in images.names]


@pytest.fixture(scope="module")
def logits(network, published, pixels) -> dict[str, np.ndarray]:
    """Logits of torch and of every file in every runtime, (images, classes)."""
    torch = TorchClassifier(network)
    found = {"torch": np.stack([torch.predict_pixels(image) for image in pixels])}
    runs = [(file, "auto") for file in FILES] + [(FILES[1], "tflite-runtime")]
    for file, backend in runs:
        with Session(published.out / file, backend, threads=2) as session:
            found[f"{file} {backend}"] = np.stack([session.predict_pixels(image) for image in pixels])
    return found


def test_float_files_predict_the_class_of_torch(logits):
    truth = logits["torch"]
    for name, found in logits.items():
        if "float32" in name:
            assert (found.argmax(1) == truth.argmax(1)).all(), name
            assert np.abs(found - truth).max() < 1e-3 * np.abs(truth).max(), name


def test_int8_files_mostly_agree_and_are_identical(logits):
    truth, onnx, tflite = logits["torch"], logits["model.int8.onnx auto"], logits["model.int8.tflite auto"]
    assert (onnx.argmax(1) == truth.argmax(1)).mean() >= 0.85
    np.testing.assert_array_equal(onnx, tflite)


def test_tflite_runtime_is_close(published, pixels, logits):
    with Session(published.out / "model.int8.tflite", "tflite-runtime", threads=2) as session:
        step = session.contract.output.scale
        assert step is not None
        for image, expected in zip(pixels[:5], logits["model.int8.tflite auto"], strict=False):
            assert np.abs(session.predict_pixels(image) - expected).max() <= 6 * step


@pytest.mark.parametrize("file", FILES)
def test_files_pass_their_own_check(published, file):
    for backend in ("auto", "tflite-runtime") if file.endswith(".tflite") else ("auto",):
        with Session(published.out / file, backend) as session:
            assert session.check().passed


def test_the_planned_arena_equals_tflite_micros(published, arena_head):
    data = (published.out / "model.int8.tflite").read_bytes()
    assert plan(data).arena_bytes == plan(published.out / "model.int8.onnx").arena_bytes == 982_144
    assert arena_head(data) == 982_144


def test_the_report_names_the_source_of_the_images(published, data_dir, network):
    report = json.loads((published.out / "export.json").read_text())
    assert report == json.loads(json.dumps(published.report))
    assert report["checkpoint_sha256"] == network.sha256
    assert report["calibration"]["source"] == str(data_dir / "imagenet-samples.tar")
    assert (report["calibration"]["images"], report["parity"]["images"]) == (30, 100)
    assert report["parity"]["seen_in_calibration"] is False
    for result in published.parity:
        assert result.sqnr_db is not None
        assert result.sqnr_db > (60 if "float32" in result.file else 12)


def test_real_images_are_classified(published, data_dir):
    images = open_images(data_dir / "imagenet-samples.tar")
    drawn = sample(images, 60, seed=3)
    with Session(published.out / "model.int8.tflite", threads=2) as session:
        (found,) = evaluate({"int8": session}, drawn)
        assert found.top1 >= 0.5
        assert found.top5 >= 0.7
        best = session.classify(images.read(images.names[0]), top=5)
    assert len({answer.label for answer in best}) == 5
