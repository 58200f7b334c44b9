"""The checkpoint before the first step: everything is decided, and the weights are drawn or taken over."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...runtime.errors import CheckpointError, DataError, UsageError
from ...runtime.images import Preprocessing
from ..network import Network, fit_preprocessing, load_network, weights_in
from ..networks.build import build_network
from ..networks.config import NetworkConfig
from ..networks.int8 import calibrated, without_batch_norm
from ..networks.modules import NetworkModule, head_prefix
from ..networks.registry import find_model, model_config
from ..training_config import TrainingConfig
from ..weights.checkpoint import Checkpoint
from ..weights.files import Weights, load_weights, load_weights_into
from ..weights.names import find_weights, weight_names
from .data import ImageSplits, digest_of, epoch_order
from .distributed import Resources
from .layer_groups import settle_layers
from .learner import total_steps
from .loss import Teachers
from .optimizer import make_optimizer
from .schedules import check_cycles

# What makes no sense for weights that are already good, and lie on a grid.
NOT_QUANTIZED = (
    "network",
    "start",
    "input_size",
    "dropout",
    "learn",
    "layer_decay",
    "ema",
    "snapshots",
    "freezeout",
    "compile",
    "optimizer",
)
# Nor, unless it is asked for, what was made for a long training.
NOT_INHERITED = (*NOT_QUANTIZED, "iterations", "mixup", "cutmix", "teachers")

# Below this much work in a batch, threads wait for each other longer than they compute; on a busy
# machine many times.
_LITTLE_WORK_MACS = 2_000_000_000
# Shorter trainings have no time for a rate that rises first.
_EPOCHS_WITH_WARMUP = 5


def start(config: TrainingConfig, images: ImageSplits, resources: Resources) -> Checkpoint:
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
        module = build_network(network)
    if origin:
        load_weights_into(module, _for_classes(images[0].classes, origin, module), replace_head=True)
    # A training that cannot be is told before the images are read.
    settle_layers(module, config.learn)
    make_optimizer(module, settled)
    preprocessing = origin.preprocessing if origin and origin.preprocessing else find_model(config.model).preprocessing
    preprocessing = fit_preprocessing(preprocessing, network)
    sha256 = origin.sha256 if origin else ""
    return _first(config.model, module, preprocessing, images[0].classes, settled, images, sha256)


def start_quantized(
    network: Network, config: TrainingConfig, quiet: bool, images: ImageSplits, resources: Resources
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
    ranges = network.ranges or calibrated(module, network.preprocessing, trained, config.seed)
    settled = _settled(config, module.config, images, resources)
    first = _first(network.name, module, network.preprocessing, network.classes, settled, images, network.sha256)
    return replace(first, ranges=ranges)


def check_quantized(config: TrainingConfig) -> None:
    """Raises ``UsageError`` for options that fake-quantized training has no use for."""
    plain = TrainingConfig()
    for name in NOT_QUANTIZED:
        if getattr(config, name) != getattr(plain, name):
            raise UsageError(
                f"{name.replace('_', ' ')} cannot be set with fake quantization: the trained network is fine-tuned "
                "as it is; leave it out"
            )


def with_teachers(checkpoint: Checkpoint) -> tuple[Checkpoint, Teachers | None]:
    """The checkpoint that knows its teachers by the digests of their files, and the teachers, if it has any.

    Raises ``UsageError`` for those of other classes or other images.
    """
    networks = _teachers(checkpoint, checkpoint.training.teachers)
    known = replace(checkpoint, teachers_sha256=tuple(network.sha256 for network in networks))
    return known, _together(checkpoint, networks)


def load_teachers(checkpoint: Checkpoint, paths: Sequence[str] = ()) -> Teachers | None:
    """The teachers of a training, if it has any; ``paths`` say where they are now, if they have moved.

    Raises ``UsageError`` where one is not there and ``CheckpointError`` if they are not what they were.
    """
    paths = paths or checkpoint.training.teachers
    digests = checkpoint.teachers_sha256
    if len(paths) != len(digests):
        raise UsageError(f"{len(paths)} teachers are named, the training has {len(digests)}; name each, in their order")
    networks = _teachers(checkpoint, paths)
    for path, network, digest in zip(paths, networks, digests, strict=True):
        if network.sha256 != digest:
            raise CheckpointError(f"the teacher {path} has changed since the training began; start a new run")
    return _together(checkpoint, networks)


def _together(checkpoint: Checkpoint, networks: Sequence[Network]) -> Teachers | None:
    modules = [network.module for network in networks]
    return Teachers(modules, checkpoint.training.temperature) if modules else None


def _first(
    model: str,
    module: NetworkModule,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    settled: TrainingConfig,
    images: ImageSplits,
    origin_sha256: str,
) -> Checkpoint:
    """The checkpoint of a module that has learned nothing yet."""
    return Checkpoint(
        model=model,
        config=module.config,
        preprocessing=preprocessing,
        classes=classes,
        training=settled,
        images=(len(images[0]), len(images[1])),
        images_sha256=digest_of(images),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        origin_sha256=origin_sha256,
    )


def _teachers(checkpoint: Checkpoint, paths: Sequence[str]) -> list[Network]:
    networks: list[Network] = []
    for path in paths:
        network = load_network(path)
        if network.classes != checkpoint.classes:
            raise UsageError(
                f"the teacher {path} knows the classes {_some(network.classes)}, the images are of "
                f"{_some(checkpoint.classes)}; they must agree"
            )
        if network.preprocessing != checkpoint.preprocessing:
            raise UsageError(f"the teacher {path} takes images that are prepared in another way than the student's")
        networks.append(network)
    return networks


def _settled(
    config: TrainingConfig, network: NetworkConfig, images: ImageSplits, resources: Resources
) -> TrainingConfig:
    """The config with what was left open decided. Raises ``UsageError`` for what the images do not allow."""
    steps = len(epoch_order(config, len(images[0]), 0))
    if config.iterations:
        config = replace(config, epochs=math.ceil(config.iterations / steps))
    settled = _settle(config, network, resources.torch_device())
    total, warmup = total_steps(settled, steps), settled.warmup_epochs or 0
    if warmup * steps >= total:
        raise UsageError(
            f"a warm-up of {warmup} epochs, {warmup * steps:,} steps, leaves none of the {total:,} for the rate to "
            "fall; train longer, or give a shorter warm-up"
        )
    if config.snapshots:
        check_cycles(total, config.snapshots)
    return settled


def _settle(config: TrainingConfig, network: NetworkConfig, device: torch.device) -> TrainingConfig:
    """The config with the values chosen that were left open."""
    little = network.macs * config.batch_size < _LITTLE_WORK_MACS
    augment = "light" if network.in_channels == 1 else "standard"
    rate = (0.1 if network.batch_norm else 0.02) * (0.1 if config.start else 1)
    short = config.epochs < _EPOCHS_WITH_WARMUP or bool(config.snapshots or config.freezeout)
    return replace(
        config,
        learning_rate=config.learning_rate or rate,
        warmup_epochs=(0 if short else 1) if config.warmup_epochs is None else config.warmup_epochs,
        augment=config.augment or ("none" if config.learn == "head" else augment),
        precision=config.precision or ("bf16" if _computes_bf16(device) else "float32"),
        threads=config.threads or (1 if little else torch.get_num_threads()),
    )


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Elsewhere bf16 is emulated: right, but slower than float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


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


def _for_classes(classes: tuple[str, ...], origin: Weights, module: NetworkModule) -> Weights:
    """The weights without a head that knows other classes, even if as many."""
    if not origin.classes or classes in (origin.classes, origin.class_ids):
        return origin
    head = head_prefix(module)
    return replace(origin, tensors={name: value for name, value in origin.tensors.items() if not name.startswith(head)})


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])} …)"
