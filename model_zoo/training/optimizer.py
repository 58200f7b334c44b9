"""The optimizers SGD and Muon: their parameter groups, Muon's steps, and their state in a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...runtime.errors import CheckpointError, UsageError
from ..training_config import TrainingConfig
from .layer_groups import Layer, layers_of

# The only state per parameter of SGD with momentum, and of Muon.
_SLOT = "momentum_buffer"

# Coefficients of the authors' quintic Newton-Schulz iteration; it moves all singular values in (0, 1] close to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPSILON = 1e-7


def make_optimizer(module: nn.Module, config: TrainingConfig, factors: Mapping[str, float] | None = None) -> Optimizer:
    """SGD or Muon for the trainable parameters of a module.

    Muon's orthogonal steps apply to kernels followed by batch norm, except in the first layer, which has few inputs.
    With ``factors`` of the learning rate by layer, or with FreezeOut, each layer has its own parameter groups. In a
    group, ``layer`` is the layer's name and ``factor`` multiplies the learning rate. Raises ``UsageError`` if no kernel
    suits Muon.
    """
    groups: list[dict[str, Any]] = []
    rate = config.learning_rate or 0.0
    for number, layer in enumerate(layers_of(module)):
        orthogonal = config.optimizer == "muon" and number > 0 and layer.normed
        groups += _groups(layer, config, (factors or {}).get(layer.name, 1.0), orthogonal)
    if config.optimizer == "muon" and not any(group.get("orthogonal") for group in groups):
        raise UsageError("muon needs a trainable kernel followed by batch norm, and there is none; use optimizer sgd")
    if not config.freezeout and not factors:
        groups = _merged(groups)
    if config.optimizer == "muon":
        return Muon(groups, rate, config.momentum)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)


def pack_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as tensors named ``SLOT.PARAMETER``; empty without momentum."""
    return {
        f"{_SLOT}.{name}": state[_SLOT]
        for name, parameter in parameters.items()
        if (state := optimizer.state.get(parameter))
    }


def load_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Restore the state of ``pack_state``. Raises ``CheckpointError`` if it does not match the trainable parameters."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"] if group["momentum"]}
    expected = {f"{_SLOT}.{name}": value for name, value in parameters.items() if id(value) in trained}
    for key in sorted(expected.keys() ^ state.keys()):
        fault = "lacks" if key in expected else "has an unexpected"
        raise CheckpointError(f"the optimizer state in the checkpoint {fault} {key}; start a new run")
    for key, parameter in expected.items():
        if state[key].shape != parameter.shape:
            raise CheckpointError(
                f"{key} in the checkpoint has the shape {tuple(state[key].shape)}, its parameter "
                f"{tuple(parameter.shape)}; start a new run"
            )
        optimizer.state[parameter][_SLOT] = torch.empty_like(parameter).copy_(state[key])


class Muon(Optimizer):
    """SGD with Nesterov momentum and orthogonalized steps in groups marked ``orthogonal``.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), and Jordan, arXiv 2404.00498, for
    convolutional networks. Orthogonal groups hold kernels (out, in, ...) followed by batch norm. Their norm has no
    effect, so it is kept at the square root of the number of outputs; a step moves the kernel by ``lr`` times that
    norm. Other groups take SGD steps with their ``weight_decay``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer = self.state[parameter].setdefault(_SLOT, torch.zeros_like(parameter))
        buffer.mul_(group["momentum"]).add_(gradient)
        step = gradient.add(buffer, alpha=group["momentum"])
        if not group["orthogonal"]:
            parameter.add_(step, alpha=-group["lr"])
            return
        outputs, inputs = len(step), step[0].numel()
        parameter.mul_(outputs**0.5 / (parameter.norm() + _EPSILON))
        # An orthogonalized step has min(outputs, inputs) singular values of 1; its norm is the root of that number.
        scale = (outputs / min(outputs, inputs)) ** 0.5
        parameter.add_(orthogonalized(step.reshape(outputs, -1)).view_as(step), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix (M, N), by a Newton-Schulz iteration in bf16."""
    flat = len(matrix) <= matrix.shape[1]
    x = (matrix if flat else matrix.T).bfloat16()
    x = x / (x.norm() + _EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x if flat else x.T).to(matrix.dtype)


def _groups(layer: Layer, config: TrainingConfig, factor: float, orthogonal: bool) -> list[dict[str, Any]]:
    # Weight decay applies to kernels only: on biases and batch norm scales it costs accuracy
    # (He et al., arXiv 1812.01187, section 3.1).
    trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    kernels: dict[str, Any] = {"weight_decay": config.weight_decay, "factor": factor}
    if orthogonal:
        assert config.learning_rate is not None
        ratio = config.muon_rate / config.learning_rate
        kernels = {"weight_decay": 0.0, "factor": factor * ratio, "orthogonal": True}
    others: dict[str, Any] = {"weight_decay": 0.0, "factor": factor}
    groups = (
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], **kernels},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], **others},
    )
    return [{**group, "layer": layer.name} for group in groups if group["params"]]


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups with the same options merged: the optimizer is faster with a few large groups."""
    merged: dict[tuple[float, bool], dict[str, Any]] = {}
    for group in groups:
        options = (group["weight_decay"], group.get("orthogonal", False))
        kept = merged.setdefault(options, {**group, "params": [], "layer": ""})
        kept["params"] += group["params"]
    return list(merged.values())
