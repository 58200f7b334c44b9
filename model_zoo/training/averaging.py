"""Stochastic weight averaging: the mean weights of several checkpoints of one network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from ...runtime.errors import UsageError
from ...runtime.files import write_file
from ...runtime.images import LabelledImages
from ...runtime.progress import SILENT, Progress
from ..network import weights_in
from ..weights.checkpoint import Checkpoint, pack_checkpoint, read_checkpoint
from ..weights.files import network_from
from .data import load_images, prepare

_BATCH = 128


def read_run_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a run folder or a ``.safetensors`` file. Raises ``UsageError`` for other files."""
    file = weights_in(Path(path))
    if file.is_file() and file.suffix != ".safetensors":
        raise UsageError(
            f"{path} is not a checkpoint of firebox train; average run folders and .safetensors checkpoints"
        )
    return read_checkpoint(file)


def average_checkpoints(
    paths: Sequence[str | Path], out: str | Path, images: LabelledImages, *, progress: Progress = SILENT
) -> Checkpoint:
    """Write the mean weights of runs, checkpoints or snapshots, best of one training, to ``out``.

    Batch norm statistics are recomputed in one pass over ``images``, because the mean weights have other ones (Izmailov
    et al., arXiv 1803.05407, section 3.2). Raises ``UsageError`` for fewer than two checkpoints, for networks that
    differ and if ``out`` is one of ``paths``, and ``CheckpointError`` for weights of another network.
    """
    if len(paths) < 2:
        raise UsageError(f"averaging needs at least two checkpoints, not {len(paths)}; name another one")
    checkpoints = [read_run_checkpoint(path) for path in paths]
    if Path(out).resolve() in {weights_in(Path(path)).resolve() for path in paths}:
        raise UsageError(f"{out} is one of the checkpoints to average and would be overwritten; choose another name")
    first = checkpoints[0]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        _check_compatible(path, checkpoint, paths[0], first)
        network_from(checkpoint, source=str(path))
    weights = {name: _mean([each.weights[name] for each in checkpoints]) for name in first.weights}
    module = network_from(first, weights, source=str(out))
    dataset = load_images(images, first.preprocessing, progress=progress)
    order = _batches(len(images))

    with progress.task("batch norm statistics", len(order)) as advance:

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


def _check_compatible(path: str | Path, checkpoint: Checkpoint, first_path: str | Path, first: Checkpoint) -> None:
    for field in ("config", "classes", "preprocessing"):
        if getattr(checkpoint, field) != getattr(first, field):
            raise UsageError(
                f"{path} differs from {first_path} in its {field}, and only weights of one network can be averaged; "
                "combine different networks with firebox evaluate --combine"
            )
    if checkpoint.ranges:
        raise UsageError(
            f"{path} is a QAT checkpoint, and averaged weights would leave its quantization grid; average float runs"
        )


def _batches(images: int) -> Sequence[Tensor]:
    """All images once, shuffled: the variance of a batch with one class would lack the variance between classes.

    Batch sizes differ by one image at most, because each batch has the same weight.
    """
    shuffled = np.random.default_rng(0).permutation(images)
    return torch.from_numpy(shuffled).tensor_split(math.ceil(images / _BATCH))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
