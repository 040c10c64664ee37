"""Runs as a table: found, loaded, filtered, sorted. Reads run folders only: no torch, no building of configs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder
from mnist_exp.statistics import wilson

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)
_TOLD = 10_000  # letters of a command or an error
_DEPTH = 64  # folders in each other, in which runs are looked for
METRICS = ("val_acc", "val_loss", "test_acc", "test_acc_tta", "test_acc_swa", "ensemble_acc", "images_per_s")


@dataclass
class Row:
    """What is known of every run, a column each; all other columns are keys of the recipe. See ``load_runs``."""

    path: str
    name: str
    status: str
    task_name: str | None
    tags: str
    started: str
    command: str | None
    error: str | None
    epochs: int
    planned: int
    seconds: float
    duration: str
    val_acc: float
    val_loss: float
    test_acc: float
    test_acc_tta: float
    test_acc_swa: float
    ensemble_acc: float
    images_per_s: float
    seed: int | None
    dataset: str | None
    md5: str | None
    split: str
    data_id: str
    n_test: int
    test_scored: int
    memory_format: str
    recipe: str | None


DOTTED = re.compile(r"(?<![\w.`])[A-Za-z_]\w*(?:\.\w+)+(?![\w.`])")  # a key as it is written in a filter
FACTS = (*(field.name for field in dataclasses.fields(Row)), "test_low", "test_high", "test_95")


def load_runs(
    *folders: str | Path | Iterable[str | Path], keys: Sequence[str] = (), tell: Callable[[str], None] = log.warning
) -> pd.DataFrame:
    """Return a DataFrame with a row for every run and trial below ``folders`` (default: "outputs"), oldest first.

    What cannot be read is left out, after ``tell`` has been called with a line that says why; of a run whose config
    cannot be read, only what run.json does not say. Columns:

    - path: the real one; name: the shortest end of it that tells these runs apart;
    - task_name, tags, started (ISO 8601), command, error: text;
    - status: running, finished, failed, interrupted or pruned;
    - epochs: finished, planned: of the whole run; seconds: of the whole run; duration: the same as h:mm:ss;
    - val_acc, test_acc, test_acc_tta, test_acc_swa, ensemble_acc: percent, NaN where not measured; val_loss: nats;
      test_low, test_high: 95 % Wilson interval of test_acc, percent; test_95: the same as text; images_per_s;
    - seed; dataset, md5: name and MD5 of the data, None where it is not known; split: sizes and split seed;
      data_id: equal for runs on the same data and split, which alone are compared; n_test: test images;
    - test_scored: how often the test set was scored, by the run itself and by ``evaluate``;
    - memory_format: channels_last or contiguous; trainer.precision: fp32, bf16 or fp16, what it was computed in;
    - recipe: a digest of the composed config but for the seed: equal recipes are repetitions;
    - <key>: for every key that was named on some command line, such as ``optimizer.lr``, and for ``keys``, the value
      that was composed, from wherever it came; the choice of a group, such as ``model``, too. "deleted" where the
      command line deleted the key (~key), NaN where a run has no such key.
    """
    import numpy as np
    import pandas as pd

    rows = []
    each = [[folder] if isinstance(folder, str | Path) else folder for folder in folders or ("outputs",)]
    for path in dict.fromkeys(find_runs(itertools.chain(*each), tell)):  # by whatever ways it was reached
        try:
            rows.append(_row(RunFolder.open(path)))
        except UserError as error:
            tell(f"skipped: {error}")
    runs = pd.DataFrame(rows)
    if runs.empty:
        return runs
    started = pd.to_datetime(runs["started"], format="ISO8601", utc=True, errors="coerce")  # of whatever time zone
    runs = runs.assign(started_at=started).sort_values(["started_at", "path"], kind="stable", na_position="first")
    runs = runs.drop(columns="started_at").reset_index(drop=True)
    runs["name"] = shortest(runs["path"])
    if "warm_start" in runs:
        parents = runs["warm_start"].dropna().unique()
        runs["warm_start"] = runs["warm_start"].map(dict(zip(parents, shortest(parents), strict=True)))
    for key in [*(c for c in runs.columns if c not in FACTS), *keys]:
        _fill(runs, key, tell)
    right = (runs["test_acc"] * runs["n_test"] / 100).round()
    runs["test_low"], runs["test_high"] = wilson(right, runs["n_test"].where(runs["n_test"] > 0, np.nan))
    known = runs["test_acc"].notna()
    low, high = runs["test_low"].map("{:.2f}".format), runs["test_high"].map("{:.2f}".format)
    runs["test_95"] = np.where(known, low + " - " + high, "")
    first = ["name", *differing(runs), "seed", "val_acc", "test_acc", "test_95", "status", "epochs"]  # as they are read
    return runs[[*first, *(column for column in runs.columns if column not in first)]]


def shortest(paths: Iterable[str]) -> list[str]:
    """Return the shortest ends of different ``paths``, by whole folder names, that tell them apart."""
    parts = [Path(path).parts for path in paths]
    names = ["/".join(part[-1:]) for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        often = Counter(names)
        names = ["/".join(p[-depth:]) if often[n] > 1 else n for n, p in zip(names, parts, strict=True)]
    return names


def histories(runs: pd.DataFrame, tell: Callable[[str], None] = log.warning) -> dict[str, list[dict[str, Any]]]:
    """Return {path: rows of its history} of ``runs``; none of a history that is damaged, after ``tell`` has said so."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in runs["path"]:
        try:
            found[path] = RunFolder(Path(path), {}).history()
        except UserError as error:
            found[path] = []
            tell(f"no learning curve: {error}")
    return found


def _fill(runs: pd.DataFrame, key: str, tell: Callable[[str], None]) -> None:
    """Give runs that left ``key`` at its default that default, from their composed configs; no column if none has it."""
    present = runs[key].notna() if key in runs.columns else runs["path"].isna()
    values = {}
    for index in runs.index[~present]:
        run = RunFolder(Path(str(runs.at[index, "path"])), {})
        values[index] = run.composed(key)
        for line in run.damages():
            tell(f"incomplete: {line}")
    found = {index: value for index, value in values.items() if value is not None and not isinstance(value, dict)}
    if key not in runs.columns:
        if not found:
            return
        runs[key] = None
    if found:
        runs[key] = [found.get(index, value) for index, value in runs[key].items()]
        runs[key] = runs[key].infer_objects()


def find_runs(folders: Iterable[str | Path], tell: Callable[[str], None]) -> Iterator[Path]:
    """Yield the real path of every run below ``folders``, without looking further inside it, or through links."""
    for folder in folders:
        if not Path(folder).exists():
            raise UserError(f"{folder} does not exist; name a folder of runs, such as outputs/runs")
        for place, names, files in os.walk(folder, onerror=lambda error: tell(f"skipped: {_unreadable(error)}")):
            if "run.json" in (*names, *files):
                yield Path(place).resolve()
                names.clear()
            elif names and len(Path(place).relative_to(folder).parts) >= _DEPTH:
                tell(f"skipped: what is in {place}, since it is more than {_DEPTH} folders deep")
                names.clear()
            names.sort()


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}"


def _row(run: RunFolder) -> dict[str, Any]:
    """Return the columns of a run: those of Row, and the keys of the recipe that were named on its command line."""
    info = run.info
    metrics = info["metrics"]
    dataset = run.dataset
    seconds = info.get("seconds", 0.0)
    split = " ".join(str(dataset.get(key)) for key in ("train", "val", "test", "split_seed"))
    row = Row(
        path=str(run.path),
        name=run.path.name,
        status=info["status"],
        task_name=info.get("task_name"),
        tags=" ".join(map(str, info.get("tags", []))),
        started=info.get("started", ""),
        command=(info.get("command") or "")[:_TOLD] or None,
        error=(info.get("error") or "")[:_TOLD] or None,
        epochs=info.get("epoch", 0),
        planned=info.get("epochs", 0),
        seconds=seconds,
        duration=f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}",
        **{key: math.nan if metrics.get(key) is None else metrics[key] for key in METRICS},
        seed=info.get("seed"),
        dataset=dataset.get("name"),
        md5=dataset.get("md5"),
        split=split,
        data_id=f"{dataset.get('md5') or run.path} {split}",
        n_test=dataset.get("test", 0),
        test_scored=run.test_scored,
        memory_format=info.get("memory_format") or "contiguous",
        recipe=run.recipe,
    )
    begun = {"warm_start": info["warm_start"]} if info.get("warm_start") else {}
    named = {key: value for key, value in run.named().items() if key not in (*FACTS, "warm_start")}
    return {**begun, **named, **run.computed, **vars(row)}


def select(
    runs: pd.DataFrame, filter: str | None = None, sort: str | None = None, last: int | None = None
) -> pd.DataFrame:
    """Return the runs that a pandas query ``filter`` leaves, the ``last`` of them, sorted by ``sort`` (best first).

    Dotted keys may be written bare: ``val_acc > 99.5 and optimizer.lr < 0.02``. Raises UserError naming the columns.
    """
    import pandas as pd

    if filter is not None:
        # no other column: a stranger's run may bring any, such as one with the name of a function
        columns = [c for c in runs.columns if c in filter and f"{c}(" not in filter]
        query = DOTTED.sub(lambda match: f"`{match[0]}`" if match[0] in columns else match[0], filter)
        try:
            named = re.search(r"\b(null|deleted)\b", filter)  # as text, which they are in the table
            asked = [runs[columns]] if named else [_numbers(runs[columns], bare) for bare in (True, False)]
            runs = runs[_holds(query, asked)]
        except Exception as error:
            raise UserError(f"--filter {filter!r} does not work: {error}\nColumns: {_columns(runs)}") from error
    if last is not None:
        runs = runs.tail(last)
    if sort is not None:
        need(runs, sort, "--sort")
        values = _numbers(runs, bare=False)[sort]
        text = not pd.api.types.is_numeric_dtype(values)
        values, lower = values.astype(str) if text else values, text or sort.startswith("val_loss")
        runs = runs.loc[values.sort_values(ascending=lower, kind="stable", na_position="last").index]
    return runs


def _holds(query: str, tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """Return for which rows ``query`` holds, bool [N], in the first of ``tables`` whose types it suits."""
    import numpy as np

    try:
        found = np.asarray(tables[0].eval(query, engine="python", local_dict={}, global_dict={}))
    except TypeError:
        if len(tables) == 1:
            raise
        return _holds(query, tables[1:])
    if found.shape != (len(tables[0]),) or found.dtype != bool:
        raise ValueError("it is no condition on each run")
    return found


def _numbers(runs: pd.DataFrame, bare: bool = True) -> pd.DataFrame:
    """Return ``runs`` with NaN for "null" and "deleted" in columns of numbers, so that these can be compared.

    A column with other text in it is none of numbers, if they are to be ``bare``; else that text is NaN, too.
    """
    import pandas as pd

    numbers = {}
    for column in [c for c in runs if c not in FACTS and pd.api.types.is_object_dtype(runs[c])]:
        others = runs[column].isin(["null", "deleted"]) | runs[column].isna()
        with contextlib.suppress(ValueError, TypeError):
            found = pd.to_numeric(runs[column].mask(others), errors="raise" if bare else "coerce")
            if bare or any(isinstance(value, int | float) for value in runs[column][found.notna()]):
                numbers[str(column)] = found
    return runs.assign(**numbers)


def need(runs: pd.DataFrame, column: str, option: str) -> None:
    """Raise UserError naming the columns there are, unless ``column`` is one of them."""
    if column not in runs.columns:
        raise UserError(f"{option}: there is no column {column!r}. Columns: {_columns(runs)}")


def _columns(runs: pd.DataFrame) -> str:
    return ", ".join(map(str, runs.columns))


def differing(runs: pd.DataFrame) -> list[str]:
    """Return the overridden keys, seed apart, whose values are not the same in all ``runs``."""
    return [c for c in runs.columns if c not in FACTS and runs[c].astype(str).nunique(dropna=False) > 1]
