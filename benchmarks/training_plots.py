"""The plots of docs/training.md."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def plot_lines(
    lines: Mapping[str, Sequence[tuple[float, np.ndarray]]], across: str, up: str, logarithmic: bool = False
) -> bytes:
    """A PNG with a line for each name: means over the seeds, bars from the lowest to the highest."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), "osD^v*", strict=False):
        places = [place for place, _ in points]
        means = np.array([found.mean() for _, found in points])
        bars = np.array([[found.mean() - found.min(), found.max() - found.mean()] for _, found in points]).T
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
