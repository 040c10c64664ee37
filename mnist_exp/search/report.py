"""What a search has found: its study as a table, plots, and the best parameters as an experiment."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.console import console, table
from mnist_exp.search.best import write_best
from mnist_exp.search.store import best_trial, load_study

if TYPE_CHECKING:
    import optuna
    import pandas as pd

log = logging.getLogger(__name__)


def report_study(folder: Path, study: optuna.Study | None = None) -> None:
    """Print the trials of the search in ``folder``; write its plots, and its best parameters as an experiment.

    ``study`` None reads it from the folder.
    Raises UserError if there is no search in ``folder``.
    """
    study = load_study(folder) if study is None else study
    screen, best = console(), best_trial(study)
    found, title = _table(study, best)
    screen.print(table(found, list(found.columns), title))
    if best is None:
        screen.print("no trial has finished yet")
        return
    for path in plot_study(study, folder / "results"):
        screen.print(f"plot     {path}", soft_wrap=True, highlight=False)
    experiment = write_best(folder, best)
    if experiment is not None:
        screen.print(f"best     {experiment}", soft_wrap=True, highlight=False)
        command = f"python -m mnist_exp train --config-dir {folder / 'conf'} experiment=best"
        screen.print(f"retrain  {command}", soft_wrap=True, highlight=False)
        seeds = command.replace("mnist_exp train", "mnist_exp --multirun")
        screen.print(f"seeds    {seeds} seed=1,2,3", soft_wrap=True, highlight=False)


def _table(study: optuna.Study, best: Any) -> tuple[pd.DataFrame, str]:
    """Return a row for each trial, the best first, and the title above them."""
    import pandas as pd

    trials = [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
    names = sorted({name for trial in trials for name in trial.params})
    last = [name.rpartition(".")[2] for name in names]
    columns = {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}
    metric = study.user_attrs.get("search", {}).get("metric", "value")
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    first = None if best is None else best.number
    trials.sort(key=lambda t: (t.number != first, sign * t.value if t.value is not None else math.inf, t.number))
    rows = [
        {
            "name": f"trial-{trial.number}{' *' if trial.number == first else ''}",
            "state": trial.state.name.lower(),
            **{column: trial.params.get(name) for name, column in columns.items()},
            metric: math.nan if trial.value is None else trial.value,
            "val_loss": trial.user_attrs.get("val_loss", math.nan),
            "epochs": len(trial.intermediate_values),
            "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows), f"{study.study_name}: {len(trials)} trials"


def plot_study(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw history, importance, slices and parallel coordinates of a study; return the PNG files."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import optuna
    from optuna.visualization import matplotlib as draw

    folder.mkdir(exist_ok=True)
    metric = study.user_attrs.get("search", {}).get("metric", "value")
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls its matplotlib drawings experimental
        figures = {
            "history": lambda: draw.plot_optimization_history(study, target_name=metric),
            "importance": lambda: draw.plot_param_importances(study, target_name=f"importance for {metric}"),
            "slices": lambda: draw.plot_slice(study, target_name=metric),
            "parallel": lambda: draw.plot_parallel_coordinate(study, target_name=metric),
        }
        for name, figure in figures.items():
            try:
                axes: Any = figure()
            except (ValueError, RuntimeError, ZeroDivisionError) as error:  # too few finished trials, or all the same
                log.warning("%s cannot be drawn yet: %s", name, error)
                plt.close("all")
                continue
            canvas = (axes[0] if hasattr(axes, "__len__") else axes).figure
            wide = 3.2 * len(study.best_params) if name == "slices" else 10 if name == "parallel" else 8
            canvas.set_size_inches(wide, 4.5)
            for one in canvas.axes:
                _shorten_names(one, name)
            path = folder / f"{name}.png"
            canvas.savefig(path, dpi=110, bbox_inches="tight")
            plt.close("all")
            drawn.append(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return drawn


def _shorten_names(axes: Any, figure: str) -> None:
    """Leave the last part of each dotted name: the whole is too long for ticks and labels."""
    from matplotlib.ticker import NullFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(axes.get_xlabel().rpartition(".")[2])
    labels = [text.get_text() for text in axes.get_xticklabels()]
    if figure == "parallel" and any("." in text and not text[0].isdigit() for text in labels if text):
        axes.set_xticks(axes.get_xticks(), [text.rpartition(".")[2] for text in labels], rotation=20)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    if figure == "importance":
        axes.set_yticks(axes.get_yticks(), [text.rpartition(".")[2] for text in labels])
