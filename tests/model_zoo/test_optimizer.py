"""Muon: its steps and its parameters."""

import pytest
import torch

from firebox.model_zoo import TrainingConfig, create_model, train
from firebox.model_zoo.training import Muon, make_optimizer
from firebox.model_zoo.training.optimizer import orthogonalized
from firebox.runtime.errors import UsageError


@pytest.mark.parametrize("shape", [(16, 144), (64, 16), (8, 8), (1, 9)])
def test_orthogonalized_singular_values_are_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalized(matrix)
    assert found.shape == shape
    # The authors' coefficients move singular values near 1, not to 1.
    values = torch.linalg.svdvals(found)
    assert 0.5 < values.min() <= values.max() < 1.4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.svdvals((u @ v).T @ found).min() > -1e-3
    assert torch.nn.functional.cosine_similarity((u @ v).flatten(), found.flatten(), dim=0) > 0.95


def test_a_kernel_keeps_its_norm_and_moves_by_the_learning_rate():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.0, momentum=0.9)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    assert kernel.norm().item() == pytest.approx(8**0.5, rel=1e-4)
    before = kernel.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert (kernel - before).norm().item() == pytest.approx(0.1 * 8**0.5, rel=0.2)


def test_other_groups_take_sgd_steps():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = (
        Muon([{"params": [ours], "weight_decay": 0.01}], lr=0.1, momentum=0.9),
        torch.optim.SGD([{"params": [theirs], "weight_decay": 0.01}], lr=0.1, momentum=0.9, nesterov=True),
    )
    for _ in range(3):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_updates_kernels_with_batch_norm_except_the_first():
    network = create_model("squeezenet_micro", num_classes=10)
    config = TrainingConfig(optimizer="muon", learning_rate=0.1, muon_rate=0.03)
    optimizer = make_optimizer(network, config)
    orthogonal = next(group for group in optimizer.param_groups if group.get("orthogonal"))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(parameter)] for parameter in orthogonal["params"]}
    assert "features.3.squeeze.weight" in found
    assert not {"features.0.weight", "classifier.1.weight"} & found
    assert all(name.endswith("weight") and "norm" not in name for name in found)
    assert orthogonal["factor"] == pytest.approx(0.3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    with pytest.raises(UsageError, match="muon needs a trainable kernel followed by batch norm"):
        make_optimizer(create_model("squeezenet1_1", num_classes=10), config)


def test_muon_is_deterministic(firebox, images, tmp_path):
    config = TrainingConfig(data=str(images), epochs=2, batch_size=4, optimizer="muon")
    first, again = (train(config, tmp_path / name) for name in ("first", "again"))
    assert first.checkpoint.read_bytes() == again.checkpoint.read_bytes()
    outcome = firebox("train", "--optimizer", "muon", "--muon-rate", 0, "--out", tmp_path / "bad")
    assert (outcome.code, "muon_rate 0.0 is not a positive number" in outcome.err) == (2, True)
