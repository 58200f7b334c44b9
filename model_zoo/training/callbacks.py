"""Callbacks of a training loop: firebox's own and the interface for others.

Any loop that keeps a ``LoopState`` can run them:

>>> state = LoopState(module, optimizer, total_steps=1000)
>>> callbacks = snapshot_callbacks(steps=1000, count=5, rate=0.1, save=save)
>>> callbacks.begin(state)
>>> for batch in batches:
...     callbacks.before_step(state)
...     state.loss = step(batch)
...     state.step += 1
...     callbacks.after_step(state)

A callback keeps its state in ``state_dict``, so that a resumed run reaches the same weights as an uninterrupted one.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from ...runtime.errors import CheckpointError, UsageError
from .schedules import check_cycles, cyclic_cosine


@dataclass
class LoopState:
    """State of a training loop: ``step`` counts finished steps, ``loss`` is the loss of the latest one.

    A callback that changes which parameters are trained sets ``rewrap``: wrappers around the module (DDP,
    ``torch.compile``) must be rebuilt before the next step.
    """

    module: nn.Module
    optimizer: Optimizer
    total_steps: int
    step: int = 0
    loss: float = math.nan
    rewrap: bool = False


class Callback:
    """Hooks into a training loop; override any of the methods."""

    # Key of the callback's state in a checkpoint.
    name = "callback"

    def begin(self, state: LoopState) -> None:
        """Run before the first step, and before the first step after a resume; the optimizer has no state yet."""

    def before_step(self, state: LoopState) -> None:
        """Run before each step; ``state.step`` is its index, from 0."""

    def after_step(self, state: LoopState) -> None:
        """Run after each step; ``state.step`` includes it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors needed to resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of ``state_dict``. Raises ``CheckpointError`` for other keys."""
        if set(state) != set(self.state_dict()):
            raise CheckpointError(
                f"the checkpoint's state of the callback {self.name} does not match this training; start a new run"
            )


class Callbacks:
    """Callbacks that run in order."""

    def __init__(self, callbacks: Iterable[Callback]):
        self._callbacks = tuple(callbacks)

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._callbacks)

    def begin(self, state: LoopState) -> None:
        """Run ``begin`` of each callback."""
        for callback in self._callbacks:
            callback.begin(state)

    def before_step(self, state: LoopState) -> None:
        """Run ``before_step`` of each callback."""
        for callback in self._callbacks:
            callback.before_step(state)

    def after_step(self, state: LoopState) -> None:
        """Run ``after_step`` of each callback."""
        for callback in self._callbacks:
            callback.after_step(state)


class LearningRate(Callback):
    """Sets the learning rate of each step to ``rate(step)``, times the ``factor`` of each parameter group."""

    name = "learning_rate"

    def __init__(self, rate: Callable[[int], float]):
        self.rate = rate

    def before_step(self, state: LoopState) -> None:
        """Set the learning rate of each parameter group."""
        rate = self.rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)


class SaveSnapshots(Callback):
    """Calls ``save(number, module)`` at the end of each cycle, with numbers from 1."""

    name = "snapshots"

    def __init__(self, cycle: int, save: Callable[[int, nn.Module], None]):
        self.cycle, self.save = cycle, save

    def after_step(self, state: LoopState) -> None:
        """Save at the end of a cycle."""
        if state.step % self.cycle == 0:
            self.save(state.step // self.cycle, state.module)


def snapshot_callbacks(steps: int, count: int, rate: float, save: Callable[[int, nn.Module], None]) -> Callbacks:
    """Snapshot Ensembles (Huang et al., arXiv 1704.00109, section 3): ``count`` cycles in ``steps`` steps.

    In each cycle the learning rate falls from ``rate`` to 0; at its end, ``save(number, module)`` is called. Raises
    ``UsageError`` if ``steps`` is not divisible by ``count``.
    """
    cycle = check_cycles(steps, count)
    return Callbacks([LearningRate(lambda step: cyclic_cosine(step, steps, count, rate)), SaveSnapshots(cycle, save)])


class WeightAverage(Callback):
    """Exponential moving average of the module's state; ``module`` holds it.

    The decay starts at (1 + step) / (10 + step), so that the average soon forgets the initial weights. Raises
    ``UsageError`` for a ``decay`` outside [0, 1).
    """

    name = "average"

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise UsageError(f"the decay {decay} of an average of weights is outside [0, 1); use one such as 0.999")
        self.decay = decay
        self.module = nn.Module()

    def begin(self, state: LoopState) -> None:
        """Start from the current weights."""
        self.module = copy.deepcopy(state.module).requires_grad_(False)

    def after_step(self, state: LoopState) -> None:
        """Add the weights of this step to the average."""
        share = 1 - min(self.decay, (1 + state.step) / (10 + state.step))
        weights = self.module.state_dict()
        for name, tensor in state.module.state_dict().items():
            if tensor.is_floating_point():
                weights[name].lerp_(tensor, share)
            else:
                weights[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """The average."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average. Raises ``CheckpointError`` for tensors of other names or shapes."""
        super().load_state_dict(state)
        for name, tensor in self.module.state_dict().items():
            if state[name].shape != tensor.shape:
                raise CheckpointError(
                    f"the checkpoint's average of {name} has the shape {tuple(state[name].shape)}, the network's is "
                    f"{tuple(tensor.shape)}; start a new run"
                )
            tensor.copy_(state[name])
