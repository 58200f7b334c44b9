"""Layers as data: one description of a network that gives both its figures and its torch module.

``count`` computes the figures without torch; ``modules.py`` builds the module.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ...runtime.errors import UsageError
from .config import NetworkConfig


@dataclass(frozen=True)
class Conv:
    """Two-dimensional convolution with a square kernel."""

    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True


@dataclass(frozen=True)
class Linear:
    """Fully connected layer on the output of ``Flatten``."""

    outputs: int


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm with a scale and a shift per channel."""


@dataclass(frozen=True)
class Relu:
    """Rectified linear unit."""


@dataclass(frozen=True)
class Dropout:
    """Zeroes a fraction ``share`` of the values in training."""

    share: float


@dataclass(frozen=True)
class Pool:
    """Max or average pool with a square window; in ceil mode the last window may extend past the edge."""

    kind: Literal["max", "average"]
    kernel: int
    stride: int
    padding: int = 0
    ceil: bool = False


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over height and width."""


@dataclass(frozen=True)
class Flatten:
    """All values of an image in one dimension."""


@dataclass(frozen=True)
class Subsample:
    """Every ``stride``-th row and column, zero-padded to ``out_channels`` channels; no parameters."""

    out_channels: int
    stride: int


@dataclass(frozen=True)
class Sequence:
    """Layers applied in order; the empty sequence is the identity."""

    layers: "tuple[Layer, ...]" = ()


@dataclass(frozen=True)
class Concat:
    """Parallel branches, concatenated along the channels."""

    branches: tuple[Sequence, ...]


@dataclass(frozen=True)
class Residual:
    """Sum of the outputs of a body and a shortcut."""

    body: Sequence
    shortcut: Sequence


Layer = (
    Conv
    | Linear
    | BatchNorm
    | Relu
    | Dropout
    | Pool
    | GlobalAveragePool
    | Flatten
    | Subsample
    | Sequence
    | Concat
    | Residual
)


class Shape(NamedTuple):
    """Shape of an activation without the batch; the output of ``Flatten`` has height and width 1."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Count:
    """Figures of layers for one image: output shape, parameters and multiply-accumulates.

    ``fully_connected`` is the number of parameters in fully connected layers. Additions, biases, batch norm and pools
    add no multiply-accumulates.
    """

    shape: Shape
    parameters: int = 0
    macs: int = 0
    fully_connected: int = 0

    def then(self, layer: Layer) -> "Count":
        """The figures with one more layer appended."""
        return self.add(count(layer, self.shape))

    def add(self, other: "Count") -> "Count":
        """The sums of both figures, with the other's shape."""
        return Count(
            other.shape,
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.fully_connected + other.fully_connected,
        )


def count(layer: Layer, shape: Shape) -> Count:
    """Figures of a layer for an input shape. Raises ``UsageError`` if the input is too small."""
    channels, height, width = shape
    match layer:
        case Conv(out_channels, kernel, groups=groups, bias=bias):
            after = _windows(layer, shape, out_channels)
            weights = out_channels * (channels // groups) * kernel**2
            return Count(after, weights + bias * out_channels, weights * after.height * after.width)
        case Pool():
            return Count(_windows(layer, shape, channels))
        case Linear(outputs):
            parameters = (channels + 1) * outputs
            return Count(Shape(outputs, 1, 1), parameters, channels * outputs, parameters)
        case BatchNorm():
            return Count(shape, 2 * channels)
        case GlobalAveragePool():
            return Count(Shape(channels, 1, 1))
        case Flatten():
            return Count(Shape(channels * height * width, 1, 1))
        case Subsample(out_channels, stride):
            return Count(Shape(out_channels, -(-height // stride), -(-width // stride)))
        case Sequence(layers):
            total = Count(shape)
            for part in layers:
                total = total.then(part)
            return total
        case Concat(branches):
            total, joined = Count(shape), 0
            for branch in branches:
                total = total.add(count(branch, shape))
                joined += total.shape.channels
            return total.add(Count(total.shape._replace(channels=joined)))
        case Residual(body, shortcut):
            return count(shortcut, shape).add(count(body, shape))
        case Relu() | Dropout():
            return Count(shape)


def sequences(layer: Layer) -> Iterator[Sequence]:
    """All sequences in a layer, including itself."""
    parts: tuple[Layer, ...] = ()
    match layer:
        case Sequence(layers):
            yield layer
            parts = layers
        case Concat(branches):
            parts = branches
        case Residual(body, shortcut):
            parts = (body, shortcut)
        case _:
            pass
    for part in parts:
        yield from sequences(part)


def batch_norm_follows_convolutions(layer: Layer) -> bool:
    """True if each batch norm directly follows a convolution, so that it can be folded into it."""
    return all(
        isinstance(before, Conv)
        for sequence in sequences(layer)
        for before, after in zip((None, *sequence.layers), sequence.layers, strict=False)
        if isinstance(after, BatchNorm)
    )


@dataclass(frozen=True)
class LayeredConfig(NetworkConfig):
    """A network described by layers: ``features``, then ``classifier``.

    Each layer in ``features`` is a block that can be frozen or replaced on its own.
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
        """Raise ``UsageError`` if a field of the family has a value that does not make a network."""

    @property
    @abstractmethod
    def features(self) -> Sequence:
        """Layers from the image to the features."""

    @property
    @abstractmethod
    def classifier(self) -> Sequence:
        """Layers from the features to the logits."""

    @property
    def input_shape(self) -> Shape:
        """Shape of an image."""
        return Shape(self.in_channels, *self.input_size)

    @cached_property
    def figures(self) -> Count:
        """Figures of the network."""
        return Count(self.input_shape).then(self.features).then(self.classifier)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return self.figures.parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions and fully connected layers for one image."""
        return self.figures.macs

    @property
    def batch_norm_folds(self) -> bool:
        """True if each batch norm follows a convolution and can be folded into it."""
        return batch_norm_follows_convolutions(self.features)

    def conv(self, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> list[Layer]:
        """Convolution, batch norm if the network has it, and ReLU."""
        return [*self.linear_conv(out_channels, kernel, stride, padding, groups), Relu()]

    def linear_conv(
        self, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> list[Layer]:
        """Convolution, and batch norm if the network has it."""
        # Batch norm would subtract a bias again with the mean.
        convolution = Conv(out_channels, kernel, stride, padding, groups, bias=not self.batch_norm)
        return [convolution, BatchNorm()] if self.batch_norm else [convolution]

    def head(self, *hidden: int) -> Sequence:
        """Hidden fully connected layers with ReLU and dropout, then the head."""
        layers: list[Layer] = [Flatten()]
        for width in hidden:
            layers += [Linear(width), Relu(), Dropout(self.dropout)]
        return Sequence((*layers, Linear(self.num_classes)))

    def averaging_head(self) -> Sequence:
        """Global average pool, dropout and one fully connected layer."""
        return Sequence((GlobalAveragePool(), Flatten(), Dropout(self.dropout), Linear(self.num_classes)))


def _windows(layer: Conv | Pool, shape: Shape, channels: int) -> Shape:
    height, width = (_places(layer, length) for length in (shape.height, shape.width))
    if min(height, width) < 1:
        raise UsageError(
            f"a {layer.kernel}x{layer.kernel} window does not fit into {shape.height}x{shape.width}; use a larger input"
        )
    return Shape(channels, height, width)


def _places(layer: Conv | Pool, length: int) -> int:
    room = length + 2 * layer.padding - layer.kernel
    if not (isinstance(layer, Pool) and layer.ceil):
        return room // layer.stride + 1
    places = -(-room // layer.stride) + 1
    # A window that would start past the image is dropped.
    return places - 1 if (places - 1) * layer.stride >= length + layer.padding else places
