"""The metadata entry in which a TFLite file tells tflite-micro where its activations lie ("offline planned" tensors).

32-bit integers: a version (1), the subgraph (0), the number of tensors, and an offset in bytes for each tensor in the
order of the file, -1 for those that the runtime places itself (tflite-micro, docs/memory_management.md).
"""

from collections.abc import Sequence

import numpy as np

from ..errors import FormatError

OFFLINE_PLAN = "OfflineMemoryAllocation"
_VERSION = 1
_ANYWHERE = -1


def pack_offline_plan(offsets: Sequence[int | None]) -> bytes:
    """The entry for the offsets of a file's tensors, in their order."""
    values = [_ANYWHERE if offset is None else offset for offset in offsets]
    return np.array([_VERSION, 0, len(values), *values], "<i4").tobytes()


def unpack_offline_plan(data: bytes, tensors: int) -> list[int | None]:
    """The offset of each of a file's tensors. Raises ``FormatError`` for an entry that is not of such a file."""
    if len(data) != 4 * (3 + tensors):
        raise FormatError(f"the TFLite file places its tensors in {len(data)} bytes, not in {4 * (3 + tensors)}")
    version, subgraph, count, *values = np.frombuffer(data, "<i4").tolist()
    if (version, subgraph, count) != (_VERSION, 0, tensors) or min(values, default=0) < _ANYWHERE:
        raise FormatError("the TFLite file places its tensors in a way that tflite-micro does not know")
    return [None if value == _ANYWHERE else value for value in values]
