"""A training at one point in time: the network, its optimizer and callbacks, the training step and the checkpoint."""

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
from .callbacks import Callback, Callbacks, LearningRate, LoopState, WeightAverage, snapshot_callbacks
from .data import prepare
from .distributed import ProcessGroup
from .features import Head
from .freezeout import FreezeOut
from .layer_groups import freeze_below, rate_factors
from .log import LogRow
from .loss import training_loss
from .optimizer import load_state, make_optimizer, pack_state
from .schedules import learning_rate

# Name of the activation scales among the parameters.
_SCALES = "scales"


class Learner:
    """A training that continues from the checkpoint ``start``.

    ``model`` computes the logits: ``module``, its fake-quantized form, or its head alone if the inputs are features.
    ``steps`` is the number of steps per epoch. ``save`` receives the number and checkpoint of each snapshot;
    ``callbacks`` run after the callbacks of the config.
    """

    def __init__(
        self,
        start: Checkpoint,
        device: torch.device,
        steps: int,
        group: ProcessGroup,
        teachers: nn.Module | None = None,
        save: Callable[[int, Checkpoint], None] = lambda number, checkpoint: None,
        callbacks: Sequence[Callback] = (),
    ):
        self.start, self.device, self.group, self.teachers = start, device, group, teachers
        self.config = config = start.training
        self.module = network_from(start, start.learning or start.weights)
        # Channels last is the fastest layout for convolutions on CPUs and GPUs.
        self.module.to(device)
        self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        freeze_below(self.module, config.learn)
        self.quantized = fake_quantized(self.module, start.ranges) if start.ranges else None
        self.model = self.quantized or self._model_of(self.module)
        self.parameters = dict(self.module.named_parameters())
        optimizer = make_optimizer(self.module, config, rate_factors(self.module, config.layer_decay))
        if self.quantized:
            # Weight decay would shrink the activation scales.
            self.parameters[_SCALES] = self.quantized.scales
            optimizer.add_param_group({"params": [self.quantized.scales], "weight_decay": 0.0})
        self.augment = augmentation(config.augment or "none", start.preprocessing.size)
        self.state = LoopState(self.module, optimizer, total_steps(config, steps), start.step)
        self.callbacks = Callbacks([*self._callbacks(steps, save), *callbacks])
        self.average = next((each for each in self.callbacks if isinstance(each, WeightAverage)), None)
        self.freezeout = next((each for each in self.callbacks if isinstance(each, FreezeOut)), None)
        # Highest learning rate of the latest step, including layers that were frozen after it.
        self.rate = 0.0
        self.callbacks.begin(self.state)
        _check_names(self.callbacks)
        if start.epoch or start.step:
            self._restore(start, steps)
        self._wrap()

    def step(self, pixels: Tensor, labels: Tensor) -> tuple[float, int]:
        """Train on this process's part of a batch; returns the loss of the whole batch and the correct images here.

        Raises ``TrainingError``.
        """
        config, state = self.config, self.state
        # The leader draws as a single process does; other processes add their rank to the seed.
        torch.manual_seed(_seed(config.seed, state.step, *([self.group.rank] if self.group.rank else [])))
        self.callbacks.before_step(state)
        if state.rewrap:
            self._wrap()
        state.optimizer.zero_grad()
        parts = list(zip(pixels.chunk(config.accumulation), labels.chunk(config.accumulation), strict=True))
        loss, correct = 0.0, 0
        for number, part in enumerate(parts, start=1):
            value, hits = self._accumulate(*part, share=len(part[1]) / len(labels), last=number == len(parts))
            loss, correct = loss + value, correct + hits
        # All processes see the same loss, so that all of them continue or stop.
        loss = self.group.mean(loss)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        state.optimizer.step()
        self.rate = max(group["lr"] for group in state.optimizer.param_groups)
        state.loss = loss
        state.step += 1
        self.callbacks.after_step(state)
        return loss, correct

    def evaluation_model(self) -> nn.Module:
        """The model to validate: with the averaged weights if there is an average."""
        if self.average is None:
            return self.model
        return self._model_of(self.average.module)

    def checkpoint(self, row: LogRow) -> Checkpoint:
        """The state after an epoch. Raises ``TrainingError`` if a weight is not finite."""
        return replace(
            self._snapshot(row.epoch),
            learning=self.module.state_dict() if self.average else {},
            optimizer=pack_state(self.state.optimizer, self.parameters),
            callbacks={
                callback.name: state
                for callback in self.callbacks
                # The checkpoint's weights are the average.
                if callback is not self.average and (state := callback.state_dict())
            },
        )

    def _model_of(self, module: nn.Module) -> nn.Module:
        if self.config.learn != "head":
            return module
        assert isinstance(module, NetworkModule)
        return Head(module)

    def _restore(self, start: Checkpoint, steps: int) -> None:
        if start.step != min(start.epoch * steps, self.state.total_steps):
            raise CheckpointError(
                f"the checkpoint is inconsistent: {start.step} steps in {start.epoch} epochs of {steps} steps; start a "
                "new run"
            )
        if bool(start.learning) != bool(self.average):
            fault = "lacks the trained weights besides" if self.average else "has trained weights and"
            raise CheckpointError(f"the checkpoint {fault} their average; start a new run")
        states = {**start.callbacks, **({self.average.name: start.weights} if self.average else {})}
        for callback in self.callbacks:
            callback.load_state_dict(states.pop(callback.name, {}))
        if states:
            raise CheckpointError(
                f"the checkpoint has a state of the callback {min(states)}, which this training lacks; pass the same "
                "callbacks as before"
            )
        load_state(self.state.optimizer, self.parameters, start.optimizer)

    def _callbacks(self, steps: int, save: Callable[[int, Checkpoint], None]) -> list[Callback]:
        config, total, base = self.config, self.state.total_steps, self.config.learning_rate or 0.0
        if config.snapshots:
            cycle = total // config.snapshots

            def keep(number: int, _: nn.Module) -> None:
                save(number, self._snapshot(number * cycle // steps))

            rates = [*snapshot_callbacks(total, config.snapshots, base, keep)]
        elif config.freezeout:
            rates = [FreezeOut(config.freezeout, config.freeze_first, config.freeze_scaled, base)]
        else:
            warmup = (config.warmup_epochs or 0) * steps

            def rate(step: int) -> float:
                return learning_rate(step, total, base, config.schedule, warmup=warmup, power=config.power)

            rates = [LearningRate(rate)]
        # Snapshots include the average of their last step, so the average is updated first.
        return [*([WeightAverage(config.ema)] if config.ema else []), *rates]

    def _snapshot(self, epoch: int) -> Checkpoint:
        """A checkpoint of the weights alone. Raises ``TrainingError`` if a weight is not finite."""
        weights = self.average.state_dict() if self.average else self.module.state_dict()
        tensors = (weights.items(), self.module.state_dict().items(), self.parameters.items())
        for name, tensor in itertools.chain(*tensors):
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"{name} is not finite")
        ranges = self.quantized.ranges() if self.quantized else {}
        return replace(
            self.start,
            epoch=epoch,
            step=self.state.step,
            weights=weights,
            ranges=ranges,
            learning={},
            optimizer={},
            callbacks={},
        )

    def _accumulate(self, pixels: Tensor, labels: Tensor, share: float, last: bool) -> tuple[float, int]:
        """Add the gradients of a part of the batch; returns its share of the loss and the number of correct images."""
        config, labels = self.config, labels.to(self.device)
        images = prepare(pixels.to(self.device), self.start.preprocessing)
        images, targets = self._augmented(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            teacher = self.teachers(images) if self.teachers else None
            logits = self._logits(images).float()
        loss = training_loss(logits, targets, config.label_smoothing, teacher, config.temperature, config.teacher_share)
        waiting = isinstance(self._parallel, DistributedDataParallel) and not last
        with self._parallel.no_sync() if waiting else nullcontext():  # pyright: ignore
            (loss * share).backward()
        expected = targets.argmax(1) if targets.ndim > 1 else targets
        return loss.item() * share, int((logits.argmax(1) == expected).sum())

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
            raise self._diverged("a weight or scale is NaN or infinite") from None
        except RuntimeError as error:
            if self.config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(getattr(error, "inner_exception", error)).partition("\n")[0]
                raise TrainingError(f"torch.compile failed ({reason}); leave out --compile") from error
            raise

    def _wrap(self) -> None:
        """Wrap the model for DDP and the compiler; repeated after layers have been frozen."""
        self.state.rewrap = False
        self._parallel = self.group.wrap(self.model)
        self._wrapped: Any = self._parallel
        if self.config.compile:
            # Frees the graphs compiled before.
            torch.compiler.reset()
            self._wrapped = torch.compile(self._parallel)

    def _diverged(self, fault: str) -> TrainingError:
        after = f", after a learning rate of {self.rate:.3g}" if self.rate else ""
        lower = ", or --freeze-unscaled," if self.config.freezeout and self.config.freeze_scaled else ""
        return TrainingError(
            f"{fault} at step {self.state.step}{after}; the last good checkpoint is kept, start again with a lower "
            f"--lr{lower} in another --out"
        )


def total_steps(config: TrainingConfig, steps: int) -> int:
    """The number of steps of a training with ``steps`` per epoch."""
    return config.iterations or config.epochs * steps


def _check_names(callbacks: Callbacks) -> None:
    """Raise ``UsageError`` for names that would make states ambiguous in a checkpoint."""
    names = [callback.name for callback in callbacks if callback.state_dict()]
    for name in names:
        if "." in name:
            raise UsageError(f"the callback name {name!r} contains a dot, which ends names in a checkpoint; remove it")
        if names.count(name) > 1:
            raise UsageError(f"two callbacks are named {name!r}; give each its own name, as the key of its state")


def _seed(*values: int) -> int:
    return int(np.random.SeedSequence(values).generate_state(1)[0])
