"""Configs of networks that are described as layers; no torch."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

from ...runtime.errors import UsageError
from .config import NetworkConfig
from .layers import (
    BatchNorm,
    Conv,
    Count,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Linear,
    Relu,
    Sequence,
    Shape,
    batch_norm_follows_convolutions,
)


@dataclass(frozen=True)
class LayeredConfig(NetworkConfig):
    """A network that its layers describe: ``features``, then ``classifier``.

    Layers in ``features`` are blocks that can be frozen or exchanged one by one.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_family()
        try:
            _ = self.parameters
        except UsageError as error:
            raise UsageError(f"input size {self.input_size} is too small: {error}") from error
        self.check_parameters()

    def check_family(self) -> None:
        """Raises ``UsageError`` for a value of the family's own that makes no network."""

    @property
    @abstractmethod
    def features(self) -> Sequence:
        """From the image to the features."""

    @property
    @abstractmethod
    def classifier(self) -> Sequence:
        """From the features to the logits."""

    @property
    def input_shape(self) -> Shape:
        """Of an image."""
        return Shape(self.in_channels, *self.input_size)

    @cached_property
    def figures(self) -> Count:
        """Figures of the whole network."""
        return Count(self.input_shape).then(self.features).then(self.classifier)

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return self.figures.parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions and fully connected layers for one image."""
        return self.figures.macs

    @property
    def batch_norm_folds(self) -> bool:
        """Whether each batch norm follows a convolution and can be folded into it."""
        return batch_norm_follows_convolutions(self.features)

    def conv(self, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> list[Layer]:
        """A convolution, batch norm if the network has it, and ReLU."""
        return [*self.linear_conv(out_channels, kernel, stride, padding, groups), Relu()]

    def linear_conv(
        self, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> list[Layer]:
        """A convolution and batch norm if the network has it."""
        # A bias before batch norm would be subtracted again with the mean.
        convolution = Conv(out_channels, kernel, stride, padding, groups, bias=not self.batch_norm)
        return [convolution, BatchNorm()] if self.batch_norm else [convolution]

    def head(self, *hidden: int) -> Sequence:
        """Fully connected layers with ReLU and dropout, then the head."""
        layers: list[Layer] = [Flatten()]
        for width in hidden:
            layers += [Linear(width), Relu(), Dropout(self.dropout)]
        return Sequence((*layers, Linear(self.num_classes)))

    def averaging_head(self) -> Sequence:
        """Global average, dropout, and one fully connected layer."""
        return Sequence((GlobalAveragePool(), Flatten(), Dropout(self.dropout), Linear(self.num_classes)))
