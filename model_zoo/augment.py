"""Random changes of training pictures that keep their class."""

from collections.abc import Callable

import kornia.augmentation as K
from torch import Tensor

from .training_config import Augment


def augmentation(policy: Augment, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """A function on normalized pictures (N, C, H, W), drawing from torch's generator.

    ``light`` turns, shifts and scales a little and never mirrors, as digits and letters need it.
    ``standard`` mirrors and shifts by up to an eighth of the size, the usual treatment of CIFAR-10
    (He et al., arXiv 1512.03385, 4.2).
    """
    if policy == "light":
        return K.RandomAffine(10.0, translate=(0.08, 0.08), scale=(0.9, 1.1), padding_mode="border", p=1.0)
    if policy == "standard":
        crop = K.RandomCrop(size, padding=max(size) // 8, padding_mode="reflect", p=1.0)
        return K.AugmentationSequential(K.RandomHorizontalFlip(), crop)
    return lambda pictures: pictures
