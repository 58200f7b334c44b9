"""The mean of several networks' weights."""

from dataclasses import replace

import pytest
import torch
from firebox.model_zoo import TrainingConfig, average_checkpoints, load_network, train
from firebox.model_zoo.checkpoint import pack_checkpoint, read_checkpoint
from firebox.runtime import open_images
from firebox.runtime.errors import UsageError


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, paint):
    """Two snapshots of a short run, with its pictures."""
    folder = tmp_path_factory.mktemp("cycles")
    pictures = paint(folder / "pictures", classes=3, pictures=10)
    config = TrainingConfig(data=str(pictures), epochs=2, batch_size=8, snapshots=2)
    return train(config, folder / "run", quiet=True).snapshots, pictures


def test_weights_are_means_and_statistics_are_taken_anew(firebox, snapshots, tmp_path):
    paths, pictures = snapshots
    out = tmp_path / "average.safetensors"
    assert firebox("average", *paths, "--data", pictures, "--out", out).code == 0
    found, (one, two) = read_checkpoint(out), (read_checkpoint(path) for path in paths)
    for name, weight in found.weights.items():
        mean = (one.weights[name].double() + two.weights[name].double()) / 2
        if "running" in name or "num_batches" in name:
            assert not torch.equal(weight.double(), mean)
        else:
            torch.testing.assert_close(weight, mean.float())
    # As batch norm would have them in training, over all pictures.
    assert load_network(out).training == load_network(paths[0]).training
    assert firebox("evaluate", out, *paths, "--data", pictures, "--split", "all").code == 0


def test_an_average_of_equals_is_the_network(snapshots, tmp_path):
    paths, pictures = snapshots
    images = open_images(pictures)
    once = average_checkpoints([paths[0]] * 2, tmp_path / "once.safetensors", images, quiet=True)
    again = average_checkpoints([tmp_path / "once.safetensors"] * 3, tmp_path / "again.safetensors", images, quiet=True)
    for name, weight in once.weights.items():
        torch.testing.assert_close(again.weights[name], weight)


def test_what_cannot_be_averaged_is_one_line(firebox, snapshots, tmp_path):
    paths, pictures = snapshots
    checkpoint = read_checkpoint(paths[0])
    other = tmp_path / "other.safetensors"
    other.write_bytes(pack_checkpoint(replace(checkpoint, classes=("x", "y", "z"))))
    out = tmp_path / "average.safetensors"
    cases = (
        ((paths[0],), "two checkpoints or more, not of 1"),
        ((paths[0], other), "differs from"),
        ((paths[0], tmp_path / "nowhere"), "no such file"),
    )
    for given, said in cases:
        outcome = firebox("average", *given, "--data", pictures, "--out", out)
        assert (outcome.code, said in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err
        assert not out.exists()
    assert firebox("average", *paths, "--data", pictures, "--out", tmp_path / "average").code == 2
    with pytest.raises(UsageError, match="its config"):
        wide = replace(checkpoint.config, dropout=0.3)
        other.write_bytes(pack_checkpoint(replace(checkpoint, config=wide)))
        average_checkpoints([paths[0], other], out, open_images(pictures), quiet=True)
