"""Reader of ``.net`` files: SqueezeNet v1.0 compressed by Deep Compression (arXiv 1510.00149).

Files are little-endian. They begin with 26 uint32: the number of stored entries of each convolution, in network order.
For each convolution follow a codebook of 256 float32, float32 biases, n uint8 codes, and ceil(n / 2) bytes of 4-bit
gaps, low nibble first. Entry k is at position sum(gap_j + 1 for j <= k) - 1 of the flat (out, in, height, width)
weight; all other weights have code 0.
"""

import numpy as np
import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.images import Preprocessing
from ..networks.squeezenet import SqueezeNetConfig
from ..networks.squeezenet_module import SqueezeNet

# The Caffe network pads conv10 by one. Accuracy hardly depends on it, but logits do: on ImageNet images the
# cross-entropy is lowest at temperature 1 with the padding, and only after scaling the logits by 169/225 without it.
CONFIG = SqueezeNetConfig(input_size=(227, 227), head_padding=1)

PREPROCESSING = Preprocessing(
    size=(227, 227),
    resize=256,
    channels="BGR",
    scale=1.0,
    mean=(104.0, 117.0, 123.0),
    std=(1.0, 1.0, 1.0),
)

_CODEBOOK = 256


def decode_network(data: bytes, source: str) -> dict[str, Tensor]:
    """State dict of the network with ``CONFIG``. Raises ``CheckpointError``."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SqueezeNet(CONFIG).state_dict().items()}
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    counts = _counts(data, source, list(weights.values()))
    state: dict[str, Tensor] = {}
    offset = counts.nbytes

    def take(dtype: str, count: int) -> np.ndarray:
        nonlocal offset
        values = np.frombuffer(data, dtype, count, offset)
        offset += values.nbytes
        return values

    for (name, shape), count in zip(weights.items(), counts.tolist(), strict=True):
        codebook, bias = take("<f4", _CODEBOOK), take("<f4", shape[0])
        codes, packed = take("u1", count), take("u1", (count + 1) // 2)
        gaps = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count]
        positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
        flat = np.zeros(int(np.prod(shape)), np.uint8)
        if count and positions[-1] >= flat.size:
            raise CheckpointError(f"{source} is damaged: {name} has an entry past its {flat.size:,} weights")
        flat[positions] = codes
        state[f"{name}.weight"] = torch.from_numpy(codebook[flat].reshape(shape))
        state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    return state


def _counts(data: bytes, source: str, shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Number of entries of each convolution, checked against the length of the file."""
    if len(data) < 4 * len(shapes):
        raise CheckpointError(f"{source} has {len(data)} bytes, too few for the table of a compressed SqueezeNet")
    counts = np.frombuffer(data, "<u4", len(shapes))
    for number, (count, shape) in enumerate(zip(counts.tolist(), shapes, strict=True), start=1):
        if count > np.prod(shape):
            raise CheckpointError(
                f"{source} is not a compressed SqueezeNet: convolution {number} stores {count:,} of "
                f"{np.prod(shape):,} weights"
            )
    wanted = counts.nbytes + sum(
        4 * _CODEBOOK + 4 * shape[0] + count + (count + 1) // 2
        for count, shape in zip(counts.tolist(), shapes, strict=True)
    )
    if len(data) != wanted:
        raise CheckpointError(f"{source} has {len(data):,} bytes, its table requires {wanted:,}; copy it again")
    return counts
