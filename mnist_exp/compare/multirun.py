"""What is told at the end of several runs that are no search."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback

from mnist_exp.compare import judge
from mnist_exp.compare.overview import overview
from mnist_exp.compare.table import differing, load_runs
from mnist_exp.console import cell, console, say
from mnist_exp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


class TellRuns(Callback):
    """At the end of a multirun, print all runs in its folder as a table, and what the seeds of each recipe tell together.

    Hydra calls it (conf/hydra/default.yaml). A search has a report of its own.
    """

    failed = 0  # of the runs in this process

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tell at once of a run that failed or did not begin: Hydra tells of one of them, at the end."""
        interrupted = isinstance(job_return._return_value, KeyboardInterrupt)
        if job_return.status is JobStatus.FAILED and config.get("search") is None and not interrupted:
            self.failed += 1
            error = str(job_return._return_value) or repr(job_return._return_value)
            say(console(), f"failed   {' '.join(job_return.overrides or [])}: {error}", "red")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if config.get("search") is not None or not folder.is_dir():
            return
        screen = console()
        runs = load_runs(folder, tell=lambda line: say(screen, line, "yellow"))
        if runs.empty:
            return
        screen.print()
        screen.print(overview(runs))
        if self.failed:
            say(screen, f"{self.failed} more failed or did not begin; each is told above as it happened", "red")
        if lines := _told_by_seeds(runs):
            say(screen, "mean +- standard deviation over seeds, and the 95 % interval of the mean (Student's t):")
            for line in lines:
                say(screen, f"  {line}", "bold")
        if len(lines) > 1:
            first = runs["name"][runs["status"] == "finished"].iloc[0]
            words = ["python", "-m", "mnist_exp", "compare", str(folder), "--baseline", first, "--group-by"]
            say(screen, f"which is better: {shlex.join(words)}")


class RunsSweeper(BasicSweeper):
    """Hydra's own sweeper, with which a key can be left out by ``~KEY`` alone; Hydra's asks for its value, too."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return what each run is asked for, in batches. Raises UserError for a range that is none."""
        bare = {one.get_key_element() for one in overrides if one.is_delete() and one.value() is None}
        try:
            batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        except ValueError as error:
            raise UserError(str(error)) from error
        return [
            [[key if (key := w.partition("=")[0]) in bare else w for w in job] for job in batch] for batch in batches
        ]


def _interval(row: Any, name: str) -> str:
    low, high = (row[f"{name}_acc_{end}"] for end in ("low", "high"))
    if math.isnan(low):
        return "no interval: of one" if math.isnan(row[f"{name}_acc_std"]) else "no interval: they are equal"
    return f"{low:.2f} to {high:.2f}"


def _told_by_seeds(runs: pd.DataFrame) -> list[str]:
    """Return a line for each group of repetitions with two seeds or more: their means, deviations and intervals."""
    rows = judge.group(runs, None, lambda line: None)
    apart = [key for key in differing(runs) if key in rows]
    lines = []
    for _, row in rows[rows["n"] >= 2].iterrows() if len(rows) else ():
        label = " ".join(f"{key}={text}" for key in apart if (text := cell(key, row[key])))
        scores = ", ".join(
            f"{name} {row[f'{name}_acc_mean']:.2f} +- {row[f'{name}_acc_std']:.2f} % ({_interval(row, name)})"
            for name in ("val", "test")
            if not math.isnan(row[f"{name}_acc_mean"])
        )
        lines.append(f"{label + ': ' if label else ''}{scores}, over {row['n']} seeds")
    return lines
