"""From what a user names (a zoo model, a run folder, a checkpoint) to a network for use."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..export.exporter import Export, ExportConfig, export
from ..export.quantization import Range
from ..export.trace import one_thread
from ..runtime.errors import CheckpointError, UsageError
from ..runtime.images import LabelledImages, Preprocessing
from ..runtime.progress import SILENT, Progress
from .networks.build import build_network
from .networks.config import NetworkConfig
from .networks.int8 import fake_quantized
from .networks.modules import NetworkModule, head_prefix
from .networks.registry import find_model, list_models, model_config
from .training_config import TrainingConfig
from .weights.checkpoint import FILE_NAME
from .weights.files import Weights, head_classes, load_weights, load_weights_into
from .weights.imagenet import imagenet_classes
from .weights.names import find_weights

# What may differ between a zoo entry and weights of that entry: the task, how conv10 is
# surrounded, and whether batch norm has been folded.
_FREE = {"num_classes", "in_channels", "input_size", "dropout", "head_padding", "batch_norm"}


@dataclass(frozen=True)
class Network:
    """A network ready for use: the module in eval mode, its images and its classes.

    ``classes`` has one name per output; ``class_ids`` too (WordNet ids), or is empty. ``sha256`` is
    that of the file the weights came from, empty for random ones; ``training`` is the config of the
    training that made them, where it is known. ``ranges`` are those of its activations that it was
    trained with, fake-quantized (see ``fake_quantized``); empty for a network that was not.
    """

    name: str
    module: NetworkModule
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    class_ids: tuple[str, ...] = ()
    sha256: str = ""
    training: TrainingConfig | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def config(self) -> NetworkConfig:
        """The config the module was built from."""
        return self.module.config


def load_network(
    spec: str | Path,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: tuple[int, int] | None = None,
    random_init: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Network:
    """A network from a zoo name with ``weights``, from a run folder, or from a checkpoint.

    ``weights`` are a file, a run folder, or a name (``imagenet`` is downloaded, see ``find_weights``);
    none are those that come with firebox. Sizes that are not given follow the weights, then the zoo.
    Random weights must be asked for with ``random_init`` and are drawn by ``seed``. Raises
    ``UsageError``, ``CheckpointError`` and ``DownloadError``.
    """
    name = str(spec)
    if name in list_models():
        if weights is not None and random_init:
            raise UsageError(f"model {name!r}: weights and random weights contradict each other; leave one of them out")
        found = (
            Weights("", "", {})
            if random_init
            else load_weights(weights_in(find_weights(name, weights, progress=progress)))
        )
        config = _zoo_config(name, found, num_classes, in_channels, input_size)
        return _build(name, config, found, random_init, seed)
    if weights is not None or random_init or num_classes or in_channels or input_size:
        raise UsageError(f"weights and sizes go with a name from the zoo ({', '.join(list_models())}), not with {name}")
    found = load_weights(_checkpoint_of(Path(spec)))
    if found.config is None:
        raise UsageError(f"{name} does not say which network it is of; give a name from the zoo with it")
    return _build(found.model, found.config, found)


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    **overrides: Any,
) -> NetworkModule:
    """A zoo network, in training mode; with new weights any value of its config can be changed.

    ``create_model("squeezenet1_1", num_classes=10, bypass="simple")``. With ``weights``, a file or a name (``default``:
    those that come with firebox; ``imagenet``: downloaded), it is the network that they are of. Raises ``UsageError``,
    ``CheckpointError`` and ``DownloadError``.
    """
    if weights is not None:
        if overrides:
            raise UsageError(f"{', '.join(overrides)} of {name} cannot be changed with weights; leave one of them out")
        sizes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
        return load_network(name, weights, **sizes).module.train()
    return build_network(model_config(name, num_classes, in_channels, input_size, **overrides))


def fit_preprocessing(preprocessing: Preprocessing, config: NetworkConfig) -> Preprocessing:
    """The same preprocessing for the input size and the channels of a config.

    The margin around the crop keeps its share, and a single channel gets the average of mean and
    std.
    """
    if config.in_channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, the network {config.in_channels}; preprocess them yourself")
    if config.input_size != preprocessing.size:
        resize = preprocessing.resize and round(preprocessing.resize * max(config.input_size) / max(preprocessing.size))
        preprocessing = replace(preprocessing, size=config.input_size, resize=resize)
    if config.in_channels == preprocessing.depth:
        return preprocessing
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    channels = "L" if config.in_channels == 1 else "RGB"
    depth = config.in_channels
    return replace(preprocessing, channels=channels, mean=(mean,) * depth, std=(std,) * depth)


def _checkpoint_of(path: Path) -> Path:
    if not path.exists():
        if str(path) != path.name:
            raise UsageError(f"no such run folder or checkpoint: {path}")
        find_model(str(path))
    return weights_in(path)


def weights_in(path: Path) -> Path:
    """The file itself, or the checkpoint of a run folder."""
    if not path.is_dir():
        return path
    if not (path / FILE_NAME).is_file():
        raise UsageError(f"{path} is no run folder: it has no {FILE_NAME}")
    return path / FILE_NAME


def _zoo_config(
    name: str,
    weights: Weights,
    num_classes: int | None,
    in_channels: int | None,
    input_size: tuple[int, int] | None,
) -> NetworkConfig:
    """The config of a zoo name with the sizes that were given, otherwise of the weights."""
    config = model_config(name)
    if weights.config is not None:
        if weights.config.family != config.family:
            raise CheckpointError(
                f"{weights.source} is of another network: a {weights.config.family}; {name} is a {config.family}"
            )
        for field in fields(config):
            ours, theirs = getattr(config, field.name), getattr(weights.config, field.name)
            if field.name not in _FREE and ours != theirs:
                raise CheckpointError(
                    f"{weights.source} is of another network: {field.name} is {theirs!r}, in {name} {ours!r}"
                )
        config = weights.config
    elif weights.tensors and (classes := head_classes(weights.tensors, _head(config))):
        config = replace(config, num_classes=classes)
    given = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
    return replace(config, **{key: value for key, value in given.items() if value is not None})


def _head(config: NetworkConfig) -> str:
    with torch.device("meta"):
        return head_prefix(build_network(config))


def _build(name: str, config: NetworkConfig, weights: Weights, random_init: bool = False, seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_network(config).eval()
    if not random_init:
        load_weights_into(module, weights)
    classes, ids = weights.classes, weights.class_ids
    if not classes and config.num_classes == 1000:
        classes, ids = imagenet_classes()
    return Network(
        name=name,
        module=module,
        preprocessing=fit_preprocessing(weights.preprocessing or find_model(name).preprocessing, config),
        classes=classes or tuple(f"class {index}" for index in range(config.num_classes)),
        class_ids=ids,
        sha256=weights.sha256,
        training=weights.training,
        ranges=weights.ranges,
    )


@dataclass(frozen=True)
class TorchClassifier:
    """Answers pixels as a ``Session`` does, on the module's device: in float32, or in the int8 it was trained with."""

    network: Network

    @cached_property
    def module(self) -> nn.Module:
        """What computes the answers."""
        return fake_quantized(self.network.module, self.network.ranges) if self.network.ranges else self.network.module

    @property
    def preprocessing(self) -> Preprocessing:
        """How images were prepared in training."""
        return self.network.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.network.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """An id for each output, or nothing."""
        return self.network.class_ids

    @property
    def answer(self) -> Literal["logits"]:
        """What the output is: networks of the zoo leave the softmax out."""
        return "logits"

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Logits, shape (classes,), for uint8 pixels (height, width, channels)."""
        values = self.preprocessing.normalize(pixels).transpose(2, 0, 1)[None]
        parameter = next(self.module.parameters())
        with one_thread(), torch.inference_mode():
            logits = self.module(torch.from_numpy(np.ascontiguousarray(values)).to(parameter.device))
        return logits[0].cpu().numpy()


def export_network(
    network: Network,
    out: str | Path,
    images: LabelledImages,
    config: ExportConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> Export:
    """Write a network's files into ``out``, calibrated and compared on ``images``; raises as ``export`` does.

    One that was trained for int8 keeps the ranges and the weights it was trained with.
    """
    return export(
        network.module,
        out,
        preprocessing=network.preprocessing,
        images=images,
        classes=network.classes,
        class_ids=network.class_ids,
        name=network.name,
        checkpoint_sha256=network.sha256,
        config=config,
        ranges=network.ranges,
        progress=progress,
    )
