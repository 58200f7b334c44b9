"""A float network quantized again, with one fix after the other, until it agrees with itself as often as is asked."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from ...runtime.errors import UsageError
from ...runtime.graph import Graph
from ..activations import run_outputs
from ..quantization.calibration import choose_ranges, collect_histograms
from ..quantization.equalization import channel_peaks, equalize
from ..quantization.gptq import Moments, input_moments
from ..quantization.quantize import quantize
from ..quantization.ranges import CALIBRATORS, Calibrator
from ..quantization.weight_tuning import tune_weights
from .advice import Fix
from .float_layers import adjacent_ops, keep_float, quantizers
from .matching import match
from .sensitivity import LayerBlame, blame_match, class_agreement, sqnr

Weights = Literal["nearest", "corrected", "rounded", "learned"]

# Images by which the layers to keep in float are ranked, of those that calibrate.
_RANKING = 20
# What a layer in float has to bring, in dB of the network's answer.
_WORTH_DB = 0.1
# With more layers than these in float it is hardly an int8 network.
_MOST_LAYERS = 8


@dataclass(frozen=True)
class Step:
    """A fix that was tried, with those kept before it, and how the network then does on the judged images."""

    fix: Fix
    detail: str
    agreement: float
    sqnr_db: float | None
    kept: bool


@dataclass(frozen=True)
class Repair:
    """The int8 network that agrees most, and the steps on the way; ``float_layers`` stay float in it."""

    graph: Graph
    agreement: float
    sqnr_db: float | None
    target: float
    float_layers: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def reached(self) -> bool:
        """Whether it agrees as often as was asked for."""
        return self.agreement >= self.target

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        figures = {name: getattr(self, name) for name in ("reached", "target", "agreement", "sqnr_db", "float_layers")}
        return {**figures, "steps": [asdict(step) for step in self.steps]}


def repair(
    reference: Graph,
    quantized: Graph,
    calibration: Sequence[np.ndarray],
    judged: Sequence[np.ndarray],
    target: float = 0.97,
    tell: Callable[[str], None] = lambda text: None,
) -> Repair:
    """Fix after fix until the share ``target`` of the ``judged`` images gets the float network's best class.

    Another calibration, equalization, bias correction, rounding by layers and (with torch) learned weights, each kept
    when the answer's ratio of signal to noise is better with it; then single layers in float. Both sets of images
    are network inputs, NHWC with the batch; scales, weights and layers are chosen on ``calibration``, whether to keep a
    fix on ``judged``. ``tell`` gets the name of each fix before it is tried. Raises ``UsageError`` for a target that is
    no share, and as ``quantize``.
    """
    check_target(target)
    bench = _Bench(reference, quantized, calibration, judged, target, tell)
    for fix, detail, changes in _CHANGES:
        if bench.done:
            break
        # Without torch weights are not learned.
        if detail != "learned" or find_spec("torch"):
            bench.try_change(fix, detail, changes)
    bench.try_floats()
    best = bench.best
    return Repair(best.graph, best.agreement, best.sqnr_db, target, best.float_layers, tuple(bench.steps))


def check_target(target: float) -> None:
    """Refuse a target that is no share of the images. Raises ``UsageError``."""
    if not 0 <= target <= 1:
        raise UsageError(f"target agreement {target} is not between 0 and 1")


@dataclass(frozen=True)
class _Recipe:
    """How the float network is quantized."""

    calibrator: Calibrator = "minmax"
    equalized: bool = False
    weights: Weights = "nearest"


_CHANGES: tuple[tuple[Fix, str, dict[str, Any]], ...] = (
    *(("calibrate", name, {"calibrator": name}) for name in CALIBRATORS),
    ("equalize", "", {"equalized": True}),
    ("correct bias", "", {"weights": "corrected"}),
    ("round weights", "layer by layer", {"weights": "rounded"}),
    ("round weights", "learned", {"weights": "learned"}),
)


@dataclass(frozen=True)
class _Candidate:
    """An int8 network and how it does."""

    graph: Graph
    agreement: float
    sqnr_db: float | None
    float_layers: tuple[str, ...] = ()

    @property
    def quality(self) -> float:
        """Tells small steps apart, which a share of the images does not."""
        return np.inf if self.sqnr_db is None else self.sqnr_db


@dataclass
class _Bench:
    """The work on one network: what was tried, what was kept, and the best of all."""

    reference: Graph
    quantized: Graph
    calibration: Sequence[np.ndarray]
    judged: Sequence[np.ndarray]
    target: float
    tell: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)
    recipe: _Recipe | None = None
    seen: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = run_outputs(self.reference, self.judged)
        self.best = self.kept = self.judge(self.quantized)

    @property
    def done(self) -> bool:
        return self.best.agreement >= self.target

    def judge(self, graph: Graph, float_layers: tuple[str, ...] = ()) -> _Candidate:
        found = run_outputs(graph, self.judged)
        return _Candidate(graph, class_agreement(self.expected, found), sqnr(self.expected, found), float_layers)

    def try_change(self, fix: Fix, detail: str, changes: dict[str, Any]) -> None:
        """Quantize with one thing changed; keep it when the answer is better, the first in any case."""
        recipe = replace(self.recipe or _Recipe(), **changes)
        self.tell(f"{fix} {detail}".strip())
        found = self.judge(self.build(recipe))
        better = self.recipe is None or found.quality > self.kept.quality
        if better:
            self.recipe, self.kept = recipe, found
        self.note(fix, detail, found, better)

    def try_floats(self) -> None:
        """Layers in float, those that bring most first, in the best network so far."""
        if self.done:
            return
        self.kept = max(self.best, self.kept, key=lambda candidate: candidate.quality)
        self.tell("looking for layers to keep in float")
        found = match(self.reference, self.kept.graph)
        ranked = blame_match(found, self.calibration[:_RANKING])
        for layer in ranked.layers:
            floats = set(self.kept.float_layers)
            added = _island(found.quantized, layer) - floats
            if self.done or len(floats | added) > _MOST_LAYERS or layer.recovered <= 0:
                break
            if layer.layer not in found.quantized.producers or not added:
                continue
            self.tell(f"keep float {layer.layer}")
            attempt = self.judge(keep_float(found, floats | added), tuple(sorted(floats | added)))
            better = attempt.quality >= self.kept.quality + _WORTH_DB
            if better:
                self.kept = attempt
            self.note("keep float", ", ".join(sorted(added)), attempt, better)

    def note(self, fix: Fix, detail: str, found: _Candidate, kept: bool) -> None:
        self.steps.append(Step(fix, detail, found.agreement, found.sqnr_db, kept))
        self.best = max(self.best, found, key=lambda candidate: (candidate.agreement, candidate.quality))

    def build(self, recipe: _Recipe) -> Graph:
        """The float network quantized by a recipe; what recipes share is computed once."""
        graph, samples = self.reference, self.calibration
        if recipe.equalized:
            graph = self.once("equalized", lambda: equalize(graph, channel_peaks(graph, samples)))
        observed = self.once((recipe.equalized, "observed"), lambda: collect_histograms(graph, samples))
        ranges = choose_ranges(graph, observed, recipe.calibrator)
        if recipe.weights == "nearest":
            return quantize(graph, ranges)
        if recipe.weights == "learned":
            return quantize(tune_weights(graph, ranges, samples), ranges)
        moments = self.once((recipe.equalized, "moments"), lambda: input_moments(graph, samples))
        if recipe.weights == "corrected":
            moments = {name: Moments(m.mean, np.zeros_like(m.covariance)) for name, m in moments.items()}
        return quantize(graph, ranges, moments)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.seen:
            self.seen[key] = make()
        return self.seen[key]


def _island(graph: Graph, layer: LayerBlame) -> set[str]:
    """What has to be float for a layer to lose nothing: itself where its weights are at fault, else all around."""
    quantizer, weights = (np.inf if db is None else db for db in (layer.error.quantizer_db, layer.error.weights_db))
    if weights < quantizer:
        return {layer.layer}
    return adjacent_ops(graph, quantizers(graph)[layer.layer])
