"""Axes on which time stands against accuracy: both by their logarithm, accuracy by its distance from 100 %."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = (50, 80, 90, 95, 97, 98, 99, 99.5, 99.7, 99.8, 99.9)
_BOTTOM, _TOP = 0.03, 0.97  # of names, as shares of the height
Named = tuple[float, float, str, str]  # a place in data, the text beside it, a colour


def error(accuracy: float) -> float:
    """Return where an ``accuracy`` stands, in percent."""
    return max(100 - accuracy, 0.01)


def frame(axes: "Axes", targets: Sequence[float], least: tuple[float, float]) -> None:
    """Set the limits, the errors ``least`` always inside, room for names at the right, and lines at the ``targets``."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set(xscale="log", yscale="log")
    axes.set_ylabel("accuracy (%), the scale is of the error")
    low, high = axes.get_ylim()
    axes.set_ylim(max(high, least[1]), min(low, least[0]))  # good is up
    first, last = axes.get_xlim()
    axes.set_xlim(first, last * (last / first) ** 0.45)
    axes.yaxis.set_major_locator(FixedLocator([100 - tick for tick in _TICKS]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for target in targets:
        axes.axhline(100 - target, color="#bbbbbb", linewidth=1, zorder=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)


def label(axes: "Axes", ends: Sequence[Named], gap: float = 0.055) -> float:
    """Name places at the right, so that no two names overlap, and each as near to its place as that allows.

    ``gap`` lies between two of them, of the height; less where there are too many. Returns where the names begin, of the
    width.
    """
    import numpy as np
    from scipy.optimize import isotonic_regression

    places = [
        (axes.transAxes.inverted().transform(axes.transData.transform((x, y))), text, colour)
        for x, y, text, colour in ends
    ]
    places.sort(key=lambda place: place[0][1])
    gap = min(gap, (_TOP - _BOTTOM) / max(len(places) - 1, 1))
    steps = gap * np.arange(len(places))
    least_moved = isotonic_regression(np.array([y for (_, y), _, _ in places]) - steps).x
    heights = np.clip(least_moved, _BOTTOM, _TOP - steps[-1]) + steps
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
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 4},
        )
    return float(column)
