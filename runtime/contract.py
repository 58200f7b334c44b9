"""The metadata of an exported file: classes, preprocessing, quantization, checkpoint and a golden pair."""

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from .errors import FormatError
from .formats.read import read_metadata
from .graph.graph import Quantization
from .images import Preprocessing

# The name of the metadata entry, in both formats.
KEY = "firebox.contract"
_VERSION = 1

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a file's input or output; scale and zero point if it is an integer."""

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0

    @property
    def quantization(self) -> Quantization | None:
        """Scale and zero point of the integers; ``None`` for a float tensor."""
        return None if self.scale is None else Quantization((self.scale,), self.zero_point)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Real values in the file's type: integers are rounded half to even and saturated."""
        found = self.quantization
        return found.quantize(values, self.dtype) if found else values.astype(self.dtype)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Values in the file's type as float32 real values."""
        found = self.quantization
        return found.dequantize(values) if found else values.astype(np.float32)


@dataclass(frozen=True)
class Golden:
    """A synthetic image (uint8, after resize and crop), the file's output for it, and the tolerated difference."""

    pixels: np.ndarray
    output: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class Contract:
    """Everything a runtime needs to prepare a file's input as in training and to interpret its output.

    ``layout`` is the layout of the file's input; ``answer`` is the kind of its output (logits still need a softmax).
    """

    name: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    class_ids: tuple[str, ...]
    layout: Layout
    answer: Literal["logits", "probabilities"]
    input: TensorSpec
    output: TensorSpec
    checkpoint_sha256: str = ""
    golden: Golden | None = None

    def to_bytes(self) -> bytes:
        """The contract as JSON; equal contracts give equal bytes."""
        values = asdict(replace(self, golden=None)) | {"version": _VERSION}
        if self.golden:
            packed = base64.b64encode(zlib.compress(self.golden.pixels.tobytes(), 9)).decode()
            output = [float(f"{value:.7g}") for value in self.golden.output]
            values["golden"] = {"pixels": packed, "output": output, "tolerance": self.golden.tolerance}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Contract":
        """Parse the output of ``to_bytes``; lengths are checked before memory is allocated. Raises ``FormatError``."""
        try:
            values = json.loads(data)
            if values.pop("version") != _VERSION:
                raise FormatError("the file's contract has another version; upgrade firebox")
            preprocessing = Preprocessing.from_json(values.pop("preprocessing"))
            golden = values.pop("golden")
            specs = {key: _spec(values.pop(key)) for key in ("input", "output")}
            names = {key: tuple(map(str, values.pop(key))) for key in ("classes", "class_ids")}
            contract = cls(preprocessing=preprocessing, **specs, **names, **values)
            contract = replace(contract, golden=_golden(golden, preprocessing)) if golden else contract
            _check(contract)
            return contract
        except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, zlib.error, RecursionError) as error:
            raise FormatError(f"the file's contract is damaged: {type(error).__name__}: {error}") from error


def read_contract(data: bytes) -> Contract | None:
    """The contract in the bytes of an ``.onnx`` or ``.tflite`` file, or ``None`` if firebox did not write it.

    Raises ``FormatError`` for a damaged file or contract.
    """
    found = read_metadata(data, KEY)
    return Contract.from_bytes(found) if found is not None else None


def golden_pixels(preprocessing: Preprocessing) -> np.ndarray:
    """A synthetic test card (uint8), so that no image of the user is published inside a model."""
    height, width = preprocessing.size
    rows, columns, channels = np.ogrid[:height, :width, : preprocessing.depth]
    tiles = (rows * 8 // height) * 73 + (columns * 8 // width) * 151 + channels * 59
    return (tiles % 256).astype(np.uint8)


def _check(contract: Contract) -> None:
    """Check that the parts of a contract fit together. Raises ``ValueError``."""
    height, width = contract.preprocessing.size
    depth = contract.preprocessing.depth
    shapes = {"NCHW": (1, depth, height, width), "NHWC": (1, height, width, depth)}
    if contract.layout not in shapes or contract.answer not in ("logits", "probabilities"):
        raise ValueError(f"layout {contract.layout!r} or answer {contract.answer!r} is unknown")
    if contract.input.shape != shapes[contract.layout]:
        raise ValueError(f"input shape {contract.input.shape} does not match the images, {shapes[contract.layout]}")
    for spec in (contract.input, contract.output):
        _check_spec(spec)
    classes = len(contract.classes)
    if math.prod(contract.output.shape) != classes or len(contract.class_ids) not in (0, classes):
        raise ValueError(f"{classes} classes do not match output shape {contract.output.shape}")
    if contract.golden and (len(contract.golden.output) != classes or not np.isfinite(contract.golden.output).all()):
        raise ValueError(f"the golden output is not {classes} finite numbers")


def _check_spec(spec: TensorSpec) -> None:
    if spec.dtype not in ("float32", "int8", "uint8", "int16"):
        raise ValueError(f"type {spec.dtype!r} is unknown")
    if spec.dtype == "float32":
        usable = spec.scale is None and spec.zero_point == 0
    else:
        limits = np.iinfo(spec.dtype)
        usable = spec.scale is not None and 0 < spec.scale < math.inf and limits.min <= spec.zero_point <= limits.max
    if not usable:
        raise ValueError(f"scale {spec.scale!r} and zero point {spec.zero_point!r} are invalid for {spec.dtype}")


def _spec(values: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**values, "shape": tuple(values["shape"])})


def _golden(values: Mapping[str, Any], preprocessing: Preprocessing) -> Golden:
    shape = (*preprocessing.size, preprocessing.depth)
    size = int(np.prod(shape))
    pixels = zlib.decompressobj().decompress(base64.b64decode(values["pixels"]), size)
    output = tuple(map(float, values["output"]))
    return Golden(np.frombuffer(pixels, np.uint8).reshape(shape), output, float(values["tolerance"]))
