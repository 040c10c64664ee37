"""Compose a training run from small named parts, train it, and believe the answer. For notebooks:

from mnist_exp import compose, train, load_runs
run = train("experiment=fast", "seed=1")      # a RunFolder: run.info["metrics"], run.history(), run.path
compose("experiment=fast").optimizer.lr       # the config that train would run
load_runs("outputs")                          # a pandas DataFrame, a row a run
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.cli.train import train
    from mnist_exp.compare.table import load_runs
    from mnist_exp.config.job import compose

__all__ = ["compose", "load_runs", "train"]
_HOMES = {"compose": "config.job", "load_runs": "compare.table", "train": "cli.train"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only that: load_runs needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
