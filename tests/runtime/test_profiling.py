import json

import numpy as np
import pytest
from recorder import Recorder

from firebox.runtime import Session, evaluate, open_images, plan, profile
from firebox.runtime.errors import DataError, UsageError


@pytest.mark.parametrize("file", ["model.int8.onnx", "model.int8.tflite", "model.float32.tflite"])
def test_a_profile_accounts_for_time_and_memory(exported, file):
    progress = Recorder()
    found = profile(exported / file, sram=64 * 1024, max_seconds=0.3, progress=progress)
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.runs == progress.steps["measuring"]
    assert found.load_ms > 0
    assert found.first_ms > 0
    memory = {line.name: line for line in found.memory}
    assert (memory["arena"].nbytes, memory["arena"].source) == (plan(exported / file).arena_bytes, "planned")
    assert (memory["file"].nbytes, memory["file"].source) == ((exported / file).stat().st_size, "measured")
    assert {line.source for line in found.memory if line.nbytes is None} <= {"unknown"}
    assert all(line.nbytes is not None for line in found.memory if line.source != "unknown")
    assert (found.op_ms is None) == file.endswith(".tflite")
    assert found.verdict is not None
    assert found.verdict.total_bytes == plan(exported / file).total_bytes
    assert found.verdict.fits == (found.verdict.total_bytes <= 64 * 1024)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["verdict"]["arena_source"] == "planned"
    assert values["memory"]["arena"] == {"bytes": memory["arena"].nbytes, "source": "planned"}


def test_the_time_limit_ends_a_profile_that_does_not_settle(exported, monkeypatch):
    from firebox.runtime.profiling import latency as profiling

    monkeypatch.setattr(profiling, "_SETTLED", -1.0)
    found = profile(exported / "model.int8.tflite", max_seconds=0.05)
    assert not found.settled
    assert found.verdict is None
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="time limit"):
            profile(exported / "model.int8.tflite", max_seconds=seconds)


class Knowing:
    """A classifier by brightness, which is always right, or wrong for two of three classes with ``lies``."""

    classes = ("class0", "class1", "class2")
    class_ids = ()

    def __init__(self, preprocessing, lies: bool = False):
        self.preprocessing, self.lies = preprocessing, lies

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        scores = -np.abs(pixels.mean() - np.array([60.0, 120.0, 180.0]))
        return scores[::-1] if self.lies else scores


def test_accuracy_and_agreement_are_counted(exported, noise):
    preprocessing = Session(exported / "model.int8.onnx").preprocessing
    images, progress = open_images(noise), Recorder()
    truth, lies = evaluate(
        {"truth": Knowing(preprocessing), "lies": Knowing(preprocessing, lies=True)}, images, progress=progress
    )
    assert (truth.top1, truth.top5, lies.top5) == (1.0, 1.0, 1.0)
    assert lies.top1 == truth.agreement(lies) == pytest.approx(1 / 3)
    assert progress.steps == {"evaluating": len(images)}
    assert truth.to_json() == {"name": "truth", "images": 12, "top1": 1.0, "top5": 1.0}
    with pytest.raises(UsageError, match="no model"):
        evaluate({}, images)
    with pytest.raises(DataError, match=r"no images of .* to evaluate on; choose another split"):
        evaluate({"truth": Knowing(preprocessing)}, images.subset([]))
    with pytest.raises(DataError, match="is not one of the model's 3 classes"):
        evaluate({"truth": Knowing(preprocessing)}, open_images("digits"))


def test_files_are_evaluated_as_sessions(exported, noise):
    models = {path.name: Session(path) for path in sorted(exported.glob("model.*"))}
    found = {result.name: result for result in evaluate(models, open_images(noise))}
    assert found["model.float32.onnx"].agreement(found["model.float32.tflite"]) == 1
    assert found["model.int8.onnx"].agreement(found["model.int8.tflite"]) == 1
