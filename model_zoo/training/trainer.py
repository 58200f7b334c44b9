"""How a network learns: a plain loop over epochs and batches.

All randomness is a function of the seed and the step, so a run that was stopped goes on exactly as
if it had not been. The last checkpoint is the result; validation images are looked at but never
choose anything.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ...runtime.commands.console import note, progress
from ...runtime.errors import DataError, TrainingError, UsageError
from ...runtime.files import check_writable, sha256, write_file
from ..network import Network
from ..networks.registry import find_model
from ..training_config import TrainingConfig
from ..weights.checkpoint import FILE_NAME, Checkpoint, pack_checkpoint, read_checkpoint
from .callbacks import Callback
from .data import ImageDataset, ImageSplits, digest_of, epoch_order, open_training_images
from .distributed import Resources, Workers, workers
from .features import load_training_images
from .learner import Learner
from .log import LogRow, read_log
from .loss import Teachers
from .result import TrainingResult, training_result
from .run import Run, check_unused, claim, snapshot_file
from .start import NOT_INHERITED, load_teachers, start, start_quantized, with_teachers
from .validation import predict, top_k

# Fake-quantized training changes little, so that it takes few epochs and a low rate.
_QAT_EPOCHS, _QAT_LEARNING_RATE = 3, 0.0005


def train(
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    quiet: bool = False,
) -> TrainingResult:
    """Train a zoo network; config, log, curves and checkpoint go to the folder ``out``.

    Under ``torchrun`` all its processes train together, each on its part of every batch. ``callbacks`` come after those
    of the config, and their states are kept, too. ``command`` is kept with the run. Raises ``UsageError`` if there is a
    run already, ``DataError`` for images that cannot be used, ``TrainingError`` when the loss is no longer a number,
    ``WriteError`` when the folder cannot be written.
    """
    find_model(config.model)
    return _begin(partial(start, config), config, Path(out), resources or Resources(), callbacks, command, quiet)


def train_quantized(
    network: Network,
    config: TrainingConfig,
    out: str | Path,
    resources: Resources | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    quiet: bool = False,
) -> TrainingResult:
    """Fine-tune a trained network with fake quantization, in exactly the integers that its int8 files will have.

    Batch norm is folded first; the scales of activations are learned, from what calibration on training
    images finds (``quantized_config`` has the options for it). Validation accuracies are those in
    int8. Raises as ``train`` does, ``DataError`` for images of other classes, ``QuantizationError``
    for a network that cannot be quantized.
    """
    begin = partial(start_quantized, network, config, quiet)
    return _begin(begin, config, Path(out), resources or Resources(), callbacks, command, quiet)


def quantized_config(network: Network) -> TrainingConfig:
    """For ``train_quantized``: the config of the network's own training where it is known, shorter and slower."""
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
    quiet: bool = False,
) -> TrainingResult:
    """Go on with the run in ``out`` from its checkpoint, to the same weights as without the stop.

    ``data`` and ``teachers`` say where these are now, if they have moved; ``callbacks`` are those that ``train`` was
    given, new ones of the same names. As many processes as before give the same weights. Raises as ``train`` does.
    """
    out, resources = Path(out), resources or Resources()
    if not (out / FILE_NAME).is_file():
        raise UsageError(f"there is no run to resume in {out}: it has no {FILE_NAME}")
    checkpoint = read_checkpoint(out / FILE_NAME)
    config = checkpoint.training
    if checkpoint.epoch >= config.epochs:
        raise UsageError(
            f"the run in {out} has finished its {config.epochs} epochs; start another one in another folder"
        )
    images = open_training_images(config, data)
    found = (images[0].classes, (len(images[0]), len(images[1])))
    known = checkpoint.images_sha256 in ("", digest_of(images))
    if found != (checkpoint.classes, checkpoint.images) or not known:
        raise DataError(f"{images[0].source} is not what {out} was trained on: its classes or its images have changed")
    tutors = load_teachers(checkpoint, teachers)
    with workers(resources.torch_device()) as group, _claimed(out, group), _told_of_memory():
        if group.leads:
            _tell_of_processes(Run(out), group)
        return _run(Run(out), checkpoint, images, tutors, resources, callbacks, group, quiet or not group.leads)


def _begin(
    begin: Callable[[ImageSplits, Resources], Checkpoint],
    config: TrainingConfig,
    out: Path,
    resources: Resources,
    callbacks: Sequence[Callback],
    command: str,
    quiet: bool,
) -> TrainingResult:
    """Train from the checkpoint that ``begin`` makes for the images."""
    with workers(resources.torch_device()) as group, _claimed(out, group), _told_of_memory():
        if group.leads:
            check_unused(out)
        images = open_training_images(config)
        checkpoint, tutors = with_teachers(begin(images, resources))
        run = Run(out, command, group.count)
        return _run(run, checkpoint, images, tutors, resources, callbacks, group, quiet or not group.leads)


def _run(
    run: Run,
    checkpoint: Checkpoint,
    images: ImageSplits,
    teachers: Teachers | None,
    resources: Resources,
    callbacks: Sequence[Callback],
    group: Workers,
    quiet: bool,
) -> TrainingResult:
    """Train from a checkpoint to the last epoch, writing the run after each."""
    config, device = checkpoint.training, resources.torch_device()
    steps = len(epoch_order(config, checkpoint.images[0], 0))
    _check_shares(config, checkpoint, group)

    def keep(number: int, snapshot: Checkpoint) -> None:
        if group.leads:
            write_file(snapshot_file(run.folder, number), pack_checkpoint(snapshot))

    with _own_torch(config, device):
        datasets = load_training_images(checkpoint, config, images, resources, quiet)
        teachers = teachers.to(device) if teachers else None
        learner = Learner(checkpoint, device, steps, group, teachers, keep, callbacks)
        rows = read_log(run.folder, checkpoint.epoch)
        # Nobody writes before all have begun.
        group.agree(lambda: _identity(checkpoint), "images, options and weights")
        if group.leads:
            run.tidy()
            if run.is_new:
                run.begin(checkpoint)
        left = learner.loop.total_steps - checkpoint.step
        with (
            _told_how_to_resume(run.folder, group),
            run.scalars(checkpoint.epoch, group.leads) as tell,
            progress(f"training {config.model}", left, quiet=quiet) as advance,
        ):
            for epoch in range(checkpoint.epoch, config.epochs):
                row = _epoch(learner, epoch, datasets, advance)
                rows.append(row)
                if group.leads:
                    # What is told of an epoch that is not kept is dropped when the run is resumed.
                    tell(row)
                    run.write(learner.checkpoint(row), rows, last=epoch + 1 == config.epochs)
        group.same(None)
    return training_result(run.folder, learner, rows)


def _epoch(
    learner: Learner, epoch: int, datasets: tuple[ImageDataset, ImageDataset], advance: Callable[..., None]
) -> LogRow:
    """Every training image once, then the validation images; returns its row of the log."""
    begin = time.monotonic()
    config, group, (trained, validated) = learner.config, learner.workers, datasets
    order = epoch_order(config, len(trained.labels), epoch)[: learner.loop.total_steps - learner.loop.step]
    loss, correct = 0.0, 0
    for batch in trained.batches([group.share(indices) for indices in order]):
        step_loss, step_correct = learner.step(*batch)
        loss, correct = loss + step_loss, correct + step_correct
        advance(1, text=f"epoch {epoch + 1}/{config.epochs} loss {step_loss:.3f}")
    mean_correct = group.mean(correct)
    seconds = time.monotonic() - begin
    accuracy = math.nan
    if group.leads and ((epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs):
        logits = predict(learner.network(), validated, learner.start.preprocessing)
        accuracy = top_k(logits, validated.labels, (1,))[0]
    return LogRow(
        epoch=epoch + 1,
        step=learner.loop.step,
        learning_rate=learner.rate,
        train_loss=loss / len(order),
        train_accuracy=mean_correct * group.count / sum(map(len, order)),
        val_accuracy=group.same(accuracy),
        seconds=seconds,
    )


def _check_shares(config: TrainingConfig, checkpoint: Checkpoint, group: Workers) -> None:
    """Raise ``UsageError`` for batches that processes cannot share, or whose parts are too small for batch norm."""
    batch = min(config.batch_size, checkpoint.images[0])
    if batch % group.count:
        raise UsageError(
            f"a batch of {batch} images cannot be shared equally by {group.count} processes; change --batch-size"
        )
    share = batch // group.count
    part = math.ceil(share / config.accumulation)
    if checkpoint.config.batch_norm and 1 in (part, share % part):
        raise UsageError(
            f"a batch of {batch} images leaves batch norm one image at once, by {group.count} processes and an "
            f"accumulation of {config.accumulation}; it takes two"
        )


def _identity(checkpoint: Checkpoint) -> str:
    """The digest of a checkpoint, but for where files lie on this machine."""
    training = checkpoint.training
    elsewhere = replace(training, data="-", start=training.start and "-", teachers=())
    return sha256(pack_checkpoint(replace(checkpoint, training=elsewhere)))


@contextmanager
def _claimed(out: Path, group: Workers) -> Iterator[None]:
    """The run's folder for these processes alone, if it can be written. Raises ``UsageError`` and ``WriteError``."""
    if not group.leads:
        yield
        return
    with claim(out):
        check_writable(out)
        yield


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """One line where there is not enough memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        raise TrainingError(
            "there is not enough memory; lower --batch-size or --input-size, raise --accumulation, or take a smaller "
            "network"
        ) from error


def _tell_of_processes(run: Run, group: Workers) -> None:
    """Say so where they are not as many as those that began the run."""
    before = run.begun_by()
    if before not in (None, group.count):
        note(
            f"{run.folder} was begun with a number of processes of {before} and goes on with {group.count}: images "
            "are augmented, and sums are taken, in other ways, so its weights will not be those that it would have "
            "reached"
        )


@contextmanager
def _own_torch(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Leave torch as the caller had it: random generators, number of threads, and how it convolves on GPUs."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    threads = torch.get_num_threads()
    # The same seed is to give the same weights on the same GPU, and float32 to be that.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=devices), exact:
        torch.set_num_threads(config.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _told_how_to_resume(out: Path, group: Workers) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if group.leads:
            note(f"the last whole epoch is kept; go on with: firebox train --resume {out}")
        raise
