"""Weights from .safetensors, .pth and .net files, checked before they are loaded into a network."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...export.quantization import Range
from ...runtime.errors import CheckpointError, FormatError, UsageError
from ...runtime.files import read_file, sha256
from ...runtime.images import Preprocessing
from ..networks.build import build_network
from ..networks.config import NetworkConfig
from ..networks.modules import NetworkModule, head_prefix
from ..training_config import TrainingConfig
from .checkpoint import Checkpoint, is_checkpoint, read_safetensors, unpack_checkpoint
from .deep_compression import CONFIG as COMPRESSED_CONFIG
from .deep_compression import PREPROCESSING as COMPRESSED_PREPROCESSING
from .deep_compression import decode_network
from .imagenet import imagenet_classes


@dataclass(frozen=True)
class Weights:
    """A state dict, with the config, preprocessing, classes and training in its file, if any."""

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    model: str = ""
    config: NetworkConfig | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    training: TrainingConfig | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)


def load_weights(path: str | Path) -> Weights:
    """Read weights from a ``.safetensors`` file (bare tensors or a checkpoint), a ``.pth`` or a ``.net`` file.

    Raises ``UsageError`` for other kinds of files and ``CheckpointError`` for damaged files.
    """
    path = Path(path)
    readers = {
        ".safetensors": _from_safetensors,
        ".pth": _from_pth,
        ".pt": _from_pth,
        ".net": _from_net,
    }
    if path.suffix not in readers:
        raise UsageError(f"{path} ends in {path.suffix!r}; weights are read from {', '.join(readers)}")
    try:
        data = read_file(path)
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    return readers[path.suffix](data, str(path))


def load_weights_into(module: nn.Module, weights: Weights, replace_head: bool = False) -> None:
    """Copy weights into a network of the same architecture.

    With ``replace_head`` the network keeps its own head if the head in ``weights`` has another number of classes or is
    missing. Raises ``CheckpointError`` for weights of another network and for values that are not finite; nothing is
    copied then.
    """
    source, state = weights.source, dict(weights.tensors)
    own, head = module.state_dict(), head_prefix(module)
    theirs, ours = head_classes(state, head), head_classes(own, head)
    if theirs != ours and replace_head:
        state.update({name: value for name, value in own.items() if name.startswith(head)})
    elif theirs not in (None, ours):
        raise CheckpointError(
            f"{source} has a head for {theirs} classes, the network for {ours}; set num_classes to {theirs} or replace "
            "the head"
        )
    for name in own:
        if name not in state:
            raise CheckpointError(f"{source} is of another network: missing key {name}")
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointError(f"{source} is of another network: unexpected key {name}")
        alike = tensor.shape == own[name].shape and tensor.is_floating_point() == own[name].is_floating_point()
        if not alike or tensor.is_complex():
            found, wanted = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (tensor, own[name]))
            raise CheckpointError(f"{source} is of another network: {name} is {found} instead of {wanted}")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(
                f"{source} cannot be used: {name} has values that are not finite; train with a lower learning rate"
            )
    module.load_state_dict(state)


def network_from(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor] | None = None, *, source: str = "the checkpoint"
) -> NetworkModule:
    """Build the network of a checkpoint with its weights, or with ``weights`` instead, in training mode.

    ``source`` names the checkpoint in error messages. Raises ``CheckpointError`` for weights of another network.
    """
    module = build_network(checkpoint.config)
    load_weights_into(module, Weights(source, "", checkpoint.weights if weights is None else weights))
    return module


def head_classes(tensors: Mapping[str, Tensor], prefix: str) -> int | None:
    """Number of classes of the head in a state dict, or ``None`` without a head; ``prefix`` is from ``head_prefix``."""
    head = tensors.get(f"{prefix}weight")
    return len(head) if head is not None and head.ndim in (2, 4) else None


def _from_safetensors(data: bytes, source: str) -> Weights:
    tensors, metadata = read_safetensors(data, source)
    if not is_checkpoint(metadata):
        return Weights(source, sha256(data), tensors)
    checkpoint = unpack_checkpoint(tensors, metadata, source)
    return Weights(
        source=source,
        sha256=sha256(data),
        tensors=checkpoint.weights,
        model=checkpoint.model,
        config=checkpoint.config,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        training=checkpoint.training,
        ranges=checkpoint.ranges,
    )


def _from_net(data: bytes, source: str) -> Weights:
    names, ids = imagenet_classes()
    return Weights(
        source=source,
        sha256=sha256(data),
        tensors=decode_network(data, source),
        model="squeezenet1_0",
        config=COMPRESSED_CONFIG,
        preprocessing=COMPRESSED_PREPROCESSING,
        classes=names,
        class_ids=ids,
    )


def _from_pth(data: bytes, source: str) -> Weights:
    _check_archive(data, source)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # The unpickler raises many types of errors, for truncated files and for code that it does not run.
        first = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{source} is not a plain state dict of tensors ({first}); nothing in it was run"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{source} holds a {type(state).__name__}, not a state dict of named tensors")
    for name, tensor in state.items():
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_complex()
        ):
            raise CheckpointError(f"{source} holds {name!r}, which is no plain tensor; save model.state_dict() alone")
    return Weights(source, sha256(data), state)


def _check_archive(data: bytes, source: str) -> None:
    """Raise ``CheckpointError`` for a truncated zip, or one that would unpack to more than its own size."""
    if not data.startswith(b"PK"):
        return
    # zipfile raises NotImplementedError for unknown versions.
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{source} is truncated or damaged ({error}); copy it again") from error
    if sum(member.file_size for member in members) > len(data):
        raise CheckpointError(
            f"{source} would unpack to more than its {len(data):,} bytes; save it uncompressed with torch.save"
        )
