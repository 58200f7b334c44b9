"""The optimizer: which parameters learn together, at what rate beside the others, and its state in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.errors import CheckpointError
from .freezing import Layer, layers_of
from .training_config import TrainingConfig


def make_optimizer(module: nn.Module, config: TrainingConfig, factors: Mapping[str, float] | None = None) -> Optimizer:
    """SGD for the parameters of a module that learn.

    Each layer has its own groups when layers differ in their rates: by ``factors``, by layer, or with FreezeOut. The
    name of a group's layer is its ``layer``, its factor beside the loop's rate its ``factor``.
    """
    groups: list[dict[str, Any]] = []
    for layer in layers_of(module):
        groups += _groups(layer, config.weight_decay, (factors or {}).get(layer.name, 1.0))
    if not config.freezeout and not factors:
        groups = _joined(groups)
    return torch.optim.SGD(groups, lr=config.learning_rate or 0.0, momentum=config.momentum, nesterov=config.nesterov)


def pack_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an optimizer as tensors called ``SLOT.PARAMETER``."""
    return {
        f"{slot}.{name}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Take up what ``pack_state`` gave. Raises ``CheckpointError`` for the state of other parameters."""
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = dict(state)
    for name, parameter in parameters.items():
        if id(parameter) not in learning:
            continue
        slots = [key for key in left if key.partition(".")[2] == name]
        for key in slots:
            value = left.pop(key)
            if value.ndim and value.shape != parameter.shape:
                raise CheckpointError(f"{key} in the checkpoint is not that of its network; start a new run")
            slot = torch.empty_like(parameter).copy_(value) if value.ndim else value
            optimizer.state[parameter][key.partition(".")[0]] = slot
        if not slots:
            raise CheckpointError(f"the checkpoint has no state of the optimizer for {name}; start a new run")
    if left:
        raise CheckpointError(f"the checkpoint has {next(iter(left))}, which is not of its network; start a new run")


def _groups(layer: Layer, weight_decay: float, factor: float) -> list[dict[str, Any]]:
    # Decay is for the kernels. Pulling biases and batch norm's scales to zero gains nothing and
    # costs accuracy (He et al., arXiv 1812.01187, section 3.1).
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    kinds = (
        ([parameter for parameter in learning if parameter.ndim > 1], weight_decay),
        ([parameter for parameter in learning if parameter.ndim <= 1], 0.0),
    )
    return [
        {"params": parameters, "weight_decay": decay, "layer": layer.name, "factor": factor}
        for parameters, decay in kinds
        if parameters
    ]


def _joined(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group for each decay: few large ones are the quicker ones."""
    joined: dict[float, dict[str, Any]] = {}
    for group in groups:
        kept = joined.setdefault(group["weight_decay"], {**group, "params": [], "layer": ""})
        kept["params"] += group["params"]
    return list(joined.values())
