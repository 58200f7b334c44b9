"""The plots of docs/training.md."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from training_figures import Spread


def plot_lines(
    lines: Mapping[str, Sequence[tuple[float, Spread]]], across: str, up: str, logarithmic: bool = False
) -> bytes:
    """A PNG with one line per name: means over the seeds, with bars from the lowest to the highest."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), "osD^v*", strict=False):
        places = [place for place, _ in points]
        means = [spread.mean for _, spread in points]
        bars = np.array([[spread.mean - spread.low, spread.high - spread.mean] for _, spread in points]).T
        axes.errorbar(places, means, yerr=bars, marker=marker, capsize=3, label=name)
    if logarithmic:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()
