from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from firebox.model_zoo import TrainingConfig, load_network, train
from firebox.model_zoo.training.loss import Teachers, training_loss
from firebox.model_zoo.weights import pack_checkpoint, read_checkpoint
from firebox.runtime.errors import CheckpointError, UsageError


class Constant(nn.Module):
    """Outputs the same logits for all images."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_teachers_output_the_mean_of_their_softened_probabilities():
    outputs = [torch.tensor([3.0, 0.0, -1.0]), torch.tensor([-2.0, 4.0, 1.0])]
    teachers = Teachers([Constant(logits) for logits in outputs], temperature=3.0)
    found = (teachers(torch.zeros(2, 1)) / 3).softmax(1)
    expected = torch.stack([(logits / 3).softmax(0) for logits in outputs]).mean(0)
    assert torch.allclose(found, expected.expand(2, -1), atol=1e-6)
    alone = Teachers([Constant(outputs[0])], temperature=3.0)(torch.zeros(1, 1))
    assert torch.allclose(alone.softmax(1), outputs[0].softmax(0), atol=1e-6)


def test_the_loss_matches_the_paper():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.randint(4, (5,))
    plain = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(training_loss(logits, labels, 0.1, None, 2.0, 0.7), plain)
    soft, expected = (logits / 2).softmax(1), (teacher / 2).softmax(1)
    divergence = (expected * (expected / soft).log()).sum(1).mean()
    found = training_loss(logits, labels, 0.1, teacher, 2.0, 0.7)
    assert found == pytest.approx((0.7 * 4 * divergence + 0.3 * plain).item(), rel=1e-5)
    assert training_loss(teacher, labels, 0.0, teacher, 2.0, 1.0) == pytest.approx(0, abs=1e-6)


def student(trained, **changes) -> TrainingConfig:
    data = trained.out.parent / "images"
    config = TrainingConfig(data=str(data), teachers=(str(trained.out),), batch_size=8, augment="none", epochs=6)
    return replace(config, **changes)


def test_a_student_learns_the_outputs_of_its_teacher(trained, tmp_path):
    result = train(student(trained, teacher_share=1.0), tmp_path / "run")
    losses = [float(line.split(",")[3]) for line in (result.out / "log.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0] / 2


def test_a_teacher_may_move_but_not_change(firebox, trained, tmp_path, monkeypatch):
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(trained.checkpoint.read_bytes())
    out = tmp_path / "run"
    train(student(trained, teachers=(str(teacher),), epochs=1), out)
    checkpoint = read_checkpoint(out / "checkpoint.safetensors")
    longer = replace(checkpoint, training=replace(checkpoint.training, epochs=2))
    (out / "checkpoint.safetensors").write_bytes(pack_checkpoint(longer))

    gone = teacher.rename(tmp_path / "elsewhere.safetensors")
    lost = firebox("train", "--resume", out)
    assert (lost.code, lost.err.count("\n")) == (2, 1)
    assert "teacher.safetensors" in lost.err
    other = train(student(trained, teachers=(), epochs=1, seed=5), tmp_path / "other")
    changed = firebox("train", "--resume", out, "--teacher", other.out)
    assert (changed.code, changed.err.count("\n")) == (1, 1)
    assert f"the teacher {other.out} has changed since the training started" in changed.err
    many = firebox("train", "--resume", out, "--teacher", gone, "--teacher", gone)
    assert (many.code, "2 teachers given, but the training has 1" in many.err) == (2, True)
    assert firebox("train", "--resume", out, "--teacher", gone).code == 0
    assert load_network(out).training.epochs == 2


def test_teachers_with_other_classes_or_preprocessing_are_refused(trained, images, tmp_path):
    with pytest.raises(UsageError, match=r"has the classes 3 .*, the images 2 .*; they must agree"):
        train(student(trained, data=str(images)), tmp_path / "run")
    with pytest.raises(UsageError, match="differ in preprocessing"):
        train(student(trained, input_size=(24, 24)), tmp_path / "run")
    with pytest.raises(UsageError, match="teachers need images"):
        student(trained, learn="head", start=str(trained.out))
    with pytest.raises(UsageError, match="no such run folder or checkpoint"):
        train(student(trained, teachers=("no/where",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_the_hash_of_its_teacher_is_refused(trained, tmp_path):
    from firebox.model_zoo import resume

    out = tmp_path / "run"
    train(student(trained, epochs=1), out)
    checkpoint = read_checkpoint(out / "checkpoint.safetensors")
    broken = replace(checkpoint, training=replace(checkpoint.training, epochs=2), teachers_sha256=())
    (out / "checkpoint.safetensors").write_bytes(pack_checkpoint(broken))
    with pytest.raises((CheckpointError, UsageError)):
        resume(out)
