"""A search that is read. Its study.db may come from anyone: a copy in memory is opened, and checked once, here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sqlite3
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from mnist_exp.console import without_password
from mnist_exp.errors import UserError
from mnist_exp.reading import read_yaml
from mnist_exp.runs.folder import RunFolder
from mnist_exp.search.store import open_storage, refuse_strange_journal

if TYPE_CHECKING:
    import optuna

_BYTES, _ROWS, _TRIALS = 64 * 2**20, 500_000, 10_000  # of a study.db, which Optuna reads in half a minute
_TABLES = (
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials", "trial_params"),
    *("trial_values", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes"),
)


class _Searched(BaseModel, strict=True):
    """The part that is read of "search", a user attribute of a study."""

    metric: Literal["value", "val_acc", "val_loss", "val_acc_tta", "val_acc_swa", "val_ensemble_acc"] = "value"


class _Told(BaseModel, strict=True):
    """The part that is read of the user attributes of a trial."""

    val_loss: float = 0.0
    duplicate_of: int = 0


class _Range(BaseModel, strict=True):
    low: FiniteFloat = 0.0
    high: FiniteFloat = 0.0
    choices: Annotated[tuple[str | int | FiniteFloat | bool | None, ...], Field(max_length=1000)] = ()


class _Trial(BaseModel, strict=True):
    """A trial as plain data; ``numbers``: its parameters that are no choices; ``values``: of a finished one."""

    number: Annotated[int, Field(ge=0)]
    values: Annotated[list[FiniteFloat], Field(max_length=1)] | None
    names: list[Annotated[str, Field(max_length=200)]]
    numbers: list[FiniteFloat]
    ranges: list[_Range]
    intermediate_values: dict[int, float]
    user_attrs: _Told


def load_study(folder: Path, storage: str | None = None) -> optuna.Study:
    """Return the study of the search in ``folder``: a copy of its study.db, or what is in ``storage``.

    ``storage``: the URL of a PostgreSQL, which is opened because the user has named it; that a trial's settings name one is
    no reason. Nothing is written. Raises UserError if there is no study, or not one of a search.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file, said = folder / "study.db", _said(folder)
    if storage is None and not os.path.lexists(file):
        raise UserError(_other_place(folder, said))
    if storage is not None and not storage.startswith("postgresql"):
        raise UserError(f"--storage is {without_password(storage)}; it must be postgresql+psycopg://USER@HOST/DATABASE")
    try:
        if storage is None:
            copy = _copy(file)
            opened = open_storage("sqlite://", creator=lambda: copy)
        else:
            opened = open_storage(storage, skip_table_creation=True)
        with warnings.catch_warnings(action="ignore"):
            study = _study(opened, said.get("study_name"), folder.absolute().name, alone=storage is None)
            _check(study)
    except Exception as error:  # whatever a stranger's file makes of two libraries
        where = file if storage is None else without_password(storage)
        raise UserError(
            f"{where} is not to be read as the study of a search: {_reason(error)}. "
            f"Its trials, as runs: python -m mnist_exp compare {shlex.quote(str(folder))} --sort val_acc"
        ) from error
    return study


def _study(storage: Any, said: Any, usual: str, alone: bool) -> optuna.Study:
    """Return the study of ``storage`` that has the name that the trials have ``said``, or the ``usual`` one; or the only one."""
    import optuna

    names = optuna.get_all_study_names(storage)
    found = next((name for name in (said, usual, *(names if alone and len(names) == 1 else ())) if name in names), None)
    if found is None:
        raise ValueError(f"it holds no study {said or usual}")
    return optuna.load_study(study_name=found, storage=storage)


def is_study(folder: Path) -> bool:
    """Whether ``folder`` is that of a search."""
    return os.path.lexists(folder / "study.db") or (folder / ".study").exists()


def _said(folder: Path) -> dict[str, Any]:
    """Return what the settings of the first trial say of the sweeper, as text: a reference stays one."""
    files = (RunFolder(trial, {}).hydra_settings for trial in sorted(folder.glob("trial-*")))
    settings = next((read_yaml(file) for file in files if file.exists()), None)
    try:
        return dict(settings["hydra"]["sweeper"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return {}


def _other_place(folder: Path, said: dict[str, Any]) -> str:
    if not said.get("storage"):
        return f"{folder} holds no search: it has no study.db. Searches are in outputs/sweeps/<study>"
    return (
        f"{folder} has no study.db. The study of its trials may be in another database, which is opened only if you name "
        f"it: python -m mnist_exp compare {shlex.quote(str(folder))} --storage URL\n"
        f"What its trials name: {without_password(str(said['storage']))}"
    )


def _copy(file: Path) -> sqlite3.Connection:
    """Return a copy in memory of an SQLite ``file``, as it was between two writes. Raises ValueError if it is none of ours.

    That of a search which was killed while it wrote is rolled back, in a copy too.
    """
    if not file.is_file():
        raise ValueError("it is not a regular file")
    with file.open("rb") as opened:
        head = opened.read(20)
    if head[:16] != b"SQLite format 3\0" or head[18:20] != b"\1\1":  # with 2, a log beside it is part of it
        raise ValueError("it is no SQLite database as a search makes it")
    try:
        return _loaded(file)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
            raise
    refuse_strange_journal(file)
    with tempfile.TemporaryDirectory() as place:
        for name in (file.name, f"{file.name}-journal"):
            if (file.parent / name).stat().st_size > _BYTES:
                raise ValueError(f"{name} is larger than {_BYTES:,} bytes")
            shutil.copyfile(file.parent / name, Path(place, name))
        with contextlib.closing(sqlite3.connect(Path(place, file.name))) as database:
            database.execute("select count(*) from sqlite_master")  # rolls back
        return _loaded(Path(place, file.name))


def _loaded(file: Path) -> sqlite3.Connection:
    """Return a copy in memory of ``file``, which is sound, holds plain tables only, and no more than can be read in time."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as database:
        database.execute("begin")
        (pages,), (size,) = (database.execute(f"pragma {name}").fetchone() for name in ("page_count", "page_size"))
        if pages * size > _BYTES:
            raise ValueError(f"it is larger than {_BYTES:,} bytes")
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        database.backup(copy)
    copy.execute("pragma ignore_check_constraints = on")
    (found,) = copy.execute("pragma quick_check(1)").fetchone()
    if found != "ok":
        raise ValueError(f"it is damaged: {found}")
    strange = "select count(*) from sqlite_master where coalesce(rootpage, 0) = 0"  # views, triggers, virtual tables
    computed = "select count(*) from sqlite_master as m, pragma_table_xinfo(m.name) as x where x.hidden > 0"
    if any(copy.execute(query).fetchone()[0] for query in (strange, computed)):
        raise ValueError("it holds more than tables")
    rows = {name: copy.execute(f"select count(*) from {name} not indexed").fetchone()[0] for name in _TABLES}
    if sum(rows.values()) > _ROWS or rows["trials"] > _TRIALS:
        raise ValueError(f"it has more than {_TRIALS:,} trials or {_ROWS:,} rows")
    return copy


def _check(study: optuna.Study) -> None:
    """Raise ValueError unless the rest of the program can take ``study`` as it is."""
    import optuna

    _Searched.model_validate(study.user_attrs.get("search", {}))
    if len(study.directions) != 1:
        raise ValueError("it has several objectives")
    names: set[str] = set()
    for trial in study.get_trials(deepcopy=False):
        ranges = trial.distributions
        numbers = [value for name, value in trial.params.items() if not hasattr(ranges[name], "choices")]
        kept = {key: getattr(trial, key) for key in ("number", "intermediate_values", "user_attrs")}
        kept |= {"values": trial.values if trial.state.name == "COMPLETE" else None}
        kept |= {"names": list(ranges), "numbers": numbers, "ranges": [vars(found) for found in ranges.values()]}
        _Trial.model_validate(kept)
        optuna.create_trial(state=trial.state, values=trial.values, params=trial.params, distributions=ranges)
        names |= ranges.keys()
    if len(names) > 100:
        raise ValueError(f"{len(names)} parameters are more than a search has")


def _reason(error: Exception) -> str:
    """Return what is wrong, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    text = without_password(str(error.__cause__ or error)).strip() or type(error).__name__
    return text.splitlines()[0]
