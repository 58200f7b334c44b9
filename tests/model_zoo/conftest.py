import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from commands import Ran
from PIL import Image

from firebox.model_zoo import TrainingConfig, TrainingResult, train


@pytest.fixture(scope="session")
def firebox(command) -> Callable[..., Ran]:
    """The command line: ``firebox("models", "--json")``."""
    return command


def paint_images(folder: Path, classes: int = 2, images: int = 8, size: int = 12) -> Path:
    """Class folders of PNG images: noise that gets brighter with each class."""
    random = np.random.default_rng(0)
    for label in range(classes):
        parent = folder / f"class{label}"
        parent.mkdir(parents=True)
        for index in range(images):
            low = 160 * label // max(1, classes - 1)
            pixels = random.integers(low, low + 90, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(parent / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def paint() -> Callable[..., Path]:
    return paint_images


@pytest.fixture
def images(tmp_path) -> Path:
    return paint_images(tmp_path / "images")


@pytest.fixture(scope="session")
def trained(once) -> TrainingResult:
    """A run of squeezenet_micro on three classes of small color images."""

    def fill(folder: Path) -> None:
        data = paint_images(folder / "images", classes=3, images=10)
        config = TrainingConfig(data=str(data), epochs=3, batch_size=8)
        found = asdict(train(config, folder / "run"))
        (folder / "result.json").write_text(json.dumps(found, default=str))

    found = json.loads((once("trained", fill) / "result.json").read_text())
    paths = {name: Path(found[name]) for name in ("out", "checkpoint")}
    return TrainingResult(**{**found, **paths, "snapshots": tuple(map(Path, found["snapshots"]))})
