"""What the networks of the zoo share as torch modules."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import NetworkConfig


class NetworkModule(nn.Module):
    """A network of the zoo: features, and a classifier whose last layer with weights is the head.

    (N, in_channels, H, W) to logits (N, num_classes).
    """

    def __init__(self, config: NetworkConfig, features: nn.Sequential, classifier: nn.Sequential):
        super().__init__()
        self.config = config
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return torch.flatten(self.classifier(self.features(x)), 1)

    def initialise(self, draw: Callable[[Tensor], object]) -> None:
        """Draw new weights: N(0, 0.01) in the head, as ``draw`` does elsewhere; biases are zero."""
        head = head_prefix(self)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if f"{name}." == head:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def head_prefix(module: nn.Module) -> str:
    """What the names of the head's parameters begin with: the last layer with weights, which alone knows the classes.

    The order is that of the module, so that a network is built to know it; on the meta device at no cost.
    """
    return [f"{name}." for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)][-1]
