"""Reading what is in the outputs folders: runs as a table, and their differences with their significance.

Reads run folders only: no torch, no building of configs. For notebooks:

    from mnist_exp.compare import load_runs
    runs = load_runs("outputs")          # a pandas DataFrame, a row a run; columns in load_runs' docstring
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnist_exp.errors import UserError
from mnist_exp.run_folder import RunFolder
from mnist_exp.statistics import compare_groups, mcnemar, wilson

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
METRICS = ("val_acc", "val_loss", "test_acc", "test_acc_tta", "test_acc_swa", "ensemble_acc", "images_per_s")
# what a table shows unless --columns says otherwise; overrides that differ come after the name
SHOWN = (
    "status",
    "epochs",
    "val_acc",
    "test_acc",
    "test_95",
    "ensemble_acc",
    "images_per_s",
    "duration",
    "dataset",
    "seed",
)
# overrides that say where a run was, not what it computed
_PLACES = ("paths.", "data.root", "hydra.", "resume", "search.trial", "tags", "trainer.threads")


# ----------------------------------------------------------------------------------------------------- loading


def load_runs(
    *folders: str | Path, keys: Sequence[str] = (), tell: Callable[[str], None] = log.warning
) -> pd.DataFrame:
    """Return a DataFrame with a row for every run and trial below ``folders`` (default: "outputs"), oldest first.

    What cannot be read is left out, after ``tell`` has been called with a line that says why. Columns:

    - path, name, task_name, tags, started (ISO 8601), command, error: text;
    - status: running, finished, failed, interrupted or pruned;
    - epochs: finished, planned: of the whole run; seconds: of the whole run; duration: the same as h:mm:ss;
    - val_acc, test_acc, test_acc_tta, test_acc_swa, ensemble_acc: percent, NaN where not measured; val_loss: nats;
      test_low, test_high: 95 % Wilson interval of test_acc, percent; test_95: the same as text; images_per_s;
    - seed; dataset, md5: name and MD5 of the data; split: a digest of sizes and split seed; n_test: test images;
    - recipe: a digest of the composed config but for the seed: equal recipes are repetitions;
    - <key>: the value of every key that some run overrides, such as ``optimizer.lr``, and of ``keys``; choices of
      groups, such as ``model``, too. NaN where a run has no such key.
    """
    import numpy as np
    import pandas as pd

    rows = []
    for path in _find(folders or ("outputs",)):
        try:
            row = _row(RunFolder.open(path))
        except UserError as error:
            tell(f"skipped: {error}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            tell(f"skipped: {path}/run.json is not complete ({type(error).__name__}: {error})")
        else:
            rows.append(row)
    runs = pd.DataFrame(rows)
    if runs.empty:
        return runs
    runs = runs.sort_values(["started", "path"], kind="stable").reset_index(drop=True)
    for key in [*(c for c in runs.columns if c not in _row_keys()), *keys]:
        _fill(runs, key)
    right = (runs["test_acc"] * runs["n_test"] / 100).round()
    runs["test_low"], runs["test_high"] = wilson(right, runs["n_test"].where(runs["n_test"] > 0, np.nan))
    known = runs["test_acc"].notna()
    low, high = runs["test_low"].map("{:.2f}".format), runs["test_high"].map("{:.2f}".format)
    runs["test_95"] = np.where(known, low + " - " + high, "")
    return runs


def _fill(runs: pd.DataFrame, key: str) -> None:
    """Give runs that left ``key`` at its default that default, from their composed configs; no column if none has it."""
    present = runs[key].notna() if key in runs.columns else runs["path"].isna()
    values = {index: _configured(Path(str(runs.at[index, "path"])), key) for index in runs.index[~present]}
    found = {index: value for index, value in values.items() if value is not None}
    if key not in runs.columns:
        if not found:
            return
        runs[key] = None
    if found:
        runs[key] = [found.get(index, value) for index, value in runs[key].items()]
        runs[key] = runs[key].infer_objects()


@functools.lru_cache(maxsize=4096)
def read_yaml(file: Path) -> Any:
    """Return what a YAML file of a run holds; None if it cannot be read."""
    try:
        return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None


def _configured(run: Path, key: str) -> Any:
    """Return the value of ``key`` in a run's composed config, the chosen name if it is a group; None if there is none."""
    node = read_yaml(run / ".hydra" / "config.yaml")
    for part in key.split("."):
        if isinstance(node, dict) and node.get(part, ...) is None and "." in key:
            return "null"
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) or (node is None and "." not in key):
        hydra = read_yaml(run / ".hydra" / "hydra.yaml")
        try:
            node = hydra["hydra"]["runtime"]["choices"].get(key)
        except (KeyError, TypeError):
            node = None
    return _value(node) if isinstance(node, str) else str(node) if isinstance(node, list) else node


def _find(folders: Sequence[str | Path]) -> Iterator[Path]:
    """Yield every folder below ``folders`` that has a run.json, without looking further inside it."""
    for folder in folders:
        if not Path(folder).exists():
            raise UserError(f"{folder} does not exist; name a folder of runs, such as outputs/runs")
        for place, names, files in os.walk(folder):
            if "run.json" in files:
                yield Path(place)
                names.clear()
            names.sort()


def _row(run: RunFolder) -> dict[str, Any]:
    info = run.info
    metrics = info["metrics"]
    dataset = info.get("dataset") or {}
    seconds = float(info.get("seconds") or 0.0)
    row = {
        "path": str(run.path),
        "name": info.get("name", run.path.name) if "/sweeps/" not in f"{run.path}" else "/".join(run.path.parts[-2:]),
        "status": info["status"],
        "task_name": info.get("task_name"),
        "tags": " ".join(info.get("tags", [])),
        "started": info.get("started") or "",
        "command": info.get("command"),
        "error": info.get("error"),
        "epochs": int(info.get("epoch") or 0),
        "planned": int(info.get("epochs") or 0),
        "seconds": seconds,
        "duration": f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}",
        **{key: float(metrics[key]) if metrics.get(key) is not None else float("nan") for key in METRICS},
        "seed": info.get("seed"),
        "dataset": dataset.get("name"),
        "md5": dataset.get("md5"),
        "split": " ".join(str(dataset.get(key)) for key in ("train", "val", "test", "split_seed")),
        "n_test": dataset.get("test") or 0,
        "recipe": _recipe(run),
    }
    if info.get("warm_start"):
        row["warm_start"] = Path(info["warm_start"]).name
    # of two overrides of a key the last one counts
    overrides = dict(o.lstrip("+").partition("=")[::2] for o in info.get("overrides", []))
    named = {key: _value(value) for key, value in overrides.items() if not key.startswith(_PLACES) and key not in row}
    return row | named


def _recipe(run: RunFolder) -> str | None:
    """Return a digest of the composed config without what may differ between repetitions."""
    try:
        text = run.hydra_config.read_text()
    except OSError:
        return None
    text = re.sub(
        r"(?m)^(seed|tags|resume|task_name|save_prefix): ?.*\n(- .*\n)*|^(paths|search|logger):.*\n(  .*\n)*", "", text
    )
    text = re.sub(r"(?m)^  (root|threads|device): .*\n", "", text) + str(run.info.get("warm_start"))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:8]


def _value(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text.strip("'\"")
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number


# --------------------------------------------------------------------------------------------------- selecting


def select(
    runs: pd.DataFrame, filter: str | None = None, sort: str | None = None, last: int | None = None
) -> pd.DataFrame:
    """Return the runs that a pandas query ``filter`` leaves, the ``last`` of them, sorted by ``sort`` (best first).

    Dotted keys may be written bare: ``val_acc > 99.5 and optimizer.lr < 0.02``. Raises UserError naming the columns.
    """
    if filter is not None:
        dotted = sorted((c for c in runs.columns if "." in c), key=len, reverse=True)
        query = filter
        if dotted:
            pattern = "|".join(re.escape(c) for c in dotted)
            query = re.sub(rf"(?<![\w.`])({pattern})(?![\w.`])", r"`\1`", filter)
        try:
            runs = runs.query(query, engine="python")
        except Exception as error:
            raise UserError(f"--filter {filter!r} does not work: {error}\nColumns: {_columns(runs)}") from error
    if last is not None:
        runs = runs.tail(last)
    if sort is not None:
        _need(runs, sort, "--sort")
        lower = sort.startswith("val_loss") or runs[sort].dtype == object
        runs = runs.sort_values(sort, ascending=lower, kind="stable", na_position="last")
    return runs


def _need(runs: pd.DataFrame, column: str, option: str) -> None:
    if column not in runs.columns:
        raise UserError(f"{option}: there is no column {column!r}. Columns: {_columns(runs)}")


def _columns(runs: pd.DataFrame) -> str:
    return ", ".join(map(str, runs.columns))


def differing(runs: pd.DataFrame) -> list[str]:
    """Return the overridden keys, seed apart, whose values are not the same in all ``runs``."""
    fixed = set(_row_keys())
    return [c for c in runs.columns if c not in fixed and runs[c].astype(str).nunique(dropna=False) > 1]


def _row_keys() -> list[str]:
    text = (
        "path name status task_name tags started command error epochs planned seconds duration seed dataset md5 split"
    )
    return [*text.split(), "n_test", "recipe", "test_low", "test_high", "test_95", *METRICS]


# --------------------------------------------------------------------------------------------------- comparing


def group(runs: pd.DataFrame, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a row per group of finished runs: n, seeds, mean and standard deviation and best of val and test.

    <tta|swa|ensemble>_gain: what each brings over the plain test accuracy of the same runs, in percentage points, and
    _p: the p-value of the paired t-test over the seeds.

    ``keys`` None groups repetitions: runs of the same data and config but for the seed.
    """
    done = runs[runs["status"] == "finished"]
    for key in keys or ():
        _need(runs, key, "--group-by")
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

    base = _one(runs, baseline)
    right = _correct(base["path"])
    if right is None:
        raise UserError(
            f"--baseline {base['name']}: it has no results/predictions.npz, so it cannot be compared by image"
        )
    rows = []
    for _, run in runs[(runs["status"] == "finished") & (runs["path"] != base["path"])].iterrows():
        if (run["md5"], run["split"]) != (base["md5"], base["split"]):
            tell(f"not compared: {run['name']} has other data or another split than {base['name']}")
            continue
        other = _correct(run["path"])
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
    base = _one(done, baseline)
    by = list(keys) if keys else ["recipe"]
    for key in by:
        _need(runs, key, "--group-by")
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


def _one(runs: pd.DataFrame, name: str) -> Any:
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


def _correct(path: str) -> tuple[Any, Any] | None:
    """Return (right bool [n], labels [n]) of a run's test images; None if it has no predictions."""
    import numpy as np

    try:
        with np.load(Path(path) / "results" / "predictions.npz") as saved:
            return saved["predicted"] == saved["labels"], saved["labels"]
    except (OSError, ValueError, KeyError, EOFError, __import__("zipfile").BadZipFile):
        return None


# ----------------------------------------------------------------------------------------------------- showing


def table(rows: pd.DataFrame, columns: Sequence[str], title: str) -> Any:
    """Return ``title`` above a rich table of ``columns``, right-aligned numbers, without a column that is empty in all rows."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    kept = [c for c in columns if c == "name" or any(cell(c, v) for v in rows[c])]
    for column in kept:
        numeric = rows[column].dtype.kind in "if"
        shown.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for _, row in rows.iterrows():
        shown.add_row(*(cell(column, row[column]) for column in kept))
    return Group(Text(title), shown)


def cell(column: str, value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if column.endswith(("_acc", "_mean", "_best", "_tta", "_swa", "_low", "_high")):
            return f"{value:.2f}"
        if column == "difference" or column.endswith("_gain"):
            return f"{value:+.2f}"
        if column == "images_per_s":
            return f"{value:,.0f}"
        return f"{value:.3g}"
    return str(value)


def compare(
    folders: Sequence[str],
    filter: str | None = None,
    sort: str | None = None,
    last: int | None = None,
    columns: Sequence[str] | None = None,
    group_by: Sequence[str] | None = None,
    baseline: str | None = None,
    csv: str | None = None,
    json: str | None = None,
    html: str | None = None,
    plot: str | None = None,
    watch: float | None = None,
) -> None:
    """Print the runs below ``folders`` as a table, and what else is asked for.

    ``group_by`` [] groups repetitions. ``watch``: seconds between refreshes, until Ctrl-C.
    """
    from rich.console import Console

    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # nothing is cut where a program reads

    found = 0

    def chosen() -> pd.DataFrame:
        nonlocal found
        asked = re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", filter or "")
        asked += [name for name in (sort, *(columns or ()), *(group_by or ())) if name is not None]
        runs = load_runs(*folders, keys=asked, tell=tell)
        found = len(runs)
        return select(runs, filter, sort, last) if found else runs

    def overview(runs: pd.DataFrame) -> Any:
        shown = list(columns) if columns else ["name", *differing(runs), *(c for c in SHOWN)]
        for column in shown:
            _need(runs, column, "--columns")
        counts = ", ".join(f"{n} {status}" for status, n in runs["status"].value_counts().items())
        return table(runs, shown, f"{len(runs)} runs: {counts}")

    if watch is not None:
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            while True:
                runs = chosen()
                shown = overview(runs) if len(runs) else "no runs yet"
                if console.is_terminal:
                    live.update(shown, refresh=True)
                else:
                    console.print(shown)
                time.sleep(watch)
    runs = chosen()
    if runs.empty:
        if found:
            raise UserError(f"none of the {found} runs matches --filter {filter!r}")
        where = ", ".join(map(str, folders or ["outputs"]))
        raise UserError(f"there is no run below {where}; make one: python -m mnist_exp train experiment=fast")
    extra = None
    if baseline is not None and group_by is None:
        extra = against(runs, baseline, tell)
        title = f"against {_one(runs, baseline)['name']}: plain test accuracy on the same images, McNemar's exact test"
    elif baseline is not None:
        extra = against_group(runs, baseline, group_by, tell)
        title = f"mean test accuracy against the group of {_one(runs, baseline)['name']}, over seeds"
    elif group_by is not None:
        extra = group(runs, group_by or None)
        title = f"by {', '.join(group_by)}" if group_by else "repetitions: the same config and data, other seeds"
    console.print(overview(runs))
    if extra is not None:
        console.print()
        console.print(table(extra, list(extra.columns), title) if len(extra) else "nothing to compare with")
    result = runs if extra is None else extra
    if csv:
        result.to_csv(csv, index=False)
    if json:
        result.to_json(json, orient="records", indent=1)
    if html:
        from mnist_exp.report import write_html

        shown = list(columns) if columns else ["name", *differing(runs), *SHOWN]
        write_html(runs, [c for c in shown if any(cell(c, v) for v in runs[c])], Path(html))
    if plot:
        from mnist_exp.plots import plot_runs

        histories = {run["name"]: RunFolder(Path(run["path"]), {}).history() for _, run in runs.iterrows()}
        plot_runs(histories, Path(plot))
    for file in (name for name in (csv, json, html, plot) if name is not None):
        console.print(f"written  {file}", highlight=False, soft_wrap=True)
