"""The mean weights of several networks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from firebox.model_zoo import Network, TrainingConfig, load_network, train
from firebox.model_zoo.training import average_checkpoints, load_images
from firebox.model_zoo.training.data import prepare
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime import LabelledImages, open_images, split_images
from firebox.runtime.errors import UsageError
from firebox.runtime.images import per_class


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, paint):
    """Two snapshots of a short run, and its images."""
    folder = tmp_path_factory.mktemp("cycles")
    images = paint(folder / "images", classes=3, images=10)
    config = TrainingConfig(data=str(images), epochs=2, batch_size=8, snapshots=2)
    return train(config, folder / "run").snapshots, images


def first_batch_norm(network: Network, images: LabelledImages) -> tuple[nn.BatchNorm2d, Tensor]:
    """The first batch norm and its input for all images at once, as (channels, values)."""
    layer = next(module for module in network.module.modules() if isinstance(module, nn.BatchNorm2d))
    ((pixels, _),) = load_images(images, network.preprocessing).batches([torch.arange(len(images))])
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.inference_mode():
        network.module.eval()(prepare(pixels, network.preprocessing))
    return layer, seen[0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("drawn", [None, 40])
def test_statistics_are_recomputed_on_the_training_images(firebox, paint, tmp_path, drawn):
    # More than one batch, the last one incomplete, and images ordered by class, which differ in brightness.
    data = paint(tmp_path / "images", classes=3, images=60)
    config = TrainingConfig(data=str(data), epochs=2, batch_size=16, snapshots=2, images_per_class=drawn)
    paths = train(config, tmp_path / "run").snapshots
    out = tmp_path / "average.safetensors"
    ran = firebox("average", *paths, "--out", out)
    assert ran.code == 0, ran.err
    assert f"firebox evaluate {out} --data {data}" in ran.out

    images = split_images(open_images(data), config.val_fraction, config.seed)[0]
    images = per_class(images, drawn, config.seed) if drawn else images
    layer, values = first_batch_norm(load_network(out), images)
    assert layer.running_mean is not None and layer.running_var is not None
    torch.testing.assert_close(layer.running_mean, values.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.running_var, values.var(1), atol=0, rtol=0.05)

    moved = data.rename(tmp_path / "moved")
    ran = firebox("average", *paths, "--out", tmp_path / "again.safetensors", "--data", moved)
    assert f"--data {moved}" in ran.out
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_weights_are_means(firebox, snapshots, tmp_path):
    paths, images = snapshots
    out = tmp_path / "average.safetensors"
    assert firebox("average", *paths, "--data", images, "--out", out).code == 0
    found, (one, two) = read_checkpoint(out), (read_checkpoint(path) for path in paths)
    for name, weight in found.weights.items():
        mean = (one.weights[name].double() + two.weights[name].double()) / 2
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weight, mean.float())
    assert load_network(out).training == load_network(paths[0]).training
    assert firebox("evaluate", out, *paths, "--data", images, "--split", "all").code == 0


def test_the_average_of_equal_networks_is_the_network(snapshots, tmp_path):
    paths, folder = snapshots
    images = open_images(folder)
    once = average_checkpoints([paths[0]] * 2, tmp_path / "once.safetensors", images)
    again = average_checkpoints([tmp_path / "once.safetensors"] * 3, tmp_path / "again.safetensors", images)
    for name, weight in once.weights.items():
        torch.testing.assert_close(again.weights[name], weight)


def test_checkpoints_that_cannot_be_averaged_are_refused_in_one_line(firebox, snapshots, tmp_path):
    paths, images = snapshots
    checkpoint = read_checkpoint(paths[0])
    other = tmp_path / "other.safetensors"
    other.write_bytes(pack_checkpoint(replace(checkpoint, classes=("x", "y", "z"))))
    out = tmp_path / "average.safetensors"
    cases = (
        ((paths[0],), "at least two checkpoints, not 1"),
        ((paths[0], other), "differs from"),
        ((paths[0], tmp_path / "nowhere"), "no such file"),
    )
    for given, message in cases:
        outcome = firebox("average", *given, "--data", images, "--out", out)
        assert (outcome.code, message in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err
        assert not out.exists()
    assert firebox("average", *paths, "--data", images, "--out", tmp_path / "average").code == 2
    for name in ("model.onnx", "model.pth"):
        (tmp_path / name).write_bytes(b"")
        for given in ((paths[0], tmp_path / name), (tmp_path / name, paths[0])):
            outcome = firebox("average", *given, "--data", images, "--out", out)
            assert outcome.code == 2
            assert outcome.err.startswith(f"error: {tmp_path / name} is not a checkpoint of firebox train; average ")
    with pytest.raises(UsageError, match="its config"):
        wide = replace(checkpoint.config, dropout=0.3)
        other.write_bytes(pack_checkpoint(replace(checkpoint, config=wide)))
        average_checkpoints([paths[0], other], out, open_images(images))


def test_no_input_is_overwritten(firebox, snapshots, tmp_path):
    paths, images = snapshots
    (tmp_path / "run").mkdir()
    copies = [tmp_path / "run" / "checkpoint.safetensors", tmp_path / "other.safetensors"]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for out in (copies[0], copies[1], tmp_path / "link" / copies[0].name):
        outcome = firebox("average", tmp_path / "run", copies[1], "--data", images, "--out", out)
        message = f"error: {out} is one of the checkpoints to average and would be overwritten; choose another name\n"
        assert (outcome.code, outcome.err) == (2, message)
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: {f"{name}x": tensor}, "is of another network: missing key "),
        (
            lambda name, tensor: {name: tensor, "extra": tensor + 1},
            "is of another network: unexpected key extra",
        ),
        (lambda name, tensor: {name: torch.stack([tensor, tensor])}, "is of another network: "),
        (lambda name, tensor: {name: tensor.to(torch.complex64)}, "is complex64 "),
        (lambda name, tensor: {name: tensor.float() / 0}, "cannot be used|is float32"),
    ],
    ids=["renamed", "extra", "shape", "complex", "infinite"],
)
@pytest.mark.parametrize("kind", ["weight", "num_batches_tracked"])
@pytest.mark.parametrize("position", [0, 1])
def test_each_checkpoint_is_checked(firebox, snapshots, tmp_path, change, message, kind, position):
    (path, _), images = snapshots
    checkpoint = read_checkpoint(path)
    name = next(name for name in checkpoint.weights if name.endswith(kind))
    weights = dict(checkpoint.weights)
    weights |= change(name, weights.pop(name))
    damaged, out = tmp_path / "damaged.safetensors", tmp_path / "average.safetensors"
    damaged.write_bytes(pack_checkpoint(replace(checkpoint, weights=weights)))
    given = [path, path]
    given[position] = damaged
    outcome = firebox("average", *given, "--data", images, "--out", out)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert outcome.err.startswith(f"error: {damaged} ")
    assert re.search(message, outcome.err)
    assert not out.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_a_file_that_cannot_be_written_is_named(firebox, snapshots):
    paths, images = snapshots
    outcome = firebox("average", *paths, "--data", images, "--out", "/proc/self/average.safetensors")
    assert outcome.code == 1
    assert "error: cannot write /proc/self/average.safetensors: " in outcome.err
