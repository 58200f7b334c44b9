"""Images mixed with others of their batch, and their classes with them."""

import torch
from torch import Tensor
from torch.distributions import Beta


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
