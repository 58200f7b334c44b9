"""The trainings that docs/training.md compares: each a named config, with the runs that it depends on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firebox.model_zoo import SqueezeNetConfig, TrainingConfig, model_config
from firebox.model_zoo.training.run import snapshot_file

SEEDS = (0, 1, 2)
# The share of the training images held out for validation; only the learning rates of transfer are chosen by it.
VALIDATION = 0.02

# Sized for a CPU: the smallest network of the zoo, unless an experiment names another.
SMALL = "squeezenet_micro"
CLASSES = 10
RATE = 0.2
# As in the paper, cycles are long enough for each network to converge; on a CPU that leaves time for few images.
SNAPSHOT_NETWORK = "squeezenet_cifar_small"
SNAPSHOT_COUNT, SNAPSHOT_EPOCHS, SNAPSHOT_IMAGES = 5, 300, 250
# Chosen by hand: better than RATE for the ensemble and for the single network, on a tenth of the images (seed 0).
SNAPSHOT_RATE = 0.6
SHAPE_EPOCHS, SHAPE_IMAGES = 6, 2000
SQUEEZE_RATIOS = (0.125, 0.25, 0.5, 0.75, 1.0)
SHARES_3X3 = (0.01, 0.25, 0.5, 0.75, 0.99)
SHARE_SQUEEZE_RATIO = 0.5
# The paper's accuracy does not rise beyond these (sections 5.2 and 5.3).
FLAT_RATIO, FLAT_SHARE = 0.75, 0.5
# The small network without bypass, at its squeeze ratio in the zoo.
ZOO_RATIO = 0.25
PLAIN = f"sr{ZOO_RATIO}"
_EARLY = (1, 3)
FREEZE_NETWORKS = ("squeezenet_micro", "densenet22", "resnet20", "vgg_cifar")
FREEZE_EPOCHS, FREEZE_IMAGES, FREEZE_BATCH = 10, 500, 64
# Trained like "everything" in transfer: pretrained early layers may lose less by freezing.
FREEZE_TUNED = "squeezenet1_1 from ImageNet"
FREEZE_TUNED_STEPS, FREEZE_TUNED_IMAGES = 1000, 500
NO_FREEZING = "no freezing"
# The paper's choice, and one that freezes the first layers sooner and saves a little more.
FREEZE_PAPER = "cubic, first at 0.8"
FREEZE_WAYS: Mapping[str, Mapping[str, Any]] = {
    NO_FREEZING: {},
    FREEZE_PAPER: {"freezeout": "cubic", "freeze_first": 0.8},
    "linear, first at 0.42": {"freezeout": "linear", "freeze_first": 0.42},
}
FREEZE_TITLES: Mapping[str, str] = {
    NO_FREEZING: "no freezing",
    FREEZE_PAPER: "cubic, t0 = 0.8",
    "linear, first at 0.42": "linear, t0 = 0.42",
}
# The paper's figures for larger networks of these families (arXiv 1706.04983, abstract).
FREEZE_CLAIMS: Mapping[str, str] = {
    "densenet22": "up to 20%, -3%",
    "resnet20": "20%, no loss",
    "vgg_cifar": "no gain",
}
TRANSFER_IMAGES = (10, 50, 500)
TRANSFER_SIZE = 96
TRANSFER_STEPS, TRANSFER_BATCH = 300, 50
# Images per class for choosing the learning rate, with one seed, on the validation images.
TRANSFER_TRIED = 50
# A new head with a ReLU after it loses classes.
TRANSFER_NETWORK = {"head_relu": False}
TRANSFER_WAYS: Mapping[str, Mapping[str, Any]] = {
    "extractor": {"learn": "head", "learning_rate": 0.003},
    "last blocks": {"learn": 2, "learning_rate": 0.003},
    "everything": {"learn": "all", "layer_decay": 0.8, "learning_rate": 0.001},
    # Without batch norm, random weights hardly start to learn in so few steps.
    "from scratch": {"learning_rate": 0.03, "network": {**TRANSFER_NETWORK, "batch_norm": True}},
}
TRANSFER_TITLES: Mapping[str, str] = {
    "extractor": "head only",
    "last blocks": "last blocks",
    "everything": "all layers",
    "from scratch": "from scratch",
}
TRANSFER_RATES: Mapping[str, Sequence[float]] = {
    "extractor": (0.001, 0.003, 0.01),
    "last blocks": (0.001, 0.003, 0.01),
    "everything": (0.0003, 0.001, 0.003),
    "from scratch": (0.01, 0.03, 0.1),
}


@dataclass(frozen=True)
class Trial:
    """A training: ``name`` is also its folder; ``needs`` are the trials whose weights it learns from.

    With ``averages`` nothing is trained: the snapshots of the trial it needs are averaged.
    """

    name: str
    config: TrainingConfig
    needs: tuple[str, ...] = ()
    averages: bool = False


@dataclass(frozen=True)
class Experiment:
    """Trainings that are compared with one another."""

    name: str
    trials: Sequence[Trial]


def experiments(folder: Path, cifar: Path, imagenet_weights: Path) -> list[Experiment]:
    """All experiments; their runs are below ``folder``."""
    base = TrainingConfig(
        model=SMALL,
        data=str(cifar),
        batch_size=128,
        learning_rate=RATE,
        label_smoothing=0.0,
        val_fraction=VALIDATION,
        augment="standard",
        precision="bf16",
        threads=1,
    )
    return [
        Experiment("snapshots", list(_snapshots(base, folder))),
        Experiment("shapes", list(_shapes(replace(base, epochs=SHAPE_EPOCHS, images_per_class=SHAPE_IMAGES)))),
        Experiment("transfer", list(_transfer(base, imagenet_weights))),
        Experiment("freezeout", list(_freezeout(base, imagenet_weights))),
    ]


def _snapshots(base: TrainingConfig, folder: Path) -> Iterator[Trial]:
    base = replace(
        base,
        model=SNAPSHOT_NETWORK,
        images_per_class=SNAPSHOT_IMAGES,
        epochs=SNAPSHOT_EPOCHS,
        learning_rate=SNAPSHOT_RATE,
        # With few images an epoch is short compared with a validation.
        validate_every=SNAPSHOT_EPOCHS // SNAPSHOT_COUNT,
    )
    for seed in SEEDS:
        yield Trial(f"single-{seed}", replace(base, seed=seed))
        cycles = f"cycles-{seed}"
        cyclic = replace(base, seed=seed, snapshots=SNAPSHOT_COUNT, warmup_epochs=0)
        yield Trial(cycles, cyclic)
        yield Trial(f"average-{seed}", cyclic, (cycles,), averages=True)
        teachers = tuple(str(snapshot_file(folder / cycles, number)) for number in range(1, SNAPSHOT_COUNT + 1))
        yield Trial(f"student-{seed}", replace(base, seed=seed, teachers=teachers), (cycles,))


def _shapes(base: TrainingConfig) -> Iterator[Trial]:
    for name, network in shapes().items():
        for seed in SEEDS:
            yield Trial(shape_name(name, seed), replace(base, seed=seed, network=network))


def shapes() -> dict[str, dict[str, Any]]:
    """Options of the small network that each trial changes, by the name of the trial."""
    plain = {"bypass": "none"}
    ratios = {ratio_trial(ratio): {**plain, "squeeze_ratio": ratio} for ratio in SQUEEZE_RATIOS}
    shares = {
        share_trial(share): {**plain, "squeeze_ratio": SHARE_SQUEEZE_RATIO, "pct3x3": share} for share in SHARES_3X3
    }
    # Both curves share one network.
    shares.pop(ratio_trial(SHARE_SQUEEZE_RATIO), None)
    bypasses = {bypass: {"bypass": bypass} for bypass in ("simple", "complex")}
    # The small network of the zoo has late pools.
    early = _of_equal_macs({**plain, "pools": _EARLY}, model_config(SMALL, CLASSES, **plain).macs)
    return {**shares, **ratios, **bypasses, "early": early}


def ratio_trial(ratio: float) -> str:
    return f"sr{ratio}"


def share_trial(share: float) -> str:
    zoo = model_config(SMALL)
    assert isinstance(zoo, SqueezeNetConfig)
    return ratio_trial(SHARE_SQUEEZE_RATIO) if share == zoo.pct3x3 else f"pct{share}"


def shape_name(name: str, seed: int) -> str:
    return f"shape-{name}-{seed}"


def _of_equal_macs(network: Mapping[str, Any], macs: int) -> dict[str, Any]:
    """The network with the number of filters that brings its multiply-accumulates nearest to ``macs``."""

    def widened(base: int) -> dict[str, Any]:
        return {**network, "base_e": base, "incr_e": base // 2}

    def distance(base: int) -> int:
        return abs(model_config(SMALL, CLASSES, **widened(base)).macs - macs)

    return widened(min(range(32, 257, 4), key=distance))


def _transfer(base: TrainingConfig, weights: Path) -> Iterator[Trial]:
    for name in TRANSFER_WAYS:
        config = _transfer_config(base, weights, name)
        for count in TRANSFER_IMAGES:
            for seed in SEEDS:
                yield Trial(transfer_name(name, count, seed), replace(config, images_per_class=count, seed=seed))
        for rate in TRANSFER_RATES[name]:
            if rate != config.learning_rate:
                tried = replace(config, images_per_class=TRANSFER_TRIED, learning_rate=rate)
                yield Trial(rate_name(name, rate), tried)


def _transfer_config(base: TrainingConfig, weights: Path, name: str) -> TrainingConfig:
    """The config of one method of transfer."""
    way = TRANSFER_WAYS[name]
    small = replace(
        base,
        model="squeezenet1_1",
        network=TRANSFER_NETWORK,
        iterations=TRANSFER_STEPS,
        start=None if name == "from scratch" else str(weights),
        augment="none" if way.get("learn") == "head" else "standard",
        input_size=(TRANSFER_SIZE, TRANSFER_SIZE),
        batch_size=TRANSFER_BATCH,
        warmup_epochs=0,
        weight_decay=2e-4,
        # With few images an epoch is short compared with a validation.
        validate_every=1000,
    )
    return replace(small, **way)


def transfer_name(way: str, count: int, seed: int) -> str:
    return f"transfer-{way.replace(' ', '-')}-{count}-{seed}"


def rate_name(way: str, rate: float) -> str:
    """The trial of a method at a learning rate, with few images."""
    if rate == TRANSFER_WAYS[way]["learning_rate"]:
        return transfer_name(way, TRANSFER_TRIED, SEEDS[0])
    return f"{transfer_name(way, TRANSFER_TRIED, SEEDS[0])}-at-{rate}"


def _freezeout(base: TrainingConfig, weights: Path) -> Iterator[Trial]:
    small = replace(
        base,
        epochs=FREEZE_EPOCHS,
        images_per_class=FREEZE_IMAGES,
        batch_size=FREEZE_BATCH,
        learning_rate=0.1,
        warmup_epochs=0,
    )
    configs = {network: replace(small, model=network) for network in FREEZE_NETWORKS}
    tuned = _transfer_config(base, weights, "everything")
    configs[FREEZE_TUNED] = replace(tuned, iterations=FREEZE_TUNED_STEPS, images_per_class=FREEZE_TUNED_IMAGES)
    for network, config in configs.items():
        for name, way in FREEZE_WAYS.items():
            for seed in SEEDS:
                yield Trial(freeze_name(network, name, seed), replace(config, seed=seed, **way))


def freeze_name(network: str, way: str, seed: int) -> str:
    return f"freeze-{network}-{way}-{seed}".replace(",", "").replace(" ", "-")


# The trial whose steps are also timed when compiled.
FREEZE_COMPILED = freeze_name(SMALL, FREEZE_PAPER, SEEDS[0])
