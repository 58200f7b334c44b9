"""Pages of benchmarks: training methods and compiled C from kept figures, and the counts of networks."""

import sys
from pathlib import Path

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "benchmarks"
_HEADINGS = {
    "snapshots": "## Snapshot ensembles",
    "freezeout": "## FreezeOut",
    "transfer": "## Transfer",
    "shapes": "## The shape",
}


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    yield
    for name in [name for name, module in sys.modules.items() if str(_FOLDER) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture
def made_up(benchmarks, tmp_path):
    """The figures of every experiment, from trials with random results."""
    import training
    import training_figures

    rng = np.random.default_rng(0)
    bench = training.Bench(tmp_path / "runs", tmp_path)
    labels = rng.integers(10, size=50)
    found = {}
    for name, trial in bench.trials.items():
        names = ["checkpoint", *(f"snapshot{number + 1}" for number in range(trial.config.snapshots))]
        (bench.folder / name).mkdir(parents=True)
        for checkpoint in names:
            logits = rng.normal(size=(50, 10)).astype(np.float32)
            np.save(bench.folder / name / training_figures.logits_file(checkpoint), logits)
        found[name] = {
            "test": dict.fromkeys(names, rng.random()),
            "val": 0.5,
            "step": [0.3, 0.2],
            "saving": {"predicted": 0.25, "measured": 0.2} if trial.config.freezeout else None,
        }
    results = training_figures.Results(found, bench.folder, labels)
    return {
        experiment.name: training_figures.Kept(
            training.experiment_key(experiment), "somewhere", training_figures.EXPERIMENTS[experiment.name].of(results)
        )
        for experiment in bench.experiments
    }


def test_figures_of_trainings_survive_the_file(made_up, tmp_path):
    import training_figures

    (tmp_path / "kept.json").write_text(training_figures.to_json(made_up))
    assert training_figures.read_kept(tmp_path / "kept.json") == made_up
    assert training_figures.read_kept(tmp_path / "missing.json") == {}


def test_the_page_of_trainings_shows_the_experiments_that_have_figures(made_up, tmp_path):
    import training_page

    for name in made_up:
        text = "\n".join(training_page.page({name: made_up[name]}, tmp_path))
        assert [each for each, heading in _HEADINGS.items() if heading in text] == [name]
    whole = "\n".join(training_page.page(made_up, tmp_path))
    assert all(heading in whole for heading in _HEADINGS.values())
    for image in ("training-transfer.png", "training-shapes.png"):
        assert f"({image})" in whole and (tmp_path / image).read_bytes().startswith(b"\x89PNG")


def test_kept_figures_are_of_the_trainings_that_the_benchmark_describes(benchmarks, tmp_path):
    import training
    import training_figures

    keys = {each.name: training.experiment_key(each) for each in training.Bench(tmp_path, tmp_path).experiments}
    assert {name: each.key for name, each in training_figures.read_kept().items()} == keys


def test_the_page_of_trainings_is_the_one_its_figures_give(benchmarks, tmp_path):
    import training_figures
    import training_page

    text = "\n\n".join(training_page.page(training_figures.read_kept(), tmp_path)) + "\n"
    assert text == (_ROOT / "docs" / "training.md").read_text()


def test_the_page_of_networks_is_the_one_the_counts_give(benchmarks, tmp_path):
    import zoo
    from click.testing import CliRunner

    assert CliRunner().invoke(zoo.main, ["--out", str(tmp_path / "zoo.md")]).exit_code == 0
    assert (tmp_path / "zoo.md").read_text() == (_ROOT / "docs" / "zoo.md").read_text()


def test_the_page_of_compiled_code_is_the_one_its_figures_give(benchmarks):
    import compile_page

    kept = compile_page.read_kept()
    assert "\n\n".join(compile_page.page(kept)) + "\n" == (_ROOT / "docs" / "compile.md").read_text()


def test_kept_figures_of_compiled_code_are_of_programs_that_gave_the_right_integers(benchmarks):
    import compile_page

    kept = compile_page.read_kept()
    for row in kept["memory"]["rows"]:
        for way in ("whole", "rows"):
            assert row[way]["equal"] == row[way]["images"] > 0, row["network"]
            assert row[way]["total_bytes"] <= row[way]["ran_in_bytes"]
            assert row[way]["macs"] <= row["macs"]
    for row in kept["identity"]["rows"]:
        shares = [value for key, value in row.items() if key.endswith(("_rows", "_whole"))]
        assert shares and set(shares) == {1.0}, row["way"]
