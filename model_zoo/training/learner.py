"""The network with its optimizer and callbacks: what a step changes and what a checkpoint keeps."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ...runtime.errors import CheckpointError, QuantizationError, TrainingError, UsageError
from ..networks.int8 import fake_quantized
from ..networks.modules import NetworkModule
from ..training_config import TrainingConfig
from ..weights.checkpoint import Checkpoint
from ..weights.files import network_from
from .augmentation import augmentation, mix
from .callbacks import AverageWeights, Callback, Loop, Rates, call, snapshot_callbacks
from .data import prepare
from .distributed import Workers
from .features import Coded
from .freezeout import FreezeOut
from .layer_groups import rate_factors, settle_layers
from .log import LogRow
from .loss import objective
from .optimizer import load_state, make_optimizer, pack_state
from .schedules import learning_rate

# Name of the activations' scales among the parameters.
_SCALES = "scales"


class Learner:
    """A training at a checkpoint, ready to go on.

    ``answer`` is what computes logits; ``steps`` are those of an epoch. ``save`` gets the number and the checkpoint of
    each snapshot; ``callbacks`` come after those of the config. Images that are already codes (``codes.py``) only
    meet the classifier.
    """

    def __init__(
        self,
        start: Checkpoint,
        device: torch.device,
        steps: int,
        workers: Workers,
        teachers: nn.Module | None = None,
        save: Callable[[int, Checkpoint], None] = lambda number, checkpoint: None,
        callbacks: Sequence[Callback] = (),
    ):
        self.start, self.device, self.workers, self.teachers = start, device, workers, teachers
        self.config = config = start.training
        self.module = network_from(start, start.learning or start.weights)
        # Channels last is the layout in which CPUs and GPUs convolve fastest.
        self.module.to(device)
        self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        settle_layers(self.module, config.learn)
        self.quantized = fake_quantized(self.module, start.ranges) if start.ranges else None
        self.answer = self.quantized or self._answer_of(self.module)
        self.parameters = dict(self.module.named_parameters())
        optimizer = make_optimizer(self.module, config, rate_factors(self.module, config.layer_decay))
        if self.quantized:
            # The scales of activations are for the loss alone.
            self.parameters[_SCALES] = self.quantized.scales
            optimizer.add_param_group({"params": [self.quantized.scales], "weight_decay": 0.0})
        self.augment = augmentation(config.augment or "none", start.preprocessing.size)
        self.loop = Loop(self.module, optimizer, total_steps(config, steps), start.step)
        self.callbacks = [*self._callbacks(steps, save), *callbacks]
        self.average = next((each for each in self.callbacks if isinstance(each, AverageWeights)), None)
        self.freezeout = next((each for each in self.callbacks if isinstance(each, FreezeOut)), None)
        # The highest of the last step, with those of layers that were frozen after it.
        self.rate = 0.0
        call(self.callbacks, "begin", self.loop)
        _check_names(self.callbacks)
        if start.epoch or start.step:
            self._go_on(start, steps)
        self._wrap()

    def step(self, pixels: Tensor, labels: Tensor) -> tuple[float, int]:
        """This process's part of a batch; returns the whole batch's loss, and the right answers to the part.

        Raises ``TrainingError``.
        """
        config, loop = self.config, self.loop
        # One process draws as it always did, others beside it by their number.
        torch.manual_seed(_seed(config.seed, loop.step, *([self.workers.rank] if self.workers.rank else [])))
        call(self.callbacks, "before_step", loop)
        if loop.rewrap:
            self._wrap()
        loop.optimizer.zero_grad()
        parts = list(zip(pixels.chunk(config.accumulation), labels.chunk(config.accumulation), strict=True))
        loss, correct = 0.0, 0
        for number, part in enumerate(parts, start=1):
            value, hits = self._learn(*part, share=len(part[1]) / len(labels), last=number == len(parts))
            loss, correct = loss + value, correct + hits
        # Of all processes, so that all of them go on, or stop.
        loss = self.workers.mean(loss)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        loop.optimizer.step()
        self.rate = max(group["lr"] for group in loop.optimizer.param_groups)
        loop.loss = loss
        loop.step += 1
        call(self.callbacks, "after_step", loop)
        return loss, correct

    def network(self) -> nn.Module:
        """What is validated: the network as it would be kept now."""
        if self.average is None:
            return self.answer
        return self._answer_of(self.average.module)

    def checkpoint(self, row: LogRow) -> Checkpoint:
        """The state after an epoch. Raises ``TrainingError`` if a weight is not finite."""
        return replace(
            self._kept(row.epoch),
            learning=self.module.state_dict() if self.average else {},
            optimizer=pack_state(self.loop.optimizer, self.parameters),
            callbacks={
                callback.name: state
                for callback in self.callbacks
                # The average is what is kept as the weights.
                if callback is not self.average and (state := callback.state_dict())
            },
        )

    def _answer_of(self, module: nn.Module) -> nn.Module:
        if self.config.learn != "head":
            return module
        assert isinstance(module, NetworkModule)
        return Coded(module)

    def _go_on(self, start: Checkpoint, steps: int) -> None:
        if start.step != min(start.epoch * steps, self.loop.total_steps):
            raise CheckpointError(
                f"the checkpoint contradicts itself: {start.step} steps in {start.epoch} epochs of {steps}"
            )
        if bool(start.learning) != bool(self.average):
            odd = "holds no weights that learn beside their average" if self.average else "holds weights beside those"
            raise CheckpointError(f"the checkpoint {odd} of its training; start a new run")
        states = {**start.callbacks, **({self.average.name: start.weights} if self.average else {})}
        for callback in self.callbacks:
            callback.load_state_dict(states.pop(callback.name, {}))
        if states:
            raise CheckpointError(f"the checkpoint has a state of {min(states)}, which is not of its training")
        load_state(self.loop.optimizer, self.parameters, start.optimizer)

    def _callbacks(self, steps: int, save: Callable[[int, Checkpoint], None]) -> list[Callback]:
        config, total, base = self.config, self.loop.total_steps, self.config.learning_rate or 0.0
        if config.snapshots:
            cycle = total // config.snapshots

            def keep(number: int, _: nn.Module) -> None:
                save(number, self._kept(number * cycle // steps))

            rates = snapshot_callbacks(total, config.snapshots, base, keep)
        elif config.freezeout:
            rates = [FreezeOut(config.freezeout, config.freeze_first, config.freeze_scaled, base)]
        else:
            warmup = (config.warmup_epochs or 0) * steps

            def rate(step: int) -> float:
                return learning_rate(step, total, base, config.schedule, warmup=warmup, power=config.power)

            rates = [Rates(rate)]
        # The average comes before what keeps the weights.
        return [*([AverageWeights(config.ema)] if config.ema else []), *rates]

    def _kept(self, epoch: int) -> Checkpoint:
        weights = self.average.state_dict() if self.average else self.module.state_dict()
        kept = (weights.items(), self.module.state_dict().items(), self.parameters.items())
        for name, tensor in itertools.chain(*kept):
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"{name} is not finite")
        ranges = self.quantized.ranges() if self.quantized else {}
        return replace(
            self.start,
            epoch=epoch,
            step=self.loop.step,
            weights=weights,
            ranges=ranges,
            learning={},
            optimizer={},
            callbacks={},
        )

    def _learn(self, pixels: Tensor, labels: Tensor, share: float, last: bool) -> tuple[float, int]:
        """The gradients of a part of the batch; returns its share of the loss and its right answers."""
        config, labels = self.config, labels.to(self.device)
        images = prepare(pixels.to(self.device), self.start.preprocessing)
        images, targets = self._augmented(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            teacher = self.teachers(images) if self.teachers else None
            logits = self._logits(images).float()
        loss = objective(logits, targets, config.label_smoothing, teacher, config.temperature, config.teacher_share)
        waiting = isinstance(self._shared, DistributedDataParallel) and not last
        with self._shared.no_sync() if waiting else nullcontext():  # pyright: ignore
            (loss * share).backward()
        wanted = targets.argmax(1) if targets.ndim > 1 else targets
        return loss.item() * share, int((logits.argmax(1) == wanted).sum())

    def _augmented(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        config, targets = self.config, labels
        images = self.augment(images)
        if config.mixup or config.cutmix:
            targets = functional.one_hot(labels, self.start.config.num_classes).float()
            images, targets = mix(images, targets, config.mixup, config.cutmix)
        return images.contiguous(memory_format=torch.channels_last), targets

    def _logits(self, images: Tensor) -> Tensor:
        try:
            return self._wrapped(images)
        except QuantizationError:
            raise self._diverged("a weight or a scale is no usable number") from None
        except RuntimeError as error:
            if self.config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                what = str(getattr(error, "inner_exception", error)).partition("\n")[0]
                raise TrainingError(f"the network cannot be compiled here ({what}); leave out --compile") from error
            raise

    def _wrap(self) -> None:
        """Around what answers: the averaging of gradients, and the compiler; anew when layers have been frozen."""
        self.loop.rewrap = False
        self._shared = self.workers.wrap(self.answer)
        self._wrapped: Any = self._shared
        if self.config.compile:
            # What was compiled before would be kept beside it.
            torch.compiler.reset()
            self._wrapped = torch.compile(self._shared)

    def _diverged(self, what: str) -> TrainingError:
        after = f", after a learning rate of {self.rate:.3g}" if self.rate else ""
        lower = ", or --freeze-unscaled," if self.config.freezeout and self.config.freeze_scaled else ""
        return TrainingError(
            f"{what} at step {self.loop.step}{after}; the last whole checkpoint stays, start again with a lower --lr"
            f"{lower} in another --out"
        )


def total_steps(config: TrainingConfig, steps: int) -> int:
    """All steps of a training whose epochs have so many."""
    return config.iterations or config.epochs * steps


def _check_names(callbacks: Sequence[Callback]) -> None:
    """Raise ``UsageError`` for names by which a checkpoint cannot tell states apart."""
    named = [callback.name for callback in callbacks if callback.state_dict()]
    for name in named:
        if "." in name:
            raise UsageError(
                f"the callback {name!r} has a dot in its name, where names end in a checkpoint; leave it out"
            )
        if named.count(name) > 1:
            raise UsageError(f"two callbacks are called {name!r}, by which a checkpoint tells their states apart")


def _seed(*values: int) -> int:
    return int(np.random.SeedSequence(values).generate_state(1)[0])
