"""docs/training.md from the results of benchmarks/training.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import training_trials as plan
from common import CIFAR, FOLDER, accuracy, surroundings, table
from training_plots import plot_lines

from firebox.model_zoo.training.freezeout import freezing_times
from firebox.runtime import Ensemble
from firebox.runtime.files import write_file


@dataclass(frozen=True)
class Results:
    """What every finished trial found, by its name; ``folder`` has their runs, ``labels`` are the test images'."""

    trials: Mapping[str, Mapping[str, Any]]
    folder: Path
    labels: np.ndarray

    def tests(self, name: Callable[[int], str], checkpoint: str = "checkpoint") -> list[float]:
        """Accuracies on the test images for every seed, or nothing while one is missing."""
        names = [name(seed) for seed in plan.SEEDS]
        if not all(each in self.trials for each in names):
            return []
        return [self.trials[each]["test"][checkpoint] for each in names]

    def logits(self, trial: str, checkpoint: str) -> np.ndarray:
        """Those of the test images."""
        return np.load(self.folder / trial / logits_file(checkpoint), allow_pickle=False)

    def ensemble(self, trial: str, checkpoints: Sequence[str], way: str) -> float:
        """The accuracy of an ensemble on the test images."""
        return accuracy(together([self.logits(trial, each) for each in checkpoints], way), self.labels)


def logits_file(checkpoint: str) -> str:
    """The file of a run that keeps a checkpoint's logits of the test images."""
    return f"test_logits.{checkpoint}.npy"


def page(results: Results, docs: Path) -> Iterator[str]:
    """The parts of the page; its plots are written into ``docs``."""
    yield "# Training"
    yield "This page is written by"
    yield "```sh\npython benchmarks/training.py\n```"
    yield (
        f"with the CIFAR-10 images of `{FOLDER}/{CIFAR}` ([where from](data.md)): 50,000 to learn from, "
        f"of which {plan.VALIDATION:.0%} are kept to validate, drawn by the seed; accuracies are those on the "
        f"{len(results.labels):,} test images, which nothing was trained or chosen on. Each training, but for those "
        f"that try rates, was made with seeds {', '.join(map(str, plan.SEEDS))}: means, with the lowest and the "
        f"highest in brackets. One image is {1 / len(results.labels):.2%}. Trainings are in bf16, on one thread "
        "each. `--only` makes one part; every option of a training stands in the `config.json` of its run."
    )
    yield surroundings()
    parts = {"snapshots": _snapshots, "freezeout": _freezeout, "transfer": _transfer, "shapes": _shapes}
    for name, part in parts.items():
        yield from [*part(results, docs)] or [f"Not measured yet: `--only {name}`."]


def _snapshots(results: Results, docs: Path) -> Iterator[str]:
    names = [f"{kind}-{seed}" for kind in ("single", "cycles", "student", "average") for seed in plan.SEEDS]
    if not all(name in results.trials for name in names):
        return
    count, epochs = plan.SNAPSHOT_COUNT, plan.SNAPSHOT_EPOCHS
    yield "## Snapshot ensembles, and one network that ships"
    yield (
        f"`{plan.SNAPSHOT_NETWORK}` on {plan.SNAPSHOT_IMAGES:,} images of each class, {epochs} epochs each, all at "
        f"the highest rate of {plan.SNAPSHOT_RATE}, set by hand on validation images. *Snapshots* are {count} cosine "
        f"cycles (arXiv 1704.00109) of {epochs // count} epochs; *single* is one cosine behind an epoch of warm-up, "
        f"which cycles do without. The *student* learns for as many epochs from the mean of the {count} snapshots, "
        "with the same images; the *average* is that of their weights, with statistics of batch norm taken anew. "
        "*Gain* is over the single network of the same seed."
    )

    def alone(kind: str, checkpoint: str = "checkpoint") -> np.ndarray:
        """Accuracies, one for each seed."""
        return np.array(results.tests(lambda seed: f"{kind}-{seed}", checkpoint))

    def ensemble(last: int, way: str = "softmax") -> np.ndarray:
        names = [f"snapshot{number}" for number in range(count - last + 1, count + 1)]
        return np.array([results.ensemble(f"cycles-{seed}", names, way) for seed in plan.SEEDS])

    single, student, whole = alone("single"), alone("student"), ensemble(count)
    rows = [
        ("single network", 1, single),
        *((f"snapshot {number} alone", 1, alone("cycles", f"snapshot{number}")) for number in (1, count)),
        *((f"last {last} snapshots, softmax", last, ensemble(last)) for last in (2, 3)),
        (f"all {count}, softmax", count, whole),
        *((f"all {count}, {way}", count, ensemble(count, way)) for way in ("logits", "vote")),
        (f"average of all {count}", 1, alone("average")),
        ("student", 1, student),
    ]
    yield table(
        ("network", "networks to run", "accuracy", "gain, points"),
        [(name, str(cost), spread(found), points(found - single)) for name, cost, found in rows],
    )
    gain = (whole - single).mean()
    kept = (student - single).mean() / gain if gain > 0 else 0.0
    yield _verdict(
        "On average, the ensemble gains 1.0 point over the single network", f"{100 * gain:+.2f}", gain >= 0.01
    )
    yield _verdict("On average, the student keeps 80% of that gain", f"{kept:.0%}", kept >= 0.8)


def _freezeout(results: Results, docs: Path) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    # Of each SqueezeNet, the ways that save enough and lose little.
    enough: dict[str, list[str]] = {}
    for network in (*plan.FREEZE_NETWORKS, plan.FREEZE_TUNED):
        base = np.array(results.tests(lambda seed, n=network: plan.freeze_name(n, plan.NO_FREEZING, seed)))
        for way in plan.FREEZE_WAYS:
            found = np.array(results.tests(lambda seed, n=network, w=way: plan.freeze_name(n, w, seed)))
            if not len(found) or not len(base):
                return
            if way == plan.NO_FREEZING:
                rows.append((network, way, spread(found), "", "", "", ""))
                continue
            savings = [results.trials[plan.freeze_name(network, way, seed)]["saving"] for seed in plan.SEEDS]
            measured = np.array([each["measured"] for each in savings])
            predicted = f"{savings[0]['predicted']:.0%}"
            claim = plan.FREEZE_CLAIMS.get(network, "") if way == plan.FREEZE_PAPER else ""
            rows.append((network, way, spread(found), points(found - base), predicted, spread(measured, 0), claim))
            squeezenet = results.trials[plan.freeze_name(network, way, plan.SEEDS[0])]["model"].startswith("squeezenet")
            if squeezenet:
                ways = enough.setdefault(network, [])
                if measured.mean() >= 0.2 and (found - base).mean() >= -0.005:
                    ways.append(way)
    paper = plan.FREEZE_WAYS[plan.FREEZE_PAPER]
    first, *_ = freezing_times(2, paper["freezeout"], paper["freeze_first"])
    yield "## FreezeOut"
    yield (
        f"{plan.FREEZE_EPOCHS} epochs on {plan.FREEZE_IMAGES:,} images of each class, without warm-up; "
        f"*{plan.FREEZE_TUNED}* is fine-tuned as *everything* is in transfer, with {plan.FREEZE_TUNED_STEPS:,} steps "
        f"on {plan.FREEZE_TUNED_IMAGES:,} images of each class. *Predicted* is the share of the "
        "multiply-accumulates of forward and backward pass that frozen layers do not make; *measured* is that of the "
        "time: steps with as many layers frozen as the schedule freezes were timed in turns with steps that freeze "
        "none, in rounds, and every phase of the schedule counted with its length. *First* is the paper's t0, which "
        f"*cubic* cubes: the first layer stops after {first:.0%} of the steps there. What the paper claims (arXiv "
        "1706.04983) is of larger networks of the same family, in more epochs."
    )
    columns = ("network", "freezing", "accuracy", "difference, points", "predicted", "measured", "paper")
    yield table(columns, rows, names=2)
    if step := results.trials.get(plan.FREEZE_COMPILED, {}).get("step"):
        eager, compiled = (f"{share:.0%}" for share in step)
        yield (
            f"A step of {plan.FREEZE_NETWORKS[0]} takes {eager} less time with the first half of its layers frozen, "
            f"and {compiled} less under `torch.compile`, where each layer that is frozen has the network compiled anew."
        )
    for network, ways in enough.items():
        claim = f"On {network}, 20% of the time is saved for at most 0.5 points on average"
        yield _verdict(claim, "; ".join(ways), bool(ways))


def _transfer(results: Results, docs: Path) -> Iterator[str]:
    lines: dict[str, list[tuple[float, np.ndarray]]] = {}
    for way in plan.TRANSFER_WAYS:
        for count in plan.TRANSFER_IMAGES:
            found = results.tests(lambda seed, w=way, c=count: plan.transfer_name(w, c, seed))
            if found:
                lines.setdefault(way, []).append((count, np.array(found)))
    if any(len(lines.get(way, ())) < len(plan.TRANSFER_IMAGES) for way in plan.TRANSFER_WAYS):
        return
    yield "## Transfer from ImageNet"
    yield (
        f"`squeezenet1_1` with the weights of `{FOLDER}/squeezenet1_1.pth`, images at "
        f"{plan.TRANSFER_SIZE}x{plan.TRANSFER_SIZE}, {plan.TRANSFER_STEPS} steps of {plan.TRANSFER_BATCH} images "
        "whatever their number. *Extractor* trains a new head on codes that are computed once; *last blocks* the last "
        "two Fire modules and the head; *everything* all layers, each block at 0.8 times the rate of the block above; "
        "*from scratch* begins with new weights and has batch norm. Rates were chosen on the validation images, at "
        f"{plan.TRANSFER_TRIED} images a class and seed {plan.SEEDS[0]}:"
    )
    tried = []
    for way, rates in plan.TRANSFER_RATES.items():
        found = [results.trials.get(plan.rate_name(way, rate), {}).get("val") for rate in rates]
        if None in found:
            return
        cells = (f"{rate:g}: {value:.1%}" for rate, value in zip(rates, found, strict=True))
        tried.append((way, *cells, f"{plan.TRANSFER_WAYS[way]['learning_rate']:g}"))
    yield table(("way", "rate: validation accuracy", "", "", "chosen"), tried)
    columns = ("way", *(f"{count} a class" for count in plan.TRANSFER_IMAGES))
    yield table(columns, [(way, *(spread(found) for _, found in line)) for way, line in lines.items()])
    plot = plot_lines(lines, "images a class", "accuracy on the test images", logarithmic=True)
    write_file(docs / "training-transfer.png", plot)
    yield "![Accuracy over the images a class, a line for each way of transfer](training-transfer.png)"


def _shapes(results: Results, docs: Path) -> Iterator[str]:
    def found(trial: str) -> np.ndarray:
        return np.array(results.tests(lambda seed: plan.shape_name(trial, seed)))

    def known(trial: str) -> Mapping[str, Any]:
        return results.trials[plan.shape_name(trial, plan.SEEDS[0])]

    def row(name: str, trial: str) -> tuple[str, ...] | None:
        if not len(found(trial)):
            return None
        parameters, macs = known(trial)["parameters"], known(trial)["macs"]
        return (name, f"{parameters:,}", f"{macs / 1e6:.1f} M", spread(found(trial)))

    def curve(trials: Mapping[float, str]) -> list[tuple[float, np.ndarray]]:
        return [(known(trial)["parameters"] * 4 / 1e6, found(trial)) for trial in trials.values()]

    ratios = {value: plan.ratio_trial(value) for value in plan.SQUEEZE_RATIOS}
    shares = {value: plan.share_trial(value) for value in plan.SHARES_3X3}
    rows = [
        *(row(f"squeeze ratio {value}", trial) for value, trial in ratios.items()),
        *(row(f"share of 3x3 filters {value:.0%}", trial) for value, trial in shares.items()),
    ]
    others = {"no bypass": plan.PLAIN, "simple bypass": "simple", "complex bypass": "complex"}
    pools = {"delayed down-sampling": plan.PLAIN, "early down-sampling, as many MACs": "early"}
    rows2, rows3 = ([row(name, trial) for name, trial in each.items()] for each in (others, pools))
    if None in (*rows, *rows2, *rows3):
        return
    yield "## The shape of a SqueezeNet"
    yield (
        f"Networks of `squeezenet_micro`'s shape without bypass, {plan.SHAPE_EPOCHS} epochs on {plan.SHAPE_IMAGES:,} "
        "images of each class. The share of 3x3 filters is varied at a squeeze ratio of "
        f"{plan.SHARE_SQUEEZE_RATIO}, as in the paper (1602.07360, section 5)."
    )
    columns = ("network", "parameters", "MACs", "accuracy")
    yield table(columns, [each for each in rows if each])
    write_file(
        docs / "training-shapes.png",
        plot_lines(
            {"squeeze ratio": curve(ratios), "share of 3x3 filters": curve(shares)},
            "size, MB of float32",
            "accuracy on the test images",
        ),
    )
    yield "![Accuracy over size for both](training-shapes.png)"
    # Sections 5.2 and 5.3: where the paper's curves are flat.
    for curve_of, name, first in ((ratios, "squeeze ratio", 0.75), (shares, "share of 3x3 filters", 0.5)):
        gains = found(curve_of[max(curve_of)]) - found(curve_of[first])
        claim = f"As in the paper, accuracy does not rise beyond a {name} of {first}, here by {points(gains)} points"
        yield _agreed(claim, gains <= 0)
    yield "Bypass (section 6), at the squeeze ratio of 0.25:"
    yield table(columns, [each for each in rows2 if each])
    none, simple, complex_ = (found(trial) for trial in others.values())
    yield _agreed("The paper's order: none, then complex, then simple", (none < complex_) & (complex_ < simple))
    yield (
        "Down-sampling late (pools behind layers 3 and 5) beside early (behind 1 and 3), with as many filters as give "
        "the same multiply-accumulates (He and Sun, arXiv 1412.1710):"
    )
    yield table(columns, [each for each in rows3 if each])
    late, soon = (found(trial) for trial in pools.values())
    yield _agreed(f"Delaying helps, here by {points(late - soon)} points", late > soon)


@dataclass(frozen=True)
class _Member:
    """Of an ensemble whose logits are known."""

    classes: Sequence[str]
    class_ids: Sequence[str] = ()
    answer: str = "logits"


def together(logits: Sequence[np.ndarray], way: Any) -> np.ndarray:
    """The answers (images, classes) of an ensemble to all images."""
    classes = [str(index) for index in range(logits[0].shape[1])]
    members: Any = {str(number): _Member(classes) for number in range(len(logits))}
    ensemble = Ensemble(members, way)
    return np.array([ensemble.combined(answers) for answers in zip(*logits, strict=True)])


def spread(shares: np.ndarray, digits: int = 2) -> str:
    """The mean of shares with the lowest and the highest."""
    return f"{shares.mean():.{digits}%} ({shares.min():.{digits}%} to {shares.max():.{digits}%})"


def points(differences: np.ndarray) -> str:
    """The mean of differences of shares, in points, with the lowest and the highest."""
    mean, low, high = (f"{100 * value:+.2f}" for value in (differences.mean(), differences.min(), differences.max()))
    return f"{mean} ({low} to {high})"


def _agreed(claim: str, seeds: np.ndarray) -> str:
    """Whether a claim holds, where all seeds say the same."""
    holds = seeds.all() if seeds.all() == seeds.any() else None
    return _verdict(claim, f"with {seeds.sum()} of {len(seeds)} seeds", holds)


def _verdict(claim: str, figure: str, holds: bool | None) -> str:
    """``None`` where it cannot be told."""
    answer = "not to be told" if holds is None else "yes" if holds else "no"
    found = f" ({figure})" if figure else ""
    return f"{claim}: **{answer}**{found}."
