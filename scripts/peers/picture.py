"""The picture of ``bench_peers.py``: time against accuracy, and how fast each competitor is."""

import statistics
from typing import TYPE_CHECKING

from error_axes import error, frame, label

from mnist_exp.runs.figures import drawn, styled
from peers.report import TARGETS, Row, names, of, share, threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, told apart by colour-blind readers too
_COLOURS = {
    "example": "#0072b2",
    "dense": "#e69f00",
    "one_epoch": "#cc79a7",
    "original_fp32": "#888888",
    "original_bf16": "#444444",
    "keras": "#56b4e9",
    "sprint": "#d55e00",
    "sprint_fp32": "#e08a5b",
    "fast": "#009e73",
    "default": "#7f3c8d",
    "default_fp32": "#b07cc6",
}
_SECONDS = "seconds of training (log scale); scoring is not counted"


@styled
def picture(found: Row) -> bytes:
    """Return the picture as PNG: each run's scores a dot, the means joined and named; a bar of each one's speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _accuracy(left, found)
    _speed(right, found)
    figure.suptitle(f"MNIST on {found['machine']['cpu']}, {threads(found)}")
    return drawn(figure)


def _accuracy(axes: "Axes", found: Row) -> None:
    ends = []
    for name in names(found):
        runs = [row for row in of(found, name) if row["epochs"]]
        if not runs:
            continue
        colour, means = _COLOURS.get(name, "black"), []
        for epochs in zip(*(row["epochs"] for row in runs), strict=True):
            xs, ys = [epoch["seconds"] for epoch in epochs], [error(epoch["test_acc"]) for epoch in epochs]
            axes.scatter(xs, ys, s=14, color=colour, alpha=0.45, linewidths=0)
            means.append((statistics.mean(xs), statistics.mean(ys)))
        axes.plot(*zip(*means, strict=True), color=colour, marker="o", markersize=6 if len(means) == 1 else 4)
        accuracy = statistics.mean(row["epochs"][-1]["test_acc"] for row in runs)
        ends.append((*means[-1], f"{name}  {accuracy:.2f} %", colour))
    axes.set(xlabel=_SECONDS, title="test accuracy")
    if ends:
        frame(axes, TARGETS, (0.4, 2.2))
        label(axes, ends)


def _speed(axes: "Axes", found: Row) -> None:
    speeds = {name: [row["images_per_s"] for row in of(found, name)] for name in names(found)}
    order = sorted(speeds, key=lambda name: statistics.median(speeds[name]))
    for height, name in enumerate(order):
        median, part = statistics.median(speeds[name]), share(found, name)
        axes.barh(height, median, color=_COLOURS.get(name, "black"), height=0.62)
        axes.hlines(height, min(speeds[name]), max(speeds[name]), color="black", linewidth=1.2)
        told = f"{median:,.0f}" + ("" if part is None else f"  ({part:.0f} % of matmul)")
        axes.annotate(told, (max(speeds[name]), height), (6, 0), textcoords="offset points", va="center", fontsize=9)
    medians = [statistics.median(values) for values in speeds.values()] or [1.0]
    axes.set(
        xscale="log", xlabel="images/s (log scale)", title="training speed, and share of the matrix products' rate"
    )
    axes.set_xlim(min(medians) / 2.5, max(medians) * 25)
    axes.set_yticks(range(len(order)), order)
    axes.spines[["top", "right"]].set_visible(False)
