"""Training: a plain loop over epochs and batches.

All randomness is a function of the seed and the step, so a resumed run reaches the same weights as an uninterrupted
one. The last checkpoint is the result; validation accuracy is reported and never selects a checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ...runtime.errors import DataError, TrainingError, UsageError
from ...runtime.files import check_writable, sha256, write_file
from ...runtime.progress import SILENT, Advance, Progress
from ..network import Network
from ..networks.registry import find_model
from ..training_config import TrainingConfig
from ..weights.checkpoint import FILE_NAME, Checkpoint, pack_checkpoint, read_checkpoint
from .callbacks import Callback
from .data import ImageDataset, TrainingImages, epoch_order, open_training_images
from .distributed import ProcessGroup, Resources, process_group
from .features import load_training_images
from .learner import Learner
from .log import LogRow, read_log
from .loss import Teachers
from .result import TrainingResult, training_result
from .run import Run, check_unused, claim, snapshot_file
from .start import NOT_INHERITED, load_teachers, start, start_quantized, with_teachers
from .validation import predict, top_k

# Fake quantization changes weights little, so a few epochs at a low learning rate suffice.
_QAT_EPOCHS, _QAT_LEARNING_RATE = 3, 0.0005


def train(
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train a zoo network; config, log, curves and checkpoint are written to the folder ``out``.

    Under ``torchrun``, all processes train together, each on its part of every batch. ``callbacks`` run after the
    callbacks of the config; checkpoints include their states. ``command`` is recorded in ``config.json``. Raises
    ``UsageError`` if ``out`` holds a run, ``DataError`` for unusable images, ``TrainingError`` if the loss becomes NaN
    or infinite, ``WriteError`` if the folder cannot be written.
    """
    find_model(config.model)

    def begin(images: TrainingImages, resources: Resources, _: Progress) -> Checkpoint:
        return start(config, images, resources)

    return _begin(begin, config, Path(out), resources, callbacks, command, progress)


def train_quantized(
    network: Network,
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    progress: Progress = SILENT,
) -> TrainingResult:
    """Quantization-aware training: fine-tune a trained network with the int8 arithmetic of its exported files.

    ``quantized_config`` gives a suitable config; the other arguments are those of ``train``. Batch norm is folded
    first. Activation scales start from calibration on training images and are trained. Validation accuracies are int8
    accuracies. Raises as ``train``, ``DataError`` for images of other classes, and ``QuantizationError`` for a network
    that cannot be quantized.
    """

    def begin(images: TrainingImages, resources: Resources, progress: Progress) -> Checkpoint:
        return start_quantized(network, config, images, resources, progress)

    return _begin(begin, config, Path(out), resources, callbacks, command, progress)


def quantized_config(network: Network) -> TrainingConfig:
    """A config for ``train_quantized``: the network's own training config if known, shorter and at a lower rate."""
    config = network.training or TrainingConfig()
    plain = TrainingConfig()
    return replace(
        config,
        model=network.name,
        epochs=_QAT_EPOCHS,
        warmup_epochs=0,
        learning_rate=_QAT_LEARNING_RATE,
        **{name: getattr(plain, name) for name in NOT_INHERITED},
    )


def resume(
    out: str | Path,
    resources: Resources | None = None,
    *,
    data: str | None = None,
    teachers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: Progress = SILENT,
) -> TrainingResult:
    """Continue the run in ``out`` from its checkpoint, to the same weights as an uninterrupted run.

    ``data`` and ``teachers`` replace their paths if they have moved; ``callbacks`` must match those of ``train`` in
    name and order. The weights are the same only with the same number of processes. Raises as ``train``.
    """
    out, resources = Path(out), resources or Resources()
    if not (out / FILE_NAME).is_file():
        raise UsageError(f"there is no run to resume in {out}: it has no {FILE_NAME}")
    checkpoint = read_checkpoint(out / FILE_NAME)
    config = checkpoint.training
    if checkpoint.epoch >= config.epochs:
        raise UsageError(f"the run in {out} has finished its {config.epochs} epochs; start a new run in another folder")
    images = open_training_images(config, data)
    found = (images.training.classes, (len(images.training), len(images.validation)))
    same = checkpoint.images_sha256 in ("", images.digest())
    if found != (checkpoint.classes, checkpoint.images) or not same:
        raise DataError(
            f"{images.training.source} differs from the training data of {out}: its classes or its images have changed"
        )
    tutors = load_teachers(checkpoint, teachers)
    with process_group(resources.torch_device()) as group, _claimed(out, group), _out_of_memory_reported():
        progress = progress if group.is_leader else SILENT
        _note_other_processes(Run(out), group, progress)
        return _run(Run(out), checkpoint, images, tutors, resources, callbacks, group, progress)


def _begin(
    begin: Callable[[TrainingImages, Resources, Progress], Checkpoint],
    config: TrainingConfig,
    out: Path,
    resources: Resources | None,
    callbacks: Sequence[Callback],
    command: str,
    progress: Progress,
) -> TrainingResult:
    """Train from the initial checkpoint that ``begin`` creates for the images."""
    resources = resources or Resources()
    with process_group(resources.torch_device()) as group, _claimed(out, group), _out_of_memory_reported():
        progress = progress if group.is_leader else SILENT
        if group.is_leader:
            check_unused(out)
        images = open_training_images(config)
        checkpoint, teachers = with_teachers(begin(images, resources, progress))
        run = Run(out, command, group.size)
        return _run(run, checkpoint, images, teachers, resources, callbacks, group, progress)


def _run(
    run: Run,
    checkpoint: Checkpoint,
    images: TrainingImages,
    teachers: Teachers | None,
    resources: Resources,
    callbacks: Sequence[Callback],
    group: ProcessGroup,
    progress: Progress,
) -> TrainingResult:
    """Train from a checkpoint to the last epoch and write the run folder after each epoch."""
    config, device = checkpoint.training, resources.torch_device()
    steps = len(epoch_order(config, checkpoint.images[0], 0))
    _check_shards(checkpoint, group)

    def save_snapshot(number: int, snapshot: Checkpoint) -> None:
        if group.is_leader:
            write_file(snapshot_file(run.folder, number), pack_checkpoint(snapshot))

    with _torch_settings(config, device):
        datasets = load_training_images(checkpoint, images, resources, progress)
        teachers = teachers.to(device) if teachers else None
        learner = Learner(checkpoint, device, steps, group, teachers, save_snapshot, callbacks)
        # The leader writes nothing before all processes are ready.
        group.check_equal(lambda: _identity(checkpoint), "images, options and weights")
        if group.is_leader:
            run.tidy()
            if run.is_new:
                run.begin(checkpoint)
        rows = _train_epochs(run, learner, datasets, progress)
        group.broadcast(None)
    return training_result(run.folder, learner, rows)


def _train_epochs(
    run: Run, learner: Learner, datasets: tuple[ImageDataset, ImageDataset], progress: Progress
) -> list[LogRow]:
    """Train to the last epoch; returns the log, including the epochs before a resume."""
    config, begin, is_leader = learner.config, learner.start.epoch, learner.group.is_leader
    rows = read_log(run.folder, begin)
    left = learner.state.total_steps - learner.state.step
    with (
        _resume_hint(run.folder, progress),
        run.tensorboard(begin) if is_leader else nullcontext(lambda row: None) as add_scalars,
        progress.task(f"training {config.model}", left) as advance,
    ):
        for epoch in range(begin, config.epochs):
            row = _epoch(learner, epoch, datasets, advance)
            rows.append(row)
            if is_leader:
                # If the run is stopped between these two, a resume purges the scalars.
                add_scalars(row)
                run.write(learner.checkpoint(row), rows, last=epoch + 1 == config.epochs)
    return rows


def _epoch(learner: Learner, epoch: int, datasets: tuple[ImageDataset, ImageDataset], advance: Advance) -> LogRow:
    """One pass over the training images, then validation."""
    begin = time.monotonic()
    config, group, state, (training, validation) = learner.config, learner.group, learner.state, datasets
    order = epoch_order(config, len(training.labels), epoch)[: state.total_steps - state.step]
    loss, correct = 0.0, 0
    for batch in training.batches([group.shard(indices) for indices in order]):
        step_loss, step_correct = learner.step(*batch)
        loss, correct = loss + step_loss, correct + step_correct
        advance(1, text=f"epoch {epoch + 1}/{config.epochs} loss {step_loss:.3f}")
    mean_correct = group.mean(correct)
    seconds = time.monotonic() - begin
    accuracy = math.nan
    if group.is_leader and ((epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs):
        logits = predict(learner.evaluation_model(), validation, learner.start.preprocessing)
        accuracy = top_k(logits, validation.labels, (1,))[0]
    return LogRow(
        epoch=epoch + 1,
        step=state.step,
        learning_rate=learner.rate,
        train_loss=loss / len(order),
        train_accuracy=mean_correct * group.size / sum(map(len, order)),
        val_accuracy=group.broadcast(accuracy),
        seconds=seconds,
    )


def _check_shards(checkpoint: Checkpoint, group: ProcessGroup) -> None:
    """Raise ``UsageError`` if a batch cannot be divided by the processes, or its parts are too small for batch norm."""
    config = checkpoint.training
    batch = min(config.batch_size, checkpoint.images[0])
    if batch % group.size:
        raise UsageError(f"{group.size} processes cannot share a batch of {batch} images equally; change --batch-size")
    shard = batch // group.size
    part = math.ceil(shard / config.accumulation)
    if checkpoint.config.batch_norm and 1 in (part, shard % part):
        raise UsageError(
            f"batch norm needs two images at a time; a batch of {batch} images leaves one with {group.size} processes "
            f"and an accumulation of {config.accumulation}: raise --batch-size or lower --accumulation"
        )


def _identity(checkpoint: Checkpoint) -> str:
    """A digest of the checkpoint that ignores the paths of files, which may differ between machines."""
    training = checkpoint.training
    elsewhere = replace(training, data="-", start=training.start and "-", teachers=())
    return sha256(pack_checkpoint(replace(checkpoint, training=elsewhere)))


def _note_other_processes(run: Run, group: ProcessGroup, progress: Progress) -> None:
    before = run.initial_processes()
    if before not in (None, group.size):
        progress.note(
            f"{run.folder} was started with {before} {'process' if before == 1 else 'processes'} and is resumed with "
            f"{group.size}: "
            "augmentation and the order of sums differ, so the weights will not be those of an uninterrupted run"
        )


@contextmanager
def _claimed(out: Path, group: ProcessGroup) -> Iterator[None]:
    """Lock the run folder for these processes. Raises ``UsageError`` if it is locked, ``WriteError`` if read-only."""
    if not group.is_leader:
        yield
        return
    with claim(out):
        check_writable(out)
        yield


@contextmanager
def _out_of_memory_reported() -> Iterator[None]:
    """Raise ``TrainingError`` when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        raise TrainingError(
            "out of memory; lower --batch-size or --input-size, raise --accumulation, or train a smaller network"
        ) from error


@contextmanager
def _torch_settings(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Set torch's threads and convolution algorithms for the training; restore them and the random generators."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    threads = torch.get_num_threads()
    # Deterministic on the same GPU, and full float32 precision.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=devices), exact:
        torch.set_num_threads(config.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _resume_hint(out: Path, progress: Progress) -> Iterator[None]:
    """On Ctrl-C, show the command that resumes the run."""
    try:
        yield
    except KeyboardInterrupt:
        progress.note(f"the last complete epoch is saved; resume with: firebox train --resume {out}")
        raise
