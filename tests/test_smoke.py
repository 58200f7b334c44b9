"""The whole pipeline in seconds: if this fails, start here."""

import numpy as np

from firebox.export import ExportConfig, Tolerance, export
from firebox.model_zoo import load_network
from firebox.runtime import Session, open_images, plan, sample


def test_a_network_is_exported_run_and_planned(tmp_path):
    network = load_network("squeezenet_micro", random_init=True, in_channels=1, num_classes=10)
    found = export(
        network.module,
        tmp_path / "out",
        preprocessing=network.preprocessing,
        images=sample(open_images("digits"), 12),
        classes=network.classes,
        config=ExportConfig(calibration_images=4, tolerance=Tolerance(sqnr_db=-100, agreement=0, formats_agreement=0)),
    )
    assert sorted(path.name for path in found.out.iterdir()) == [
        "export.json",
        "model.float32.onnx",
        "model.float32.tflite",
        "model.int8.onnx",
        "model.int8.tflite",
    ]
    image = np.full((8, 8), 200, np.uint8)
    for path in found.files:
        with Session(path) as session:
            assert len(session.classify(image, top=3)) == 3
            assert session.check().passed
    arenas = {path.name: plan(path).arena_bytes for path in found.files}
    assert arenas["model.int8.onnx"] == arenas["model.int8.tflite"] < arenas["model.float32.tflite"]
