"""The figures of docs/training.md: computed from finished runs, and kept in ``results/training.json``.

An experiment's figures are all that its section of the page shows, so that the page can be written again without the
runs, which take gigabytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import training_trials as plan
from common import accuracy

from firebox.runtime import Ensemble

KEPT = Path(__file__).resolve().parent / "results" / "training.json"


@dataclass(frozen=True)
class Results:
    """The results of finished trials by name; ``folder`` holds their runs, ``labels`` those of the test images."""

    trials: Mapping[str, Mapping[str, Any]]
    folder: Path
    labels: np.ndarray

    def tests(self, name: Callable[[int], str], checkpoint: str = "checkpoint") -> np.ndarray:
        """Test accuracies, one for each seed. Raises ``KeyError`` for a trial that has not run."""
        return np.array([self.trials[name(seed)]["test"][checkpoint] for seed in plan.SEEDS])

    def ensembles(self, trial: str, checkpoints: Sequence[str], combine: str) -> np.ndarray:
        """Test accuracies of an ensemble of a trial's checkpoints, one for each seed."""
        found = []
        for seed in plan.SEEDS:
            files = (self.folder / f"{trial}-{seed}" / logits_file(each) for each in checkpoints)
            logits = [np.load(file, allow_pickle=False) for file in files]
            found.append(accuracy(combined(logits, combine), self.labels))
        return np.array(found)


def logits_file(checkpoint: str) -> str:
    """The file in a run that holds a checkpoint's logits for the test images."""
    return f"test_logits.{checkpoint}.npy"


@dataclass(frozen=True)
class _Member:
    """A member of an ensemble whose logits are known."""

    classes: Sequence[str]
    class_ids: Sequence[str] = ()
    answer: str = "logits"


def combined(logits: Sequence[np.ndarray], combine: Any) -> np.ndarray:
    """The outputs (images, classes) of an ensemble, from the logits of its members."""
    classes = [str(index) for index in range(logits[0].shape[1])]
    members: Any = {str(number): _Member(classes) for number in range(len(logits))}
    ensemble = Ensemble(members, combine)
    return np.array([ensemble.combined(outputs) for outputs in zip(*logits, strict=True)])


@dataclass(frozen=True)
class Spread:
    """The mean of one value per seed, with the lowest and the highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """The spread of the values of all seeds."""
        return cls(*(round(float(value), 6) for value in (values.mean(), values.min(), values.max())))

    def shares(self, digits: int = 2) -> str:
        """As percentages."""
        return f"{self.mean:.{digits}%} ({self.low:.{digits}%} to {self.high:.{digits}%})"

    def points(self) -> str:
        """As differences in percentage points."""
        mean, low, high = (f"{100 * value:+.2f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Snapshots:
    """Networks and ensembles by name: test accuracy, and the gain over the single network of the same seed."""

    accuracy: Mapping[str, Spread]
    gain: Mapping[str, Spread]

    @classmethod
    def of(cls, results: Results) -> Self:
        """From the runs."""
        count = plan.SNAPSHOT_COUNT

        def alone(trial: str, checkpoint: str = "checkpoint") -> np.ndarray:
            return results.tests(lambda seed: f"{trial}-{seed}", checkpoint)

        def last(number: int, combine: str = "softmax") -> np.ndarray:
            names = [f"snapshot{index}" for index in range(count - number + 1, count + 1)]
            return results.ensembles("cycles", names, combine)

        found = {
            "single": alone("single"),
            **{f"snapshot {index}": alone("cycles", f"snapshot{index}") for index in (1, count)},
            **{f"last {number}, softmax": last(number) for number in (2, 3)},
            **{f"all, {combine}": last(count, combine) for combine in ("softmax", "logits", "vote")},
            "average": alone("average"),
            "student": alone("student"),
        }
        return cls(_spreads(found), _spreads({name: values - found["single"] for name, values in found.items()}))


@dataclass(frozen=True)
class Frozen:
    """One network trained with one way of freezing, next to the same without: accuracy, its difference, savings."""

    accuracy: Spread
    difference: Spread | None = None
    predicted: float | None = None
    measured: Spread | None = None


@dataclass(frozen=True)
class FreezeOut:
    """By network and freezing schedule; ``step`` is the share of a step's time that freezing half of the layers saves,
    without and with ``torch.compile``."""

    networks: Mapping[str, Mapping[str, Frozen]]
    step: tuple[float, float]

    @classmethod
    def of(cls, results: Results) -> Self:
        """From the runs."""
        networks = {network: _frozen(results, network) for network in (*plan.FREEZE_NETWORKS, plan.FREEZE_TUNED)}
        eager, compiled = results.trials[plan.FREEZE_COMPILED]["step"]
        return cls(networks, (eager, compiled))


def _frozen(results: Results, network: str) -> dict[str, Frozen]:
    base = results.tests(lambda seed: plan.freeze_name(network, plan.NO_FREEZING, seed))
    found = {plan.NO_FREEZING: Frozen(Spread.of(base))}
    for way in (way for way in plan.FREEZE_WAYS if way != plan.NO_FREEZING):
        names = [plan.freeze_name(network, way, seed) for seed in plan.SEEDS]
        accuracies = np.array([results.trials[name]["test"]["checkpoint"] for name in names])
        savings = [results.trials[name]["saving"] for name in names]
        measured = Spread.of(np.array([each["measured"] for each in savings]))
        found[way] = Frozen(Spread.of(accuracies), Spread.of(accuracies - base), savings[0]["predicted"], measured)
    return found


@dataclass(frozen=True)
class Transfer:
    """By method: validation accuracies at each learning rate tried, and test accuracies by images per class."""

    rates: Mapping[str, Mapping[str, float]]
    accuracy: Mapping[str, Mapping[str, Spread]]

    @classmethod
    def of(cls, results: Results) -> Self:
        """From the runs."""
        return cls(
            {
                way: {f"{rate:g}": results.trials[plan.rate_name(way, rate)]["val"] for rate in rates}
                for way, rates in plan.TRANSFER_RATES.items()
            },
            {
                way: {
                    str(count): Spread.of(results.tests(lambda seed, w=way, c=count: plan.transfer_name(w, c, seed)))
                    for count in plan.TRANSFER_IMAGES
                }
                for way in plan.TRANSFER_WAYS
            },
        )


@dataclass(frozen=True)
class Claim:
    """A difference between two networks, where it has one, and the number of seeds for which the claim holds."""

    seeds: int
    difference: Spread | None = None


@dataclass(frozen=True)
class Shapes:
    """Test accuracies by network, and the verdicts on the paper's claims."""

    accuracy: Mapping[str, Spread]
    claims: Mapping[str, Claim]

    @classmethod
    def of(cls, results: Results) -> Self:
        """From the runs."""
        found = {name: results.tests(lambda seed, n=name: plan.shape_name(n, seed)) for name in plan.shapes()}
        flat = {
            "squeeze ratio": found[plan.ratio_trial(max(plan.SQUEEZE_RATIOS))]
            - found[plan.ratio_trial(plan.FLAT_RATIO)],
            "share of 3x3 filters": (
                found[plan.share_trial(max(plan.SHARES_3X3))] - found[plan.share_trial(plan.FLAT_SHARE)]
            ),
        }
        late = found[plan.PLAIN] - found["early"]
        order = (found[plan.PLAIN] < found["complex"]) & (found["complex"] < found["simple"])
        claims = {name: Claim(int((gains <= 0).sum()), Spread.of(gains)) for name, gains in flat.items()}
        claims["bypass"] = Claim(int(order.sum()))
        claims["late pools"] = Claim(int((late > 0).sum()), Spread.of(late))
        return cls(_spreads(found), claims)


Figures = Snapshots | FreezeOut | Transfer | Shapes
EXPERIMENTS: Mapping[str, type[Snapshots] | type[FreezeOut] | type[Transfer] | type[Shapes]] = {
    "snapshots": Snapshots,
    "freezeout": FreezeOut,
    "transfer": Transfer,
    "shapes": Shapes,
}


@dataclass(frozen=True)
class Kept:
    """An experiment's figures; ``key`` identifies its trainings, ``measured`` names the packages and the processor."""

    key: str
    measured: str
    figures: Figures


def _spreads(found: Mapping[str, np.ndarray]) -> dict[str, Spread]:
    return {name: Spread.of(values) for name, values in found.items()}


def read_kept(path: Path = KEPT) -> dict[str, Kept]:
    """Experiments that have figures, by name."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return {
        name: Kept(found[name]["key"], found[name]["measured"], _figures(name, found[name]["figures"]))
        for name in EXPERIMENTS
        if name in found
    }


def to_json(kept: Mapping[str, Kept]) -> str:
    """The content of the file that ``read_kept`` reads."""
    return json.dumps({name: asdict(kept[name]) for name in EXPERIMENTS if name in kept}, indent=1) + "\n"


def _figures(name: str, values: Mapping[str, Any]) -> Figures:
    match name:
        case "snapshots":
            return Snapshots(_read_spreads(values["accuracy"]), _read_spreads(values["gain"]))
        case "freezeout":
            networks = {
                network: {way: Frozen(**_read_spreads(one)) for way, one in ways.items()}
                for network, ways in values["networks"].items()
            }
            return FreezeOut(networks, tuple(values["step"]))
        case "transfer":
            return Transfer(values["rates"], {way: _read_spreads(one) for way, one in values["accuracy"].items()})
        case _:
            claims = {claim: Claim(**_read_spreads(one)) for claim, one in values["claims"].items()}
            return Shapes(_read_spreads(values["accuracy"]), claims)


def _read_spreads(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with every spread among them read."""
    return {name: Spread(**value) if isinstance(value, dict) else value for name, value in values.items()}
