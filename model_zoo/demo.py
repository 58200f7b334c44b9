"""The demo: train, export, compare, plan and profile a small network on scanned digits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..export import ExportConfig
from ..runtime.files import check_writable, write_file
from ..runtime.images import open_images, split_images
from ..runtime.inference import Classifier, Evaluation, Session, evaluate
from ..runtime.profiling import Profile, profile
from ..runtime.progress import SILENT, Progress
from .network import TorchClassifier, export_network, load_network
from .training.run import remove_run
from .training.trainer import TrainingResult, train
from .training_config import TrainingConfig
from .weights.checkpoint import FILE_NAME, read_checkpoint

# Keeps the measurement of four files to seconds.
_PROFILE_SECONDS = 3.0


@dataclass(frozen=True)
class Demo:
    """Results of the demo: training, evaluations of network and files on unseen images, and a profile per file."""

    training: TrainingResult
    evaluations: tuple[Evaluation, ...]
    profiles: tuple[Profile, ...]
    report: Path


def run_demo(out: str | Path, sram: int, seed: int = 0, *, progress: Progress = SILENT) -> Demo:
    """Train ``squeezenet_micro`` on digits in ``out``, export it, and judge the files by ``sram``, a budget in bytes.

    Accuracies are measured on images used neither for training nor for calibration. An earlier demo in the same folder
    is replaced.
    """
    out = Path(out)
    config = TrainingConfig(model="squeezenet_micro", data="digits", seed=seed)
    check_writable(out)
    _remove_earlier(out / "training", config)
    progress.note(f"training {config.model} on {config.data}, {config.epochs} epochs")
    training = train(config, out / "training", progress=progress)
    network = load_network(out / "training")
    seen, unseen = split_images(open_images(config.data), config.val_fraction, config.seed)
    exported = export_network(network, out, seen, ExportConfig(seed=seed), progress=progress)
    models: dict[str, Classifier] = {"torch": TorchClassifier(network)}
    models |= {path.name: Session(path) for path in exported.files}
    evaluations = evaluate(models, unseen, progress=progress)
    profiles = [profile(path, sram=sram, max_seconds=_PROFILE_SECONDS, progress=progress) for path in exported.files]
    report: dict[str, Any] = {
        "training": training.to_json(),
        "export": exported.report,
        "evaluation": {"images": len(unseen), "models": [found.to_json() for found in evaluations]},
        "profiles": [found.to_json() for found in profiles],
    }
    path = write_file(out / "report.json", json.dumps(report, indent=2) + "\n")
    return Demo(training, tuple(evaluations), tuple(profiles), path)


def _remove_earlier(run: Path, config: TrainingConfig) -> None:
    """Remove the run of an earlier demo, but no other run."""
    if not (run / FILE_NAME).is_file():
        return
    earlier = read_checkpoint(run / FILE_NAME).training
    if (earlier.model, earlier.data) == (config.model, config.data):
        remove_run(run)
