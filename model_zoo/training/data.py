"""Labelled images as batches: decoded once into memory, or decoded by workers in every epoch."""

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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...runtime.errors import DataError
from ...runtime.files import sha256
from ...runtime.images import LabelledImages, Preprocessing, open_images, per_class, split_images
from ...runtime.progress import SILENT, Progress
from ..training_config import TrainingConfig

_CHUNK = 256

# uint8 images (N, C, H, W), or float features, and int64 labels (N,).
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecodedImages:
    """All images in memory: ``inputs`` are uint8 pixels (N, C, H, W), or float features, ``labels`` (N,)."""

    inputs: Tensor
    labels: Tensor

    def batches(self, order: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch per tensor of indices."""
        for indices in order:
            yield self.inputs[indices], self.labels[indices]


@dataclass(frozen=True)
class StreamedImages:
    """Images that ``workers`` processes decode on each access."""

    images: LabelledImages
    preprocessing: Preprocessing
    labels: Tensor
    workers: int

    def batches(self, order: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch per tensor of indices. Raises ``DataError`` naming a damaged image."""
        decoder = _Decoder(self.images, self.preprocessing)
        indices = [batch.tolist() for batch in order]
        # Workers inherit the open dataset, which cannot be pickled for a process that is spawned.
        forks = self.workers > 0 and "fork" in multiprocessing.get_all_start_methods()
        loader = DataLoader(
            decoder,
            batch_sampler=indices,
            num_workers=self.workers if forks else 0,
            multiprocessing_context="fork" if forks else None,
            collate_fn=_stack,
        )
        with _sigint_deferred():
            decoded = iter(loader)
        for batch in order:
            try:
                pixels = next(decoded)
            except RuntimeError as error:
                raise DataError(
                    f"a worker that decodes images of {self.images.source} exited, possibly out of memory; try again "
                    "with fewer --workers"
                ) from error
            if isinstance(pixels, DataError):
                raise pixels
            yield torch.from_numpy(pixels), self.labels[batch]
        # Ends the workers here: Python swallows a Ctrl-C that arrives while it garbage-collects the iterator.
        next(decoded, None)


ImageDataset = DecodedImages | StreamedImages


class TrainingImages(NamedTuple):
    """The images that a training learns from and those that it is validated on."""

    training: LabelledImages
    validation: LabelledImages

    def digest(self) -> str:
        """SHA-256 of the names and labels of all images."""
        parts = [[[name, int(label)] for name, label in zip(part.names, part.labels, strict=True)] for part in self]
        return sha256(json.dumps(parts).encode())


def open_training_images(config: TrainingConfig, data: str | None = None) -> TrainingImages:
    """The training and validation images of a config; ``data`` replaces its path if the images have moved.

    Raises ``UsageError`` if there are none and ``DataError`` if they cannot be split as the config requires.
    """
    training, validation = split_images(open_images(data or config.data), config.val_fraction, config.seed)
    if config.images_per_class:
        training = per_class(training, config.images_per_class, config.seed)
    return TrainingImages(training, validation)


def load_images(
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    memory_bytes: int = 2 * 1024**3,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> ImageDataset:
    """Images resized and cropped for a network, in memory if they fit into ``memory_bytes``.

    ``workers`` threads or processes decode them, by default one per core. Raises ``DataError`` naming a damaged image.
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
        progress.task(f"reading {images.source}", len(images)) as advance,
    ):
        # In chunks, so that an error or Ctrl-C waits for a few images only.
        for start in range(0, len(images), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(images)))
            for index, image in zip(indices, pool.map(decoder.decode, indices), strict=True):
                pixels[index] = image
                advance()
    return DecodedImages(torch.from_numpy(pixels), labels)


def prepare(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The float32 input of a network: normalized uint8 images, or features (``features.py``) unchanged."""
    return inputs.float() if inputs.is_floating_point() else normalize(inputs, preprocessing)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 images (N, C, H, W) to float32, bit for bit as ``Preprocessing.normalize``."""
    std = torch.tensor(preprocessing.std, device=pixels.device)
    factor = torch.tensor(preprocessing.scale, device=pixels.device) / std
    offset = torch.tensor(preprocessing.mean, device=pixels.device) / std
    values = pixels.to(torch.float32, memory_format=torch.channels_last)
    return values * factor[:, None, None] - offset[:, None, None]


def epoch_order(config: TrainingConfig, images: int, epoch: int) -> list[Tensor]:
    """The batches of an epoch as indices; the last, incomplete batch is dropped."""
    batch = min(config.batch_size, images)
    shuffled = np.random.default_rng([config.seed, epoch]).permutation(images)
    return list(torch.from_numpy(shuffled[: images // batch * batch]).split(batch))


@contextmanager
def _sigint_deferred() -> Iterator[None]:
    """Defer Ctrl-C until the workers have started; workers ignore it and exit when the parent asks them to."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *interrupt: received.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        before(*received[0])


class _Decoder(Dataset):
    def __init__(self, images: LabelledImages, preprocessing: Preprocessing):
        self.images = images
        self.preprocessing = preprocessing

    def decode(self, index: int) -> np.ndarray:
        name = self.images.where(self.images.names[index])
        return self.preprocessing.crop(self.images.image(index), name).transpose(2, 0, 1)

    def __getitem__(self, index: int) -> "np.ndarray | DataError":
        # The error is returned, because DataLoader would wrap a raised one in its worker's traceback.
        try:
            return self.decode(index)
        except DataError as error:
            return error


def _stack(images: "list[np.ndarray | DataError]") -> "np.ndarray | DataError":
    # Arrays, because tensors are shared by a thread of the worker that prints a traceback if the parent exits.
    for image in images:
        if isinstance(image, DataError):
            return image
    return np.stack([image for image in images if isinstance(image, np.ndarray)])
