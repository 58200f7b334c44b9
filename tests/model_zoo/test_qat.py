"""Quantization-aware training: from a float run to int8 files with the same outputs as training."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from firebox.export.quantization import Range
from firebox.model_zoo import (
    TorchClassifier,
    TrainingConfig,
    load_network,
    model_config,
    resume,
    train,
    train_quantized,
)
from firebox.model_zoo.networks import SqueezeNet, without_batch_norm
from firebox.model_zoo.training import quantized_config
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime import Session, open_images, split_images
from firebox.runtime.errors import DataError, FireboxError, TrainingError

CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A float run of two epochs on digits."""
    return train(TrainingConfig(data="digits", epochs=2), tmp_path_factory.mktemp("digits") / "run")


@pytest.fixture(scope="module")
def quantized(digits):
    """The same network after one epoch of fine-tuning with fake quantization."""
    network = load_network(digits.out)
    config = replace(quantized_config(network), epochs=1)
    return train_quantized(network, config, digits.out.parent / "quantized")


@pytest.mark.parametrize("early", [False, True], ids=["after ReLU", "before ReLU"])
@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
def test_batch_norm_is_folded_exactly(bypass, early):
    torch.manual_seed(0)
    network = SqueezeNet(model_config("squeezenet_micro", bypass=bypass, bypass_before_relu=early))
    x = torch.randn(16, 3, 32, 32)
    for _ in range(3):
        network(x)
    modes = [part.training for part in network.modules()]
    folded = without_batch_norm(network)
    assert [part.training for part in network.modules()] == modes
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    torch.testing.assert_close(folded(x), network.eval()(x), rtol=1e-4, atol=1e-4)


def test_runtimes_reproduce_the_outputs_of_training(firebox, digits, quantized, tmp_path):
    assert quantized.val_accuracy > digits.val_accuracy
    out = tmp_path / "files"
    assert firebox("export", quantized.out, "--out", out).code == 0
    report = json.loads((out / "export.json").read_text())
    assert report["calibration"]["source"] == "learned in training"
    network = load_network(quantized.out)
    trained, unseen = TorchClassifier(network), split_images(open_images("digits"), 0.2, 0)[1]
    preprocessing = network.preprocessing
    pixels = [preprocessing.crop(unseen.read(name), unseen.where(name)) for name in unseen.names]
    expected = np.array([trained.predict_pixels(image) for image in pixels])
    assert np.mean(expected.argmax(1) == unseen.labels) == pytest.approx(quantized.val_accuracy)
    for file, backend in (("onnx", "onnxruntime"), ("tflite", "litert"), ("tflite", "tflite-runtime")):
        with Session(out / f"model.int8.{file}", backend) as session:
            step = session.contract.output.scale
            assert step
            steps = np.abs(np.array([session.predict_pixels(image) for image in pixels]) - expected) / step
        if backend != "tflite-runtime":
            assert (steps < 0.5).all(), backend
        # tflite-runtime rescales in fixed point: each layer may be off by a step, later layers by more.
        assert (steps < 1.5).mean() >= 0.99, backend
        assert (steps < 0.5).mean() >= 0.5, backend


def test_evaluate_reports_that_a_run_is_int8(firebox, quantized):
    outcome = firebox("evaluate", quantized.out, "--data", "digits", "--split", "val", "--json")
    (model,) = json.loads(outcome.out)["models"]
    assert model["name"].endswith("(torch, int8)")
    assert model["top1"] == pytest.approx(quantized.val_accuracy)


def test_the_run_records_its_origin(digits, quantized):
    checkpoint = read_checkpoint(quantized.checkpoint)
    assert checkpoint.origin_sha256 == load_network(digits.out).sha256
    assert not checkpoint.config.batch_norm
    assert checkpoint.training.seed == TrainingConfig().seed
    assert set(checkpoint.optimizer) == {f"momentum_buffer.{name}" for name in (*checkpoint.weights, "scales")}
    assert quantized.quantized
    assert not digits.quantized


def test_a_resumed_run_reaches_the_same_weights_and_scales(trained, tmp_path):
    network = load_network(trained.out)
    config = replace(quantized_config(network), epochs=3)
    # A constant learning rate makes the shorter run equal to one that stopped after its first epoch.
    whole = train_quantized(network, replace(config, schedule="polynomial", power=0), tmp_path / "whole")
    first = replace(config, schedule="polynomial", power=0, epochs=1)
    part = train_quantized(network, first, tmp_path / "part")
    stopped = read_checkpoint(part.checkpoint)
    training = replace(stopped.training, epochs=3)
    part.checkpoint.write_bytes(pack_checkpoint(replace(stopped, training=training)))
    resumed = resume(part.out)
    assert resumed.quantized
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert stopped.ranges != read_checkpoint(whole.checkpoint).ranges


def test_the_command_fine_tunes_a_network_repeatedly(firebox, trained, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    outcome = firebox("train", "--qat", trained.out, "--epochs", 1, "--out", first)
    assert outcome.code == 0
    assert "in int8 on 6 images" in outcome.out
    outcome = firebox("train", "squeezenet_micro", "--qat", first / CHECKPOINT, "--out", second, "--json")
    result = json.loads(outcome.out)
    # The options are those of the float run, except for fewer epochs.
    assert (result["epochs"], result["train_images"], result["quantized"]) == (3, trained.train_images, True)
    training = read_checkpoint(second / CHECKPOINT).training
    assert training.batch_size == read_checkpoint(trained.checkpoint).training.batch_size
    assert load_network(second).ranges.keys() == load_network(first).ranges.keys()


def test_options_of_a_long_training_are_not_inherited(digits):
    network = load_network(digits.out)
    long = {"compile": True, "optimizer": "muon", "iterations": 9, "mixup": 0.5, "snapshots": 2, "momentum": 0.8}
    config = quantized_config(replace(network, training=replace(network.training, **long)))
    plain = TrainingConfig()
    assert all(getattr(config, name) == getattr(plain, name) for name in long if name != "momentum")
    assert config.momentum == 0.8


def test_weights_alone_need_the_name_of_their_network(firebox, trained, images, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(dict(load_network(trained.out).module.state_dict()), bare)
    outcome = firebox("train", "--qat", bare, "--data", images, "--out", tmp_path / "run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "holds weights without a config; pass it as weights of a zoo name" in outcome.err
    outcome = firebox("train", "squeezenet_micro", "--qat", bare, "--data", images, "--out", tmp_path / "run")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "the classes of" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_fine_tuned_is_refused_in_one_line(firebox, trained, images, tmp_path):
    network = load_network(trained.out)
    with pytest.raises(DataError, match=r"2 \(class0, class1 …\).*3 \(class0, class1, class2 …\).*must agree"):
        train_quantized(network, replace(quantized_config(network), data=str(images)), tmp_path / "run")
    cases = (
        (("--qat", tmp_path / "nowhere"), 2, "no such run folder"),
        (("--qat", images), 2, "is not a run folder"),
        (("--qat", trained.out, "--input-size", 40), 2, "input size cannot be set with fake quantization"),
        (("--qat", trained.out, "--lr", 0), 2, "learning_rate 0.0"),
        (("--qat", trained.out, "--data", "digits"), 1, "the classes of"),
        (("squeezenet_cifar", "--qat", trained.out), 1, "is of another network"),
    )
    for arguments, code, message in cases:
        outcome = firebox("train", *arguments, "--out", tmp_path / "run")
        assert (outcome.code, outcome.err.count("\n")) == (code, 1), outcome.err
        assert message in outcome.err
        assert not (tmp_path / "run").exists()


def test_qat_and_resume_exclude_each_other(firebox, trained):
    outcome = firebox("train", "--qat", trained.out, "--resume", trained.out)
    assert (outcome.code, "leave out --qat" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "nan"}, "values that are not finite"),
        ({"ranges": {"input": (-1.0, float("nan"))}}, "the header of .* cannot be read"),
        ({"ranges": {"input": (1.0, 2.0)}}, "a range from 1.0 to 2.0"),
        ({"ranges": {"input": (-1.0, 2.0)}}, "was not calibrated"),
    ],
)
def test_a_damaged_checkpoint_is_refused(trained, tmp_path, change, message):
    run = tmp_path / "run"
    shutil.copytree(trained.out, run)
    checkpoint = read_checkpoint(run / CHECKPOINT)
    if "weights" in change:
        name = "features.0.weight"
        weights = {**checkpoint.weights, name: torch.full_like(checkpoint.weights[name], float("nan"))}
        changed = replace(checkpoint, weights=weights)
    else:
        changed = replace(checkpoint, ranges={name: Range(*bounds) for name, bounds in change["ranges"].items()})
    (run / CHECKPOINT).write_bytes(pack_checkpoint(changed))
    with pytest.raises(FireboxError, match=message):
        network = load_network(run)
        train_quantized(network, replace(quantized_config(network), epochs=1), tmp_path / "out")


def test_a_diverging_training_suggests_a_lower_rate(trained, tmp_path):
    network = load_network(trained.out)
    with pytest.raises(TrainingError, match="lower --lr"):
        train_quantized(network, replace(quantized_config(network), learning_rate=1e30), tmp_path / "run")
