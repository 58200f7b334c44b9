"""Parameters, sizes and work of every network of the zoo, and what is claimed of them; writes docs/zoo.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
from common import out_option, table, write_page

from firebox.model_zoo import NetworkConfig, find_model, list_models, model_config
from firebox.model_zoo.networks.baselines import GoogLeNetConfig
from firebox.model_zoo.networks.layered_config import LayeredConfig

_FLOAT32_BYTES = 4
_MB, _MIB = 10**6, 2**20
# The two SqueezeNets that all others are divided by.
_PAPER, _HALF = "squeezenet1_0", "squeezenet1_0, SR 0.5"
# And those for small images.
_SMALL = ("squeezenet_cifar", "squeezenet_cifar_small", "squeezenet_micro")
# How far a figure may be from a claim, which is rounded.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Figures:
    """What is counted of one network."""

    name: str
    parameters: int
    fully_connected: int
    macs: int

    @property
    def megabytes(self) -> float:
        """Of float32 parameters, 10^6 bytes each."""
        return self.parameters * _FLOAT32_BYTES / _MB

    @property
    def mebibytes(self) -> float:
        """Of float32 parameters, 2^20 bytes each."""
        return self.parameters * _FLOAT32_BYTES / _MIB


@dataclass(frozen=True)
class Claim:
    """A figure that articles give, and what is counted for it; ``at least`` for one that is to be reached."""

    text: str
    claimed: float
    counted: float
    unit: str
    kind: Literal["about", "at least"] = "about"

    @property
    def holds(self) -> bool:
        """Whether the count is near the claim, or not below it."""
        if self.kind == "at least":
            return self.counted >= self.claimed
        return abs(self.counted / self.claimed - 1) <= _TOLERANCE

    def row(self) -> tuple[str, ...]:
        """Cells of a table."""
        off = f"{self.counted / self.claimed - 1:+.1%}"
        figures = (f"{figure:,.4g} {self.unit}".strip() for figure in (self.claimed, self.counted))
        return (self.text, "holds" if self.holds else "does not hold", *figures, off)


@click.command()
@out_option("zoo.md")
def main(out: Path) -> None:
    """Count every network of the zoo at its own input size; needs neither data nor time."""
    networks = [_figures(name, find_model(name).config) for name in list_models()]
    half = _figures(_HALF, model_config(_PAPER, squeeze_ratio=0.5))
    by_name = {found.name: found for found in (*networks, half)}
    write_page(out, _page(by_name))


def _figures(name: str, config: NetworkConfig) -> Figures:
    fully_connected = config.figures.fully_connected if isinstance(config, LayeredConfig) else 0
    return Figures(name, config.parameters, fully_connected, config.macs)


def _page(networks: dict[str, Figures]) -> list[str]:
    large = [found for name, found in networks.items() if name == _HALF or _classes(name) == 1000]
    small = [found for name, found in networks.items() if found not in large]
    return [
        "# The networks of the zoo",
        "This page is written by",
        "```sh\npython benchmarks/zoo.py\n```",
        "Parameters and multiply-accumulates (MACs) are counted from the descriptions that the networks are built of; "
        "the tests hold both counts to those of the torch modules. Sizes are those of float32 parameters: MB are "
        "10^6 bytes, MiB 2^20. Only convolutions and fully connected layers count among the MACs.",
        f"## Networks for ImageNet\n\nOf 1,000 classes, at the input size of the zoo. The last two columns are the "
        f"parameters divided by those of {_PAPER}, and of the same with squeeze ratio (SR) 0.5.",
        _networks(large, (networks[_PAPER], networks[_HALF])),
        "AlexNet and GoogLeNet come without local response normalization, which has no parameters; GoogLeNet "
        "without the two auxiliary classifiers that it is trained with.",
        f"## Networks for small images\n\nOf 10 classes, for 32x32 images. Parameters divided by those of "
        f"{', '.join(_SMALL[:-1])} and {_SMALL[-1]}.",
        _networks(small, [networks[name] for name in _SMALL]),
        f"## Claims checked\n\nA claim holds when the figure that is counted is within {_TOLERANCE:.0%} of it, for "
        "claims are rounded; one of a figure to be reached holds when it is reached. Where an article may mean MiB by "
        "MB, both are given.",
        table(("claim", "", "claimed", "counted", "off by"), [claim.row() for claim in _claims(networks)], names=2),
    ]


def _classes(name: str) -> int:
    return find_model(name).config.num_classes


def _networks(found: Sequence[Figures], divisors: Sequence[Figures]) -> str:
    columns = (
        *("network", "parameters", "MB", "MiB", "fully connected", "MACs"),
        *(f"÷ {divisor.name}" for divisor in divisors),
    )
    rows = [
        (
            row.name,
            f"{row.parameters:,}",
            f"{row.megabytes:,.2f}",
            f"{row.mebibytes:,.2f}",
            f"{row.fully_connected / row.parameters:.1%}",
            f"{row.macs / 1e6:,.1f} M",
            *(f"{row.parameters / divisor.parameters:,.2f}" for divisor in divisors),
        )
        for row in sorted(found, key=lambda row: row.parameters)
    ]
    return table(columns, rows)


def _claims(networks: dict[str, Figures]) -> list[Claim]:
    alexnet, vgg, squeezenet, half = (networks[name] for name in ("alexnet", "vgg16", _PAPER, _HALF))
    googlenet = networks["googlenet"]
    config = find_model(googlenet.name).config
    assert isinstance(config, GoogLeNetConfig)
    trained = config.with_auxiliary * _FLOAT32_BYTES / _MB
    fewer = alexnet.parameters / squeezenet.parameters
    return [
        Claim("AlexNet has 240 MB", 240, alexnet.megabytes, "MB"),
        Claim("SqueezeNet has 4.8 MB", 4.8, squeezenet.megabytes, "MB"),
        Claim("the same in MiB", 4.8, squeezenet.mebibytes, "MiB"),
        Claim("SqueezeNet has 50 times fewer parameters than AlexNet", 50, fewer, ""),
        Claim("the same as a bound", 50, fewer, "", "at least"),
        Claim("VGG-16 has over 552 MB", 552, vgg.megabytes, "MB", "at least"),
        Claim(
            "nine tenths of VGG-16's parameters are in fully connected layers",
            90,
            100 * vgg.fully_connected / vgg.parameters,
            "%",
        ),
        Claim("GoogLeNet has 53 MB", 53, googlenet.megabytes, "MB"),
        Claim("the same with the auxiliary classifiers of its training", 53, trained, "MB"),
        Claim("SqueezeNet of SR 0.5 has 13 MB", 13, half.megabytes, "MB"),
        Claim("the same in MiB", 13, half.mebibytes, "MiB"),
    ]


if __name__ == "__main__":
    main()
