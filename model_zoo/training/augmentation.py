"""Augmentation of training batches: random geometric changes, mixup and CutMix."""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from torch import Tensor
from torch.distributions import Beta

from ..training_config import Augment

# Share of an image's area.
_CUTOUT_AREA = 9 / 64


def augmentation(policy: Augment, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """A function on normalized images (N, C, H, W) that draws from torch's generator.

    ``light`` rotates, shifts and scales a little and never flips, as digits and letters require.
    ``standard`` flips horizontally and shifts by up to an eighth of the size, the usual augmentation of CIFAR-10
    (He et al., arXiv 1512.03385, 4.2). ``cutout`` also sets a square of 9/64 of the image, 12x12 of 32x32
    pixels, to the mean (DeVries and Taylor, arXiv 1708.04552, 3; here the square lies within the image).
    """
    if policy == "light":
        return K.RandomAffine(10.0, translate=(0.08, 0.08), scale=(0.9, 1.1), padding_mode="border", p=1.0)
    if policy in ("standard", "cutout"):
        crop = K.RandomCrop(size, padding=max(size) // 8, padding_mode="reflect", p=1.0)
        area = (_CUTOUT_AREA, _CUTOUT_AREA)
        erase = [K.RandomErasing(scale=area, ratio=(1.0, 1.0), p=1.0)] if policy == "cutout" else []
        return K.AugmentationSequential(K.RandomHorizontalFlip(), crop, *erase)
    return lambda images: images


def mix(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix each image (N, C, H, W) of a batch, and its target (N, classes), with another; one share for the batch.

    mixup interpolates two images (Zhang et al., arXiv 1710.09412, section 2), CutMix pastes a rectangle of one into the
    other (Yun et al., arXiv 1905.04899, section 3.1). ``mixup`` and ``cutmix`` are the alphas of the Beta distribution
    that the share is drawn from, 0 to disable; with both, each batch uses one of them at random. Draws from torch's
    generator.
    """
    if not mixup and not cutmix:
        return images, targets
    cut = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cut else mixup
    share = float(Beta(alpha, alpha).sample())
    order = torch.randperm(len(images), device=images.device)
    if cut:
        top, bottom, left, right = _rectangle(images.shape[2], images.shape[3], 1 - share)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        images = torch.lerp(images[order], images, share)
    return images, torch.lerp(targets[order], targets, share)


def _rectangle(height: int, width: int, area: float) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle with a share of the area, at a random center, clipped to the image."""
    half = [round(length * area**0.5 / 2) for length in (height, width)]
    center = [int(torch.randint(length, ())) for length in (height, width)]
    spans = ((max(0, c - h), min(length, c + h)) for c, h, length in zip(center, half, (height, width), strict=True))
    (top, bottom), (left, right) = spans
    return top, bottom, left, right
