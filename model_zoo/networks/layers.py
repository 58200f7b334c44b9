"""A small language of layers: one description of a network, of which its figures and its torch module are made.

``count`` computes the figures without torch; ``layered.py`` makes the module.
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
    """Fully connected layer; takes what ``Flatten`` gives."""

    outputs: int


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm with a scale and a shift per channel."""


@dataclass(frozen=True)
class Relu:
    """Rectifier."""


@dataclass(frozen=True)
class Dropout:
    """Zeroes this share of the values while training."""

    share: float


@dataclass(frozen=True)
class Pool:
    """Maximum or average of a square window; in ceil mode the last window may hang over the end."""

    kind: Literal["max", "average"]
    kernel: int
    stride: int
    padding: int = 0
    ceil: bool = False


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over rows and columns."""


@dataclass(frozen=True)
class Flatten:
    """All values of an image in one row."""


@dataclass(frozen=True)
class Subsample:
    """Every ``stride``-th row and column, with channels of zeros behind up to ``out_channels``; nothing is trained."""

    out_channels: int
    stride: int


@dataclass(frozen=True)
class Sequence:
    """One layer after the other; the empty one is the identity."""

    layers: "tuple[Layer, ...]" = ()


@dataclass(frozen=True)
class Concat:
    """Branches side by side, their channels joined."""

    branches: tuple[Sequence, ...]


@dataclass(frozen=True)
class Residual:
    """Sum of a body and a shortcut."""

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
    """Of an activation, without the batch; what ``Flatten`` gives has height and width 1."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Count:
    """Figures of layers for one image: the shape they put out, trained values, multiply-accumulates.

    ``fully_connected`` is how many of the parameters are in fully connected layers; additions, biases,
    batch norm and pools count for nothing among the multiply-accumulates.
    """

    shape: Shape
    parameters: int = 0
    macs: int = 0
    fully_connected: int = 0

    def then(self, layer: Layer) -> "Count":
        """With one more layer behind."""
        return self.beside(count(layer, self.shape))

    def beside(self, other: "Count") -> "Count":
        """With the other's parameters and work; the shape is the other's."""
        return Count(
            other.shape,
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.fully_connected + other.fully_connected,
        )


def count(layer: Layer, shape: Shape) -> Count:
    """What a layer puts out, holds and computes for an input of that shape. Raises ``UsageError`` for a small one."""
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
                total = total.beside(count(branch, shape))
                joined += total.shape.channels
            return total.beside(Count(total.shape._replace(channels=joined)))
        case Residual(body, shortcut):
            return count(shortcut, shape).beside(count(body, shape))
        case Relu() | Dropout():
            return Count(shape)


def sequences(layer: Layer) -> Iterator[Sequence]:
    """All sequences in a layer, itself among them."""
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
    """Whether each batch norm comes right behind a convolution, so that it can be folded into it."""
    return all(
        isinstance(before, Conv)
        for sequence in sequences(layer)
        for before, after in zip((None, *sequence.layers), sequence.layers, strict=False)
        if isinstance(after, BatchNorm)
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


def _windows(layer: Conv | Pool, shape: Shape, channels: int) -> Shape:
    height, width = (_places(layer, length) for length in (shape.height, shape.width))
    if min(height, width) < 1:
        raise UsageError(
            f"a {layer.kernel}x{layer.kernel} window has no place in {shape.height}x{shape.width}; use a larger input"
        )
    return Shape(channels, height, width)


def _places(layer: Conv | Pool, length: int) -> int:
    room = length + 2 * layer.padding - layer.kernel
    if not (isinstance(layer, Pool) and layer.ceil):
        return room // layer.stride + 1
    places = -(-room // layer.stride) + 1
    # A window that would begin behind the image is left out.
    return places - 1 if (places - 1) * layer.stride >= length + layer.padding else places
