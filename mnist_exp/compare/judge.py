"""Whether a difference between runs may be believed: image by image, and over seeds."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.compare.table import differing, need
from mnist_exp.config import recipe
from mnist_exp.console import cell
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder
from mnist_exp.statistics import compare_groups, holm, mcnemar, mean_interval

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
Tell = Callable[[str], None]
_UNKNOWN = "has no MD5 of its data, so nothing tells which other run had the same"
SCORES = ("val_acc", "test_acc", "test_acc_tta", "test_acc_swa", "ensemble_acc")  # in percent, more is better
_STANDS_IN = "data.fallback"  # for data that are missing: no difference of runs on the same
_ANSWER: dict[str, Any] = dict.fromkeys(("difference", "verdict", "p_holm"))  # first, as it is read first
Scores = dict[Any, list[float]]  # of each unit: a seed, with what else varies inside a group


def group(runs: pd.DataFrame, keys: Sequence[str] | None = None, tell: Tell = log.warning) -> pd.DataFrame:
    """Return a row per group of finished runs, whose repetitions of one seed count as one, by their mean.

    n: seeds; runs: where there are more; mean and standard deviation of val and test accuracy over the seeds, percent, and
    the 95 % interval of the mean, by Student's t: _low and _high.
    <tta|swa|ensemble>_gain: what each brings over the plain test accuracy of the same runs, in percentage points, and
    _p: the p-value of the paired t-test over the seeds. varies: keys of the recipe that vary inside the group, which then
    has no p-values.

    ``keys`` None groups repetitions: runs of the same data and config but for the seed. Runs whose data, or whose config,
    cannot be known are groups of their own.
    """
    import pandas as pd

    done = runs[runs["status"] == "finished"]
    varying = differing(done)
    rows = []
    for name in done["name"][done["md5"].isna()]:
        tell(f"{name} stands alone: it {_UNKNOWN}")
    for name in () if keys else done["name"][done["recipe"].isna()]:
        tell(f"{name} stands alone: it has no config, so nothing tells what it repeats")
    for values, members in _groups(done, keys):
        hidden = _varying([members], keys)
        if hidden:
            tell(
                f"{_label(keys, values)}: {', '.join(hidden)} varies inside this group; its mean is of different recipes"
            )
        row = _labelled(members, keys, varying)
        units = len(_scores(members, "seed", hidden))
        row |= {"n": units, "runs": len(members) if len(members) > units else None}
        for metric in ("val_acc", "test_acc"):
            means = pd.Series([sum(x) / len(x) for x in _scores(members, metric, hidden).values()], dtype=float)
            row |= {f"{metric}_mean": means.mean(), f"{metric}_std": means.std()}
            low, high = mean_interval(means.tolist())
            row |= {f"{metric}_low": max(low, 0.0), f"{metric}_high": min(high, 100.0)}
        row["val_acc_best"] = members["val_acc"].max()
        for extra in ("tta", "swa", "ensemble"):  # what each brings over the plain score of the same runs
            column = "ensemble_acc" if extra == "ensemble" else f"test_acc_{extra}"
            both = members.dropna(subset=["test_acc", column])
            if len(both):
                found = compare_groups(_scores(both, column, hidden), _scores(both, "test_acc", hidden))
                row |= {f"{extra}_gain": found.difference, f"{extra}_p": None if hidden else found.p}
        row["seeds"] = ",".join(str(seed) for seed in sorted({int(seed) for seed in members["seed"].dropna()}))
        row |= {"data": f"{members['dataset'].iloc[0]} {members['split'].iloc[0]}", "varies": ", ".join(hidden)}
        rows.append(row)
    return pd.DataFrame(rows)


def against(runs: pd.DataFrame, baseline: str, tell: Tell = log.warning) -> pd.DataFrame:
    """Return, for each other finished run, what it gains over ``baseline`` on the same test images.

    difference: percentage points of plain test accuracy; only_this, only_baseline: images that one gets right and the
    other wrong; p: McNemar's exact test, about these weights; p_holm: adjusted for the number of runs, for the verdict.
    A run on other data or another split is told of and left out.
    """
    import numpy as np

    base = one(runs, baseline)
    right = _correct(base)  # a damage is told as a mistake
    if right is None:
        raise UserError(
            f"--baseline {base['name']}: it has no results/predictions.npz, so it cannot be compared by image"
        )
    rows = []
    for _, run in runs[(runs["status"] == "finished") & (runs["path"] != base["path"])].iterrows():
        if run["data_id"] != base["data_id"]:
            tell(f"not compared: {_why(run, base)}")
            continue
        try:
            other = _correct(run)
        except UserError as error:
            tell(f"not compared: {error}")
            continue
        if other is None or not np.array_equal(other[1], right[1]):
            tell(f"not compared: {run['name']} has no predictions for the same test images")
            continue
        mine, theirs = int((other[0] & ~right[0]).sum()), int((right[0] & ~other[0]).sum())
        row = {"name": run["name"], **{c: run[c] for c in differing(runs)}, **_ANSWER}
        row |= {"test_acc": run["test_acc"], "difference": 100 * (mine - theirs) / len(right[1])}
        row |= {"only_this": mine, "only_baseline": theirs, "p": mcnemar(mine, theirs), "seed": run["seed"]}
        rows.append(row)
    return _judged(rows)


def against_group(
    runs: pd.DataFrame,
    baseline: str,
    keys: Sequence[str] | None,
    tell: Tell = log.warning,
    score: Sequence[str] = ("test_acc",),
) -> pd.DataFrame:
    """Return, for each other group of repetitions, what its mean ``score`` gains over the group of ``baseline``.

    ``score``: of SCORES, the first that all runs of a group have: ("test_acc_swa", "test_acc") takes the average of the
    weights where there is one. score, baseline_score: which that is, where there are several.

    difference, test, p, n and n_baseline are all of the same numbers, the means of the seeds: the paired t-test where
    both groups have the same seeds, else Welch's. p_holm is adjusted for the number of groups, for the verdict, which is
    about the recipes. Where other keys than ``keys`` vary, groups with the same values of them are paired within; others
    get no verdict.
    """
    done = runs[runs["status"] == "finished"]
    base = one(done, baseline)
    groups = []
    for _, members in _groups(done, keys):
        if members["data_id"].iloc[0] == base["data_id"]:
            groups.append(members)
        else:
            tell(f"not compared: {len(members)} runs such as {_why(members.iloc[0], base)}")
    mine = next(members for members in groups if base["path"] in set(members["path"]))
    rows = []
    varying = differing(done)
    for members in groups:
        if members is mine:
            continue
        hidden = _varying([members, mine], keys)
        taken, of_base = (_score(m, score) for m in (members, mine))
        ours, theirs = _scores(members, taken, hidden), _scores(mine, of_base, hidden)
        found = compare_groups(ours, theirs)
        matched = not hidden or ours.keys() == theirs.keys()
        if not matched:
            tell(f"no verdict on {members['name'].iloc[0]} and its group: {', '.join(hidden)} differs too, unmatched")
        row = _labelled(members, keys, varying) | _ANSWER
        mean = "score_mean" if len(score) > 1 else f"{score[0]}_mean"
        row |= {mean: _mean(ours), "baseline_mean": _mean(theirs), "difference": found.difference}
        row |= {"n": found.n, "n_baseline": found.n_other}
        if len(score) > 1:
            row |= {"score": taken, "baseline_score": of_base}
        row |= (
            {"test": found.test, "p": found.p} if matched else {"test": f"none: {', '.join(hidden)} varies", "p": None}
        )
        rows.append(row)
    return _judged(rows)


def described(runs: pd.DataFrame, run: Any, keys: Sequence[str] | None) -> str:
    """Return the name of ``run``, and its values of ``keys`` or, without, of what differs among ``runs``."""
    values = ", ".join(f"{key}={text}" for key in keys or differing(runs) if (text := cell(key, run.get(key))))
    return f"{run['name']} ({values})" if values else str(run["name"])


def one(runs: pd.DataFrame, name: str) -> Any:
    """Return the run that ``name`` names: its folder, its name, or the one whose path ends with it."""
    path, end = os.path.realpath(name), f"/{name.strip('/')}"
    for found in (runs[(runs["path"] == path) | (runs["name"] == name)], runs[runs["path"].str.endswith(end)]):
        if len(found) == 1:
            return found.iloc[0]
    named = (
        f"These have it: {', '.join(found['name'])}" if len(found) else f"The last: {', '.join(runs['name'].tail(8))}"
    )
    raise UserError(f"--baseline {name}: {len(found)} of the runs have this name; name one run or its folder. {named}")


def _judged(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Add p_holm, adjusted for all rows, and the verdict to rows with "p" and "difference"."""
    import pandas as pd

    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        verdict = "cannot tell" if p is None or p >= 0.05 else "better" if row["difference"] > 0 else "worse"
        row |= {"p_holm": p, "verdict": verdict}
    return pd.DataFrame(rows)


def _groups(done: pd.DataFrame, keys: Sequence[str] | None) -> Any:
    """Yield (values, members) of each group; other data is never grouped with."""
    for key in keys or ():
        need(done, key, "--group-by")
    by = [*keys] if keys else [done["recipe"].fillna(done["path"])]
    return done.groupby([*by, "data_id"], dropna=False, sort=False)


def _why(run: Any, base: Any) -> str:
    """Return the name of ``run`` and why it is not compared with ``base``, whose data or split are not known to be the same."""
    if not isinstance(run["md5"], str):
        return f"{run['name']}: it {_UNKNOWN}"
    if not isinstance(base["md5"], str):
        return f"{run['name']}: {base['name']} {_UNKNOWN}"
    return f"{run['name']} has other data or another split than {base['name']}"


def _labelled(members: pd.DataFrame, keys: Sequence[str] | None, varying: list[str]) -> dict[str, Any]:
    """Return the keys that tell a group from others, and their values."""
    return {c: members[c].iloc[0] for c in (keys or varying) if members[c].astype(str).nunique() == 1}


def _label(keys: Sequence[str] | None, values: Sequence[Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(keys or ("recipe",), values, strict=False))


def _scores(members: pd.DataFrame, metric: str, hidden: Sequence[str]) -> Scores:
    """Return the scores of each unit: a seed, and the values of the ``hidden`` keys."""
    scores: Scores = {}
    for _, run in members.iterrows():
        config = _composed(run, hidden) if hidden else {}
        unit = (*(str(config.get(key)) for key in hidden), run["seed"])
        if run[metric] is not None and not math.isnan(run[metric]):
            scores.setdefault(unit, []).append(float(run[metric]))
    return scores


def _score(members: pd.DataFrame, among: Sequence[str]) -> str:
    """Return the first score that all runs of a group have; the last one where there is none."""
    return next((name for name in among if members[name].notna().all()), among[-1])


def _mean(scores: Scores) -> float:
    return sum(sum(x) / len(x) for x in scores.values()) / len(scores) if scores else math.nan


def _varying(groups: Sequence[pd.DataFrame], keys: Sequence[str] | None) -> list[str]:
    """Return the keys of the recipe that differ where only ``keys`` should: any inside a group; between groups all but
    those below ``keys``, which set them apart. "recipe" where the config of a run is not known.

    A choice that stands nowhere in the config, such as experiment, may set any key: then only what was named on a command
    line counts between groups.
    """
    digests = [digest for members in groups for digest in members["recipe"]]
    unknown = not all(isinstance(digest, str) for digest in digests)
    if not keys or len(digests) == 1 or (not unknown and len(set(digests)) == 1):
        return []
    if unknown:
        return ["recipe"]
    configs = [[_composed(run) for _, run in members.iterrows()] for members in groups]
    inside = {key for config in configs for key in _differing(config)}
    pooled = list(itertools.chain(*configs))
    folders = [RunFolder.open(Path(path)) for members in groups for path in members["path"]]
    if any(_sets_any(key, pooled, folders) for key in keys):
        named = sorted({key for run in folders for key in run.named()} - {"seed", _STANDS_IN})
        runs = itertools.chain.from_iterable((run for _, run in members.iterrows()) for members in groups)
        pooled = [{key: config.get(key) for key in named} for config in (_composed(run, named) for run in runs)]
    between = {key for key in _differing(pooled, keys) if not recipe.below(key, keys)}
    return sorted(inside | between)


def _differing(configs: Sequence[dict[str, Any]], keys: Sequence[str] = ()) -> set[str]:
    """Return the keys whose values are not the same in all ``configs``; of orders without the parts below ``keys``."""

    def text(key: str, value: Any) -> str:
        if key.endswith("(order)"):
            value = [name for name in value or () if not recipe.below(f"{key.removesuffix('(order)')}{name}", keys)]
            value = value if len(value) > 1 else None
        return str(value)

    known = set().union(*configs)
    return {key for key in known if len({text(key, config.get(key)) for config in configs}) > 1}


def _sets_any(key: str, configs: Sequence[dict[str, Any]], folders: Sequence[RunFolder]) -> bool:
    """Whether ``key`` is a choice that stands nowhere in ``configs``, such as experiment."""
    if recipe.below(key, (*recipe.PLACES, "seed")):
        return False
    inside = any(recipe.below(known, [key]) for config in configs for known in config)
    return not inside and any(key in run.choices() or key in run.named() for run in folders)


def _composed(run: Any, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return the recipe of a run as it was composed: references to other keys stay, since these are named themselves.

    Of ``keys`` also those that are no values: the choice of a group, or what stands below; and "recipe", its digest, or of
    a run without a config what no other has.
    """
    begun = {"warm_start": run["warm_start"]} if isinstance(run.get("warm_start"), str) else {}
    computed = {key: run[key] for key in ("trainer.precision",) if isinstance(run.get(key), str)}
    folder = RunFolder(Path(run["path"]), {})
    found = begun | recipe.values(folder.config(), follow=False) | computed
    found.pop(_STANDS_IN, None)
    if "recipe" in keys:
        found["recipe"] = run["recipe"] if isinstance(run["recipe"], str) else run["path"]
    return {key: folder.composed(key) for key in keys if key not in found} | found


def _correct(run: Any) -> tuple[Any, Any] | None:
    """Return (right bool [n], labels [n]) of a run's test images; None if it has no predictions.

    Raises UserError if they are damaged.
    """
    saved = RunFolder(Path(run["path"]), {}).predicted("predicted", "labels")
    return None if saved is None else (saved[0] == saved[1], saved[1])
