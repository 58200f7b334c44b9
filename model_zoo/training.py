"""How a network learns: a plain loop over epochs and batches.

All randomness is a function of the seed and the step, so a run that was stopped goes on exactly as
if it had not been. The last checkpoint is the result; validation pictures are looked at but never
choose anything.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.console import note, progress
from ..runtime.datasets import LabelledImages, open_images, split_images
from ..runtime.errors import CheckpointError, DataError, QuantizationError, TrainingError, UsageError
from .augment import augmentation
from .checkpoint import FILE_NAME, Checkpoint, read_checkpoint
from .data import Pictures, load_pictures, normalize
from .evaluation import predict, top_k
from .families import build
from .network import Network
from .quantized import calibrated, fake_quantized, without_batch_norm
from .registry import find_model, fit_preprocessing, model_config
from .resources import Resources, settle
from .run_folder import LogRow, check_unused, read_log, write_run
from .schedules import learning_rate
from .training_config import TrainingConfig
from .weights import Weights, load_weights_into

# Fake-quantized training changes little, so that it takes few epochs and a low rate.
_QAT_EPOCHS, _QAT_LEARNING_RATE = 3, 0.0005
# Name of the activations' scales among the parameters.
_SCALES = "scales"


@dataclass(frozen=True)
class TrainingResult:
    """What a training reached: accuracies as shares of 1, in int8 if ``quantized``; ``seconds`` over all epochs."""

    out: Path
    checkpoint: Path
    model: str
    parameters: int
    train_pictures: int
    val_pictures: int
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float
    quantized: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"out": str(self.out), "checkpoint": str(self.checkpoint)}


def train(
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    quiet: bool = False,
) -> TrainingResult:
    """Train a zoo network from new weights; config, log and checkpoint go to the folder ``out``.

    Raises ``UsageError`` if there is a run already, ``DataError`` for pictures that cannot be used,
    ``TrainingError`` when the loss is no longer a number, ``WriteError`` when the folder cannot be
    written.
    """
    find_model(config.model)
    return _begin(partial(_start, config), config, Path(out), resources or Resources(), quiet)


def train_quantized(
    network: Network,
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    quiet: bool = False,
) -> TrainingResult:
    """Fine-tune a trained network with fake quantization, in exactly the integers that its int8 files will have.

    Batch norm is folded first; the scales of activations are learned, from what calibration on training
    pictures finds (``quantized_config`` has the options for it). Validation accuracies are those in
    int8. Raises as ``train`` does, ``DataError`` for pictures of other classes, ``QuantizationError``
    for a network that cannot be quantized.
    """
    if config.input_size not in (None, network.config.input_size) or config.dropout is not None:
        raise UsageError("input size and dropout are those of the trained network; leave them out")
    return _begin(partial(_start_quantized, network, config, quiet), config, Path(out), resources or Resources(), quiet)


def quantized_config(network: Network) -> TrainingConfig:
    """For ``train_quantized``: the config of the network's own training where it is known, shorter and slower."""
    config = TrainingConfig.from_json(network.training) if network.training else TrainingConfig()
    return replace(
        config,
        model=network.name,
        epochs=_QAT_EPOCHS,
        warmup_epochs=0,
        learning_rate=_QAT_LEARNING_RATE,
        input_size=None,
        dropout=None,
    )


def _begin(
    start: Callable[[tuple[LabelledImages, LabelledImages], Resources], Checkpoint],
    config: TrainingConfig,
    out: Path,
    resources: Resources,
    quiet: bool,
) -> TrainingResult:
    """Train from the checkpoint that ``start`` makes for the pictures."""
    check_unused(out)
    images = split_images(open_images(config.data), config.val_fraction, config.seed)
    checkpoint = start(images, resources)
    pictures = _load(checkpoint, images, resources, quiet)
    write_run(out, checkpoint, [])
    return _run(out, checkpoint, pictures, resources, quiet)


def resume(
    out: str | Path,
    resources: Resources | None = None,
    *,
    data: str | None = None,
    quiet: bool = False,
) -> TrainingResult:
    """Go on with the run in ``out`` from its checkpoint, to the same weights as without the stop.

    ``data`` says where the pictures are now, if they have moved. Raises as ``train`` does.
    """
    out, resources = Path(out), resources or Resources()
    if not (out / FILE_NAME).is_file():
        raise UsageError(f"there is no run to resume in {out}: it has no {FILE_NAME}")
    checkpoint = read_checkpoint(out / FILE_NAME)
    config = TrainingConfig.from_json(checkpoint.training)
    if checkpoint.epoch >= config.epochs:
        raise UsageError(
            f"the run in {out} has finished its {config.epochs} epochs; start another one in another folder"
        )
    images = split_images(open_images(data or config.data), config.val_fraction, config.seed)
    found = (images[0].classes, (len(images[0]), len(images[1])))
    if found != (checkpoint.classes, checkpoint.pictures):
        raise DataError(
            f"{images[0].source} is not what {out} was trained on: its classes or its pictures have changed"
        )
    return _run(out, checkpoint, _load(checkpoint, images, resources, quiet), resources, quiet)


def _start(config: TrainingConfig, images: tuple[LabelledImages, LabelledImages], resources: Resources) -> Checkpoint:
    """The checkpoint before the first step: everything is decided, and the weights are drawn."""
    channels = 1 if images[0].channels == "L" else 3
    network = model_config(config.model, len(images[0].classes), channels, config.input_size)
    if config.dropout is not None:
        network = replace(network, dropout=config.dropout)
    settled = settle(config, network, resources.torch_device())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        weights = build(network).state_dict()
    return Checkpoint(
        model=config.model,
        config=network,
        preprocessing=fit_preprocessing(find_model(config.model).preprocessing, network),
        classes=images[0].classes,
        training=settled.to_json(),
        pictures=(len(images[0]), len(images[1])),
        epoch=0,
        step=0,
        weights=weights,
        momentum={},
    )


def _start_quantized(
    network: Network,
    config: TrainingConfig,
    quiet: bool,
    images: tuple[LabelledImages, LabelledImages],
    resources: Resources,
) -> Checkpoint:
    """The checkpoint before the first step: batch norm is folded, and activations have their first ranges."""
    trained, validated = images
    if trained.classes not in (network.classes, network.class_ids):
        ours, theirs = (f"{len(names)} ({', '.join(names[:3])} …)" for names in (network.classes, trained.classes))
        raise DataError(
            f"the classes of {trained.source} are {theirs}, those of {network.name} {ours}; they must agree"
        )
    module = without_batch_norm(network.module)
    ranges = network.ranges or calibrated(module, network.preprocessing, trained, config.seed, quiet)
    return Checkpoint(
        model=network.name,
        config=module.config,
        preprocessing=network.preprocessing,
        classes=network.classes,
        training=settle(config, module.config, resources.torch_device()).to_json(),
        pictures=(len(trained), len(validated)),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        momentum={},
        ranges=ranges,
        origin_sha256=network.sha256,
    )


def _load(
    checkpoint: Checkpoint,
    images: tuple[LabelledImages, LabelledImages],
    resources: Resources,
    quiet: bool,
) -> tuple[Pictures, Pictures]:
    """Pictures to train and to validate on, sharing the memory in proportion to their number."""
    total = sum(checkpoint.pictures)
    trained, validated = (
        load_pictures(
            part,
            checkpoint.preprocessing,
            memory_bytes=resources.memory_bytes * len(part) // total,
            workers=resources.workers,
            quiet=quiet,
        )
        for part in images
    )
    return trained, validated


def _run(
    out: Path,
    checkpoint: Checkpoint,
    pictures: tuple[Pictures, Pictures],
    resources: Resources,
    quiet: bool,
) -> TrainingResult:
    """Train from a checkpoint to the last epoch, writing the run after each."""
    config, device = TrainingConfig.from_json(checkpoint.training), resources.torch_device()
    steps = len(_epoch_order(config, checkpoint.pictures[0], 0))
    rows = read_log(out, checkpoint.epoch)
    with (
        _own_torch(config, device),
        _told_how_to_resume(out),
        progress(f"training {config.model}", steps * (config.epochs - checkpoint.epoch), quiet=quiet) as advance,
    ):
        learner = _Learner(checkpoint, config, device, steps)
        for epoch in range(checkpoint.epoch, config.epochs):
            rows.append(_epoch(learner, epoch, pictures, advance))
            write_run(out, learner.checkpoint(rows[-1]), rows)
    last = rows[-1]
    return TrainingResult(
        out=out,
        checkpoint=out / FILE_NAME,
        model=checkpoint.model,
        parameters=checkpoint.config.parameters,
        train_pictures=checkpoint.pictures[0],
        val_pictures=checkpoint.pictures[1],
        epochs=last.epoch,
        steps=last.step,
        train_loss=last.train_loss,
        train_accuracy=last.train_accuracy,
        val_accuracy=last.val_accuracy,
        seconds=sum(row.seconds for row in rows),
        quantized=bool(checkpoint.ranges),
    )


def _epoch(
    learner: "_Learner",
    epoch: int,
    pictures: tuple[Pictures, Pictures],
    advance: Callable[..., None],
) -> LogRow:
    """Every training picture once, then the validation pictures; returns its row of the log."""
    start = time.monotonic()
    config, (trained, validated) = learner.config, pictures
    order = _epoch_order(config, len(trained.labels), epoch)
    loss, correct = 0.0, 0
    for step, batch in enumerate(trained.batches(order), start=epoch * len(order)):
        step_loss, step_correct = learner.step(step, *batch)
        loss, correct = loss + step_loss, correct + step_correct
        advance(1, text=f"epoch {epoch + 1}/{config.epochs} loss {step_loss:.3f}")
    logits = predict(learner.network, validated, learner.start.preprocessing)
    return LogRow(
        epoch=epoch + 1,
        step=(epoch + 1) * len(order),
        learning_rate=learner.rate,
        train_loss=loss / len(order),
        train_accuracy=correct / sum(map(len, order)),
        val_accuracy=top_k(logits, validated.labels, (1,))[0],
        seconds=time.monotonic() - start,
    )


class _Learner:
    """The network with its optimizer: what a step changes and what a checkpoint keeps."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainingConfig,
        device: torch.device,
        steps_per_epoch: int,
    ):
        self.start, self.config, self.device = checkpoint, config, device
        self.steps_per_epoch = steps_per_epoch
        self.rate = 0.0
        self.module = build(checkpoint.config).train()
        load_weights_into(self.module, Weights("the checkpoint", "", checkpoint.weights))
        # Channels last is the layout in which CPUs and GPUs convolve fastest.
        self.module.to(device)
        self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.quantized = fake_quantized(self.module, checkpoint.ranges) if checkpoint.ranges else None
        self.network = self.quantized or self.module
        self.parameters = dict(self.module.named_parameters())
        if self.quantized:
            self.parameters[_SCALES] = self.quantized.scales
        self.augment = augmentation(config.augment or "none", checkpoint.preprocessing.size)
        self.optimizer = _optimizer(self.parameters.values(), config)
        self._load_momentum()

    def step(self, step: int, pixels: Tensor, labels: Tensor) -> tuple[float, int]:
        """One batch; returns its loss and how many pictures the network had right."""
        config = self.config
        torch.manual_seed(_seed(config.seed, step))
        pixels, labels = pixels.to(self.device), labels.to(self.device)
        pictures = self.augment(normalize(pixels, self.start.preprocessing)).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self._logits(pictures, step)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(f"the loss is {value}", step, self.rate)
        self.rate = learning_rate(
            step,
            config.epochs * self.steps_per_epoch,
            config.learning_rate or 0.0,
            config.schedule,
            warmup=config.warmup_epochs * self.steps_per_epoch,
            power=config.power,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value, int((logits.argmax(1) == labels).sum())

    def _logits(self, pictures: Tensor, step: int) -> Tensor:
        try:
            return self.network(pictures)
        except QuantizationError:
            raise _diverged("a weight or a scale is no usable number", step, self.rate) from None

    def checkpoint(self, row: LogRow) -> Checkpoint:
        """The state after an epoch. Raises ``TrainingError`` if a weight is not finite."""
        weights = self.module.state_dict()
        for name, tensor in (weights | self.parameters).items():
            if not torch.isfinite(tensor).all():
                raise _diverged(f"{name} is not finite", row.step, self.rate)
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if parameter in self.optimizer.state
        }
        ranges = self.quantized.ranges() if self.quantized else {}
        return replace(self.start, epoch=row.epoch, step=row.step, weights=weights, momentum=momentum, ranges=ranges)

    def _load_momentum(self) -> None:
        if self.start.step == 0 or self.config.momentum == 0:
            return
        buffers = self.start.momentum
        shapes = [{name: t.shape for name, t in group.items()} for group in (self.parameters, buffers)]
        if shapes[0] != shapes[1]:
            raise CheckpointError("the momentum in the checkpoint is not that of its network; start a new run")
        for name, parameter in self.parameters.items():
            buffer = torch.empty_like(parameter).copy_(buffers[name])
            self.optimizer.state[parameter]["momentum_buffer"] = buffer


def _optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.SGD:
    # Decay is for the kernels. Pulling biases and batch norm's scales to zero gains nothing and
    # costs accuracy (He et al., arXiv 1812.01187, section 3.1).
    # The scales of activations are for the loss alone.
    kernels, others = [], []
    for parameter in parameters:
        (kernels if parameter.ndim > 1 else others).append(parameter)
    groups = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.learning_rate or 0.0, momentum=config.momentum)


def _epoch_order(config: TrainingConfig, pictures: int, epoch: int) -> list[Tensor]:
    """The batches of an epoch as indices; pictures that fill no whole batch are left out."""
    batch = min(config.batch_size, pictures)
    shuffled = np.random.default_rng([config.seed, epoch]).permutation(pictures)
    return list(torch.from_numpy(shuffled[: pictures // batch * batch]).split(batch))


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _diverged(what: str, step: int, rate: float) -> TrainingError:
    return TrainingError(
        f"{what} at step {step}, after a learning rate of {rate:.3g}; the last whole checkpoint "
        "stays, start again with a lower --lr"
    )


@contextmanager
def _own_torch(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Leave torch's random generators and number of threads as the caller had them."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=devices):
        torch.set_num_threads(config.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _told_how_to_resume(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"the last whole epoch is kept; go on with: firebox train --resume {out}")
        raise
