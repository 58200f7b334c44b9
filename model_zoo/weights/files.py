"""Weights from files of three kinds, each checked, and put into a network only if they fit."""

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
    """A state dict and what its file knows of its network, preprocessing, classes and training."""

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
    """Weights of a ``.safetensors`` file (bare or a checkpoint), a ``.pth`` or a ``.net``.

    Raises ``UsageError`` for another kind of file and ``CheckpointError`` for one that is damaged.
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

    With ``replace_head`` the classifier keeps its new weights where theirs has another number of
    classes, or is not there. Raises ``CheckpointError`` for weights of another network and for
    values that are not finite; then nothing is copied.
    """
    source, state = weights.source, dict(weights.tensors)
    own, head = module.state_dict(), head_prefix(module)
    theirs, ours = head_classes(state, head), head_classes(own, head)
    if theirs != ours and replace_head:
        state.update({name: value for name, value in own.items() if name.startswith(head)})
    elif theirs not in (None, ours):
        raise CheckpointError(
            f"{source} has a head of {theirs} classes, the network one of {ours}; ask for {theirs} or replace the head"
        )
    for name in own:
        if name not in state:
            raise CheckpointError(f"{source} is of another network: it has no {name}")
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointError(f"{source} is of another network: it has {name}, this one has not")
        alike = tensor.shape == own[name].shape and tensor.is_floating_point() == own[name].is_floating_point()
        if not alike or tensor.is_complex():
            found, wanted = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (tensor, own[name]))
            raise CheckpointError(f"{source} is of another network: {name} is {found} instead of {wanted}")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(
                f"{source} cannot be used: {name} holds values that are not finite; train again with a lower rate"
            )
    module.load_state_dict(state)


def network_from(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor] | None = None, *, source: str = "the checkpoint"
) -> NetworkModule:
    """The network of a checkpoint with its weights, or with ``weights`` in their place, in training mode.

    ``source`` names the checkpoint in errors. Raises ``CheckpointError`` for weights of another network.
    """
    module = build_network(checkpoint.config)
    load_weights_into(module, Weights(source, "", checkpoint.weights if weights is None else weights))
    return module


def head_classes(tensors: Mapping[str, Tensor], prefix: str) -> int | None:
    """How many classes the head in a state dict has; ``None`` where there is no head.

    ``prefix`` is what ``head_prefix`` finds in the network.
    """
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
        # Whatever the unpickler stumbles over, from a cut file to code that is not run, is the
        # file's fault.
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
    """Refuse a zip that is cut, or whose members would unpack to more than the file itself."""
    if not data.startswith(b"PK"):
        return
    # NotImplementedError is zipfile's for a version that it does not know.
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{source} is cut short or damaged ({error}); copy it again") from error
    if sum(member.file_size for member in members) > len(data):
        raise CheckpointError(
            f"{source} would unpack to more than its {len(data):,} bytes; torch stores tensors plainly"
        )
