"""The checkpoint before the first step: the config with all options resolved, and the initial weights."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...runtime.errors import CheckpointError, DataError, UsageError
from ...runtime.images import Preprocessing
from ...runtime.progress import SILENT, Progress
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
from .data import TrainingImages, epoch_order
from .distributed import Resources
from .layer_groups import freeze_below
from .learner import total_steps
from .loss import Teachers
from .optimizer import make_optimizer
from .schedules import check_cycles

# Options that contradict fake-quantized fine-tuning of a trained network.
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
# Options of the float training that fine-tuning does not inherit; those after NOT_QUANTIZED may be set explicitly.
NOT_INHERITED = (*NOT_QUANTIZED, "iterations", "mixup", "cutmix", "teachers")

# With less work per batch, threads wait for each other longer than they compute, and far longer on a busy machine.
_LITTLE_WORK_MACS = 2_000_000_000
# Shorter trainings have no time for a warm-up.
_EPOCHS_WITH_WARMUP = 5


def start(config: TrainingConfig, images: TrainingImages, resources: Resources) -> Checkpoint:
    """Random weights, or the weights of ``config.start`` with a new head if the classes differ."""
    classes = images.training.classes
    channels = 1 if images.training.channels == "L" else 3
    origin = _origin(config.model, config.start) if config.start else None
    network = model_config(config.model, len(classes), channels, config.input_size, **config.network)
    if origin and origin.config and origin.model == config.model:
        size = config.input_size or origin.config.input_size
        network = replace(origin.config, num_classes=network.num_classes, input_size=size, **config.network)
    if config.dropout is not None:
        network = replace(network, dropout=config.dropout)
    resolved = _resolved(config, network, images, resources)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build_network(network)
    if origin:
        load_weights_into(module, _for_classes(classes, origin, module), replace_head=True)
    # Reports invalid options before the images are read.
    freeze_below(module, config.learn)
    make_optimizer(module, resolved)
    preprocessing = origin.preprocessing if origin and origin.preprocessing else find_model(config.model).preprocessing
    preprocessing = fit_preprocessing(preprocessing, network)
    sha256 = origin.sha256 if origin else ""
    return _initial(config.model, module, preprocessing, classes, resolved, images, sha256)


def start_quantized(
    network: Network,
    config: TrainingConfig,
    images: TrainingImages,
    resources: Resources,
    progress: Progress = SILENT,
) -> Checkpoint:
    """A trained network with batch norm folded and calibrated activation ranges, for quantization-aware training."""
    check_quantized(config)
    classes = images.training.classes
    if classes not in (network.classes, network.class_ids):
        raise DataError(
            f"the classes of {images.training.source} are {_some(classes)}, those of {network.name} "
            f"{_some(network.classes)}; they must agree"
        )
    module = without_batch_norm(network.module)
    ranges = network.ranges or calibrated(
        module, network.preprocessing, images.training, config.seed, progress=progress
    )
    resolved = _resolved(config, module.config, images, resources)
    initial = _initial(network.name, module, network.preprocessing, network.classes, resolved, images, network.sha256)
    return replace(initial, ranges=ranges)


def check_quantized(config: TrainingConfig) -> None:
    """Raise ``UsageError`` for options that contradict quantization-aware training."""
    plain = TrainingConfig()
    for name in NOT_QUANTIZED:
        if getattr(config, name) != getattr(plain, name):
            raise UsageError(
                f"{name.replace('_', ' ')} cannot be set with fake quantization, which fine-tunes the trained network "
                "unchanged; leave it out"
            )


def with_teachers(checkpoint: Checkpoint) -> tuple[Checkpoint, Teachers | None]:
    """The checkpoint with the hashes of its teachers' files, and the teachers if there are any.

    Raises ``UsageError`` if a teacher has other classes or preprocessing.
    """
    networks = _teachers(checkpoint, checkpoint.training.teachers)
    hashed = replace(checkpoint, teachers_sha256=tuple(network.sha256 for network in networks))
    return hashed, _ensemble(checkpoint, networks)


def load_teachers(checkpoint: Checkpoint, paths: Sequence[str] = ()) -> Teachers | None:
    """The teachers of a training, if there are any; ``paths`` replaces their paths if they have moved.

    Raises ``UsageError`` if one does not exist and ``CheckpointError`` if one has changed.
    """
    paths = paths or checkpoint.training.teachers
    digests = checkpoint.teachers_sha256
    if len(paths) != len(digests):
        raise UsageError(f"{len(paths)} teachers given, but the training has {len(digests)}; name all in their order")
    networks = _teachers(checkpoint, paths)
    for path, network, digest in zip(paths, networks, digests, strict=True):
        if network.sha256 != digest:
            raise CheckpointError(f"the teacher {path} has changed since the training started; start a new run")
    return _ensemble(checkpoint, networks)


def _ensemble(checkpoint: Checkpoint, networks: Sequence[Network]) -> Teachers | None:
    modules = [network.module for network in networks]
    return Teachers(modules, checkpoint.training.temperature) if modules else None


def _teachers(checkpoint: Checkpoint, paths: Sequence[str]) -> list[Network]:
    networks: list[Network] = []
    for path in paths:
        network = load_network(path)
        if network.classes != checkpoint.classes:
            raise UsageError(
                f"the teacher {path} has the classes {_some(network.classes)}, the images "
                f"{_some(checkpoint.classes)}; they must agree"
            )
        if network.preprocessing != checkpoint.preprocessing:
            raise UsageError(f"the teacher {path} and the student differ in preprocessing; use a teacher with the same")
        networks.append(network)
    return networks


def _initial(
    model: str,
    module: NetworkModule,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    resolved: TrainingConfig,
    images: TrainingImages,
    origin_sha256: str,
) -> Checkpoint:
    return Checkpoint(
        model=model,
        config=module.config,
        preprocessing=preprocessing,
        classes=classes,
        training=resolved,
        images=(len(images.training), len(images.validation)),
        images_sha256=images.digest(),
        epoch=0,
        step=0,
        weights=module.state_dict(),
        origin_sha256=origin_sha256,
    )


def _resolved(
    config: TrainingConfig, network: NetworkConfig, images: TrainingImages, resources: Resources
) -> TrainingConfig:
    """The config with a value for each option. Raises ``UsageError`` for options that do not suit the images."""
    steps = len(epoch_order(config, len(images.training), 0))
    if config.iterations:
        config = replace(config, epochs=math.ceil(config.iterations / steps))
    resolved = _with_defaults(config, network, resources.torch_device())
    total, warmup = total_steps(resolved, steps), resolved.warmup_epochs or 0
    if warmup * steps >= total:
        raise UsageError(
            f"a warm-up of {warmup} epochs, {warmup * steps:,} steps, leaves none of the {total:,} steps for the decay "
            "of the learning rate; train longer or shorten the warm-up"
        )
    if config.snapshots:
        check_cycles(total, config.snapshots)
    return resolved


def _with_defaults(config: TrainingConfig, network: NetworkConfig, device: torch.device) -> TrainingConfig:
    """The config with defaults, which depend on the network and the device, for options that are ``None``."""
    little = network.macs * config.batch_size < _LITTLE_WORK_MACS
    augment = "light" if network.in_channels == 1 else "standard"
    rate = (0.1 if network.batch_norm else 0.02) * (0.1 if config.start else 1)
    short = config.epochs < _EPOCHS_WITH_WARMUP or bool(config.snapshots or config.freezeout)
    return replace(
        config,
        learning_rate=config.learning_rate or rate,
        warmup_epochs=(0 if short else 1) if config.warmup_epochs is None else config.warmup_epochs,
        augment=config.augment or ("none" if config.learn == "head" else augment),
        precision=config.precision or ("bf16" if _supports_bf16(device) else "float32"),
        threads=config.threads or (1 if little else torch.get_num_threads()),
    )


def _supports_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions, bf16 is emulated: correct, but slower than float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _origin(model: str, start: str) -> Weights:
    """The initial weights. Raises ``UsageError`` if there are none, and for weights of quantization-aware training."""
    names = weight_names(model)
    path = find_weights(model, start if start in names else Path(start))
    if not path.exists():
        named = f", or {' or '.join(names)}" if names else ""
        raise UsageError(f"no such weights to start from: {start}; give a run, a checkpoint or a file{named}")
    origin = load_weights(weights_in(path))
    if origin.ranges:
        raise UsageError(f"{start} was trained with fake quantization; start from the float run before it")
    return origin


def _for_classes(classes: tuple[str, ...], origin: Weights, module: NetworkModule) -> Weights:
    """The weights, without their head if it has other classes, even as many."""
    if not origin.classes or classes in (origin.classes, origin.class_ids):
        return origin
    head = head_prefix(module)
    return replace(origin, tensors={name: value for name, value in origin.tensors.items() if not name.startswith(head)})


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])} …)"
