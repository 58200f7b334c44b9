"""Checkpoints that are truncated, damaged, of other trainings, or of older versions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from firebox.model_zoo import TrainingConfig, load_network, resume, train
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime.errors import CheckpointError, FireboxError

EMA = {"ema": 0.9}
# Keys of the training config in the first version of the format.
OLD_KEYS = {
    *("model", "data", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "schedule", "power"),
    *("warmup_epochs", "label_smoothing", "dropout", "input_size", "augment", "val_fraction", "precision", "threads"),
    "seed",
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, paint):
    """Runs with one epoch left, without and with an average of the weights."""
    folder = tmp_path_factory.mktemp("stopped")
    data = str(paint(folder / "images"))
    for name, changes in (("plain", {}), ("average", EMA)):
        train(TrainingConfig(data=data, epochs=1, batch_size=4, **changes), folder / name)
        path = folder / name / "checkpoint.safetensors"
        checkpoint = read_checkpoint(path)
        path.write_bytes(pack_checkpoint(replace(checkpoint, training=replace(checkpoint.training, epochs=2))))
    return folder


def written(stopped, tmp_path, name: str, data: bytes):
    """A copy of a run whose checkpoint has these bytes."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint.safetensors").write_bytes(data)
    for file in ("config.json", "log.csv"):
        (out / file).write_bytes((stopped / name / file).read_bytes())
    return out


def test_a_truncated_checkpoint_is_reported_in_one_line(firebox, stopped, tmp_path):
    data = (stopped / "plain" / "checkpoint.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    out = written(stopped, tmp_path, "plain", data)
    for length in (0, 4, 8, header // 2, header - 1, header, header + 1000, len(data) - 1):
        (out / "checkpoint.safetensors").write_bytes(data[:length])
        for command in (("train", "--resume", out), ("train", "--start", out, "--out", tmp_path / "new")):
            outcome = firebox(*command)
            assert (outcome.code, outcome.err.count("\n")) == (1, 1), length
            assert "is not a whole safetensors file" in outcome.err
    assert not (tmp_path / "new").exists()


def test_a_damaged_header_raises_errors_of_firebox_only(stopped, tmp_path):
    data = (stopped / "average" / "checkpoint.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    path, refused = tmp_path / "damaged.safetensors", 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in random.integers(0, header, random.integers(1, 4)):
            damaged[position] = random.integers(0, 256) if random.random() < 0.5 else damaged[position] ^ 1
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
            load_network(path)
        except FireboxError:
            refused += 1
    assert refused > 200


def without(tensors):
    return dict(list(tensors.items())[1:])


def of_another_shape(tensors):
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim)
    return {**tensors, name: torch.zeros(*tensor.shape, 2)}


def extra(tensors):
    return {**tensors, "momentum_buffer.unknown": torch.zeros(3)}


def renamed(tensors):
    return {name.replace("momentum", "exp"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("run", "change"),
    [
        *(("plain", lambda c, f=f: {"optimizer": f(c.optimizer)}) for f in (without, of_another_shape, extra, renamed)),
        *(("average", lambda c, f=f: {"learning": f(c.learning)}) for f in (without, of_another_shape, extra)),
        *(("average", lambda c, f=f: {"weights": f(c.weights)}) for f in (without, of_another_shape, extra)),
        ("average", lambda c: {"learning": {}}),
        ("plain", lambda c: {"learning": {name: tensor.clone() for name, tensor in c.weights.items()}}),
        ("plain", lambda c: {"callbacks": {"unknown": {"state": torch.zeros(1)}}}),
        ("plain", lambda c: {"step": c.step + 1}),
        ("plain", lambda c: {"step": 0}),
        ("plain", lambda c: {"epoch": 0}),
    ],
)
def test_the_state_of_another_training_is_refused(stopped, tmp_path, run, change):
    checkpoint = read_checkpoint(stopped / run / "checkpoint.safetensors")
    out = written(stopped, tmp_path, run, pack_checkpoint(replace(checkpoint, **change(checkpoint))))
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(CheckpointError):
        resume(out)
    assert sorted(path.name for path in out.iterdir()) == before


def header_of(data: bytes):
    """The JSON object that firebox writes into the header of the file."""
    return json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["firebox"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"surprise": 1}, "unknown key 'surprise'; update firebox"),
        (lambda t: {key: value for key, value in t.items() if key != "data"}, "the key 'data' is missing"),
        (lambda t: t | {"teachers": 5}, "teachers 5 is invalid"),
        (lambda t: t | {"warmup_epochs": -1}, "warmup_epochs -1"),
        (lambda t: t | {"model": None}, "model None is invalid"),
        (lambda t: t | {"snapshots": 2, "freezeout": "linear"}, "both set the learning rates"),
        (lambda t: 5, "cannot be read"),
    ],
)
def test_an_invalid_training_config_is_refused(stopped, tmp_path, change, message):
    data = (stopped / "plain" / "checkpoint.safetensors").read_bytes()
    header = header_of(data)
    header["training"] = change(header["training"])
    changed = safetensors.torch.save(safetensors.torch.load(data), {"firebox": json.dumps(header)})
    out = written(stopped, tmp_path, "plain", changed)
    with pytest.raises(CheckpointError, match=message):
        resume(out)


def test_checkpoints_of_the_first_version_are_resumed(stopped, tmp_path):
    checkpoint = read_checkpoint(stopped / "plain" / "checkpoint.safetensors")
    data = pack_checkpoint(checkpoint)
    header = header_of(data)
    old = {
        **{key: value for key, value in header.items() if "sha256" not in key and key != "ranges"},
        "format_version": 1,
        "training": {key: value for key, value in header["training"].items() if key in OLD_KEYS},
    }
    tensors = {
        **{f"model.{name}": tensor for name, tensor in checkpoint.weights.items()},
        **{f"momentum.{name.partition('.')[2]}": tensor for name, tensor in checkpoint.optimizer.items()},
    }
    out = written(stopped, tmp_path, "plain", safetensors.torch.save(tensors, {"firebox": json.dumps(old)}))
    assert load_network(out).classes == checkpoint.classes
    then = read_checkpoint(resume(out).checkpoint).weights
    (tmp_path / "new").mkdir()
    now = read_checkpoint(resume(written(stopped, tmp_path / "new", "plain", data)).checkpoint).weights
    assert all(torch.equal(then[name], tensor) for name, tensor in now.items())


def test_a_checkpoint_of_a_newer_version_is_refused(stopped, tmp_path):
    path = tmp_path / "newer.safetensors"
    data = (stopped / "plain" / "checkpoint.safetensors").read_bytes()
    path.write_bytes(data.replace(b'format_version\\": 2', b'format_version\\": 9'))
    with pytest.raises(CheckpointError, match="format version 9, this firebox reads up to 2"):
        read_checkpoint(path)
