"""Checkpoints: safetensors files with everything needed to use a network or to resume its training.

Tensor names are ``model.NAME`` for weights by their names in the network, ``scale.NAME`` for the scales of int8 weights
(see ``compact``), and ``learning.NAME``, ``optimizer.SLOT.NAME`` and ``callbacks.CALLBACK.KEY`` for training state.
The metadata entry ``firebox`` of the safetensors header is a JSON object; nothing is ever unpickled. It includes a
digest of the tensors, because safetensors itself does not detect changed bits.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...export.quantization import Range
from ...runtime.errors import CheckpointError, FireboxError
from ...runtime.files import read_file
from ...runtime.images import Preprocessing
from ..networks.config import NetworkConfig
from ..training_config import TrainingConfig

FILE_NAME = "checkpoint.safetensors"

_KEY, _DIGEST = "firebox", "tensors_sha256"
_FORMAT_VERSION = 2
# Version 1 names the optimizer's only state momentum.
_READ_VERSIONS = (1, 2)
_MOMENTUM = "momentum"
# Largest integer in the int8 kernels of a compact file.
_LARGEST = 127


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after ``epoch`` epochs (0: before the first step).

    ``model`` is the name in the zoo. ``images`` are the numbers of training and validation images, ``images_sha256``
    the digest of their names and classes (empty in files of older versions). ``weights`` are the weights to use; if
    they are an average, ``learning`` holds the weights that are trained. ``optimizer`` holds the optimizer's state
    (``SLOT.NAME``, empty before the first step), ``callbacks`` that of each callback. ``ranges`` are the activation
    ranges of quantization-aware training, by name in the traced network, and empty otherwise; the optimizer then also
    has a state for their scales. ``origin_sha256`` is the hash of the file of the initial weights, empty for random
    ones; ``teachers_sha256`` are the hashes of the teachers' files.
    """

    model: str
    config: NetworkConfig
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    training: TrainingConfig
    images: tuple[int, int]
    epoch: int
    step: int
    weights: Mapping[str, Tensor]
    learning: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    origin_sha256: str = ""
    teachers_sha256: tuple[str, ...] = ()
    images_sha256: str = ""


def pack_compact(checkpoint: Checkpoint) -> bytes:
    """Serialize a checkpoint for shipping: without training state, and with int8 kernels and their ``scale.NAME``."""
    small, scales = compact(checkpoint.weights)
    kept = replace(checkpoint, weights=small, learning={}, optimizer={}, callbacks={})
    return pack_checkpoint(kept, scales)


def pack_checkpoint(checkpoint: Checkpoint, scales: Mapping[str, Tensor] | None = None) -> bytes:
    """Serialize a checkpoint; equal checkpoints give equal bytes. ``scales`` are the scales of int8 weights."""
    header = {
        "format_version": _FORMAT_VERSION,
        "model": checkpoint.model,
        "config": checkpoint.config.to_json(),
        "preprocessing": checkpoint.preprocessing.to_json(),
        "classes": checkpoint.classes,
        "training": checkpoint.training.to_json(),
        "pictures": checkpoint.images,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "ranges": {name: astuple(found) for name, found in checkpoint.ranges.items()},
        "origin_sha256": checkpoint.origin_sha256,
        "teachers_sha256": checkpoint.teachers_sha256,
        "pictures_sha256": checkpoint.images_sha256,
    }
    groups = {
        "model": checkpoint.weights,
        "scale": scales or {},
        "learning": checkpoint.learning,
        "optimizer": checkpoint.optimizer,
        **{f"callbacks.{name}": state for name, state in checkpoint.callbacks.items()},
    }
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    return safetensors.torch.save(tensors, {_KEY: json.dumps(header | {_DIGEST: _digest(tensors)})})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint from a file. Raises ``UsageError``, and ``CheckpointError`` for damaged files."""
    tensors, metadata = read_safetensors(read_file(path), str(path))
    return unpack_checkpoint(tensors, metadata, str(path))


def unpack_checkpoint(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Checkpoint:
    """The checkpoint in the tensors and metadata of a safetensors file. Raises ``CheckpointError``."""
    if not is_checkpoint(metadata):
        raise CheckpointError(f"{source} holds weights but no training; pass a checkpoint written by firebox train")
    groups = _grouped(tensors, source)
    try:
        header = json.loads(metadata[_KEY])
        if header.get(_DIGEST) not in (None, _digest(tensors)):
            raise CheckpointError(f"{source} is damaged: its tensors do not match their digest; copy it again")
        if header["format_version"] not in _READ_VERSIONS:
            raise CheckpointError(
                f"{source} has format version {header['format_version']!r}, this firebox reads up to "
                f"{_FORMAT_VERSION}; update firebox"
            )
        trained, validated = header["pictures"]
        checkpoint = Checkpoint(
            model=str(header["model"]),
            config=NetworkConfig.from_json(header["config"]),
            preprocessing=Preprocessing.from_json(header["preprocessing"]),
            classes=tuple(str(name) for name in header["classes"]),
            training=TrainingConfig.from_json(header["training"]),
            images=(int(trained), int(validated)),
            epoch=int(header["epoch"]),
            step=int(header["step"]),
            weights=expand(groups["model"], groups["scale"]),
            learning=groups["learning"],
            optimizer=groups["optimizer"],
            callbacks=_by_callback(groups["callbacks"]),
            ranges={str(name): _range(*bounds) for name, bounds in header.get("ranges", {}).items()},
            origin_sha256=str(header.get("origin_sha256", "")),
            teachers_sha256=tuple(str(digest) for digest in header.get("teachers_sha256", ())),
            images_sha256=str(header.get("pictures_sha256", "")),
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, FireboxError) as error:
        raise CheckpointError(f"the header of {source} cannot be read: {error}") from error
    _check(checkpoint, source)
    return checkpoint


def _grouped(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """Tensors by the first part of their names. Raises ``CheckpointError`` for an unknown one."""
    groups: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("model", "scale", "learning", "optimizer", "callbacks")
    }
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group == _MOMENTUM:
            group, rest = "optimizer", f"momentum_buffer.{rest}"
        if group not in groups:
            raise CheckpointError(f"{source} has an unknown tensor {name!r}")
        groups[group][rest] = tensor
    return groups


def _by_callback(states: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    callbacks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in states.items():
        callback, _, rest = name.partition(".")
        callbacks.setdefault(callback, {})[rest] = tensor
    return callbacks


def _check(checkpoint: Checkpoint, source: str) -> None:
    """Raise ``CheckpointError`` if the parts of a checkpoint contradict each other."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if (preprocessing.size, preprocessing.depth) != (config.input_size, config.in_channels):
        raise CheckpointError(f"{source} contradicts itself: its preprocessing does not match the network's input")
    if min(checkpoint.epoch, checkpoint.step) < 0:
        raise CheckpointError(f"{source} contradicts itself: its epoch or step is negative")
    if len(checkpoint.classes) != config.num_classes:
        raise CheckpointError(f"{source} names {len(checkpoint.classes)} classes for {config.num_classes} outputs")
    # A damaged config must not make a network larger than the file.
    values = sum(tensor.numel() for tensor in checkpoint.weights.values())
    if config.parameters > values:
        raise CheckpointError(
            f"{source} contradicts itself: its network has {config.parameters:,} parameters, the file {values:,}"
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _range(low: float, high: float) -> Range:
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
        raise ValueError(f"a range from {low} to {high} cannot be quantized")
    return Range(float(low), float(high))


def is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """True if the metadata of a safetensors file is a checkpoint's; bare weights have none."""
    return _KEY in metadata


def read_safetensors(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ``CheckpointError`` that names ``source``."""
    try:
        # safetensors checks every length and offset against the file before it allocates memory.
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{source} is not a whole safetensors file: {error}; copy it again") from error
    return tensors, metadata


def compact(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Quantize kernels to int8, with float32 scales of shape (out,) under the same names; other tensors are unchanged.

    The scale of an output channel maps its largest absolute weight to 127, as in exported files.
    """
    small, scales = dict(weights), dict[str, Tensor]()
    for name, weight in weights.items():
        if weight.ndim > 1:
            scale = weight.flatten(1).abs().amax(1).float() / _LARGEST
            # A channel of zeros may have any scale.
            scales[name] = torch.where(scale > 0, scale, 1.0)
            small[name] = (weight.float() / _along(scales[name], weight)).round().to(torch.int8)
    return small, scales


def expand(small: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dequantize the weights of ``compact`` to float32. Raises ``CheckpointError`` for scales that do not fit them."""
    weights = dict(small)
    for name, scale in scales.items():
        weight = small.get(name)
        if weight is None or weight.dtype != torch.int8 or not scale.is_floating_point():
            raise CheckpointError(f"the scale of {name} belongs to no int8 tensor; copy the file again")
        if weight.ndim < 2 or scale.shape != weight.shape[:1]:
            raise CheckpointError(f"the scale of {name} has shape {tuple(scale.shape)} for {tuple(weight.shape)}")
        weights[name] = weight.float() * _along(scale.float(), weight)
    return weights


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))
