"""CNN codes: what a frozen network makes of images, computed once, so that only its head is trained on them.

Donahue et al., arXiv 1310.1531; Razavian et al., arXiv 1403.6382.
"""

import torch
from torch import Tensor, nn

from ...runtime.commands.console import progress
from ...runtime.errors import UsageError
from ...runtime.images import Preprocessing
from ...runtime.units import format_size
from ..networks.modules import NetworkModule
from ..training_config import TrainingConfig
from ..weights.checkpoint import Checkpoint
from ..weights.files import network_from
from .data import DecodedImages, ImageDataset, ImageSplits, load_images, prepare
from .distributed import Resources

# Activations of a trained network keep well below float16's 65,504.
_DTYPE = torch.float16


class Coded(nn.Module):
    """The classifier of a network: codes (N, C, H, W) to logits (N, classes)."""

    def __init__(self, network: NetworkModule):
        super().__init__()
        self.classifier = network.classifier

    def forward(self, codes: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, num_classes)."""
        return torch.flatten(self.classifier(codes), 1)


def encode(
    network: NetworkModule,
    images: ImageDataset,
    preprocessing: Preprocessing,
    *,
    memory_bytes: int,
    batch_size: int = 64,
    quiet: bool = False,
) -> DecodedImages:
    """The codes of all images, not augmented, in their order. Raises ``UsageError`` beyond ``memory_bytes``."""
    features = network.features.eval()
    device = next(features.parameters()).device
    count = len(images.labels)
    codes: Tensor | None = None
    done = 0
    with torch.no_grad(), progress("computing codes", count, quiet=quiet) as advance:
        for pixels, labels in images.batches(torch.arange(count).split(batch_size)):
            found = features(prepare(pixels.to(device), preprocessing)).cpu()
            if codes is None:
                shape = (count, *found.shape[1:])
                needed = found[0].numel() * count * _DTYPE.itemsize
                if needed > memory_bytes:
                    raise UsageError(
                        f"the codes of {count:,} images take {format_size(needed)}, more than "
                        f"{format_size(memory_bytes)}; raise --memory, or train with fewer or smaller images"
                    )
                codes = torch.empty(shape, dtype=_DTYPE)
            codes[done : done + len(labels)] = found.clamp_(-65504, 65504)
            done += len(labels)
            advance(len(labels))
    assert codes is not None
    return DecodedImages(codes, images.labels)


def load_training_images(
    checkpoint: Checkpoint, config: TrainingConfig, images: ImageSplits, resources: Resources, quiet: bool
) -> tuple[ImageDataset, ImageDataset]:
    """ImageDataset, or their codes, to train and to validate on, sharing the memory in proportion to their number."""
    total = sum(checkpoint.images)
    shares = [resources.memory_bytes * len(part) // total for part in images]
    trained, validated = (
        load_images(part, checkpoint.preprocessing, memory_bytes=share, workers=resources.workers, quiet=quiet)
        for part, share in zip(images, shares, strict=True)
    )
    if config.learn != "head":
        return trained, validated
    module = network_from(checkpoint).to(resources.torch_device())
    coded = [
        encode(module, dataset, checkpoint.preprocessing, memory_bytes=share, quiet=quiet)
        for dataset, share in zip((trained, validated), shares, strict=True)
    ]
    return coded[0], coded[1]
