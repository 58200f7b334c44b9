"""Repair of an int8 network: fixes applied in turn until it reaches the target agreement with the float network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from ...runtime.errors import UsageError
from ...runtime.graph import Graph
from ...runtime.progress import SILENT, Advance, Progress
from ..activations import run_outputs
from ..quantization.calibration import choose_ranges, collect_histograms
from ..quantization.equalization import channel_peaks, equalize
from ..quantization.gptq import Moments, input_moments
from ..quantization.quantize import quantize
from ..quantization.ranges import CALIBRATORS, Calibrator
from ..quantization.weight_tuning import tune_weights
from .float_layers import adjacent_ops, keep_float, quantizers
from .matching import match
from .recommendations import Fix
from .sensitivity import LayerBlame, blame_match, class_agreement, sqnr

Weights = Literal["nearest", "corrected", "rounded", "tuned"]

# Calibration images that rank the layers to keep in float.
_RANKING = 20
# Least SQNR gain, in dB, for which a layer stays float.
_WORTH_DB = 0.1
# Most layers to keep in float: with more it is hardly an int8 network.
_MOST_LAYERS = 8


@dataclass(frozen=True)
class Step:
    """A fix that was tried on top of those kept before it, and its result on the validation images."""

    fix: Fix
    detail: str
    agreement: float
    sqnr_db: float | None
    kept: bool


@dataclass(frozen=True)
class Repair:
    """The int8 network of best agreement, its layers in float, and all steps that were tried."""

    graph: Graph
    agreement: float
    sqnr_db: float | None
    target: float
    float_layers: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def reached(self) -> bool:
        """True if the agreement reached the target."""
        return self.agreement >= self.target

    def to_json(self) -> dict[str, Any]:
        """All figures, for JSON."""
        figures = {name: getattr(self, name) for name in ("reached", "target", "agreement", "sqnr_db", "float_layers")}
        return {**figures, "steps": [asdict(step) for step in self.steps]}


def repair(
    reference: Graph,
    quantized: Graph,
    calibration: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    target: float = 0.97,
    progress: Progress = SILENT,
) -> Repair:
    """Apply fixes in turn until the share ``target`` of the ``validation`` images gets the float network's top-1 class.

    The float network is quantized again with another calibrator, equalization, bias correction, GPTQ rounding and (with
    torch) tuned weights; each is kept if it raises the SQNR. Then single layers are kept in float. Both sets of images
    are network inputs, NHWC with the batch axis: ``calibration`` chooses scales, weights and layers, ``validation``
    whether to keep a fix. Raises ``UsageError`` for a target outside 0 to 1, and as ``quantize`` does.
    """
    check_target(target)
    with progress.task("fixing") as advance:
        search = _Search(reference, quantized, calibration, validation, target, advance)
        for fix, detail, changes in _CHANGES:
            if search.done:
                break
            # Tuning weights needs torch.
            if detail != "tuned" or find_spec("torch"):
                search.try_change(fix, detail, changes)
        search.try_float_layers()
    best = search.best
    return Repair(best.graph, best.agreement, best.sqnr_db, target, best.float_layers, tuple(search.steps))


def check_target(target: float) -> None:
    """Raise ``UsageError`` for a target agreement outside 0 to 1."""
    if not 0 <= target <= 1:
        raise UsageError(f"target agreement {target} is not between 0 and 1")


@dataclass(frozen=True)
class _Recipe:
    """Settings with which the float network is quantized."""

    calibrator: Calibrator = "minmax"
    equalized: bool = False
    weights: Weights = "nearest"


_CHANGES: tuple[tuple[Fix, str, dict[str, Any]], ...] = (
    *(("calibrate", name, {"calibrator": name}) for name in CALIBRATORS),
    ("equalize", "", {"equalized": True}),
    ("correct bias", "", {"weights": "corrected"}),
    ("round weights", "layer by layer", {"weights": "rounded"}),
    ("round weights", "tuned", {"weights": "tuned"}),
)


@dataclass(frozen=True)
class _Candidate:
    """An int8 network and its result on the validation images."""

    graph: Graph
    agreement: float
    sqnr_db: float | None
    float_layers: tuple[str, ...] = ()

    @property
    def quality(self) -> float:
        """SQNR in dB: finer than the agreement, which changes by whole images."""
        return np.inf if self.sqnr_db is None else self.sqnr_db


@dataclass
class _Search:
    """State of a repair: the steps tried, the latest network kept, and the best of all."""

    reference: Graph
    quantized: Graph
    calibration: Sequence[np.ndarray]
    validation: Sequence[np.ndarray]
    target: float
    advance: Advance
    steps: list[Step] = field(default_factory=list)
    recipe: _Recipe | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = run_outputs(self.reference, self.validation)
        self.best = self.kept = self.evaluate(self.quantized)

    @property
    def done(self) -> bool:
        return self.best.agreement >= self.target

    def evaluate(self, graph: Graph, float_layers: tuple[str, ...] = ()) -> _Candidate:
        found = run_outputs(graph, self.validation)
        return _Candidate(graph, class_agreement(self.expected, found), sqnr(self.expected, found), float_layers)

    def try_change(self, fix: Fix, detail: str, changes: dict[str, Any]) -> None:
        """Quantize with one setting changed; keep the result if it is better, and the first in any case."""
        recipe = replace(self.recipe or _Recipe(), **changes)
        self.advance(text=f"{fix} {detail}".strip())
        found = self.evaluate(self.build(recipe))
        better = self.recipe is None or found.quality > self.kept.quality
        if better:
            self.recipe, self.kept = recipe, found
        self.record(fix, detail, found, better)

    def try_float_layers(self) -> None:
        """Keep layers of the best network so far in float, the most sensitive first."""
        if self.done:
            return
        self.kept = max(self.best, self.kept, key=lambda candidate: candidate.quality)
        self.advance(text="ranking layers to keep in float")
        found = match(self.reference, self.kept.graph)
        ranked = blame_match(found, self.calibration[:_RANKING])
        for layer in ranked.layers:
            floats = set(self.kept.float_layers)
            added = _float_region(found.quantized, layer) - floats
            if self.done or len(floats | added) > _MOST_LAYERS or layer.recovered <= 0:
                break
            if layer.layer not in found.quantized.producers or not added:
                continue
            self.advance(text=f"keep float {layer.layer}")
            attempt = self.evaluate(keep_float(found, floats | added), tuple(sorted(floats | added)))
            better = attempt.quality >= self.kept.quality + _WORTH_DB
            if better:
                self.kept = attempt
            self.record("keep float", ", ".join(sorted(added)), attempt, better)

    def record(self, fix: Fix, detail: str, found: _Candidate, kept: bool) -> None:
        self.steps.append(Step(fix, detail, found.agreement, found.sqnr_db, kept))
        self.best = max(self.best, found, key=lambda candidate: (candidate.agreement, candidate.quality))

    def build(self, recipe: _Recipe) -> Graph:
        """Quantize the float network by a recipe; intermediate results that recipes share are computed once."""
        graph, samples = self.reference, self.calibration
        if recipe.equalized:
            graph = self.once("equalized", lambda: equalize(graph, channel_peaks(graph, samples)))
        observed = self.once((recipe.equalized, "observed"), lambda: collect_histograms(graph, samples))
        ranges = choose_ranges(graph, observed, recipe.calibrator)
        if recipe.weights == "nearest":
            return quantize(graph, ranges)
        if recipe.weights == "tuned":
            return quantize(tune_weights(graph, ranges, samples), ranges)
        moments = self.once((recipe.equalized, "moments"), lambda: input_moments(graph, samples))
        if recipe.weights == "corrected":
            moments = {name: Moments(m.mean, np.zeros_like(m.covariance)) for name, m in moments.items()}
        return quantize(graph, ranges, moments)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


def _float_region(graph: Graph, layer: LayerBlame) -> set[str]:
    """The layers to keep in float for one layer: itself if its weights cause the error, else all adjacent ones too."""
    quantizer, weights = (np.inf if db is None else db for db in (layer.error.quantizer_db, layer.error.weights_db))
    if weights < quantizer:
        return {layer.layer}
    return adjacent_ops(graph, quantizers(graph)[layer.layer])
