import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from modules import imported_anew
from PIL import Image

from firebox.model_zoo import TrainingConfig, load_network, resume, train
from firebox.model_zoo.training import Resources, load_images, predict, top_k
from firebox.model_zoo.training.augmentation import augmentation
from firebox.model_zoo.training.data import normalize
from firebox.model_zoo.training.schedules import learning_rate
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime.errors import CheckpointError, DataError, TrainingError, UsageError, WriteError
from firebox.runtime.images import Preprocessing, open_images, split_images


def test_the_command_trains_on_digits(firebox, tmp_path):
    out = tmp_path / "digits"
    outcome = firebox("train", "squeezenet_micro", "--epochs", 4, "--out", out, "--json")
    result = json.loads(outcome.out)
    assert outcome.code == 0
    assert result["val_accuracy"] >= 0.9
    network = load_network(out)
    assert network.classes == tuple("0123456789")
    assert network.preprocessing.channels == "L"
    # The reported accuracy is the accuracy of the checkpoint.
    _, validated = split_images(open_images("digits"))
    images = load_images(validated, network.preprocessing)
    logits = predict(network.module, images, network.preprocessing)
    assert top_k(logits, images.labels, (1,))[0] == pytest.approx(result["val_accuracy"])


def test_the_run_folder_has_config_log_and_curves(trained):
    assert sorted(path.name for path in trained.out.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "curves.png",
        "log.csv",
        "tensorboard",
    ]
    config = json.loads((trained.out / "config.json").read_text())
    assert config["classes"] == ["class0", "class1", "class2"]
    assert config["train_images"] == trained.train_images == 24
    with (trained.out / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(trained.val_accuracy)
    assert 0 < float(rows[-1]["learning_rate"]) < float(rows[1]["learning_rate"])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_is_deterministic_for_a_seed(images, tmp_path, precision):
    config = TrainingConfig(data=str(images), epochs=2, batch_size=4, precision=precision)
    before = torch.random.get_rng_state()
    first, again = (train(config, tmp_path / name) for name in ("first", "again"))
    other = train(replace(config, seed=1), tmp_path / "other")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.checkpoint.read_bytes() == again.checkpoint.read_bytes()
    assert first.checkpoint.read_bytes() != other.checkpoint.read_bytes()


def test_streamed_images_train_the_same_weights(images, tmp_path):
    config = TrainingConfig(data=str(images), epochs=1, batch_size=4)
    kept = train(config, tmp_path / "kept")
    streamed = train(config, tmp_path / "streamed", Resources(memory_bytes=1, workers=1))
    assert kept.checkpoint.read_bytes() == streamed.checkpoint.read_bytes()


def test_an_existing_run_is_not_overwritten(firebox, trained):
    before = trained.checkpoint.read_bytes()
    outcome = firebox("train", "--out", trained.out)
    assert outcome.code == 2
    assert "already holds a run" in outcome.err
    assert trained.checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("squeezenet_micr",), "did you mean squeezenet_micro"),
        (("--epochs", 0), "epochs 0 is not between 1"),
        (("--batch-size", 1), "batch_size 1 is not between 2"),
        (("--lr", "nan"), "learning_rate nan is invalid"),
        (("--lr", 0), "learning_rate 0.0"),
        (("--warmup", 16), "warmup_epochs 16 is not between 0 and 15"),
        (("--val-fraction", 1), "validation fraction 1.0"),
        (("--input-size", 4), "input size (4, 4) is too small"),
        (("--memory", "2GB"), "did you mean 2GiB"),
        (("--data", "nowhere"), "no such data: nowhere"),
        (("--resume", "nowhere"), "there is no run to resume in nowhere"),
        (("--resume", "nowhere", "--epochs", 3), "--resume uses the run's own options; leave out --epochs"),
    ],
)
def test_bad_usage_is_reported_in_one_line_and_leaves_no_files(firebox, tmp_path, arguments, message):
    out = tmp_path / "run"
    place = () if "--resume" in arguments else ("--out", out)
    outcome = firebox("train", *place, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not out.exists()


def test_a_finished_run_and_changed_images_cannot_be_resumed(trained, images, tmp_path):
    with pytest.raises(UsageError, match="has finished its 3 epochs"):
        resume(trained.out)
    config = TrainingConfig(data=str(images), epochs=2, batch_size=4, learning_rate=1e20)
    with pytest.raises(TrainingError):
        train(config, tmp_path / "run")
    (images / "class0" / "0.png").unlink()
    with pytest.raises(DataError, match="its images have changed"):
        resume(tmp_path / "run")


def stopped_run(config: TrainingConfig, out: Path) -> Path:
    """A run of ``config`` that looks as if it had been stopped before its last epoch."""
    train(config, out)
    checkpoint = read_checkpoint(out / "checkpoint.safetensors")
    training = replace(checkpoint.training, epochs=config.epochs + 1)
    stopped = replace(checkpoint, training=training)
    (out / "checkpoint.safetensors").write_bytes(pack_checkpoint(stopped))
    return out


def test_a_run_resumes_with_images_that_have_moved(firebox, images, tmp_path):
    config = TrainingConfig(data=str(images), epochs=1, batch_size=4)
    out = stopped_run(config, tmp_path / "run")
    moved = images.rename(tmp_path / "moved")
    lost = firebox("train", "--resume", out)
    assert (lost.code, "no such data" in lost.err) == (2, True)
    outcome = firebox("train", "--resume", out, "--data", moved, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["epochs"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -3},
        {"optimizer": {}},
        {"classes": ("one",)},
        {"preprocessing": Preprocessing((8, 8))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_inconsistent_checkpoint_is_not_resumed(images, tmp_path, change):
    config = TrainingConfig(data=str(images), epochs=1, batch_size=4)
    out = stopped_run(config, tmp_path / "run")
    path = out / "checkpoint.safetensors"
    path.write_bytes(pack_checkpoint(replace(read_checkpoint(path), **change)))
    with pytest.raises(CheckpointError):
        resume(out)


def test_a_diverging_training_suggests_a_lower_rate_and_keeps_the_checkpoint(images, tmp_path):
    config = TrainingConfig(data=str(images), batch_size=4, learning_rate=1e20)
    with pytest.raises(TrainingError, match=r"the loss is \w+ at step \d+.*lower --lr"):
        train(config, tmp_path / "run")
    load_network(tmp_path / "run")


def test_the_rate_of_a_frozen_layer_is_reported(images, tmp_path):
    config = TrainingConfig(data=str(images), batch_size=4, freezeout="cubic", freeze_first=1e-9)
    with pytest.raises(TrainingError, match=r"after a learning rate of 1e\+26.*--lr, or --freeze-unscaled, in another"):
        train(config, tmp_path / "run")


def test_images_of_unusual_formats_are_trained_on(tmp_path, paint):
    folder = paint(tmp_path / "images")
    deep = np.arange(100, dtype=np.uint16).reshape(10, 10) * 600
    Image.fromarray(deep).save(folder / "class0" / "deep.png")
    Image.new("CMYK", (20, 10), (0, 90, 200, 10)).save(folder / "class0" / "print.jpg")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "class1" / "dot.png")
    Image.new("RGBA", (7, 30), (9, 9, 9, 0)).save(folder / "class1" / "clear.png")
    Image.new("P", (15, 15)).save(folder / "class1" / "palette.gif")
    (folder / "class1" / "notes.txt").write_text("not an image")
    config = TrainingConfig(data=str(folder), epochs=1, batch_size=4)
    result = train(config, tmp_path / "run")
    assert result.train_images + result.val_images == 21


@pytest.mark.parametrize("memory", ["2GiB", "1"])
def test_a_cut_jpeg_is_named(firebox, tmp_path, paint, memory):
    folder = paint(tmp_path / "images")
    path = folder / "class1" / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:700])
    out = tmp_path / "run"
    outcome = firebox("train", "--data", folder, "--out", out, "--memory", memory, "--batch-size", 2)
    assert outcome.code == 1
    assert "class1/cut.jpg is damaged or truncated" in outcome.err
    assert outcome.err.count("\n") == 1


def test_folders_without_classes_are_refused(firebox, tmp_path, paint):
    (tmp_path / "empty").mkdir()
    outcome = firebox("train", "--data", tmp_path / "empty", "--out", tmp_path / "run")
    assert (outcome.code, "has no images in class folders" in outcome.err) == (1, True)
    paint(tmp_path / "one", classes=1)
    outcome = firebox("train", "--data", tmp_path / "one", "--out", tmp_path / "run")
    assert (outcome.code, "has one class ('class0')" in outcome.err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError, match="cannot write"):
        train(TrainingConfig(data=str(images)), tmp_path / "file" / "run")


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_learning_rates_rise_then_fall_to_zero(schedule):
    rates = [learning_rate(step, 100, 0.4, schedule, warmup=10) for step in range(100)]
    assert max(rates) == rates[10] == 0.4
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    middle = learning_rate(55, 100, 0.4, schedule, warmup=10)
    assert middle == pytest.approx(0.2)
    assert learning_rate(55, 100, 0.4, "polynomial", warmup=10, power=2) == pytest.approx(0.1)


@pytest.mark.parametrize("policy", ["none", "light", "standard", "cutout"])
def test_augmentation_keeps_shape_and_range_and_uses_torchs_generator(policy):
    change = augmentation(policy, (16, 24))
    images = torch.rand(6, 3, 16, 24)
    torch.manual_seed(3)
    first = change(images)
    torch.manual_seed(3)
    assert torch.equal(change(images), first)
    assert first.shape == images.shape
    assert first.min() >= -1e-5
    assert first.max() <= 1 + 1e-5
    assert torch.equal(first, images) == (policy == "none")


def test_cutout_blanks_a_square_anywhere_in_each_image():
    torch.manual_seed(0)
    blank = augmentation("cutout", (32, 32))(torch.ones(200, 3, 32, 32)) == 0
    assert (blank.sum((2, 3)) == 144).all()
    assert (blank.any(2).sum(2) == 12).all()
    assert blank[:, :, 4:28, 4:28].any(0).all()


def test_light_augmentation_never_flips():
    ramp = torch.linspace(0, 1, 32).expand(50, 1, 32, 32)
    torch.manual_seed(0)
    changed = augmentation("light", (32, 32))(ramp)
    assert (changed[..., 24:].mean((1, 2, 3)) > changed[..., :8].mean((1, 2, 3))).all()


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((4, 5), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocessing((4, 5), channels="L", mean=(0.5,), std=(0.3,)),
        Preprocessing((4, 5), channels="BGR", scale=1.0, mean=(104.0, 117.0, 123.0)),
    ],
)
def test_training_normalizes_as_sessions_do(preprocessing):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 4, 5, preprocessing.depth), np.uint8)
    ours = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), preprocessing)
    assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), preprocessing.normalize(pixels))


def test_top_k_counts():
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    labels = torch.tensor([0, 1, 2])
    first, second, fifth = top_k(logits, labels, (1, 2, 5))
    assert math.isclose(first, 1 / 3)
    assert math.isclose(second, 2 / 3)
    assert fifth == 1


def test_without_torch_models_are_listed_and_train_names_the_extra(firebox, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with imported_anew("firebox.model_zoo."):
        assert firebox("models").code == 0
        outcome = firebox("train", "--out", "nowhere")
    assert outcome.code == 1
    assert outcome.err == "error: torch is not installed; run: pip install 'firebox[train]'\n"


def test_validation_runs_at_its_interval_and_after_the_last_epoch(images, tmp_path):
    config = TrainingConfig(data=str(images), epochs=5, batch_size=4)
    rare = train(replace(config, validate_every=2), tmp_path / "rare")
    frequent = train(config, tmp_path / "frequent")
    with (rare.out / "log.csv").open() as stream:
        validated = [not math.isnan(float(row["val_accuracy"])) for row in csv.DictReader(stream)]
    assert validated == [False, True, False, True, True]
    assert rare.val_accuracy == frequent.val_accuracy
    weights = [read_checkpoint(run.checkpoint).weights for run in (rare, frequent)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
