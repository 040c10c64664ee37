"""Rows of the README's table of results: read from the folders of runs, and summed up."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.ours import figures

from mnist_exp import load_runs
from mnist_exp.config.recipe import below
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import EVALUATION, RunFolder
from mnist_exp.statistics import wilson

Row = dict[str, Any]
ORDER = ("sprint", "fast", "accurate", "headline", "ensemble")  # others follow, as they are called
_PLACES = ("data.root", "data.fallback", "hydra", "paths", "seed")


def measured(folder: Path) -> dict[str, Row]:
    """Return the rows that ``folder`` holds; raises UserError where a row's runs are not repetitions of one recipe."""
    singles: dict[str, Row] = {}
    together: dict[str, Path] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (place / EVALUATION).exists():
            together[place.name] = place
        else:
            row = of_runs(place)
            if row is not None:
                singles[place.name] = row
    return singles | {name: of_ensemble(place, folder) for name, place in together.items()}


def of_runs(place: Path) -> Row | None:
    """Return the row of finished runs of one recipe, a seed each; None where there is none yet."""
    table = load_runs(str(place))
    table = table[table["status"] == "finished"] if len(table) else table
    if not len(table):
        return None
    runs = sorted((RunFolder.open(Path(path)) for path in table["path"]), key=lambda run: run.info["seed"])
    told: Row = {
        "recipes": table["recipe"],
        "data": table["data_id"],
        "precisions": [run.info["precision"] for run in runs],
    }
    for what, values in told.items():
        if len(set(values)) > 1:
            raise UserError(f"{place} holds runs of several {what}; a row is of one, with a seed each")
    if table["seed"].duplicated().any():
        raise UserError(f"{place} holds several runs of one seed")
    first = runs[0].info
    row: Row = {"overrides": [o for o in first["overrides"] if not below(o.partition("=")[0], _PLACES)]}
    row |= {key: first[key] for key in ("dataset", "device_name", "precision", "parameters", "epochs")}
    row |= {"torch": first["versions"]["torch"], "runs": [of_run(run) for run in runs]}
    row["dataset"] = {key: value for key, value in row["dataset"].items() if key != "classes"}
    return row


def of_run(run: RunFolder) -> Row:
    """Return what a row says of each of its runs."""
    metrics = {key: run.info["metrics"].get(key) for key in ("val_acc", "test_acc", "test_acc_tta")}
    trained = figures(run.path, limited=False)["seconds"]
    wall = {"train_seconds": round(trained, 1), "seconds": run.info["seconds"], "test_scored": run.test_scored}
    return {"seed": run.info["seed"], "git_sha": run.info["git_sha"], **metrics, **wall}


def of_ensemble(place: Path, folder: Path) -> Row:
    """Return the row of what ``evaluate`` wrote to ``place``; its members are runs in ``folder``."""
    found = json.loads((place / EVALUATION).read_text())
    if found["split"] != "test":
        raise UserError(f"{place / EVALUATION} is of {found['split']}; type --split test")
    members = []
    for member in found["members"]:
        path = Path(member["run"]).resolve()
        if folder.resolve() not in path.parents:
            raise UserError(f"{place / EVALUATION}: {path} does not lie in {folder}")
        info, of = RunFolder.open(path).info, path.relative_to(folder.resolve()).parts[0]
        members.append({"row": of, "seed": info["seed"], "test_acc": member["accuracy"], "seconds": info["seconds"]})
    first = RunFolder.open(Path(found["members"][0]["run"])).info
    row: Row = {
        "tta_runs": found["tta_runs"],
        "members": members,
        **found["scores"],
        "device_name": first["device_name"],
    }
    return row | {"precision": first["precision"], "torch": first["versions"]["torch"]}


def ordered(rows: dict[str, Row]) -> list[str]:
    return [name for name in ORDER if name in rows] + sorted(set(rows) - set(ORDER))


def summary(row: Row) -> Row:
    """Return the figures of a row: of an ensemble, or over the seeds: means, and medians of times."""
    if "members" in row:
        seconds = sum(member["seconds"] for member in row["members"])
        scores = {"test_acc": row["accuracy"], "low": row["low"], "high": row["high"], "tta": None}
        return scores | {"train_seconds": seconds, "seconds": seconds, "each": [row["accuracy"]]}
    runs = row["runs"]

    def mean(key: str, of: Callable[[list[float]], float] = statistics.mean) -> float | None:
        found = [run[key] for run in runs if run[key] is not None]
        return of(found) if found else None

    accuracy, images = mean("test_acc"), row["dataset"]["test"]
    assert accuracy is not None
    low, high = (float(end) for end in wilson(accuracy / 100 * images, images))
    scores = {"test_acc": accuracy, "low": low, "high": high, "tta": mean("test_acc_tta"), "val": mean("val_acc")}
    times = {key: mean(key, statistics.median) for key in ("train_seconds", "seconds")}
    return scores | times | {"each": [run["test_acc"] for run in runs]}
