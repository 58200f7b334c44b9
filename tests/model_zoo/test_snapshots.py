import json

import pytest
import torch

from firebox.model_zoo import TrainingConfig, load_network, train
from firebox.model_zoo.weights import read_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, paint):
    folder = tmp_path_factory.mktemp("snapshots")
    config = TrainingConfig(data=str(paint(folder / "images")), epochs=2, batch_size=4, snapshots=3)
    return train(config, folder / "run")


def test_each_snapshot_is_a_network(run):
    assert [path.name for path in run.snapshots] == [f"snapshot{number}.safetensors" for number in (1, 2, 3)]
    assert run.to_json()["snapshots"] == [str(path) for path in run.snapshots]
    networks = [load_network(path) for path in run.snapshots]
    first, _, last = (network.module.state_dict() for network in networks)
    assert not torch.equal(first["features.0.weight"], last["features.0.weight"])
    assert networks[0].classes == ("class0", "class1")
    # Six steps in cycles of two; the second cycle ends within the second epoch.
    assert [read_checkpoint(path).step for path in run.snapshots] == [2, 4, 6]
    final = read_checkpoint(run.checkpoint).weights
    assert all(torch.equal(last[name], tensor) for name, tensor in final.items())


def test_snapshots_form_an_ensemble(firebox, run, paint, tmp_path):
    data = ("--data", paint(tmp_path / "images"), "--split", "all")
    outcome = firebox("evaluate", *run.snapshots, "--combine", "softmax", *data, "--json")
    assert outcome.code == 0
    assert "ensemble" in json.dumps(json.loads(outcome.out))


def test_the_command_shows_how_to_evaluate_the_ensemble(firebox, images, tmp_path):
    out = tmp_path / "run"
    outcome = firebox("train", "--data", images, "--batch-size", 4, "--iterations", 4, "--snapshots", 2, "--out", out)
    assert outcome.code == 0
    names = " ".join(str(out / "snapshots" / f"snapshot{number}.safetensors") for number in (1, 2))
    assert f"firebox evaluate {names} --combine softmax" in outcome.err
