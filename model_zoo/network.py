"""Networks ready for use: by name, from a run folder or a checkpoint; as a classifier, and as exported files."""

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

# Fields in which weights may differ from their zoo entry: the task, the surroundings of conv10, and whether batch norm
# is folded.
_FREE = {"num_classes", "in_channels", "input_size", "dropout", "head_padding", "batch_norm"}


@dataclass(frozen=True)
class Network:
    """A network ready for use: the module in eval mode, with its preprocessing and classes.

    ``classes`` has one name per output; ``class_ids`` has one WordNet id per output, or is empty. ``sha256`` is the
    hash of the weight file, empty for random weights. ``training`` is the config of the training, if known.
    ``ranges`` are the activation ranges of quantization-aware training (see ``fake_quantized``), and empty after any
    other training.
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
        """The config of the module."""
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
    """Load a network by zoo name and ``weights``, or from a run folder or a checkpoint.

    ``weights`` is a file, a run folder or a name (``imagenet`` is downloaded, see ``find_weights``); by default the
    weights in the package are used. Sizes default to those of the weights, then of the zoo. ``random_init`` draws
    random weights by ``seed`` instead. Raises ``UsageError``, ``CheckpointError`` and ``DownloadError``.
    """
    name = str(spec)
    if name in list_models():
        if weights is not None and random_init:
            raise UsageError(f"model {name!r} cannot have both weights and random weights; leave one of them out")
        found = (
            Weights("", "", {})
            if random_init
            else load_weights(weights_in(find_weights(name, weights, progress=progress)))
        )
        config = _zoo_config(name, found, num_classes, in_channels, input_size)
        return _build(name, config, found, random_init, seed)
    if weights is not None or random_init or num_classes or in_channels or input_size:
        raise UsageError(f"weights and sizes need a zoo name ({', '.join(list_models())}), not {name}")
    found = load_weights(_checkpoint_of(Path(spec)))
    if found.config is None:
        raise UsageError(f"{name} holds weights without a config; pass it as weights of a zoo name")
    return _build(found.model, found.config, found)


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    **overrides: Any,
) -> NetworkModule:
    """Create the torch module of a zoo network, in training mode.

    Without ``weights`` any value of the config can be changed: ``create_model("squeezenet1_1", num_classes=10,
    bypass="simple")``. ``weights`` is a file or a name (``default``: in the package; ``imagenet``: downloaded); they
    determine the config. Raises ``UsageError``, ``CheckpointError`` and ``DownloadError``.
    """
    if weights is not None:
        if overrides:
            raise UsageError(f"{', '.join(overrides)} of {name} cannot be changed with weights; leave one of them out")
        sizes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
        return load_network(name, weights, **sizes).module.train()
    return build_network(model_config(name, num_classes, in_channels, input_size, **overrides))


def fit_preprocessing(preprocessing: Preprocessing, config: NetworkConfig) -> Preprocessing:
    """The preprocessing adapted to the input size and channels of a config.

    The margin around the crop scales with the size; a single channel gets the average mean and std.
    """
    if config.in_channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, not {config.in_channels}; preprocess inputs yourself")
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
    """The path itself, or the checkpoint in it if it is a run folder."""
    if not path.is_dir():
        return path
    if not (path / FILE_NAME).is_file():
        raise UsageError(f"{path} is not a run folder: it has no {FILE_NAME}")
    return path / FILE_NAME


def _zoo_config(
    name: str,
    weights: Weights,
    num_classes: int | None,
    in_channels: int | None,
    input_size: tuple[int, int] | None,
) -> NetworkConfig:
    """The config of a zoo name; sizes that are not given are those of the weights."""
    config = model_config(name)
    if weights.config is not None:
        if weights.config.family != config.family:
            raise CheckpointError(
                f"{weights.source} is of another network: a {weights.config.family}, and {name} is a {config.family}"
            )
        for field in fields(config):
            ours, theirs = getattr(config, field.name), getattr(weights.config, field.name)
            if field.name not in _FREE and ours != theirs:
                raise CheckpointError(
                    f"{weights.source} is of another network: {field.name} {theirs!r}, not {ours!r} as in {name}"
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
    """A network as a ``Classifier`` on its module's device, in float32, or in int8 if it was trained in int8."""

    network: Network

    @cached_property
    def module(self) -> nn.Module:
        """The module that computes the logits."""
        return fake_quantized(self.network.module, self.network.ranges) if self.network.ranges else self.network.module

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of images, as in training."""
        return self.network.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.network.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """Ids of the outputs, or an empty tuple."""
        return self.network.class_ids

    @property
    def answer(self) -> Literal["logits"]:
        """Kind of output: zoo networks have no softmax."""
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
    """Export a network to files in ``out``, calibrated and compared on ``images``; raises as ``export`` does.

    A network trained in int8 keeps its ranges and weights.
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
