"""``firebox evaluate --combine``: ensembles of runs, checkpoints and exported files."""

import json
from pathlib import Path

import pytest

from firebox.model_zoo import TorchClassifier, TrainingConfig, load_network, train
from firebox.runtime import Ensemble, Session, evaluate, open_images


@pytest.fixture(scope="module")
def images(trained) -> Path:
    return trained.out.parent / "images"


@pytest.fixture(scope="module")
def second(trained, images, tmp_path_factory) -> Path:
    config = TrainingConfig(data=str(images), epochs=1, batch_size=8, seed=1)
    return train(config, tmp_path_factory.mktemp("second") / "run").out


@pytest.mark.parametrize("combine", ["vote", "softmax", "logits"])
def test_runs_and_files_of_different_input_sizes_form_an_ensemble(firebox, trained, second, exported, images, combine):
    names = (trained.out, second / "checkpoint.safetensors", exported / "model.int8.tflite")
    found = firebox("evaluate", *names, "--combine", combine, "--data", images, "--json")
    assert found.code == 0, found.err
    values = json.loads(found.out)
    assert values["combine"] == combine
    *members, ensemble = values["models"]
    assert [member["name"].partition(" (")[0] for member in members] == list(map(str, names))
    assert ensemble["name"] == f"ensemble ({combine})"

    networks = {str(name): TorchClassifier(load_network(name)) for name in names[:2]}
    alike = Ensemble(networks | {"file": Session(names[2])}, combine)
    alone, expected = evaluate({"first": networks[str(names[0])], "all": alike}, open_images(str(images)))
    assert (ensemble["top1"], ensemble["top5"]) == (expected.top1, expected.top5)
    assert ensemble["agreement_with_first"] == expected.agreement(alone)


def test_the_table_has_a_row_for_the_ensemble(firebox, trained, second, images):
    found = firebox("evaluate", trained.out, second, "--combine", "vote", "--data", images)
    assert found.code == 0
    rows = [line for line in found.out.splitlines() if "%" in line]
    assert len(rows) == 3
    assert rows[-1].lstrip().startswith("ensemble (vote)")


def test_a_member_with_other_classes_is_named_in_the_error(firebox, trained, images, paint, tmp_path):
    data = paint(tmp_path / "two", classes=2)
    other = train(TrainingConfig(data=str(data), epochs=1, batch_size=8), tmp_path / "run").out
    found = firebox("evaluate", trained.out, other, "--combine", "softmax", "--data", images)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert f"{other} (torch) has other classes than {trained.out} (torch): 2, not 3" in line


@pytest.mark.parametrize("times", [1, 2])
def test_one_model_is_not_an_ensemble(firebox, trained, images, times):
    found = firebox("evaluate", *[trained.out] * times, "--combine", "vote", "--data", images)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert f"--combine vote needs at least two models, not only {trained.out} (torch)" in line
