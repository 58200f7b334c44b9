"""The checkpoint before the first step: everything is decided, and the weights are drawn or taken over."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..runtime.datasets import LabelledImages
from ..runtime.errors import CheckpointError, DataError, UsageError
from .checkpoint import Checkpoint
from .data import epoch_order
from .families import build
from .freezeout import freezing_times
from .learner import total_steps
from .network import Network, load_network, weights_in
from .network_config import NetworkConfig
from .objective import Teachers
from .quantized import calibrated, without_batch_norm
from .registry import find_model, fit_preprocessing, model_config
from .resources import Resources, settle
from .schedules import check_cycles
from .training_config import TrainingConfig
from .weights import load_weights, load_weights_into

# Trained and validated pictures.
Images = tuple[LabelledImages, LabelledImages]

# What makes no sense for weights that are already good, and lie on a grid.
NOT_QUANTIZED = ("network", "start", "input_size", "dropout", "learn", "layer_decay", "ema", "snapshots", "freezeout")


def start(config: TrainingConfig, images: Images, resources: Resources) -> Checkpoint:
    """From new weights, or from those that ``config.start`` names, with a new head where the classes are others."""
    channels = 1 if images[0].channels == "L" else 3
    origin = load_weights(weights_in(Path(config.start))) if config.start else None
    if origin and origin.ranges:
        raise UsageError(f"{config.start} was trained in int8; begin with the float run that it was made from")
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
    preprocessing = origin.preprocessing if origin and origin.preprocessing else find_model(config.model).preprocessing
    checkpoint = Checkpoint(
        model=config.model,
        config=network,
        preprocessing=fit_preprocessing(preprocessing, network),
        classes=images[0].classes,
        training=settled.to_json(),
        pictures=(len(images[0]), len(images[1])),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        origin_sha256=origin.sha256 if origin else "",
    )
    return replace(checkpoint, teachers_sha256=tuple(each.sha256 for each in _teachers(checkpoint)))


def start_quantized(
    network: Network, config: TrainingConfig, quiet: bool, images: Images, resources: Resources
) -> Checkpoint:
    """From a trained network: batch norm is folded, and activations have their first ranges."""
    check_quantized(config)
    trained, validated = images
    if trained.classes not in (network.classes, network.class_ids):
        raise DataError(
            f"the classes of {trained.source} are {_some(trained.classes)}, those of {network.name} "
            f"{_some(network.classes)}; they must agree"
        )
    module = without_batch_norm(network.module)
    ranges = network.ranges or calibrated(module, network.preprocessing, trained, config.seed, quiet)
    checkpoint = Checkpoint(
        model=network.name,
        config=module.config,
        preprocessing=network.preprocessing,
        classes=network.classes,
        training=_settled(config, module.config, images, resources).to_json(),
        pictures=(len(trained), len(validated)),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        ranges=ranges,
        origin_sha256=network.sha256,
    )
    return replace(checkpoint, teachers_sha256=tuple(each.sha256 for each in _teachers(checkpoint)))


def check_quantized(config: TrainingConfig) -> None:
    """Raises ``UsageError`` for options that fake-quantized training has no use for."""
    plain = TrainingConfig()
    for name in NOT_QUANTIZED:
        if getattr(config, name) != getattr(plain, name):
            raise UsageError(
                f"{name.replace('_', ' ')} cannot be set with fake quantization: the trained network is fine-tuned "
                "as it is; leave it out"
            )


def load_teachers(checkpoint: Checkpoint) -> Teachers | None:
    """The teachers of a training, if it has any. Raises ``CheckpointError`` if they are not what they were."""
    networks = _teachers(checkpoint)
    for network, sha256 in zip(networks, checkpoint.teachers_sha256, strict=True):
        if network.sha256 != sha256:
            raise CheckpointError(f"the teacher {network.name} has changed since the training began; start a new run")
    modules = [network.module for network in networks]
    return Teachers(modules, float(checkpoint.training["temperature"])) if modules else None


def _teachers(checkpoint: Checkpoint) -> list[Network]:
    networks: list[Network] = []
    for path in checkpoint.training["teachers"]:
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
    if config.freezeout:
        freezing_times(1, config.freezeout, config.freeze_first)
    if config.learn == "head" and config.augment not in (None, "none"):
        raise UsageError(
            f"the head learns from codes that are computed once, without augment {config.augment!r}; leave it out, or "
            "have a block learn, too"
        )
    return settled


def _some(names: tuple[str, ...]) -> Any:
    return f"{len(names)} ({', '.join(names[:3])} …)"
