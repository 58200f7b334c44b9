"""The optimizer: which parameters learn together, at what rate beside the others, and its state in a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...runtime.errors import CheckpointError, UsageError
from ..training_config import TrainingConfig
from .layer_groups import Layer, layers_of

# What SGD with momentum, and Muon, remember of each parameter.
_SLOT = "momentum_buffer"


def make_optimizer(module: nn.Module, config: TrainingConfig, factors: Mapping[str, float] | None = None) -> Optimizer:
    """SGD, or Muon for the kernels that it suits, for the parameters of a module that learn.

    Muon's are those with a batch norm behind them, but the first layer's, whose inputs are few. Each layer has its
    own groups when layers differ in their rates: by ``factors``, by layer, or with FreezeOut. The name of a group's
    layer is its ``layer``, its factor beside the loop's rate its ``factor``. Raises ``UsageError`` where there is
    nothing for Muon.
    """
    groups: list[dict[str, Any]] = []
    rate = config.learning_rate or 0.0
    for number, layer in enumerate(layers_of(module)):
        orthogonal = config.optimizer == "muon" and number > 0 and layer.normed
        groups += _groups(layer, config, (factors or {}).get(layer.name, 1.0), orthogonal)
    if config.optimizer == "muon" and not any(group.get("orthogonal") for group in groups):
        raise UsageError("no kernel that learns has a batch norm behind it, as muon needs it; choose the optimizer sgd")
    if not config.freezeout and not factors:
        groups = _joined(groups)
    if config.optimizer == "muon":
        return Muon(groups, rate, config.momentum)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)


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


def _groups(layer: Layer, config: TrainingConfig, factor: float, orthogonal: bool) -> list[dict[str, Any]]:
    # Decay is for the kernels. Pulling biases and batch norm's scales to zero gains nothing and
    # costs accuracy (He et al., arXiv 1812.01187, section 3.1).
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    kernels: dict[str, Any] = {"weight_decay": config.weight_decay, "factor": factor}
    if orthogonal:
        assert config.learning_rate is not None
        ratio = config.muon_rate / config.learning_rate
        kernels = {"weight_decay": 0.0, "factor": factor * ratio, "orthogonal": True}
    kinds = (
        {"params": [parameter for parameter in learning if parameter.ndim > 1], **kernels},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0, "factor": factor},
    )
    return [{**kind, "layer": layer.name} for kind in kinds if kind["params"]]


def _joined(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group for each kind: few large ones are the quicker ones."""
    joined: dict[tuple[float, bool], dict[str, Any]] = {}
    for group in groups:
        kind = (group["weight_decay"], group.get("orthogonal", False))
        kept = joined.setdefault(kind, {**group, "params": [], "layer": ""})
        kept["params"] += group["params"]
    return list(joined.values())


# A quintic iteration that brings singular values to about 1 from wherever they lie in (0, 1], as the authors chose it.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPSILON = 1e-7


class Muon(Optimizer):
    """SGD with Nesterov's momentum, whose step is orthogonalized in groups that are ``orthogonal``.

    Those hold kernels with a batch norm behind them, (out, in, ...): the length of such a kernel does not matter, so it
    is kept at the root of its outputs, where a step moves it by ``lr`` of that. Other groups are SGD's, with its
    ``weight_decay``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move all parameters that have a gradient."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.mul_(group["momentum"]).add_(gradient)
        step = gradient.add(buffer, alpha=group["momentum"])
        if not group["orthogonal"]:
            parameter.add_(step, alpha=-group["lr"])
            return
        outputs, inputs = len(step), step[0].numel()
        parameter.mul_(outputs**0.5 / (parameter.norm() + _EPSILON))
        # As many singular values of 1 as the smaller side has: their length is its root.
        scale = (outputs / min(outputs, inputs)) ** 0.5
        parameter.add_(orthogonalized(step.reshape(outputs, -1)).view_as(step), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: (M, N) to (M, N), by Newton and Schulz's iteration in bf16."""
    flat = len(matrix) <= matrix.shape[1]
    x = (matrix if flat else matrix.T).bfloat16()
    x = x / (x.norm() + _EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x if flat else x.T).to(matrix.dtype)
