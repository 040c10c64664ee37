"""One self-contained HTML page about many runs: no network, no script from elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_exp.compare.table import differing, histories
from mnist_exp.config.recipe import flatten
from mnist_exp.console import cell, shown
from mnist_exp.errors import UserError
from mnist_exp.fitted import short_names
from mnist_exp.runs.folder import RunFolder
from mnist_exp.runs.pictures import class_name, confusion

if TYPE_CHECKING:
    import pandas as pd

_POINTS = 200  # of a learning curve at the most
_WALL = 60  # digits on the wall
_UNSHOWN = ("data_id", "split", "test_low", "test_high")  # columns that others say better
_TESTED, _CLASSES = 500_000, 2000  # images of a test set; classes twice, those of the data and those predicted
Tell = Callable[[str], None]


@dataclasses.dataclass
class Extras:
    """What a page has beside its runs: the ``answer`` to a question under its ``title``, and Optuna's plots of a search.

    ``search``: {title: figure as Plotly's JSON}. ``live``: what the server calls this state of the runs; "" in a file.
    """

    title: str = ""
    answer: pd.DataFrame | None = None
    search: dict[str, Any] = dataclasses.field(default_factory=dict)
    live: str = ""


def html_page(runs: pd.DataFrame, columns: Sequence[str], tell: Tell, extras: Extras | None = None) -> bytes:
    """Return the page about ``runs`` (of compare.load_runs) with a table of ``columns``, to which others can be added.

    ``tell`` is called with a line for each file of a run that cannot be read, and which the page is without.
    """
    extras = extras or Extras()
    records, configs, curves = [], [], histories(runs, tell)
    every = [
        *columns,
        *(c for c in runs.columns if c not in (*columns, *_UNSHOWN) and any(map(cell, [c] * len(runs), runs[c]))),
    ]
    labels, of_groups = _labels(runs, ["seed"]), _labels(runs, [])
    for number, (_, run) in enumerate(runs.iterrows()):
        folder = RunFolder(Path(run["path"]), {"prefix": ""})
        records.append(
            {
                "name": shown(run["name"]),
                "label": labels[number] or shown(run["name"]),
                "full": f"{shown(run['name'])}  {labels[number]}".strip(),
                "group": f"{run['recipe'] if isinstance(run['recipe'], str) else run['path']} {run['data_id']}",
                "group_label": of_groups[number] or shown(run["name"]),
                "cells": [cell(c, run[c]) for c in every],
                "values": [_plain(run[c]) for c in every],
                "scores": {key: _plain(run[key]) for key in ("val_acc", "test_acc", "val_loss")},
                "parameters": {key: _plain(run[key]) for key in [*differing(runs), "seed"]},
                "curve": _curve(curves[run["path"]]),
            }
        )
        for line in folder.damages():
            tell(f"incomplete: {line}")
        configs.append({key: json.dumps(value) for key, value in flatten(folder.config()).items()})
    # most values are the same in all runs: they are stored once
    common = {k: v for k, v in (configs[0] if configs else {}).items() if all(c.get(k) == v for c in configs)}
    page = {
        "answer": None if extras.answer is None else _table(extras.answer, extras.title),
        "columns": list(columns),
        "all": every,
        "search": [{"title": title, "figure": figure} for title, figure in extras.search.items()],
        "live": extras.live,
        "runs": records,
        "common": common,
        "configs": [{k: v for k, v in config.items() if common.get(k) != v} for config in configs],
        **_mistakes(runs, tell),
    }
    here = resources.files("mnist_exp.compare")
    parts = {
        "__SCRIPT__": (here / "page.js").read_text(),
        "__PLOTLY__": (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(),
        "__DATA__": _data(page),
    }
    text = (here / "page.html").read_text()
    return re.sub("|".join(parts), lambda found: parts[found[0]], text).encode()


def _labels(runs: pd.DataFrame, more: Sequence[str]) -> list[str]:
    """Return what sets each run apart from the others, of the keys that differ and ``more``, as in "lr=0.01 seed=2"."""
    keys = [*differing(runs), *(key for key in more if runs[key].nunique() > 1)]
    short = short_names(keys)
    return [
        " ".join(f"{short[key]}={text}" for key in keys if (text := cell(key, run[key]))) for _, run in runs.iterrows()
    ]


def _data(page: dict[str, Any]) -> str:
    """Return JSON that no HTML parser takes for anything but text, whatever names are in it."""
    text = json.dumps(page, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _table(rows: pd.DataFrame, title: str) -> dict[str, Any]:
    """Return a table as the terminal shows it: columns that are empty left out."""
    kept = [c for c in rows.columns if any(cell(c, v) for v in rows[c])]
    numeric = [rows[c].dtype.kind in "if" for c in kept]
    cells = [[cell(c, row[c]) for c in kept] for _, row in rows.iterrows()]
    return {"title": shown(title), "columns": kept, "numeric": numeric, "rows": cells}


def _plain(value: Any) -> Any:
    """Return a value that JSON knows: numpy scalars as Python's, null for a number that is not finite."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curve(rows: list[dict[str, Any]]) -> list[list[float | None]]:
    """Return [epoch, train loss, train accuracy, val loss, val accuracy] of at most so many of ``rows``."""
    kept = sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(len(rows), _POINTS))}) if rows else []
    keys = ("train_loss", "train_acc", "val_loss", "val_acc")
    finite = [[_plain(rows[i][k]) for k in keys] for i in kept]
    return [
        [rows[i]["epoch"], *(None if v is None else round(v, 5) for v in row)]
        for i, row in zip(kept, finite, strict=True)
    ]


def _mistakes(runs: pd.DataFrame, tell: Tell) -> dict[str, Any]:
    """Return each run's confusion matrix, and the test images that most runs get wrong, with what each run said.

    The wall is of the largest set of scored runs on the same data and split.
    """
    confusions: list[dict[str, Any] | None] = []
    wrong: dict[int, dict[int, str]] = {}  # image -> {run: what it said}
    truth: dict[int, str] = {}
    pictures: dict[int, np.ndarray] = {}
    data = runs["data_id"]
    home, scored = next(iter(data[runs["test_acc"].notna()].mode()), None), 0
    for number, path in enumerate(runs["path"]):
        try:
            folder = RunFolder.open(Path(path))
            saved, classes = folder.predicted("predicted", "labels"), _classes(folder)
            numbers, drawn = folder.predicted("wrong", "images") or (np.array([]), np.array([]))
            if saved is not None and len(saved[0]) > _TESTED:
                raise UserError(f"{folder.predictions} is of more than {_TESTED:,} images")
            if saved is not None and len(classes) + len(np.unique(saved[0])) > _CLASSES:
                raise UserError(f"{folder.predictions} is of more than {_CLASSES // 2:,} classes")
        except UserError as error:
            saved = None
            tell(f"no confusion matrix: {error}")
        if saved is None:
            confusions.append(None)
            continue
        predicted, labels = saved
        images = dict(zip(numbers.tolist(), drawn, strict=True))
        names, counts = confusion(predicted, labels, classes)
        confusions.append({"classes": names, "counts": counts.tolist()})
        if data.iloc[number] != home:
            continue
        scored += 1
        for index in np.flatnonzero(predicted != labels).tolist():
            wrong.setdefault(index, {})[number] = class_name(classes, predicted[index])
            truth[index] = class_name(classes, labels[index])
            if index in images:
                pictures[index] = images[index]
    worst = sorted((i for i in wrong if i in pictures), key=lambda i: (-len(wrong[i]), i))[:_WALL]
    wall = [{"index": i, "label": truth[i], "said": wrong[i], "image": _png(pictures[i])} for i in worst]
    return {"confusions": confusions, "wall": wall, "scored": scored}


def _classes(folder: RunFolder) -> list[str]:
    """Return the names of the classes; their numbers where an older version has kept none."""
    known = folder.dataset.get("classes")
    if known:
        return known
    probs = folder.predicted("probs")
    return [] if probs is None else [str(label) for label in range(probs[0].shape[1])]


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(255 - image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
