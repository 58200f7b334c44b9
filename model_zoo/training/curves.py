"""Training curves as an image: loss, accuracies and learning rate by epoch."""

import io
import math
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .log import LogRow


def draw_curves(rows: Sequence[LogRow], title: str) -> bytes:
    """A PNG of the log; equal rows give equal bytes."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row.epoch for row in rows]
    # A line through a single epoch would be invisible.
    marker = "o" if len(rows) == 1 else ""
    loss.plot(epochs, [row.train_loss for row in rows], marker=marker)
    loss.set_title("training loss")
    accuracy.plot(epochs, [row.train_accuracy for row in rows], marker=marker, label="training, augmented")
    validated = [row for row in rows if not math.isnan(row.val_accuracy)]
    accuracy.plot(
        [row.epoch for row in validated],
        [row.val_accuracy for row in validated],
        marker="o" if len(validated) == 1 else "",
        label="validation",
    )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_title("accuracy")
    accuracy.legend(loc="lower right")
    rate.plot(epochs, [row.learning_rate for row in rows], marker=marker)
    rate.set_title("learning rate, last step")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    image = io.BytesIO()
    # Omits matplotlib's version, so that the bytes do not depend on it.
    figure.savefig(image, format="png", dpi=100, metadata={"Software": None})
    return image.getvalue()
