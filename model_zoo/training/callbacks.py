"""Callbacks of a training loop: firebox's own, and of anyone's loop that keeps a ``Loop`` and calls them in order.

>>> loop = Loop(module, optimizer, total_steps=1000)
>>> callbacks = snapshot_callbacks(steps=1000, count=5, rate=0.1, save=save)
>>> call(callbacks, "begin", loop)
>>> for batch in batches:
...     call(callbacks, "before_step", loop)
...     loop.loss = step(batch)
...     loop.step += 1
...     call(callbacks, "after_step", loop)

What a callback remembers is in its ``state_dict``, so that a run that is resumed is the same run.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from ...runtime.errors import CheckpointError, UsageError
from .schedules import check_cycles, cyclic_cosine


@dataclass
class Loop:
    """A training loop as callbacks see it: ``step`` counts the steps taken, ``loss`` is that of the last one.

    A callback that changes which parameters learn sets ``rewrap``: what was wrapped around the module (DDP,
    ``torch.compile``) must be made anew before the next step.
    """

    module: nn.Module
    optimizer: Optimizer
    total_steps: int
    step: int = 0
    loss: float = math.nan
    rewrap: bool = False


class Callback:
    """What happens beside the steps of a loop; every method may be left out."""

    # Tells its state from that of others in a checkpoint.
    name = "callback"

    def begin(self, loop: Loop) -> None:
        """Before the first step, and before the first one after a resume; the optimizer has no state yet."""

    def before_step(self, loop: Loop) -> None:
        """Before a step; ``loop.step`` is its number, from 0."""

    def after_step(self, loop: Loop) -> None:
        """After a step; ``loop.step`` counts it."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must be known to go on, as tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave. Raises ``CheckpointError`` for a state that is not its own."""
        if set(state) != set(self.state_dict()):
            raise CheckpointError(f"the checkpoint's state of {self.name} is not that of this training")


def call(callbacks: Sequence[Callback], moment: Literal["begin", "before_step", "after_step"], loop: Loop) -> None:
    """Call one method of all callbacks, in their order."""
    for callback in callbacks:
        getattr(callback, moment)(loop)


class Rates(Callback):
    """Sets the learning rate of every step to ``rate(step)``, times the ``factor`` of a group of parameters."""

    name = "rates"

    def __init__(self, rate: Callable[[int], float]):
        self.rate = rate

    def before_step(self, loop: Loop) -> None:
        """Set the rate of each group."""
        rate = self.rate(loop.step)
        for group in loop.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)


class SaveSnapshots(Callback):
    """Calls ``save(number, module)`` at the end of each cycle; the first number is 1."""

    name = "snapshots"

    def __init__(self, cycle: int, save: Callable[[int, nn.Module], None]):
        self.cycle, self.save = cycle, save

    def after_step(self, loop: Loop) -> None:
        """Save where a cycle has ended."""
        if loop.step % self.cycle == 0:
            self.save(loop.step // self.cycle, loop.module)


def snapshot_callbacks(steps: int, count: int, rate: float, save: Callable[[int, nn.Module], None]) -> list[Callback]:
    """Snapshot Ensembles (Huang et al., arXiv 1704.00109, section 3): ``count`` cycles within ``steps`` steps.

    In each the rate falls from ``rate`` to 0, and at its end ``save(number, module)`` is called. Raises ``UsageError``
    where ``steps`` cannot be divided into so many cycles.
    """
    cycle = check_cycles(steps, count)
    return [Rates(lambda step: cyclic_cosine(step, steps, count, rate)), SaveSnapshots(cycle, save)]


class AverageWeights(Callback):
    """An exponential moving average of everything in the module's state, as the ``module`` of the callback.

    The average follows quickly at first, with a decay of (1 + step) / (10 + step), so that it does not remember the
    random weights that it began with. Raises ``UsageError`` for a ``decay`` outside [0, 1).
    """

    name = "average"

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise UsageError(f"an average of weights cannot decay by {decay}; give a share in [0, 1), such as 0.999")
        self.decay = decay
        self.module = nn.Module()

    def begin(self, loop: Loop) -> None:
        """Begin with the weights as they are."""
        self.module = copy.deepcopy(loop.module).requires_grad_(False)

    def after_step(self, loop: Loop) -> None:
        """Take up the weights after a step."""
        share = 1 - min(self.decay, (1 + loop.step) / (10 + loop.step))
        weights = self.module.state_dict()
        for name, tensor in loop.module.state_dict().items():
            if tensor.is_floating_point():
                weights[name].lerp_(tensor, share)
            else:
                weights[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """The average."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average."""
        super().load_state_dict(state)
        for name, tensor in self.module.state_dict().items():
            if state[name].shape != tensor.shape:
                raise CheckpointError(f"the checkpoint's average of {name} is not that of its network")
            tensor.copy_(state[name])
