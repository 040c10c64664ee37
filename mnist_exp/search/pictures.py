"""Pictures of a search."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_exp.files import atomic_write
from mnist_exp.fitted import short_names
from mnist_exp.runs.figures import GREY, colour, drawn, plain, styled
from mnist_exp.runs.folder import refuse_links

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
ENOUGH = 10  # finished trials; with fewer a picture says that they are too few
# a scale for percent, as the logarithm is for losses: else one bad trial hides what sets the good ones apart
_OF_WHAT_IS_LACKING = (lambda acc: -np.log(100.1 - np.minimum(acc, 100)), lambda y: 100.1 - np.exp(-y))


@styled
def plot_study(study: optuna.Study, best: Any, folder: Path, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Draw history, importance, slices and parallel coordinates of a study with a ``best`` trial; return the files.

    They go into ``folder``, one below the study's. Raises UserError if that is a link.
    """
    picture = Pictures(study, best)
    figures: dict[str, Callable[[], Figure]] = {
        "history": picture.history,
        "importance": picture.importance,
        "slices": picture.slices,
        "parallel": picture.parallel,
    }
    refuse_links(folder.parent, folder.name)
    folder.mkdir(exist_ok=True)
    files = []
    for name, draw in figures.items():
        try:
            figure = draw()
            contents = {folder / f"{name}.{kind}": drawn(figure, kind, dpi=110) for kind in kinds}
        except (ValueError, RuntimeError, ArithmeticError) as error:
            log.warning("%s cannot be drawn yet: %s", name, error)
            continue
        for file, content in contents.items():
            files.append(file)
            atomic_write(file, content)
    return files


def too_few(study: optuna.Study) -> str:
    """Return what to say of a study with too few finished trials to tell; "" if there are enough."""
    finished = sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))
    if finished >= ENOUGH:
        return ""
    return f"only {finished} finished {'trial' if finished == 1 else 'trials'}: too few to tell"


class Pictures:
    """The four figures of a study, whose ``best`` trial is marked in each that shows trials."""

    def __init__(self, study: optuna.Study, best: Any):
        trials = [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
        self.study, self.best, self.few = study, best, too_few(study)
        self.metric = study.user_attrs.get("search", {}).get("metric", "value")
        self.minimize = study.direction.name == "MINIMIZE"
        self.complete: list[Any] = [t for t in trials if t.state.name == "COMPLETE"]
        self.pruned = [t for t in trials if t.state.name == "PRUNED" and t.intermediate_values]
        ranges: dict[str, Any] = {}
        for trial in trials:
            ranges |= trial.distributions
        self.ranges = dict(sorted(ranges.items()))
        self.labels = {n: plain(short, 40).replace(".", ".\n") for n, short in short_names(list(self.ranges)).items()}

    def history(self) -> Figure:
        """Draw the value of each trial in the order of their numbers, and the best so far."""
        from matplotlib.ticker import MaxNLocator

        figure = self._figure(8, 4.5, "values of the trials")
        axes = figure.subplots()
        best: list[float] = []
        for trial in self.complete:
            best.append((min if self.minimize else max)([trial.value, *best[-1:]]))
        axes.step([t.number for t in self.complete], best, where="post", color=colour(1), label="best so far")
        self._spots(axes, [trial.number for trial in (*self.pruned, *self.complete)])
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        self._legend(figure, axes)
        return figure

    def importance(self) -> Figure:
        """Draw what share of the differences in value each parameter explains, as Optuna estimates it (PED-ANOVA)."""
        from optuna.importance import get_param_importances

        if len({trial.value for trial in self.complete}) < 2:
            raise ValueError("there are no two finished trials with different values")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of Optuna's evaluators are experimental
            found = get_param_importances(self.study)
        names = list(reversed(found))
        figure = self._figure(8, 1.6 + 0.4 * len(names), f"importance for {self.metric}, by Optuna's PED-ANOVA")
        axes = figure.subplots()
        labels = [self.labels[name].replace("\n", "") for name in names]
        bars = axes.barh(labels, [found[name] for name in names], color=colour(0))
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set(xlabel="share of all", xlim=(0, 1.12 * max([*found.values(), 1e-9])))
        return figure

    def slices(self) -> Figure:
        """Draw the values of finished and pruned trials against each parameter."""
        rows = math.ceil(len(self.ranges) / 5)
        columns = math.ceil(len(self.ranges) / rows)
        figure = self._figure(max(5, 3 * columns), 0.9 + 3.4 * rows, f"{self.metric} against each parameter")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, (name, one) in zip(grid.flat, self.ranges.items(), strict=False):
            place = _Scale(one)
            self._spots(axes, [place(trial.params.get(name)) for trial in (*self.pruned, *self.complete)])
            axes.set_xlabel(self.labels[name])
            place.ticks(axes.xaxis)
        for axes in grid[:, 1:].flat:
            axes.set_ylabel("")
        for axes in grid.flat[len(self.ranges) :]:
            axes.set_axis_off()
        self._legend(figure, grid.flat[0])
        return figure

    def parallel(self) -> Figure:
        """Draw each finished trial as a line through its parameters, to its value."""
        figure = self._figure(
            max(6, 2 + 1.5 * len(self.ranges)), 5, f"parameters of the trials, coloured by {self.metric}"
        )
        axes = figure.subplots()
        colours = self._colourbar(figure, axes)
        scales = {name: _Scale(one) for name, one in self.ranges.items()}
        for trial in sorted(self.complete, key=self._is_best):  # which lies on top
            heights = [scales[name].share(trial.params.get(name)) for name in scales]
            best = self._is_best(trial)
            label = f"trial {trial.number}, the best" if best else None
            axes.plot(heights, "o-", color=colours.to_rgba(trial.value), ms=4, lw=3 if best else 1.2, label=label)
        for x, scale in enumerate(scales.values()):
            axes.axvline(x, color=GREY, linewidth=0.8, zorder=0)
            for height, text in scale.marks():
                box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
                axes.text(x + 0.03, height, text, va="center", fontsize=8, bbox=box)
        axes.set(xlim=(-0.2, len(scales) - 0.4), ylim=(-0.06, 1.06), yticks=[])
        axes.set_xticks(range(len(scales)), [self.labels[name] for name in scales])
        axes.spines[:].set_visible(False)
        self._legend(figure, axes)
        return figure

    def _figure(self, width: float, height: float, title: str) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        figure.suptitle(f"{plain(self.study.study_name)}: {title}" + (f"\n{self.few}" if self.few else ""))
        return figure

    def _is_best(self, trial: Any) -> bool:
        return bool(trial.number == self.best.number)

    def _spots(self, axes: Axes, places: list[float]) -> None:
        """Draw the pruned trials, each at its last value, and the finished ones; ``places``: where on the x axis."""
        last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in self.pruned]
        if self.pruned:
            label = "pruned, at its last epoch"
            axes.scatter(places[: len(last)], last, marker="x", color=GREY, linewidth=1, label=label)
        values = [trial.value for trial in self.complete]
        axes.scatter(places[len(last) :], values, color=colour(0), alpha=0.7, label="finished")
        number = next(n for n, trial in enumerate(self.complete) if self._is_best(trial))
        label = f"trial {self.best.number}, the best"
        axes.scatter(
            places[len(last) + number], values[number], marker="*", s=160, color=colour(1), zorder=3, label=label
        )
        self._value_axis(axes, [*last, *values])

    def _value_axis(self, axes: Axes, values: list[float]) -> None:
        axes.set_ylabel(self.metric)
        if "loss" in self.metric:
            axes.set_yscale("log")
        elif ticks := self._ticks(values):
            axes.set_yscale("function", functions=_OF_WHAT_IS_LACKING)
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])

    def _colourbar(self, figure: Figure, axes: Axes) -> Any:
        """Return what gives a value its colour, the better the darker, having drawn its bar."""
        import matplotlib as mpl

        values = [trial.value for trial in self.complete]
        ends, ticks = (min(values), max(values)), self._ticks(values)
        norm: Any = mpl.colors.Normalize(*ends)
        if "loss" in self.metric:
            norm = mpl.colors.LogNorm(*ends)
        elif ticks:
            norm = mpl.colors.FuncNorm(_OF_WHAT_IS_LACKING, *ends)
        colours = mpl.cm.ScalarMappable(norm, "viridis" if self.minimize else "viridis_r")
        bar = figure.colorbar(colours, ax=axes, label=self.metric, pad=0.02)
        if ticks:
            bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        return colours

    def _ticks(self, values: list[float]) -> list[float]:
        """Return the ticks for percent on the scale of what is lacking; [] where values lie so close that none is needed."""
        known = (0, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.8, 100)
        ticks = [tick for tick in known if "acc" in self.metric and min(values) <= tick <= max(values)]
        return ticks if len(ticks) > 2 else []

    def _legend(self, figure: Figure, axes: Axes) -> None:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


class _Scale:
    """Where the values of a parameter stand: numbers as they are, or by their logarithm; choices in their order."""

    def __init__(self, distribution: Any):
        self.choices = [str(choice) for choice in getattr(distribution, "choices", ())]
        self.names = [plain(choice, 40) for choice in self.choices]
        self.log = getattr(distribution, "log", False)
        ends = (0, len(self.choices) - 1) if self.choices else (distribution.low, distribution.high)
        self.low, self.high = map(float, ends)

    def __call__(self, value: Any) -> float:
        """Return the place of a value on an axis; NaN for a trial without the parameter."""
        if self.choices:
            return self.choices.index(str(value)) if str(value) in self.choices else math.nan
        return math.nan if value is None else float(value)

    def share(self, value: Any) -> float:
        """Return the place of a value between 0, the lower end of the range, and 1."""
        place, low, high = (math.log(v) if self.log else v for v in (self(value), self.low, self.high))
        return 0.5 if low == high else (place - low) / (high - low)

    def _at(self, share: float) -> float:
        """Return the number whose place in the range is ``share``."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low or 1) * share

    def marks(self) -> list[tuple[float, str]]:
        """Return the places in 0..1 that are named, and their names: the choices; or both ends and the middle."""
        if self.choices:
            return [(self.share(choice), name) for choice, name in zip(self.choices, self.names, strict=True)]
        return [(share, f"{self._at(share):.3g}") for share in (0, 0.5, 1)]

    def ticks(self, axis: Any) -> None:
        """Set the scale and the ticks of a matplotlib axis."""
        from matplotlib.ticker import LogLocator, NullFormatter

        if self.choices:
            long = max(map(len, self.names)) * len(self.names) > 20
            axis.set_ticks(
                range(len(self.names)), self.names, rotation=30 if long else 0, ha="right" if long else "center"
            )
            axis.axes.set_xlim(-0.5, len(self.choices) - 0.5)
            return
        axis.axes.set_xlim(*(self._at(share) for share in (-0.06, 1.06)))
        if self.log:
            axis.axes.set_xscale("log")
            axis.set_major_locator(LogLocator(numticks=5))
            axis.set_minor_formatter(NullFormatter())
