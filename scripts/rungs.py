"""Rows of the README's table of results: read from the folders of runs, and summed up."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.ours import figures

from mnist_exp import load_runs
from mnist_exp.config.recipe import PLACES, below, digest
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import EVALUATION, RunFolder
from mnist_exp.statistics import wilson

Row = dict[str, Any]
ORDER = ("sprint", "fast", "accurate", "headline", "ensemble")  # others follow, as they are called


def measured(folder: Path) -> dict[str, Row]:
    """Return the rows that ``folder`` holds. Raises UserError naming the folder where the runs of one are no row."""
    singles: dict[str, Row] = {}
    together: dict[str, Path] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (place / EVALUATION).exists():
            together[place.name] = place
            continue
        table = load_runs(str(place))
        runs = [RunFolder.open(Path(path)) for path in table["path"]] if len(table) else []
        if any(run.finished for run in runs):
            singles[place.name] = of_runs([run for run in runs if run.finished], place)
    return singles | {name: of_ensemble(place, folder) for name, place in together.items()}


def of_runs(runs: Sequence[RunFolder], place: Path) -> Row:
    """Return the row of finished ``runs`` of one recipe, a seed each, which lie in ``place``."""
    runs = sorted(runs, key=lambda run: run.info["seed"])
    told: dict[str, list[Any]] = {
        "recipes": [recipe_of(run.config()) for run in runs],
        "data": [run.dataset for run in runs],
        "precisions": [run.info["precision"] for run in runs],
        "machines": [run.info["device_name"] for run in runs],
    }
    for what, values in told.items():
        if any(value != values[0] for value in values):
            raise UserError(f"{place} holds runs of several {what}; a row is of one, with a seed each")
    seeds = [run.info["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{place} holds several runs of one seed; a row has one of each")
    first = runs[0].info
    row: Row = {
        "overrides": [
            o for o in first["overrides"] if not below(o.partition("=")[0], (*PLACES, "data.fallback", "seed"))
        ]
    }
    row |= {"recipe": recipe_of(runs[0].config()), "torch": first["versions"]["torch"]}
    row |= {key: first[key] for key in ("device_name", "precision", "parameters", "epochs")}
    row["dataset"] = {key: value for key, value in first["dataset"].items() if key != "classes"}
    return row | {"runs": [of_run(run) for run in runs]}


def recipe_of(config: Mapping[str, Any]) -> str:
    """Return the digest of what ``config`` computes, on whatever machine; what stands in for missing data is no part."""
    known = {key: value for key, value in config["data"].items() if key != "fallback"}
    return digest({**config, "data": known})


def of_run(run: RunFolder) -> Row:
    """Return what a row says of each of its runs."""
    metrics = {key: run.info["metrics"].get(key) for key in ("val_acc", "test_acc", "test_acc_tta")}
    if metrics["test_acc"] is None:
        raise UserError(f"{run.path} has no test accuracy (evaluate.test=false?), so it is no part of a row")
    wall = {"train_seconds": trained_for(run), "seconds": run.info["seconds"], "test_scored": run.test_scored}
    return {"seed": run.info["seed"], "git_sha": run.info["git_sha"], **metrics, **wall}


def trained_for(run: RunFolder) -> float:
    """Return the seconds of the steps of ``run`` alone."""
    return round(float(figures(run.path, limited=False)["seconds"]), 1)


def of_ensemble(place: Path, folder: Path) -> Row:
    """Return the row of what ``evaluate`` wrote to ``place``; its members are runs in ``folder``, their best epochs."""
    file = place / EVALUATION
    try:
        found = json.loads(file.read_text())
        asked = (found["split"], found["checkpoint"], len(found["members"]) > 1)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is none of this version ({error!r}); evaluate the runs again") from error
    if asked != ("test", "best", True):
        raise UserError(
            f"{file}: a row is of several runs' best checkpoints on test; evaluate RUN RUN ... --split test"
        )
    members, runs = [], [RunFolder.open(Path(member["run"]).resolve()) for member in found["members"]]
    for member, run in zip(found["members"], runs, strict=True):
        if folder.resolve() not in run.path.parents:
            raise UserError(f"{file}: {run.path} does not lie in {folder}")
        about = {"row": run.path.relative_to(folder.resolve()).parts[0], "seed": run.info["seed"]}
        times = {"train_seconds": trained_for(run), "seconds": run.info["seconds"]}
        members.append({**about, "test_acc": member["accuracy"], **times})
    row: Row = {"tta_runs": found["tta_runs"], "members": members, "scoring_seconds": found["seconds"]}
    first = runs[0].info
    row |= {"torch": first["versions"]["torch"], "device_name": first["device_name"], "precision": first["precision"]}
    return row | found["scores"]


def ordered(rows: dict[str, Row]) -> list[str]:
    return [name for name in ORDER if name in rows] + sorted(set(rows) - set(ORDER))


def summary(row: Row) -> Row:
    """Return the figures of a row: of an ensemble, or over the seeds: means, and medians of times."""
    if "members" in row:
        scores = {"test_acc": row["accuracy"], "low": row["low"], "high": row["high"], "tta": None, "val": None}
        times = {key: sum(member[key] for member in row["members"]) for key in ("train_seconds", "seconds")}
        times["seconds"] += row["scoring_seconds"]
        return scores | times | {"each": [row["accuracy"]]}
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
