"""The checkpoint before the first step: everything is decided, and the weights are drawn or taken over."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.datasets import LabelledImages
from ..runtime.errors import CheckpointError, DataError, UsageError
from ..runtime.preprocessing import Preprocessing
from .checkpoint import Checkpoint
from .data import epoch_order
from .families import build
from .learner import total_steps
from .module import NetworkModule
from .named_weights import find_weights, weight_names
from .network import Network, load_network, weights_in
from .network_config import NetworkConfig
from .objective import Teachers
from .quantized import calibrated, without_batch_norm
from .registry import find_model, fit_preprocessing, model_config
from .resources import Resources, settle
from .schedules import check_cycles
from .training_config import TrainingConfig
from .transfer import settle_layers
from .weights import Weights, load_weights, load_weights_into

# Trained and validated pictures.
Images = tuple[LabelledImages, LabelledImages]

# What makes no sense for weights that are already good, and lie on a grid.
NOT_QUANTIZED = ("network", "start", "input_size", "dropout", "learn", "layer_decay", "ema", "snapshots", "freezeout")


def start(config: TrainingConfig, images: Images, resources: Resources) -> Checkpoint:
    """From new weights, or from those that ``config.start`` names, with a new head where the classes are others."""
    channels = 1 if images[0].channels == "L" else 3
    origin = _origin(config.model, config.start) if config.start else None
    network = model_config(config.model, len(images[0].classes), channels, config.input_size, **config.network)
    if origin and origin.config and origin.model == config.model:
        size = config.input_size or origin.config.input_size
        network = replace(origin.config, num_classes=network.num_classes, input_size=size, **config.network)
    if config.dropout is not None:
        network = replace(network, dropout=config.dropout)
    settled = _settled(config, network, images, resources)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build(network)
    if origin:
        load_weights_into(module, origin, replace_head=True)
    # A training that cannot be is told before the pictures are read.
    settle_layers(module, config.learn)
    preprocessing = origin.preprocessing if origin and origin.preprocessing else find_model(config.model).preprocessing
    preprocessing = fit_preprocessing(preprocessing, network)
    sha256 = origin.sha256 if origin else ""
    return _with_teachers(_first(config.model, module, preprocessing, images[0].classes, settled, images, sha256))


def start_quantized(
    network: Network, config: TrainingConfig, quiet: bool, images: Images, resources: Resources
) -> Checkpoint:
    """From a trained network: batch norm is folded, and activations have their first ranges."""
    check_quantized(config)
    trained = images[0]
    if trained.classes not in (network.classes, network.class_ids):
        raise DataError(
            f"the classes of {trained.source} are {_some(trained.classes)}, those of {network.name} "
            f"{_some(network.classes)}; they must agree"
        )
    module = without_batch_norm(network.module)
    ranges = network.ranges or calibrated(module, network.preprocessing, trained, config.seed, quiet)
    settled = _settled(config, module.config, images, resources)
    first = _first(network.name, module, network.preprocessing, network.classes, settled, images, network.sha256)
    return _with_teachers(replace(first, ranges=ranges))


def check_quantized(config: TrainingConfig) -> None:
    """Raises ``UsageError`` for options that fake-quantized training has no use for."""
    plain = TrainingConfig()
    for name in NOT_QUANTIZED:
        if getattr(config, name) != getattr(plain, name):
            raise UsageError(
                f"{name.replace('_', ' ')} cannot be set with fake quantization: the trained network is fine-tuned "
                "as it is; leave it out"
            )


def load_teachers(checkpoint: Checkpoint, paths: Sequence[str] = ()) -> Teachers | None:
    """The teachers of a training, if it has any; ``paths`` say where they are now, if they have moved.

    Raises ``UsageError`` where one is not there and ``CheckpointError`` if they are not what they were.
    """
    config = TrainingConfig.from_json(checkpoint.training)
    paths, digests = paths or config.teachers, checkpoint.teachers_sha256
    if len(paths) != len(digests):
        raise UsageError(f"{len(paths)} teachers are named, the training has {len(digests)}; name each, in their order")
    networks = _teachers(checkpoint, paths)
    for path, network, digest in zip(paths, networks, digests, strict=True):
        if network.sha256 != digest:
            raise CheckpointError(f"the teacher {path} has changed since the training began; start a new run")
    return Teachers([network.module for network in networks], config.temperature) if networks else None


def _first(
    model: str,
    module: NetworkModule,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    settled: TrainingConfig,
    images: Images,
    origin_sha256: str,
) -> Checkpoint:
    """The checkpoint of a module that has learned nothing yet."""
    return Checkpoint(
        model=model,
        config=module.config,
        preprocessing=preprocessing,
        classes=classes,
        training=settled.to_json(),
        pictures=(len(images[0]), len(images[1])),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        origin_sha256=origin_sha256,
    )


def _with_teachers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the digests of its teachers' files."""
    teachers = _teachers(checkpoint, checkpoint.training["teachers"])
    return replace(checkpoint, teachers_sha256=tuple(teacher.sha256 for teacher in teachers))


def _teachers(checkpoint: Checkpoint, paths: Sequence[str]) -> list[Network]:
    networks: list[Network] = []
    for path in paths:
        network = load_network(path)
        if network.classes != checkpoint.classes:
            raise UsageError(
                f"the teacher {path} knows the classes {_some(network.classes)}, the pictures are of "
                f"{_some(checkpoint.classes)}; they must agree"
            )
        if network.preprocessing != checkpoint.preprocessing:
            raise UsageError(f"the teacher {path} takes pictures that are prepared in another way than the student's")
        networks.append(network)
    return networks


def _settled(config: TrainingConfig, network: NetworkConfig, images: Images, resources: Resources) -> TrainingConfig:
    """The config with what was left open decided. Raises ``UsageError`` for what the pictures do not allow."""
    steps = len(epoch_order(config, len(images[0]), 0))
    settled = settle(config, network, resources.torch_device())
    if config.iterations:
        settled = replace(settled, epochs=math.ceil(config.iterations / steps))
    if config.snapshots:
        check_cycles(total_steps(settled, steps), config.snapshots)
    return settled


def _origin(model: str, start: str) -> Weights:
    """The weights that a training begins with. Raises ``UsageError`` where there are none, and for int8 ones."""
    names = weight_names(model)
    path = find_weights(model, start if start in names else Path(start))
    if not path.exists():
        named = f", or {' or '.join(names)}" if names else ""
        raise UsageError(f"no such weights to start with: {start}; give a run, a checkpoint or a file{named}")
    origin = load_weights(weights_in(path))
    if origin.ranges:
        raise UsageError(f"{start} was trained in int8; begin with the float run that it was made from")
    return origin


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])} …)"
