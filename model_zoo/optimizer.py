"""The optimizer: which parameters learn together, at what rate beside the others, and its state in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.errors import CheckpointError
from .freezing import Layer, layers_of
from .training_config import TrainingConfig

# What SGD with momentum remembers of each parameter.
_SLOT = "momentum_buffer"


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
    """The state of ``make_optimizer``'s optimizer as tensors called ``SLOT.PARAMETER``; nothing without momentum."""
    return {
        f"{_SLOT}.{name}": state[_SLOT]
        for name, parameter in parameters.items()
        if (state := optimizer.state.get(parameter))
    }


def load_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Take up what ``pack_state`` gave. Raises ``CheckpointError`` for a state that is not of what learns."""
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"] if group["momentum"]}
    expected = {f"{_SLOT}.{name}": value for name, value in parameters.items() if id(value) in learning}
    for key in sorted(expected.keys() ^ state.keys()):
        odd = "lacks" if key in expected else "has, beside that of its training,"
        raise CheckpointError(f"the state of the optimizer in the checkpoint {odd} {key}; start a new run")
    for key, parameter in expected.items():
        if state[key].shape != parameter.shape:
            raise CheckpointError(f"{key} in the checkpoint is not of the shape of its parameter; start a new run")
        optimizer.state[parameter][_SLOT] = torch.empty_like(parameter).copy_(state[key])


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
