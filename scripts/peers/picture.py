"""The picture of ``bench_peers.py``: time against accuracy, and how fast each competitor is."""

import statistics
from typing import TYPE_CHECKING

from mnist_exp.runs.pictures import drawn
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
_TICKS = (50, 80, 90, 95, 97, 98, 99, 99.5, 99.7, 99.8, 99.9)
_SECONDS = "seconds of training (log scale); scoring is not counted"
_GAP = 0.055  # between two labels, of the height


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
            xs, ys = [epoch["seconds"] for epoch in epochs], [_error(epoch["test_acc"]) for epoch in epochs]
            axes.scatter(xs, ys, s=14, color=colour, alpha=0.45, linewidths=0)
            means.append((statistics.mean(xs), statistics.mean(ys)))
        axes.plot(*zip(*means, strict=True), color=colour, marker="o", markersize=6 if len(means) == 1 else 4)
        accuracy = statistics.mean(row["epochs"][-1]["test_acc"] for row in runs)
        ends.append((*means[-1], f"{name}  {accuracy:.2f} %", colour))
    axes.set(xscale="log", yscale="log", xlabel=_SECONDS, title="test accuracy")
    axes.set_ylabel("accuracy (%), the scale is of the error")
    if ends:
        _frame(axes)
        _label(axes, ends)


def _error(accuracy: float) -> float:
    return max(100 - accuracy, 0.01)


def _frame(axes: "Axes") -> None:
    """Set the limits, room for labels at the right, and lines at the targets."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    low, high = min(low, 0.4), max(high, 2.2)
    axes.set_ylim(high, low)  # good is up
    first, last = axes.get_xlim()
    axes.set_xlim(first, last * (last / first) ** 0.45)
    axes.yaxis.set_major_locator(FixedLocator([100 - tick for tick in _TICKS]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for target in TARGETS:
        axes.axhline(100 - target, color="#bbbbbb", linewidth=1, zorder=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)


def _label(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Name the last mean of each competitor at the right, so that no two names overlap."""
    places = [
        (axes.transAxes.inverted().transform(axes.transData.transform((x, y))), text, colour)
        for x, y, text, colour in ends
    ]
    places.sort(key=lambda place: place[0][1])
    lowest = 0.03
    heights = []
    for (_, y), _, _ in places:
        heights.append(max(y, lowest))
        lowest = heights[-1] + _GAP
    over = max(heights[-1] - 0.97, 0)
    for n in reversed(range(len(heights))):  # what does not fit above moves down, as far as it has to
        limit = 0.97 if n == len(heights) - 1 else heights[n + 1] - _GAP
        heights[n] = min(heights[n], limit) if over else heights[n]
    column = max(x for (x, _), _, _ in places) + 0.05
    for ((x, y), text, colour), height in zip(places, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(column, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 4},
        )


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
