"""Compose a training run from small named parts, train it, and believe the answer. For notebooks:

from mnist_exp import compose, train, load_runs, load_model, evaluate, load_export
run = train("experiment=fast", "seed=1")      # a RunFolder: run.info["metrics"], run.history(), run.path
compose("experiment=fast").optimizer.lr       # the config that train would run
load_runs("outputs")                          # a pandas DataFrame, a row a run
load_model(run.path).predict(images)          # labels, probabilities of uint8 images [N, 28, 28]
evaluate(load_model(run.path), "val").scores()   # of several runs: their ensemble
load_export("FOLDER")(images)                 # probabilities, of a folder that was exported as safetensors
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.cli.train import train
    from mnist_exp.compare.table import load_runs
    from mnist_exp.config.job import compose
    from mnist_exp.inference.evaluate import evaluate
    from mnist_exp.inference.load import load_model
    from mnist_exp.inference.servable import load_export

__all__ = ["compose", "evaluate", "load_export", "load_model", "load_runs", "train"]
_HOMES = {
    "compose": "config.job",
    "evaluate": "inference.evaluate",
    "load_export": "inference.servable",
    "load_model": "inference.load",
    "load_runs": "compare.table",
    "train": "cli.train",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only that: load_runs needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
