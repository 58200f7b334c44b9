"""Effects of training options, and invalid options."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from modules import imported_anew

from firebox.export.quantization import Range
from firebox.model_zoo import TrainingConfig, load_network, train
from firebox.model_zoo.training import Resources, open_training_images
from firebox.model_zoo.training.augmentation import mix
from firebox.model_zoo.training.distributed import ProcessGroup
from firebox.model_zoo.training.learner import Learner
from firebox.model_zoo.training.start import start
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime.errors import TrainingError


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--snapshots", 4, "--epochs", 3, "--batch-size", 4), 2, "9 steps cannot be divided into 4 cycles"),
        (("--snapshots", 50, "--epochs", 3, "--batch-size", 4), 2, "50 snapshots do not fit into 9 steps"),
        (("--snapshots", -1), 2, "snapshots -1 is not between 0 and 1000"),
        (("--snapshots", 5, "--freezeout", "cubic"), 2, "snapshots and freezeout both set the learning rates"),
        (("--snapshots", 5, "--warmup", 2), 2, "snapshots allows no warm-up; leave out the 2 warm-up epochs"),
        (("--freezeout", "cubic", "--warmup", 1), 2, "freezeout allows no warm-up"),
        (("--freezeout", "linear", "--freeze-first", 0), 2, "freeze_first 0.0 is not a positive number"),
        (("--freezeout", "linear", "--freeze-first", 1.5), 2, "freeze_first 1.5 is above 1"),
        (("--freezeout", "linear", "--freeze-first", "nan"), 2, "freeze_first nan is invalid"),
        (("--accumulation", 7), 2, "batch_size 64 is not divisible by accumulation 7"),
        (("--accumulation", 0), 2, "accumulation 0 is not between 1"),
        (("--batch-size", 4, "--accumulation", 4), 2, "batch norm needs two images at a time"),
        (("--ema", 1), 2, "ema 1.0 is not between 0 and 0.999999"),
        (("--mixup", -1), 2, "mixup -1.0 is not between 0 and 100"),
        (("--mixup", 1e-50), 2, "mixup 1e-50 is below 0.001; use 0 to disable it"),
        (("--start", ""), 2, "start is empty; give a value or leave it out"),
        (("--recipe", ""), 2, "no recipe ''"),
        (("--set", "head_padding=65536"), 2, "head_padding 65536 is not between 0 and 64"),
        (("--set", "base_e=65536", "--set", "incr_e=65536"), 2, "are more than 1,000,000,000"),
        (("--cutmix", "inf"), 2, "cutmix inf is not between 0 and 100"),
        (("--iterations", 0), 2, "iterations 0 is not between 1"),
        (("--epochs", 10**30), 2, "is not between 1 and 100000"),
        (("--lr", 1e400), 2, "learning_rate inf is not between 0 and 1e+30"),
        (("--lr", 0), 2, "learning_rate 0.0 is not a positive number"),
        (("--momentum", -0.1), 2, "momentum -0.1 is not between 0 and 1"),
        (("--nesterov", "--momentum", 0), 2, "nesterov needs momentum, which is 0"),
        (("--optimizer", "muon", "--momentum", 0), 2, "muon needs momentum, which is 0"),
        (("--temperature", 0), 2, "temperature 0.0 is not between 0.001 and 1000.0"),
        (("--teacher-share", 2), 2, "teacher_share 2.0 is not between 0 and 1"),
        (("--layer-decay", 0), 2, "layer_decay 0.0 is not a positive number"),
        (("--layer-decay", 2), 2, "layer_decay 2.0 is above 1"),
        (("--learn", 0), 2, "learn 0 is invalid; use all, head or a positive number of blocks"),
        (("--learn", "-1"), 2, "learn '-1' is invalid; use all or head or an integer"),
        (("--learn", "nonsense"), 2, "learn 'nonsense' is invalid"),
        (("--learn", 2), 2, "learn 2 would freeze layers with random weights; set start"),
        (("--learn", "head", "--start", "runs/a", "--augment", "standard"), 2, "without augment 'standard'"),
        (("--learn", "head", "--start", "runs/a", "--freezeout", "cubic"), 2, "leaves freezeout no layer to freeze"),
        (("--epochs", 3, "--warmup", 3), 2, "leaves none of the 3 steps for the decay"),
        (("--epochs", 3, "--warmup", 4), 2, "warmup_epochs 4 is not between 0 and 3"),
        (("--iterations", 9, "--batch-size", 4, "--warmup", 20), 2, "a warm-up of 20 epochs, 60 steps, leaves none"),
        (("--epochs", 3, "--iterations", 9), 2, "--epochs and --iterations both set the length"),
        (
            ("--snapshots", 1, "--schedule", "polynomial"),
            2,
            "snapshots sets the learning rates; leave out schedule",
        ),
        (("--power", 2), 2, "--power has no effect without --schedule polynomial"),
        (("--optimizer", "muon", "--no-nesterov"), 2, "--no-nesterov has no effect with --optimizer muon"),
        (("--muon-rate", 0.1), 2, "--muon-rate has no effect without --optimizer muon"),
        (("--freeze-unscaled",), 2, "--freeze-scaled has no effect without --freezeout"),
        (("--teacher-share", 0.5), 2, "--teacher-share has no effect without --teacher"),
        (
            ("--optimizer", "muon", "--set", "batch_norm=false"),
            2,
            "muon needs a trainable kernel followed by batch norm",
        ),
        (("--images-per-class", 100), 1, "has 6 images, not 100; use fewer"),
        (("--images-per-class", 0), 2, "images_per_class 0 is not between 1"),
        (("--set", "bypas=none"), 2, "squeezenet_micro has no 'bypas'; did you mean bypass?"),
        (("--set", "bypass"), 2, "--set 'bypass' is not KEY=VALUE"),
        (("--set", "squeeze_ratio=-1"), 2, "squeeze_ratio -1"),
        (("--set", "freq=1e999"), 2, "freq inf is invalid"),
        (("--set", f"pools={'[' * 3000}"), 2, "pools '[[["),
        (("--set", "input_size=[8,8]"), 2, "the network's input_size is determined by the images"),
        (("--recipe", "nothing"), 2, "no recipe 'nothing'"),
        (("--start", "no/where"), 2, "no such weights to start from: no/where"),
        (("--teacher", "no/where"), 2, "no such run folder or checkpoint: no/where"),
    ],
)
def test_invalid_options_are_one_line_and_leave_no_files(firebox, images, tmp_path, arguments, code, message):
    out = tmp_path / "run"
    outcome = firebox("train", "--data", images, "--out", out, *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard"])
def test_a_missing_package_is_reported_before_the_run_starts(firebox, tmp_path, monkeypatch, package):
    with imported_anew("firebox.model_zoo.", package, "torch.utils.tensorb"):
        monkeypatch.setitem(sys.modules, package, None)
        outcome = firebox("train", "--out", tmp_path / "run")
    assert (outcome.code, outcome.err) == (1, f"error: {package} is not installed; run: pip install 'firebox[train]'\n")
    assert not (tmp_path / "run").exists()


def test_qat_checkpoints_are_refused_as_initial_weights(firebox, trained, tmp_path):
    quantized = tmp_path / "int8.safetensors"
    checkpoint = replace(read_checkpoint(trained.checkpoint), ranges={"input": Range(-1, 1)})
    quantized.write_bytes(pack_checkpoint(checkpoint))
    data = trained.out.parent / "images"
    outcome = firebox("train", "--start", quantized, "--data", data, "--out", tmp_path / "run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "was trained with fake quantization; start from the float run" in outcome.err


def learner_of(config: TrainingConfig) -> Learner:
    images = open_training_images(config)
    return Learner(start(config, images, Resources("cpu")), torch.device("cpu"), 3, ProcessGroup())


def test_accumulated_gradients_equal_those_of_the_batch(images):
    config = TrainingConfig(
        data=str(images), batch_size=12, augment="none", precision="float32", network={"batch_norm": False}
    )
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(12) % 2
    whole, parts = learner_of(config), learner_of(replace(config, accumulation=4))
    assert parts.step(pixels, labels)[0] == pytest.approx(whole.step(pixels, labels)[0], rel=1e-5)
    for name, parameter in whole.module.named_parameters():
        other = parts.module.get_parameter(name)
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-7), name
        assert torch.allclose(parameter, other, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"accumulation": 2}, {"snapshots": 3}], ids=str)
def test_a_nan_loss_stops_the_training_and_keeps_the_checkpoint_before(images, tmp_path, changes, monkeypatch):
    config = TrainingConfig(data=str(images), epochs=3, batch_size=4, **changes)
    steps, step = [], Learner.step

    def poisoned(learner, pixels, labels):
        steps.append(learner.state.step)
        if learner.state.step == 4:
            next(iter(learner.module.parameters())).data.fill_(math.nan)
        return step(learner, pixels, labels)

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 4, .*the last good checkpoint is kept"):
        train(config, tmp_path / "run")
    assert steps == [0, 1, 2, 3, 4]
    assert read_checkpoint(tmp_path / "run" / "checkpoint.safetensors").epoch == 1
    load_network(tmp_path / "run")


def test_mixed_images_have_mixed_targets():
    torch.manual_seed(0)
    labels = torch.arange(8)
    targets = torch.nn.functional.one_hot(labels, 8).float()
    # All pixels of an image have the value of its class.
    images = labels.float()[:, None, None, None].expand(8, 3, 10, 10).contiguous()
    before = images.clone()
    for mixup, cutmix in ((0.5, 0.0), (0.0, 1.0), (0.5, 1.0), (1e-30, 0.0), (100.0, 100.0)):
        for _ in range(20):
            mixed, shares = mix(images, targets, mixup, cutmix)
            assert torch.isfinite(mixed).all()
            assert torch.allclose(shares.sum(1), torch.ones(8))
            # The mean of an image is the mean of its classes, weighted by their shares.
            assert torch.allclose(mixed.mean((1, 2, 3)), shares @ labels.float(), atol=1e-4)
    assert torch.equal(images, before)
    assert mix(images, targets, 0.0, 0.0)[0] is images


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [({}, 1), ({"epochs": 4}, 0), ({"iterations": 10}, 0), ({"snapshots": 1}, 0), ({"freezeout": "linear"}, 0)],
)
def test_short_trainings_and_other_schedules_have_no_warm_up(images, changes, epochs):
    config = TrainingConfig(data=str(images), batch_size=4, learning_rate=0.1, **{"epochs": 5, **changes})
    learner = learner_of(config)
    assert learner.config.warmup_epochs == epochs
    learner.step(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    assert (learner.rate < 0.1) == bool(epochs)
