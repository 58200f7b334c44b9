"""Random changes of training images that keep their class."""

from collections.abc import Callable

import kornia.augmentation as K
from torch import Tensor

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
