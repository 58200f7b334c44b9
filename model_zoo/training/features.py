"""Features of a frozen network (CNN codes), computed once so that only the head is trained on them.

Donahue et al., arXiv 1310.1531; Razavian et al., arXiv 1403.6382.
"""

import torch
from torch import Tensor, nn

from ...runtime.errors import UsageError
from ...runtime.images import Preprocessing
from ...runtime.progress import SILENT, Progress
from ...runtime.units import format_size
from ..networks.modules import NetworkModule
from ..weights.checkpoint import Checkpoint
from ..weights.files import network_from
from .data import DecodedImages, ImageDataset, TrainingImages, load_images, prepare
from .distributed import Resources

# Activations of a trained network stay well below float16's maximum.
_DTYPE = torch.float16
_LIMIT = torch.finfo(_DTYPE).max


class Head(nn.Module):
    """The classifier of a network alone."""

    def __init__(self, network: NetworkModule):
        super().__init__()
        self.classifier = network.classifier

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to logits (N, classes)."""
        return torch.flatten(self.classifier(features), 1)


def extract_features(
    network: NetworkModule,
    images: ImageDataset,
    preprocessing: Preprocessing,
    *,
    memory_bytes: int,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> DecodedImages:
    """The features (N, C, H, W) of all images in order, without augmentation, in float16.

    Raises ``UsageError`` if they exceed ``memory_bytes``.
    """
    extractor = network.features.eval()
    device = next(extractor.parameters()).device
    count = len(images.labels)
    features: Tensor | None = None
    done = 0
    with torch.no_grad(), progress.task("computing features", count) as advance:
        for pixels, labels in images.batches(torch.arange(count).split(batch_size)):
            batch = extractor(prepare(pixels.to(device), preprocessing)).cpu()
            if features is None:
                needed = batch[0].numel() * count * _DTYPE.itemsize
                if needed > memory_bytes:
                    raise UsageError(
                        f"the features of {count:,} images take {format_size(needed)}, more than "
                        f"{format_size(memory_bytes)}; raise --memory, or train with fewer or smaller images"
                    )
                features = torch.empty((count, *batch.shape[1:]), dtype=_DTYPE)
            features[done : done + len(labels)] = batch.clamp_(-_LIMIT, _LIMIT)
            done += len(labels)
            advance(len(labels))
    assert features is not None
    return DecodedImages(features, images.labels)


def load_training_images(
    checkpoint: Checkpoint, images: TrainingImages, resources: Resources, progress: Progress = SILENT
) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation data: images, or their features if only the head is trained.

    The two share the memory in proportion to their number of images.
    """
    shares = [resources.memory_bytes * len(part) // sum(checkpoint.images) for part in images]
    training, validation = (
        load_images(part, checkpoint.preprocessing, memory_bytes=share, workers=resources.workers, progress=progress)
        for part, share in zip(images, shares, strict=True)
    )
    if checkpoint.training.learn != "head":
        return training, validation
    module = network_from(checkpoint).to(resources.torch_device())
    training, validation = (
        extract_features(module, dataset, checkpoint.preprocessing, memory_bytes=share, progress=progress)
        for dataset, share in zip((training, validation), shares, strict=True)
    )
    return training, validation
