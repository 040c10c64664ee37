"""What a search has found: its study as a table, plots, and the best parameters as an experiment."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.config.job import compose
from mnist_exp.console import console, say
from mnist_exp.errors import UserError
from mnist_exp.files import expanded
from mnist_exp.fitted import Fitted, short_names
from mnist_exp.runs.folder import RunFolder, is_locked
from mnist_exp.search.best import write_best
from mnist_exp.search.pictures import plot_study, too_few
from mnist_exp.search.space import typed
from mnist_exp.search.store import best_trial

if TYPE_CHECKING:
    import optuna

_EDGE = 0.05  # of a range: nearer to its end the best may well lie beyond


def report_study(folder: Path, study: optuna.Study, kinds: Sequence[str] = ("png",)) -> None:
    """Print the trials of ``study``, the search in ``folder``; write its plots, and its best parameters as an experiment.

    ``kinds``: of the plots' files.
    """
    screen, best = console(), best_trial(study)
    screen.print(_table(study, folder, best))
    if best is None:
        say(screen, "no trial has finished yet")
        return
    for line in filter(None, (too_few(study), *near_edges(best))):
        say(screen, line, "yellow")
    try:
        for path in plot_study(study, best, folder / "results", kinds):
            say(screen, f"plot     {path}")
        experiment = write_best(folder, best, _metric(study))
    except OSError as error:  # to look at the search of others needs no right to write there
        say(screen, f"no pictures and no experiment: {error.filename}: {error.strerror}", "yellow")
        return
    if experiment is not None:
        say(screen, f"best     {experiment}")
        conf = shlex.quote(str(folder / "conf"))
        for name, command, seeds in (("retrain", "train", ""), ("seeds  ", "--multirun", " seed=1,2,3")):
            words = f"python -m mnist_exp {command} --config-dir {conf} experiment=best{_root(folder, best)}{seeds}"
            say(screen, f"{name}  {words}")


def _metric(study: optuna.Study) -> str:
    return str(study.user_attrs.get("search", {}).get("metric", "value"))


def _root(folder: Path, best: Any) -> str:
    """Return the override that names where the data of the trial ``best`` were, unless that is where they always are."""
    root = RunFolder(folder / f"trial-{best.number}", {}).composed("data.root")
    if (
        not isinstance(root, str)
        or "${" in root
        or expanded(root).absolute() == expanded(compose().data.root).absolute()
    ):
        return ""
    return f" {shlex.quote(f'data.root={root}')}"


def _table(study: optuna.Study, folder: Path, best: Any) -> Fitted:
    """Return a table with a row for each trial, the best first."""
    import pandas as pd

    trials = [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
    names = sorted({name for trial in trials for name in trial.params})
    metric = _metric(study)
    columns = short_names(names, ("name", "state", metric, "val_loss", "epochs", "seconds"))
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    first = None if best is None else best.number
    trials.sort(key=lambda t: (t.number != first, sign * t.value if t.value is not None else math.inf, t.number))
    rows = [
        {
            "name": f"trial-{trial.number}{' *' if trial.number == first else ''}",
            "state": _state(trial, folder),
            **{column: trial.params.get(name) for name, column in columns.items()},
            metric: math.nan if trial.value is None else trial.value,
            "val_loss": trial.user_attrs.get("val_loss", math.nan),
            "epochs": len(trial.intermediate_values),
            "seconds": _seconds(trial, folder),
        }
        for trial in trials
    ]
    found = pd.DataFrame(rows)
    return Fitted(found, list(found.columns), f"{study.study_name}: {len(trials)} trials", list(columns.values()))


def _seconds(trial: Any, folder: Path) -> float:
    """Return what a trial has taken, without the time that it lay still; NaN of one that is not on this machine."""
    try:
        return float(RunFolder.open(folder / f"trial-{trial.number}").info.get("seconds") or 0)
    except UserError:
        return math.nan


def _state(trial: Any, folder: Path) -> str:
    """Return how a trial is, in a word: of one that the study believes at work, as its folder tells it."""
    word, run = trial.state.name.lower(), folder / f"trial-{trial.number}"
    if word != "running" or is_locked(run):
        return str(word)
    try:
        status = RunFolder.open(run).info["status"]
    except UserError:
        return str(word)  # it is about to begin, or on another machine
    return "interrupted" if status == "running" else str(status)


def near_edges(trial: Any) -> Iterator[str]:
    """Yield a line for each parameter of ``trial`` within 5 % of an end of its range, and what to type to widen it.

    5 % of its logarithm where the range is log. Choices have no ends.
    """
    for name, value in trial.params.items():
        found = trial.distributions[name]
        if hasattr(found, "choices") or found.single():
            continue
        low, high, place = (math.log(v) if found.log else v for v in (found.low, found.high, value))
        share = (place - low) / (high - low)
        if min(share, 1 - share) > _EDGE:
            continue
        wider = typed(_wider(found, share > 0.5))
        if wider != typed(found):  # else there is nothing beyond
            line = f"the best {name}, {value:.3g}, lies at an end of its range, {found.low:g} to {found.high:g}"
            further = f"To look further, type hydra.sweeper.study_name=NEW_NAME '{name}={wider}'"
            yield f"{line}: better ones may lie beyond. {further}"


def _wider(found: Any, upwards: bool) -> Any:
    """Return a range that goes further: tenfold if it is log, else by half; not past 0, nor past 1 where it did not."""
    low, high, step = found.low, found.high, found.step
    if found.log:
        low, high = (low, high * 10) if upwards else (low / 10, high)
    else:
        more = (high - low) / 2
        more = max(step, round(more / step) * step) if step else more
        low, high = (low, high + more) if upwards else (low - more, high)
        low, high = max(low, 0) if found.low >= 0 else low, min(high, 1) if found.high <= 1 else high
    if isinstance(found.high, int):
        least = min(1, found.low) if found.low >= 0 else round(low)
        return type(found)(max(least, round(low)), round(high), log=found.log, step=step)
    return type(found)(float(f"{low:.6g}"), float(f"{high:.6g}"), log=found.log, step=step)
