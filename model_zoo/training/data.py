"""Labelled images as batches: decoded once and kept in memory, or by workers each time."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...runtime.commands.console import progress
from ...runtime.errors import DataError
from ...runtime.files import sha256
from ...runtime.images import LabelledImages, Preprocessing, open_images, per_class, split_images
from ..training_config import TrainingConfig

_CHUNK = 256

# What a batch of indices becomes: uint8 images (N, C, H, W) and int64 labels (N,).
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecodedImages:
    """All images as one uint8 tensor (N, C, H, W), or their codes, with labels (N,)."""

    pixels: Tensor
    labels: Tensor

    def batches(self, order: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each tensor of indices."""
        for indices in order:
            yield self.pixels[indices], self.labels[indices]


@dataclass(frozen=True)
class StreamedImages:
    """Images that are decoded by ``workers`` processes whenever they are asked for."""

    images: LabelledImages
    preprocessing: Preprocessing
    labels: Tensor
    workers: int

    def batches(self, order: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each tensor of indices. Raises ``DataError`` naming a bad image."""
        decoder = _Decoder(self.images, self.preprocessing)
        indices = [batch.tolist() for batch in order]
        # Workers inherit the open data: it cannot be sent to a process that starts afresh.
        forks = self.workers > 0 and "fork" in multiprocessing.get_all_start_methods()
        loader = DataLoader(
            decoder,
            batch_sampler=indices,
            num_workers=self.workers if forks else 0,
            multiprocessing_context="fork" if forks else None,
            collate_fn=_stack,
        )
        with _without_interrupts():
            decoded = iter(loader)
        for batch in order:
            try:
                pixels = next(decoded)
            except RuntimeError as error:
                raise DataError(
                    f"a process that decodes images of {self.images.source} has ended, perhaps for lack of memory; "
                    "try again, with fewer --workers"
                ) from error
            if isinstance(pixels, DataError):
                raise pixels
            yield torch.from_numpy(pixels), self.labels[batch]
        # So that workers are ended here: Ctrl-C is lost in what Python does when it drops the iterator.
        next(decoded, None)


ImageDataset = DecodedImages | StreamedImages

# Trained and validated images.
ImageSplits = tuple[LabelledImages, LabelledImages]


def open_training_images(config: TrainingConfig, data: str | None = None) -> ImageSplits:
    """The images that a config trains on, and those that it validates on; ``data`` says where they are now.

    Raises ``UsageError`` when there are none and ``DataError`` for those that cannot be split as the config says.
    """
    trained, validated = split_images(open_images(data or config.data), config.val_fraction, config.seed)
    if config.images_per_class:
        trained = per_class(trained, config.images_per_class, config.seed)
    return trained, validated


def digest_of(images: ImageSplits) -> str:
    """Of the names and classes of all images."""
    parts = [[[name, int(label)] for name, label in zip(part.names, part.labels, strict=True)] for part in images]
    return sha256(json.dumps(parts).encode())


def load_images(
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    memory_bytes: int = 2 * 1024**3,
    workers: int | None = None,
    quiet: bool = False,
) -> ImageDataset:
    """Images resized and cropped for a network; in memory if they fit into ``memory_bytes``.

    ``workers`` decode at the same time, by default one per core. Raises ``DataError`` naming a
    damaged image.
    """
    cores = os.cpu_count() or 1
    workers = cores if workers is None else min(workers, cores)
    labels = torch.from_numpy(images.labels)
    shape = (len(images), preprocessing.depth, *preprocessing.size)
    if int(np.prod(shape)) > memory_bytes:
        return StreamedImages(images, preprocessing, labels, workers)
    pixels = np.empty(shape, np.uint8)
    decoder = _Decoder(images, preprocessing)
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        progress(f"reading {images.source}", len(images), quiet=quiet) as advance,
    ):
        # In chunks, so that an error or Ctrl-C waits for few images only.
        for start in range(0, len(images), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(images)))
            for index, image in zip(indices, pool.map(decoder.decode, indices), strict=True):
                pixels[index] = image
                advance()
    return DecodedImages(torch.from_numpy(pixels), labels)


def prepare(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What a network takes, in float32: uint8 images are normalized, codes (``codes.py``) stay as they are."""
    return values.float() if values.is_floating_point() else normalize(values, preprocessing)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 images (N, C, H, W) to float32 values, exactly as ``Preprocessing.normalize``."""
    std = torch.tensor(preprocessing.std, device=pixels.device)
    factor = torch.tensor(preprocessing.scale, device=pixels.device) / std
    offset = torch.tensor(preprocessing.mean, device=pixels.device) / std
    values = pixels.to(torch.float32, memory_format=torch.channels_last)
    return values * factor[:, None, None] - offset[:, None, None]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the workers are there, and does nothing to them: the parent tells them when to end."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *interrupt: came.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


class _Decoder(Dataset):
    def __init__(self, images: LabelledImages, preprocessing: Preprocessing):
        self.images = images
        self.preprocessing = preprocessing

    def decode(self, index: int) -> np.ndarray:
        name = self.images.where(self.images.names[index])
        return self.preprocessing.crop(self.images.image(index), name).transpose(2, 0, 1)

    def __getitem__(self, index: int) -> "np.ndarray | DataError":
        # An error is handed over as a value: DataLoader would wrap it in the traceback of its
        # worker.
        try:
            return self.decode(index)
        except DataError as error:
            return error


def _stack(images: "list[np.ndarray | DataError]") -> "np.ndarray | DataError":
    # Not as tensors: those would be shared by a thread of the worker that complains when the parent goes.
    for image in images:
        if isinstance(image, DataError):
            return image
    return np.stack([image for image in images if isinstance(image, np.ndarray)])


def epoch_order(config: TrainingConfig, images: int, epoch: int) -> list[Tensor]:
    """The batches of an epoch as indices; images that fill no whole batch are left out."""
    batch = min(config.batch_size, images)
    shuffled = np.random.default_rng([config.seed, epoch]).permutation(images)
    return list(torch.from_numpy(shuffled[: images // batch * batch]).split(batch))
