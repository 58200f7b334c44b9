"""Random changes of training images that keep their class."""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from torch import Tensor
from torch.distributions import Beta

from ..training_config import Augment

# Of an image's area.
_BLANK = 9 / 64


def augmentation(policy: Augment, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """A function on normalized images (N, C, H, W), drawing from torch's generator.

    ``light`` turns, shifts and scales a little and never mirrors, as digits and letters need it.
    ``standard`` mirrors and shifts by up to an eighth of the size, the usual treatment of CIFAR-10
    (He et al., arXiv 1512.03385, 4.2). ``cutout`` besides blanks a square of 9/64 of the image, 12 by 12 of 32 by 32
    pixels, to the mean (DeVries and Taylor, arXiv 1708.04552, 3; here it lies within the image).
    """
    if policy == "light":
        return K.RandomAffine(10.0, translate=(0.08, 0.08), scale=(0.9, 1.1), padding_mode="border", p=1.0)
    if policy in ("standard", "cutout"):
        crop = K.RandomCrop(size, padding=max(size) // 8, padding_mode="reflect", p=1.0)
        blank = [K.RandomErasing(scale=(_BLANK, _BLANK), ratio=(1.0, 1.0), p=1.0)] if policy == "cutout" else []
        return K.AugmentationSequential(K.RandomHorizontalFlip(), crop, *blank)
    return lambda images: images


def mix(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """A batch (N, C, H, W) with its targets (N, classes), every image mixed with another, in one share for all.

    mixup adds both (Zhang et al., arXiv 1710.09412, section 2), cutmix puts a rectangle of one into the other (Yun et
    al., arXiv 1905.04899, section 3.1); the numbers are the alphas of the Beta distribution that the share is drawn
    from, 0 for none. Where both are given, a coin decides. Draws from torch's generator.
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
    """Top, bottom, left and right of a rectangle of a share of the area, around a random middle, cut at the border."""
    half = [round(length * area**0.5 / 2) for length in (height, width)]
    middle = [int(torch.randint(length, ())) for length in (height, width)]
    spans = ((max(0, m - h), min(length, m + h)) for m, h, length in zip(middle, half, (height, width), strict=True))
    (top, bottom), (left, right) = spans
    return top, bottom, left, right
