"""How a run shows itself in a notebook: as a small table, and as figures."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.console import cell, clock, shown
from mnist_exp.errors import UserError, require
from mnist_exp.statistics import wilson

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_CLASSES = 200
_SCORES = ("val_acc", "test_acc", "test_acc_tta", "test_acc_swa", "ensemble_acc")


class Shown:
    """What a run folder offers to be looked at. A notebook shows a run, and the figures that are returned, by itself."""

    path: Path
    info: dict[str, Any]

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of history.csv."""
        raise NotImplementedError

    def predicted(self, *names: str) -> list[np.ndarray] | None:
        """Return arrays of predictions.npz; None if they are not there."""
        raise NotImplementedError

    def curves(self) -> Figure:
        """Return a figure of accuracy and loss over the epochs, of training and validation."""
        from mnist_exp.runs.pictures import curves_figure

        rows = self.history()
        swa = next((row["epoch"] for row in rows if "swa" in row["phase"]), None)
        return curves_figure(rows, swa, self._title())

    def confusion(self) -> Figure:
        """Return a figure of the confusion matrix of the test images. Raises UserError if there are no predictions."""
        from mnist_exp.runs.pictures import confusion_figure

        found = self.predicted("predicted", "labels")
        if found is None:
            raise UserError(f"{self.path} has no results/predictions.npz: its test images were not scored")
        predicted, labels = found
        classes = list((self.info.get("dataset") or {}).get("classes") or map(str, range(10)))
        told = len({*predicted.tolist(), *labels.tolist()})
        require(told <= _CLASSES, f"{self.path}: the number of its classes", told, f"at most {_CLASSES} for a picture")
        return confusion_figure(predicted, labels, classes, self._title())

    def _title(self) -> str:
        dataset = (self.info.get("dataset") or {}).get("name") or "data unknown"
        return f"{self.path.name}: {dataset}, seed {self.info.get('seed')}"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows of the run."""
        info, metrics = self.info, self.info.get("metrics") or {}
        rows = {
            "status": info.get("status", "not read"),
            "epochs": f"{info.get('epoch', 0)} of {info.get('epochs', 0)}",
            "time": clock(info.get("seconds") or 0),
            **{key: f"{cell(key, float(metrics[key]))} %" for key in _SCORES if metrics.get(key) is not None},
            "seed": info.get("seed"),
            "overrides": " ".join(map(str, info.get("overrides") or [])) or "none",
            "folder": self.path,
        }
        images = (info.get("dataset") or {}).get("test")
        if "test_acc" in rows and images:
            low, high = wilson(round(metrics["test_acc"] * images / 100), images)
            rows["test_acc"] += f" (95 % interval {low:.2f} to {high:.2f})"
        lines = "".join(
            f"<tr><th style='text-align:left'>{key}</th><td style='text-align:left'>{html.escape(shown(str(value)))}</td></tr>"
            for key, value in rows.items()
        )
        return f"<table><caption>{html.escape(shown(self.path.name))}</caption>{lines}</table>"
