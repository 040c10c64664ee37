"""Where a search is kept: its study in study.db or PostgreSQL, opened by those who work at it and those who read it."""

from __future__ import annotations

import json
import os
import re
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from mnist_exp.config import recipe
from mnist_exp.console import without_password
from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.reading import read_text
from mnist_exp.runs.folder import RunFolder, is_run, refuse_links
from mnist_exp.search.locks import FileLocks, Locks, PostgresLocks
from mnist_exp.search.space import Space, build_sampler, typed

if TYPE_CHECKING:
    import optuna


# at the end of a rollback journal: before it stands the name of a further file
_FURTHER = bytes.fromhex("d9d505f920a163d7")


@dataclass(frozen=True)
class Search:
    """What is asked for: ``n_trials`` in all points of ``space``, for the best ``metric``.

    ``compose`` returns the config, as plain data, of a trial with the given parameters.
    """

    name: str
    folder: Path
    storage: str | None
    metric: str
    direction: Literal["minimize", "maximize"]
    n_trials: int
    space: Space
    sampler: DictConfig
    config: DictConfig
    compose: Callable[[dict[str, Any]], dict[str, Any]]

    @property
    def url(self) -> str:
        return storage_url(self.storage, self.folder)

    def described(self) -> dict[str, Any]:
        """Return what must be the same in every call for one study."""
        from optuna.distributions import distribution_to_json

        dimensions = sorted(self.space.dimensions.items())
        space = {name: json.loads(distribution_to_json(dist)) for name, dist in dimensions}
        return {"space": space, "recipe": _values(self.compose(self.space.some_points()[0])), "metric": self.metric}


def open_study(search: Search) -> tuple[optuna.Study, Any, Locks]:
    """Create or load the study of ``search``; return it, its storage, and the locks of those who work at it.

    Raises UserError if it cannot be reached, or is of another search than this.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    search.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(search.folder, "study.db", ".study", ".study.lock")
    try:
        sampler, _ = build_sampler(search.sampler, search.space, 0, shared=False)
    except Exception as error:
        raise UserError(f"hydra.sweeper.sampler cannot be built: {str(error).splitlines()[0]}") from error
    try:
        locks: Locks = (
            FileLocks(search.folder) if search.storage is None else PostgresLocks(search.storage, search.name)
        )
        with locks.turn():
            refuse_strange_journal(search.folder / "study.db")
            storage = open_storage(search.url)
            study = optuna.create_study(
                study_name=search.name, storage=storage, direction=search.direction, load_if_exists=True
            )
            known = study.user_attrs.get("search")
            if "id" not in study.user_attrs:
                study.set_user_attr("id", uuid.uuid4().hex)
            _claim(search.folder, study.user_attrs["id"])
            if known is None:
                if not isinstance(sampler, optuna.samplers.GridSampler):
                    study.enqueue_trial(search.space.baseline(search.config), skip_if_exists=True)
                study.set_user_attr("search", search.described())
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        needs = " (PostgreSQL needs: pip install 'mnist_exp[postgres]')" if isinstance(error, ImportError) else ""
        shown = f"hydra.sweeper.storage={without_password(search.url)}"
        raise UserError(f"{shown} cannot be used: {without_password(reason)}{needs}") from error
    if known is not None:
        _refuse_another(known, search, study)
    return study, storage, locks


def storage_url(storage: str | None, folder: Path) -> str:
    """Return the database of a search: ``storage``, or study.db in its folder."""
    from sqlalchemy import URL

    return storage or URL.create("sqlite", database=str(folder.absolute() / "study.db")).render_as_string()


def open_storage(url: str, skip_table_creation: bool = False, **engine: Any) -> Any:
    """Return Optuna's storage at ``url``; ``engine``: what SQLAlchemy's create_engine is given."""
    from optuna.storages import RDBStorage

    # Optuna takes it for a template
    return RDBStorage(re.sub(r"[{}]", r"\g<0>\g<0>", url), engine, skip_table_creation=skip_table_creation)


def refuse_strange_journal(file: Path) -> None:
    """Raise UserError if the rollback journal beside an SQLite ``file`` names a further file, which SQLite would delete.

    No search leaves such a one.
    """
    journal = Path(f"{os.path.realpath(file)}-journal")
    if not os.path.lexists(journal):
        return
    end = b""
    if ours := stat.S_ISREG(journal.lstat().st_mode):
        with journal.open("rb") as opened:
            opened.seek(max(0, journal.stat().st_size - len(_FURTHER)))
            end = opened.read()
    if not ours or end == _FURTHER:
        raise UserError(f"{journal} was not left by a search; delete it")


def best_trial(study: optuna.Study) -> Any:
    """Return the best finished trial, the lower validation loss where values are equal; None if there is none."""
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    sign = 1 if study.direction is StudyDirection.MINIMIZE else -1
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(
        finished,
        key=lambda t: (sign * float(t.value or 0.0), t.user_attrs.get("val_loss", 0.0), t.number),
        default=None,
    )


def _claim(folder: Path, study: str) -> None:
    """Refuse a folder with trials of another study: their results would be taken for this one's."""
    mark = folder / ".study"
    if mark.exists() and read_text(mark, 1000) == study:
        return
    if any(map(is_run, folder.glob("trial-*"))):
        raise UserError(
            f"{folder} holds trials of another study, or of one that is gone. "
            "Type hydra.sweeper.study_name=NEW_NAME, or move that folder away"
        )
    atomic_write(mark, study.encode())


def _refuse_another(known: dict[str, Any], search: Search, study: optuna.Study) -> None:
    """Raise UserError if the study was made for another search: other ranges, another metric, or another recipe.

    Recipes are compared as they are composed, since a default may have changed. An older version kept none: then the
    first trial whose folder is here has it.
    """
    from optuna.distributions import json_to_distribution

    here = search.described()
    there, now = known["metric"], here["metric"]
    changes = [] if there == now else [("optimized_metric", there, now)]
    spaces = [
        {key: typed(json_to_distribution(json.dumps(dimension))) for key, dimension in described["space"].items()}
        for described in (known, here)
    ]
    changes += _changes(*spaces)
    began, goes_on = known.get("recipe"), here["recipe"]
    if began is None and not changes:
        for trial in study.get_trials(deepcopy=False):
            config = RunFolder(search.folder / f"trial-{trial.number}", {}).config()
            if config:
                began, goes_on = _values(config), _values(search.compose(trial.params))
                break
    if began is not None and not changes:  # an older version took more for the recipe, or knew less
        began = recipe.ADDED | {key: value for key, value in began.items() if not recipe.below(key, recipe.PLACES)}
        changes = _changes(began, goes_on)
    if changes:
        before, after = ("  ".join(f"{key}={values[n]}" for key, *values in changes) for n in (0, 1))
        raise UserError(
            f"the study {search.name} was begun for another search:\n  there {before}\n  here  {after}\n"
            "To go on with it type what it was begun with; for another search type hydra.sweeper.study_name=NEW_NAME"
        )


def _values(config: dict[str, Any]) -> dict[str, Any]:
    return {**recipe.values(config), "seed": config["seed"]}


def _changes(there: dict[str, Any], here: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, value there, value here) of what is not the same."""
    shown = [{key: "null" if value is None else value for key, value in values.items()} for values in (there, here)]
    keys = [key for key in {**there, **here} if shown[0].get(key, "nothing") != shown[1].get(key, "nothing")]
    return [(key, shown[0].get(key, "nothing"), shown[1].get(key, "nothing")) for key in keys]
