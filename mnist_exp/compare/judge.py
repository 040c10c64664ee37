"""Whether a difference between runs may be believed: image by image, and over seeds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.compare.table import differing, need
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder
from mnist_exp.statistics import compare_groups, mcnemar

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def group(runs: pd.DataFrame, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a row per group of finished runs: n, seeds, mean and standard deviation and best of val and test.

    <tta|swa|ensemble>_gain: what each brings over the plain test accuracy of the same runs, in percentage points, and
    _p: the p-value of the paired t-test over the seeds.

    ``keys`` None groups repetitions: runs of the same data and config but for the seed.
    """
    done = runs[runs["status"] == "finished"]
    for key in keys or ():
        need(runs, key, "--group-by")
    by = [*(keys or ["recipe"]), "md5", "split"]  # other data is never averaged with
    rows = []
    varying = differing(done)
    for values, members in done.groupby(by, dropna=False, sort=False):
        label = (
            dict(zip(keys, values[: len(keys)], strict=True))
            if keys
            else {c: members[c].iloc[0] for c in varying if members[c].astype(str).nunique() == 1}
        )
        row = {**label, "n": len(members), "seeds": ",".join(map(str, sorted(set(members["seed"]))))}
        for metric in ("val_acc", "test_acc"):
            scores = members[metric].dropna()
            row |= {f"{metric}_mean": scores.mean(), f"{metric}_std": scores.std(), f"{metric}_best": scores.max()}
        for extra in ("tta", "swa", "ensemble"):  # what each brings over the plain score of the same runs
            column = "ensemble_acc" if extra == "ensemble" else f"test_acc_{extra}"
            both = members[["seed", "test_acc", column]].dropna()
            if len(both):
                better, plain = (dict(zip(both["seed"], both[c], strict=True)) for c in (column, "test_acc"))
                row[f"{extra}_gain"] = (both[column] - both["test_acc"]).mean()
                row[f"{extra}_p"] = compare_groups(better, plain)[1]
        row["data"] = f"{members['dataset'].iloc[0]} {values[-1]}"
        rows.append(row)
    import pandas as pd

    return pd.DataFrame(rows)


def against(runs: pd.DataFrame, baseline: str, tell: Callable[[str], None] = log.warning) -> pd.DataFrame:
    """Return, for each other finished run, what it gains over ``baseline`` on the same test images.

    difference: percentage points of plain test accuracy; only_this, only_baseline: images that one gets right and the
    other wrong; p: McNemar's exact test. A run on other data or another split is told of and left out.
    """
    import numpy as np
    import pandas as pd

    base = one(runs, baseline)
    right = _correct(base)
    if right is None:
        raise UserError(
            f"--baseline {base['name']}: it has no results/predictions.npz, so it cannot be compared by image"
        )
    rows = []
    for _, run in runs[(runs["status"] == "finished") & (runs["path"] != base["path"])].iterrows():
        if (run["md5"], run["split"]) != (base["md5"], base["split"]):
            tell(f"not compared: {run['name']} has other data or another split than {base['name']}")
            continue
        other = _correct(run)
        if other is None or not np.array_equal(other[1], right[1]):
            tell(f"not compared: {run['name']} has no predictions for the same test images")
            continue
        mine, theirs = int((other[0] & ~right[0]).sum()), int((right[0] & ~other[0]).sum())
        gain = 100 * (mine - theirs) / len(right[1])
        p = mcnemar(mine, theirs)
        rows.append(
            {
                "name": run["name"],
                **{c: run[c] for c in differing(runs)},
                "test_acc": run["test_acc"],
                "difference": gain,
                "only_this": mine,
                "only_baseline": theirs,
                "p": p,
                "verdict": _verdict(p, gain),
                "seed": run["seed"],
            }
        )
    return pd.DataFrame(rows)


def against_group(
    runs: pd.DataFrame, baseline: str, keys: Sequence[str] | None, tell: Callable[[str], None] = log.warning
) -> pd.DataFrame:
    """Return, for each other group of repetitions, what its mean test accuracy gains over the group of ``baseline``.

    The paired t-test where both groups have the same seeds, else Welch's; which one is in column "test".
    """
    import pandas as pd

    done = runs[runs["status"] == "finished"]
    base = one(done, baseline)
    by = list(keys) if keys else ["recipe"]
    for key in by:
        need(runs, key, "--group-by")
    home = (base["md5"], base["split"])
    scores: dict[Any, pd.DataFrame] = {}
    for values, members in done.groupby([*by, "md5", "split"], dropna=False, sort=False):
        if values[-2:] != home:
            tell(
                f"not compared: {len(members)} runs such as {members['name'].iloc[0]} have other data or another split than {base['name']}"
            )
        else:
            scores[values] = members
    mine = next(members for members in scores.values() if base["path"] in set(members["path"]))
    rows = []
    varying = differing(done)
    for members in scores.values():
        if members is mine:
            continue
        # a seed that was run twice counts once, by its mean
        first, second = (
            m.dropna(subset="test_acc").groupby("seed")["test_acc"].mean().to_dict() for m in (members, mine)
        )
        test, p = compare_groups(first, second)
        gain = members["test_acc"].mean() - mine["test_acc"].mean()
        label = {c: members[c].iloc[0] for c in (keys or varying) if members[c].astype(str).nunique() == 1}
        rows.append(
            {
                **label,
                "n": len(members),
                "test_acc_mean": members["test_acc"].mean(),
                "baseline_mean": mine["test_acc"].mean(),
                "difference": gain,
                "test": test,
                "p": p,
                "verdict": _verdict(p, gain),
            }
        )
    return pd.DataFrame(rows)


def _verdict(p: float | None, gain: float) -> str:
    if p is None or p >= 0.05:
        return "cannot tell"
    return "better" if gain > 0 else "worse"


def one(runs: pd.DataFrame, name: str) -> Any:
    """Return the run that ``name`` names: its folder, its name, or the one whose path ends with it."""
    path = str(Path(name).absolute())
    for found in (
        runs[(runs["path"] == path) | (runs["path"] == name) | (runs["name"] == name)],
        runs[runs["path"].str.endswith(name.rstrip("/"))],
    ):
        if len(found) == 1:
            return found.iloc[0]
    few = ", ".join(runs["name"].tail(8))
    raise UserError(
        f"--baseline {name}: {len(found)} of the runs have this name; name one run or its folder. The last: {few}"
    )


def _correct(run: Any) -> tuple[Any, Any] | None:
    """Return (right bool [n], labels [n]) of a run's test images; None if it has no predictions."""
    saved = RunFolder(Path(run["path"]), {}).predicted("predicted", "labels")
    return None if saved is None else (saved[0] == saved[1], saved[1])
