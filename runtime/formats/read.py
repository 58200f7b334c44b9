"""Readers of files, whatever their format."""

from pathlib import Path
from typing import Literal

from ..errors import FormatError, UsageError
from ..files import read_file
from ..graph import Graph

Format = Literal["onnx", "tflite"]


def format_of(model: str | Path | bytes) -> Format:
    """The format of a file, from the suffix of its path or from its bytes. Raises ``UsageError``."""
    if isinstance(model, bytes):
        return "tflite" if model[4:8] == b"TFL3" else "onnx"
    suffix = Path(model).suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    if suffix == ".tflite":
        return "tflite"
    raise UsageError(f"{model} ends neither in .onnx nor in .tflite")


def read_graph(model: str | Path | bytes) -> Graph:
    """Read an ``.onnx`` or ``.tflite`` file, by path or as its bytes.

    Raises ``UsageError`` if the file does not exist, ``FormatError`` if its contents do not match its format, and
    ``UnsupportedError`` for operations that firebox does not support.
    """
    return read_placed(model)[0]


def read_placed(model: str | Path | bytes) -> tuple[Graph, dict[str, int]]:
    """As ``read_graph``, with the arena offsets that a TFLite file prescribes for tflite-micro, by activation."""
    kind = format_of(model)
    data = model if isinstance(model, bytes) else read_file(model)
    try:
        if kind == "tflite":
            from .tflite_reader import read_offsets, read_tflite

            return read_tflite(data), read_offsets(data)
        from .onnx_reader import read_onnx

        return read_onnx(data), {}
    except FormatError as error:
        where = "the file" if isinstance(model, bytes) else str(model)
        raise FormatError(f"{where}: {error}") from error


def has_external_buffers(model: str | Path | bytes) -> bool:
    """True if a TFLite file stores constants after its flatbuffer, which tflite-micro does not support."""
    if format_of(model) != "tflite":
        return False
    from .tflite_schema import read_model

    data = model if isinstance(model, bytes) else read_file(model)
    return any(buffer["size"] for buffer in read_model(data)["buffers"])


def read_metadata(data: bytes, name: str) -> bytes | None:
    """The contents of a file's metadata entry ``name``, or ``None``. Raises ``FormatError``."""
    if format_of(data) == "tflite":
        from .tflite_reader import read_tflite_metadata

        return read_tflite_metadata(data, name)
    from .onnx_reader import parse_onnx

    # A string that is not UTF-8 stays bytes.
    entries = {entry.key: entry.value for entry in parse_onnx(data).metadata_props}
    found: str | bytes | None = entries.get(name)
    return found.encode() if isinstance(found, str) else found
