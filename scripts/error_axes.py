"""Axes on which time stands against accuracy: both by their logarithm, accuracy by its distance from 100 %."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = (50, 80, 90, 95, 97, 98, 99, 99.5, 99.7, 99.8, 99.9)
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


def label(axes: "Axes", ends: Sequence[Named], gap: float = 0.055) -> None:
    """Name places at the right, so that no two names overlap; ``gap`` between two of them, of the height."""
    places = [
        (axes.transAxes.inverted().transform(axes.transData.transform((x, y))), text, colour)
        for x, y, text, colour in ends
    ]
    places.sort(key=lambda place: place[0][1])
    lowest = 0.03
    heights = []
    for (_, y), _, _ in places:
        heights.append(max(y, lowest))
        lowest = heights[-1] + gap
    over = max(heights[-1] - 0.97, 0)
    for n in reversed(range(len(heights))):  # what does not fit above moves down, as far as it has to
        limit = 0.97 if n == len(heights) - 1 else heights[n + 1] - gap
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
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 4},
        )
