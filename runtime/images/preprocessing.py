"""The preprocessing from an image to a network's input, shared by training, export and sessions."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..errors import DataError, FormatError, UsageError
from ..files import read_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from .datasets import LabelledImages

# A path, the bytes of a file, an array or a PIL image. As a string, so that Pillow is not imported.
ImageLike: TypeAlias = "str | Path | bytes | np.ndarray | Image"

_MAX_PIXELS = 100_000_000
_MAX_FILE_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, channel order and normalization: ``value = (pixel * scale - mean) / std``.

    ``size`` is the network's input (height, width). With ``resize``, the shorter side is scaled to ``resize`` pixels
    and the centre of ``size`` is cropped; without it, the whole image is scaled to ``size``. ``mean`` and ``std`` have
    one value per channel, in the order of ``channels``. Raises ``UsageError`` for invalid values.
    """

    size: tuple[int, int]
    resize: int | None = None
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels not in ("RGB", "BGR", "L"):
            raise UsageError(f"channel order {self.channels!r} is not one of RGB, BGR, L")
        if len(self.mean) != self.depth or len(self.std) != self.depth:
            raise UsageError(
                f"mean and std need {self.depth} values for channels {self.channels}, got {self.mean} and {self.std}"
            )
        if len(self.size) != 2 or not all(isinstance(n, int) for n in (*self.size, self.resize or 0)):
            raise UsageError(f"input size {self.size} with resize {self.resize} is not a number of whole pixels")
        if min(self.size) < 1 or max(self.size) > 4096 or (self.resize is not None and not 1 <= self.resize <= 4096):
            raise UsageError(f"input size {self.size} with resize {self.resize} is not between 1 and 4096 pixels")
        numbers = np.array([self.scale, *self.mean, *self.std], float)
        if not np.isfinite(numbers).all() or min(self.std) <= 0 or self.scale <= 0:
            raise UsageError(
                f"scale {self.scale}, mean {self.mean} and std {self.std} must be finite, scale and std positive"
            )
        if self.resize is not None and self.resize < max(self.size):
            raise UsageError(
                f"resize {self.resize} is smaller than the crop {self.size}; make it at least {max(self.size)}"
            )

    @property
    def depth(self) -> int:
        """Number of channels."""
        return len(self.channels)

    def crop(self, image: "ImageLike", name: str = "image") -> np.ndarray:
        """Resize and crop an image to uint8, shape (height, width, channels). Raises ``DataError``."""
        from PIL import Image

        pil = decode(image, name)
        pil = pil.convert("L" if self.channels == "L" else "RGB")
        height, width = self.size
        if self.resize is None:
            pil = pil.resize((width, height), Image.Resampling.BILINEAR)
        else:
            ratio = self.resize / min(pil.size)
            scaled = (max(self.resize, int(pil.width * ratio)), max(self.resize, int(pil.height * ratio)))
            if scaled[0] * scaled[1] > _MAX_PIXELS:
                raise DataError(
                    f"{name} is {pil.width}x{pil.height}: too long and thin to scale to {self.resize} pixels"
                )
            pil = pil.resize(scaled, Image.Resampling.BILINEAR)
            left, top = round((pil.width - width) / 2), round((pil.height - height) / 2)
            pil = pil.crop((left, top, left + width, top + height))
        pixels = np.asarray(pil).reshape(height, width, self.depth)
        return pixels[..., ::-1] if self.channels == "BGR" else pixels

    def crop_all(self, images: "LabelledImages") -> list[np.ndarray]:
        """All images, resized and cropped as by ``crop``."""
        return [self.crop(images.read(name), images.where(name)) for name in images.names]

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Normalize pixels from ``crop``, shape (..., channels), to the network's float32 values."""
        factor = np.float32(self.scale) / np.asarray(self.std, np.float32)
        offset = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return pixels.astype(np.float32) * factor - offset

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Create a ``Preprocessing`` from the output of ``to_json``. Raises ``FormatError``."""
        try:
            plain = dict(values)
            for key in ("size", "mean", "std"):
                plain[key] = tuple(plain[key])
            return cls(**plain)
        except (ArithmeticError, KeyError, TypeError, ValueError, UsageError) as error:
            raise FormatError(f"preprocessing {dict(values)!r} is invalid: {error}") from error


def decode(image: "ImageLike", name: str = "image") -> "Image":
    """Decode an image from a path, the bytes of a file, an array or a PIL image, and apply its EXIF orientation.

    Arrays are uint8, shape (height, width), (height, width, 1) or (height, width, 3) in RGB order. 16-bit images keep
    their upper 8 bits. Raises ``DataError`` with ``name`` if the image is damaged or of an unknown format.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, np.ndarray):
        return Image.fromarray(_pixels(image, name))
    if isinstance(image, (str, Path)):
        name = str(image)
        image = read_file(image, _MAX_FILE_BYTES)
    if not isinstance(image, (bytes, bytearray, memoryview, Image.Image)):
        raise UsageError(f"{name} is a {type(image).__name__}; pass a path, bytes, a uint8 array or a PIL image")
    try:
        if isinstance(image, Image.Image):
            return _upright(image, name)
        with Image.open(io.BytesIO(image)) as opened:
            return _upright(opened, name)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image; use JPEG, PNG or another format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is damaged or truncated ({error}); replace or remove it") from error


def _upright(image: "Image", name: str) -> "Image":
    """Load the image, apply its EXIF orientation and reduce 16 bits per value to 8."""
    from PIL import Image, ImageOps

    if image.width * image.height > _MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise DataError(f"{name} has {size} pixels, more than {_MAX_PIXELS:,}; scale it down")
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return ImageOps.exif_transpose(image)


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.size == 0:
        raise DataError(
            f"{name} is an array of {array.dtype} {array.shape}; pass uint8 (height, width) or (height, width, 3)"
        )
    return np.ascontiguousarray(array)
