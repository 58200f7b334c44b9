"""Several networks of one shape as one: the mean of their weights (stochastic weight averaging)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from ...runtime.commands.console import progress
from ...runtime.errors import UsageError
from ...runtime.files import write_file
from ...runtime.images import LabelledImages
from ..network import weights_in
from ..weights.checkpoint import Checkpoint, pack_checkpoint, read_checkpoint
from ..weights.files import network_from
from .data import load_images, prepare

_BATCH = 128


def read_own(path: str | Path) -> Checkpoint:
    """The checkpoint of a run, or in a file. Raises ``UsageError`` for files of another kind."""
    file = weights_in(Path(path))
    if file.is_file() and file.suffix != ".safetensors":
        raise UsageError(f"{path} is no checkpoint of firebox train; averages are made of its runs and .safetensors")
    return read_checkpoint(file)


def average_checkpoints(
    paths: Sequence[str | Path], out: str | Path, images: LabelledImages, *, quiet: bool = False
) -> Checkpoint:
    """Write the mean of the weights of runs, checkpoints or snapshots to ``out``; good where they are of one training.

    The statistics of batch norm are taken anew on ``images``, once over, as those of the mean are others (Izmailov et
    al., arXiv 1803.05407, section 3.2). Raises ``UsageError`` for fewer than two, for networks that differ and where
    ``out`` is one of them, and ``CheckpointError`` for weights that are not those of their network.
    """
    if len(paths) < 2:
        raise UsageError(f"an average is of two checkpoints or more, not of {len(paths)}")
    checkpoints = [read_own(path) for path in paths]
    if Path(out).resolve() in {weights_in(Path(path)).resolve() for path in paths}:
        raise UsageError(f"{out} is one of the checkpoints to average and would be lost; choose another name")
    first = checkpoints[0]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        for what in ("config", "classes", "preprocessing"):
            if getattr(checkpoint, what) != getattr(first, what):
                raise UsageError(
                    f"{path} differs from {paths[0]} in its {what}: weights are averaged within one network; ask "
                    "several with firebox evaluate --combine"
                )
        if checkpoint.ranges:
            raise UsageError(f"{path} was trained in int8, where averages are off the grid; average float runs")
        network_from(checkpoint, source=str(path))
    weights = {name: _mean([each.weights[name] for each in checkpoints]) for name in first.weights}
    module = network_from(first, weights, source=str(out))
    dataset = load_images(images, first.preprocessing, quiet=quiet)
    order = _batches(len(images))

    with progress("statistics of batch norm", len(order), quiet=quiet) as advance:

        def batches() -> Iterator[Tensor]:
            for pixels, _ in dataset.batches(order):
                yield prepare(pixels, first.preprocessing)
                advance()

        update_bn(batches(), module)
    averaged = replace(
        first, weights=module.state_dict(), learning={}, optimizer={}, callbacks={}, epoch=0, step=0, origin_sha256=""
    )
    write_file(out, pack_checkpoint(averaged))
    return averaged


def _batches(images: int) -> Sequence[Tensor]:
    """All images once, shuffled: the variance within a batch of one class would lack that between classes.

    Batches are of equal size, to an image, because each counts as much as any other.
    """
    shuffled = np.random.default_rng(0).permutation(images)
    return torch.from_numpy(shuffled).tensor_split(math.ceil(images / _BATCH))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
