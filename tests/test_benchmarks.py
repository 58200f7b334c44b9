"""Pages of benchmarks that take hours are written from what made-up trainings would have found."""

import sys
from pathlib import Path

import numpy as np
import pytest

_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    yield
    for name in [name for name, module in sys.modules.items() if str(_FOLDER) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_the_page_of_trainings_shows_what_is_known(benchmarks, tmp_path):
    import training
    import training_page

    rng = np.random.default_rng(0)
    bench = training.Bench(tmp_path / "runs", tmp_path)
    labels = rng.integers(10, size=50)
    found = {}
    for name, trial in bench.trials.items():
        names = ["checkpoint", *(f"snapshot{number + 1}" for number in range(trial.config.snapshots))]
        (bench.folder / name).mkdir(parents=True)
        for checkpoint in names:
            logits = rng.normal(size=(50, 10)).astype(np.float32)
            np.save(bench.folder / name / training_page.logits_file(checkpoint), logits)
        found[name] = {
            "key": training.key(trial),
            "model": trial.config.model,
            "parameters": 1000,
            "macs": 10**6,
            "test": dict.fromkeys(names, 0.5),
            "val": 0.5,
            "step": [0.3, 0.2],
            "saving": {"predicted": 0.25, "measured": 0.2} if trial.config.freezeout else None,
        }
    headings = {
        "snapshots": "## Snapshot ensembles",
        "freezeout": "## FreezeOut",
        "transfer": "## Transfer",
        "shapes": "## The shape",
    }
    for experiment in bench.experiments:
        known = {trial.name: found[trial.name] for trial in experiment.trials}
        text = "\n".join(training_page.page(training_page.Results(known, bench.folder, labels), tmp_path))
        assert [name for name, heading in headings.items() if heading in text] == [experiment.name]
    whole = "\n".join(training_page.page(training_page.Results(found, bench.folder, labels), tmp_path))
    assert all(heading in whole for heading in headings.values())
    for image in ("training-transfer.png", "training-shapes.png"):
        assert f"({image})" in whole and (tmp_path / image).read_bytes().startswith(b"\x89PNG")
