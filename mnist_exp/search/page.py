"""Optuna's own plots of a search, for the page of ``compare --html``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_exp.console import shown

if TYPE_CHECKING:
    import optuna


def optuna_plots(study: optuna.Study, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return {title: figure as Plotly's JSON} of a study; ``tell`` is called with a line for one that cannot be drawn.

    Source: https://optuna.readthedocs.io/en/stable/reference/visualization
    """
    from optuna import visualization

    trials = study.get_trials(deepcopy=False)
    said = {str(text) for trial in trials for item in trial.params.items() for text in item}
    said |= {str(c) for t in trials for one in t.distributions.values() for c in getattr(one, "choices", ())}
    if unsafe := sorted(text for text in (*said, study.study_name) if set("<>&") & set(text)):
        tell(f"no plots of the search: Plotly would take {shown(unsafe[0])} for HTML")
        return {}
    plots: dict[str, Callable[[Any], Any]] = {
        "History": visualization.plot_optimization_history,
        "Importance": visualization.plot_param_importances,
        "Slices": visualization.plot_slice,
        "Parallel coordinates": visualization.plot_parallel_coordinate,
        "Ranks": visualization.plot_rank,
        "Distribution of values (EDF)": visualization.plot_edf,
    }
    found: dict[str, Any] = {}
    for title, plot in plots.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some of them are experimental
                figure = json.loads(plot(study).to_json())
        except (ValueError, RuntimeError, ArithmeticError) as error:
            tell(f"{title} of the search cannot be drawn yet: {error}")
            continue
        figure["layout"].pop("template", None)
        figure["layout"].pop("title", None)
        found[title] = figure
    return found
