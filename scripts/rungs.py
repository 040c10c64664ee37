"""Rows of the README's table of results: read from the folders of runs, and summed up."""

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_exp import load_runs
from mnist_exp.config.recipe import PLACES, below, digest
from mnist_exp.errors import UserError
from mnist_exp.reading import MIB, read_text, refusal
from mnist_exp.runs.folder import EVALUATION, RunFolder
from mnist_exp.statistics import wilson

Row = dict[str, Any]
_LARGEST = 64 * MIB  # of a JSON file
_SCORES = ("accuracy", "low", "high", "loss", "calibration_error", "wrong", "images")  # of an ensemble
ORDER = ("sprint", "fast", "accurate", "headline", "ensemble")  # others follow, as they are called


def read_json(file: Path) -> Row:
    """Return the object that a JSON file holds. Raises UserError naming the file."""
    try:
        found = json.loads(read_text(file, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise refusal(file, error) from error
    if not isinstance(found, dict):
        raise refusal(file, "it holds no object")
    return found


def measured(folder: Path) -> dict[str, Row]:
    """Return the rows that ``folder`` holds, and tell of runs that are left out, as they have not finished.

    Raises UserError naming the folder where the runs of one are no row.
    """
    singles: dict[str, Row] = {}
    together: dict[str, Path] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (place / EVALUATION).exists():
            together[place.name] = place
            continue
        table = load_runs(str(place))
        runs = [RunFolder.open(Path(path)) for path in table["path"]] if len(table) else []
        for run in runs:
            if not run.finished:
                print(f"{run.path} is left out: it is {run.info['status']}", file=sys.stderr)
        if any(run.finished for run in runs):
            singles[place.name] = of_runs([run for run in runs if run.finished], place)
    return singles | {name: of_ensemble(place, folder) for name, place in together.items()}


def of_runs(runs: Sequence[RunFolder], place: Path) -> Row:
    """Return the row of finished ``runs`` of one recipe, a seed each, which lie in ``place``."""
    runs = sorted(runs, key=lambda run: run.info["seed"])
    _refuse_several(place, {"recipes": [recipe_of(run) for run in runs], "data": [run.dataset for run in runs]})
    about = computed_on(runs, place)
    seeds = [run.info["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{place} holds several runs of one seed; a row has one of each")
    first = runs[0].info
    row: Row = {
        "overrides": [
            o for o in first["overrides"] if not below(o.partition("=")[0], (*PLACES, "data.fallback", "seed"))
        ]
    }
    row |= {"recipe": recipe_of(runs[0]), **about} | {key: first[key] for key in ("parameters", "epochs")}
    return row | {"dataset": dataset(first["dataset"]), "runs": [of_run(run) for run in runs]}


def _refuse_several(place: Path, told: Mapping[str, Sequence[Any]]) -> None:
    for what, values in told.items():
        if any(value != values[0] for value in values):
            raise UserError(f"{place} is of runs of several {what}; a row is of one, with a seed each")


def computed_on(runs: Sequence[RunFolder], place: Path) -> Row:
    """Return what a row says of where its ``runs`` were computed. Raises UserError where that is not the same for all."""
    infos = [run.info for run in runs]
    told = {key: [info[key] for info in infos] for key in ("device_name", "precision")}
    told["torch"] = [info["versions"]["torch"] for info in infos]
    names = {"device_name": "machines", "precision": "precisions", "torch": "versions of torch"}
    _refuse_several(place, {names[key]: values for key, values in told.items()})
    return {key: values[0] for key, values in told.items()}


def dataset(about: Row) -> Row:
    """Return what a row says of its data."""
    return {key: value for key, value in about.items() if key != "classes"}


def recipe_of(run: RunFolder) -> str:
    """Return the digest of what ``run`` computes. Raises UserError where it began with the weights of another."""
    if run.info.get("warm_start"):
        raise UserError(f"{run.path} trained {run.info['warm_start']} further, so it is no part of a row")
    return recipe_of_config(run.config())


def recipe_of_config(config: Mapping[str, Any]) -> str:
    """Return the digest of what ``config`` computes, on whatever machine; what stands in for missing data is no part."""
    known = {key: value for key, value in config["data"].items() if key != "fallback"}
    return digest({**config, "data": known})


def of_run(run: RunFolder) -> Row:
    """Return what a row says of each of its runs."""
    metrics = {key: run.info["metrics"].get(key) for key in ("val_acc", "test_acc", "test_acc_tta", "test_acc_swa")}
    if metrics["test_acc"] is None:
        raise UserError(f"{run.path} has no test accuracy (evaluate.test=false?), so it is no part of a row")
    about = {key: run.info[key] for key in ("seed", "git_sha")}
    counts = {"resumed": run.info.get("resumed", 0), "test_scored": run.test_scored}
    return about | metrics | {"train_seconds": trained_for(run), "seconds": run.info["seconds"]} | counts


def trained_for(run: RunFolder) -> float:
    """Return the seconds of the steps of ``run`` alone. Raises UserError where its history does not tell them."""
    rates = [row["images_per_s"] for row in run.history()]
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(
            f"{run.history_file} does not tell images_per_s of each epoch, so {run.path} is no part of a row"
        )
    return round(sum(run.dataset["train"] / rate for rate in rates), 1)


def of_ensemble(place: Path, folder: Path) -> Row:
    """Return the row of what ``evaluate`` wrote to ``place``; its members are runs in ``folder``, their best epochs."""
    file = place / EVALUATION
    found = read_json(file)
    try:
        asked = (found["split"], found["checkpoint"], len(found["members"]) > 1)
        named = [(Path(member["run"]).resolve(), member["accuracy"]) for member in found["members"]]
        row: Row = {
            "tta_runs": found["tta_runs"],
            "scoring_seconds": found["seconds"],
            "dataset": dataset(found["data"]),
        }
        row |= {key: found["scores"][key] for key in _SCORES}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is none of this version ({error!r}); evaluate the runs again") from error
    if asked != ("test", "best", True):
        raise UserError(
            f"{file}: a row is of several runs' best checkpoints on test; evaluate RUN RUN ... --split test"
        )
    members, runs = [], []
    for path, accuracy in named:
        if folder.resolve() not in path.parents:
            raise UserError(f"{file}: {path} does not lie in {folder}")
        run = RunFolder.open(path)
        member = {"row": path.relative_to(folder.resolve()).parts[0], "seed": run.info["seed"]}
        member |= {"accuracy": round(accuracy, 6), "recipe": recipe_of(run)}  # accuracy with the TTA of the ensemble
        members.append(member | {"train_seconds": trained_for(run), "seconds": run.info["seconds"]})
        runs.append(run)
    return row | computed_on(runs, place) | {"members": members}


def ordered(rows: dict[str, Row]) -> list[str]:
    return [name for name in ORDER if name in rows] + sorted(set(rows) - set(ORDER))


def summary(row: Row) -> Row:
    """Return the figures of a row: means over the seeds, and medians of times; of an ensemble sums of times."""
    if "members" in row:
        with_tta = row["accuracy"] if row["tta_runs"] > 1 else None
        scores = {"test_acc": row["accuracy"], "low": row["low"], "high": row["high"], "tta": with_tta, "val": None}
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
