"""What ``quantization.py`` measured, and the page that shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import FOLDER, IMAGES, REFERENCES, surroundings, table
from comparators import stock_version

FOLDS = 5
ONNX, LITERT = "onnxruntime", "LiteRT"

_COMMAND = "python benchmarks/quantization.py --stock build/stock_litert/bin/python"


@dataclass(frozen=True)
class Figures:
    """One file in one runtime on the images that did not calibrate it: the share on which it names float32's class;
    top-1 of both; how many only float32, and only the file, gets right; SQNR of the logits."""

    agreement: float
    top1: float
    float_top1: float
    lost: int
    won: int
    sqnr_db: float


@dataclass(frozen=True)
class Result:
    """One method on one network and fold: processor seconds to make the files, figures by runtime; where there are
    two runtimes, the share of logits that are the same in both, and the largest difference in steps of the output."""

    seconds: float
    runtimes: Mapping[str, Figures]
    identical: float | None
    largest_steps: int | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Result":
        """The inverse of ``asdict``."""
        return cls(**{**values, "runtimes": {name: Figures(**one) for name, one in values["runtimes"].items()}})


@dataclass(frozen=True)
class File:
    """One way to quantize one network, in one runtime: results and figures fold by fold."""

    network: str
    method: str
    runtime: str
    results: Sequence[Result]

    @property
    def figures(self) -> list[Figures]:
        """Fold by fold."""
        return [result.runtimes[self.runtime] for result in self.results]


_WIDE = (
    "*16-bit* gives the activations of some layers 16 bits beside the same int8 weights, in onnxruntime, which "
    "computes such layers in float: it tells how much is lost by activations of 8 bits, whatever the weights."
)
# What the tables show of every file: the heading, the figure and its form.
_MEASURES: Mapping[str, tuple[Callable[[Figures], float], str]] = {
    "same class": (lambda one: one.agreement, "{:.1%}"),
    "top-1": (lambda one: 100 * (one.top1 - one.float_top1), "{:+.2f}"),
    "SQNR, dB": (lambda one: one.sqnr_db, "{:.1f}"),
}


def page(found: Sequence[File], images: int) -> list[str]:
    drawn = images // FOLDS
    measured = images - drawn
    return [
        "# What int8 loses",
        f"This page is written by\n\n```sh\n{_COMMAND}\n```",
        f"on the {images} labelled images of `{FOLDER}/{IMAGES}` ([where from](data.md)), in {FOLDS} folds drawn "
        f"once: in each, {drawn} images calibrate, no two folds the same ones, and the {measured} others are "
        f"measured. One image of a fold is {1 / measured:.2%}. `--stock` names the Python of the environment that "
        "the stock converter is installed in ([how](../benchmarks/README.md#the-stock-converter)).",
        f"{surroundings()} In the other environment: {stock_version()}.",
        "## All folds",
        "Means over the folds, with the lowest and the highest fold in brackets. *Same class* is the share of images "
        "on which the int8 file names the class that the network in torch does; *top-1* is the difference to torch on "
        "the same images, in percentage points, and *lost / won* counts the answers that only torch and only the "
        f"int8 file gets right, of {FOLDS * measured:,} in all folds. *SQNR* is that of the logits. *Seconds* are "
        "those of all processors together: for the export of the int8 files with its gate, for `quantize_static` on a "
        "float32 file, for the stock converter's whole command; [effort](effort.md) times the whole of ours.",
        "*onnxruntime* is `quantize_static` as onnxruntime recommends it for x86 (QDQ, uint8 activations, int8 weights "
        "per channel, MinMax, after `quant_pre_process`); *litert-torch* is LiteRT's own converter from PyTorch, with "
        "its PT2E quantizer (static, weights per channel), and with `ai-edge-quantizer` on the float32 file (recipe "
        "`static_wi8_ai8`): its default ranges are moving averages of the extremes of each image, and *minmax* has "
        "its calibrator cover all extremes instead. All calibrate with the same images.",
        *([_WIDE] if any("16-bit" in file.method for file in found) else []),
        *(f"### {network}\n\n{_summary(_of(network, found))}" for network in REFERENCES),
        "The learning of `best` is the same for both networks: its rate, its epochs and how images are cut were "
        "compared on fold 0, whose figures are therefore not independent of them. Learned weights lower the noise "
        "of the logits, but hardly change how often the class is kept: what is left comes from rounding "
        "activations to 8 bits, which layers of 16 bits take away ([precisions](precisions.md)).",
        "## ONNX beside TFLite",
        "The logits of both files of an export, on the measured images of all folds. A step is the scale of the "
        "output, the least by which two logits can differ.",
        table(("network", "made by", "identical logits", "largest difference"), _format_rows(found), names=2),
        "## Every fold",
        *(
            f"### {network}: {name}\n\n{_fold_table(_of(network, found), name)}"
            for network in REFERENCES
            for name in _MEASURES
        ),
    ]


def _of(network: str, found: Sequence[File]) -> list[File]:
    return [file for file in found if file.network == network]


def _summary(found: Sequence[File]) -> str:
    rows = []
    for file in found:
        same, top1, sqnr = (_spread([figure(one) for one in file.figures], form) for figure, form in _MEASURES.values())
        lost_won = f"{sum(one.lost for one in file.figures)} / {sum(one.won for one in file.figures)}"
        seconds = f"{np.mean([result.seconds for result in file.results]):.0f}"
        rows.append((file.method, file.runtime, same, top1, lost_won, sqnr, seconds))
    same, top1, sqnr = _MEASURES
    return table(("made by", "runtime", same, top1, "lost / won", sqnr, "seconds"), rows, names=2)


def _fold_table(found: Sequence[File], name: str) -> str:
    figure, form = _MEASURES[name]
    rows = [(file.method, file.runtime, *(form.format(figure(one)) for one in file.figures)) for file in found]
    return table(("made by", "runtime", *(f"fold {fold}" for fold in range(FOLDS))), rows, names=2)


def _format_rows(found: Sequence[File]) -> list[tuple[str, ...]]:
    rows = []
    for file in found:
        shares = [result.identical for result in file.results if result.identical is not None]
        if shares and file.runtime == ONNX:
            steps = max(result.largest_steps or 0 for result in file.results)
            largest = "1 step" if steps == 1 else f"{steps} steps"
            # Rounded down: what is not all is not to read as all.
            rows.append((file.network, file.method, f"{np.floor(1e5 * np.mean(shares)) / 1e3:.3f}%", largest))
    return rows


def _spread(values: Sequence[float], form: str) -> str:
    low, mean, high = (form.format(value) for value in (min(values), np.mean(values), max(values)))
    return f"{mean} ({low} to {high})"
