"""Logits of a network on a dataset, and their accuracy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...export.trace import in_eval_mode
from ...runtime.images import Preprocessing
from ...runtime.progress import SILENT, Progress
from .data import ImageDataset, prepare


def predict(
    module: nn.Module,
    images: ImageDataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> Tensor:
    """Logits (N, classes) of all images, computed in eval mode on the module's device."""
    device = next(module.parameters()).device
    order = torch.arange(len(images.labels)).split(batch_size)
    logits: list[Tensor] = []
    with (
        in_eval_mode(module),
        torch.inference_mode(),
        progress.task("evaluating", len(images.labels)) as advance,
    ):
        for inputs, labels in images.batches(order):
            logits.append(module(prepare(inputs.to(device), preprocessing)).cpu())
            advance(len(labels))
    return torch.cat(logits)


def top_k(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> tuple[float, ...]:
    """The share of images whose label is among the ``k`` highest logits, for each ``k``.

    Of equal logits, which are common in int8, the first ranks highest.
    """
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, : max(ks)]
    hits = ranked == labels[:, None]
    return tuple(hits[:, :k].any(1).double().mean().item() for k in ks)
