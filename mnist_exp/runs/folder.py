"""The files of a run: the one place that knows their names. Training writes through it, comparing reads through it."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnist_exp.config import recipe
from mnist_exp.errors import RunLockedError, UserError
from mnist_exp.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

# the scores of validation data, any of which a search may ask for
VAL_METRICS = ("val_acc", "val_loss", "val_acc_tta", "val_acc_swa", "val_ensemble_acc")
HISTORY = ("epoch", "phase", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "images_per_s")
_FORMAT = 1  # of run.json; a later version may add keys without raising it


class RunFolder:
    """A run's folder. ``info`` is run.json; ``update`` changes it on disk.

    Percent for accuracies, seconds for times, nats for losses. See "The outputs" in the README.
    """

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path = path
        self.info = info

    def __repr__(self) -> str:
        return f"<run {self.path}: {self.info.get('status', 'not read')}>"

    @classmethod
    def create(cls, path: Path, info: dict[str, Any], hydra_files: dict[str, str]) -> RunFolder:
        """Make the folder with its .hydra files ({name: text}) and run.json. Raises UserError if it holds a run."""
        refuse_existing(path)
        for folder in (".hydra", "checkpoints", "results"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in hydra_files.items():
            atomic_write(path / ".hydra" / name, text.encode())
        run = cls(path, {"format": _FORMAT, **info})
        run.info["recipe"] = {"rule": recipe.RULE, "digest": run.recipe}
        run.info["named"] = run.named()
        run.lock()
        run.update()
        run.write_history([])
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run. Raises UserError naming what is missing or torn."""
        file = path / "run.json"
        if not is_run(path):
            raise UserError(f"{path} is not a run folder: it has no run.json")
        try:
            info = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        if not isinstance(info, dict) or "status" not in info:
            raise UserError(f"{file} is not the run.json of a run")
        if info.get("format", 0) > _FORMAT:
            raise UserError(f"{file} was written by a newer mnist_exp (format {info['format']}, known: {_FORMAT})")
        return cls(path, info)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, as planned."""
        return bool(self.info["status"] == "finished")

    def lock(self) -> None:
        """Keep other processes from writing this run until ``unlock`` or the end of this process, however it ends."""
        self._lock = run_lock(self.path)
        self._lock.__enter__()

    def unlock(self) -> None:
        """Let others write this run."""
        self._lock.__exit__(None, None, None)

    def update(self, **changes: Any) -> None:
        """Change run.json, atomically."""
        self.info.update(changes)
        atomic_write(self.path / "run.json", (json.dumps(self.info, indent=2) + "\n").encode())

    # ---------------------------------------------------------------------------------------------- history

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    def append_history(self, row: dict[str, Any]) -> None:
        """Add an epoch's row, on disk when this returns."""
        with self.history_file.open("a", newline="") as file:
            csv.DictWriter(file, HISTORY, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Replace the whole history, atomically."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.history_file, text.getvalue().encode())

    def history(self) -> list[dict[str, Any]]:
        """Return the rows, numbers as numbers (empty: None); a torn last row is left out."""
        if not self.history_file.exists():
            return []
        rows = []
        for row in csv.DictReader(self.history_file.read_text().splitlines()):
            try:
                values = {k: row[k] if k == "phase" else float(row[k]) if row[k] else None for k in HISTORY}
                rows.append({**values, "epoch": int(row["epoch"])})
            except (KeyError, TypeError, ValueError):
                break
        return rows

    # ------------------------------------------------------------------------------------------ its config

    def config(self) -> dict[str, Any]:
        """Return the composed config as plain data, references unresolved; {} where it cannot be read."""
        found = read_yaml(self.hydra_config)
        return found if isinstance(found, dict) else {}

    def choices(self) -> dict[str, Any]:
        """Return {group: choice} of what was composed; {} where it cannot be read."""
        try:
            return dict(read_yaml(self.hydra_settings)["hydra"]["runtime"]["choices"])
        except (KeyError, TypeError):
            return {}

    def composed(self, key: str) -> Any:
        """Return what ``key`` was composed to: its value, references followed; the choice of a group.

        "null" for a value that is null, a mapping where keys stand below. None where there is no such key or choice.
        """
        if "." not in key and key in (choices := self.choices()):
            return choices[key]
        config = self.config()
        node: Any = config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = recipe.followed(node[part], config) if isinstance(node[part], str) else node[part]
        return "null" if node is None else str(node) if isinstance(node, list) else node

    def named(self) -> dict[str, Any]:
        """Return what the keys of the recipe that the command line named were composed to; "deleted" for what was."""
        known = self.info.get("named")
        return _named(self) if known is None else dict(known)  # known without reading the config

    @property
    def recipe(self) -> str | None:
        """A digest that repetitions share; None without a config."""
        known = self.info.get("recipe") or {}
        if known.get("rule") == recipe.RULE:
            return known["digest"]
        config = self.config()
        return recipe.digest(config, self.info.get("warm_start")) if config else None

    @property
    def dataset(self) -> dict[str, Any]:
        """What run.json says of the data, {} before it is known; the MD5 is None where it does not tell data apart.

        An older version, which named no classes, took it of the labels alone for data of one's own.
        """
        dataset = self.info.get("dataset") or {}
        known = "classes" in dataset or self.composed("data._target_") != "mnist_exp.data.sets.CustomData"
        return dataset if known else {**dataset, "md5": None}

    # ------------------------------------------------------------------------------------------ other files

    @property
    def prefix(self) -> str:
        return str(self.info["prefix"])

    @property
    def hydra_config(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    @property
    def hydra_settings(self) -> Path:
        return self.path / ".hydra" / "hydra.yaml"

    @property
    def hydra_overrides(self) -> Path:
        return self.path / ".hydra" / "overrides.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / f"{self.prefix}_ckpt_epoch{epoch}.pth"

    def swa_checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / f"{self.prefix}_swa_epoch{epoch}.pth"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def confusion(self) -> Path:
        return self.results / "confusion.png"

    @property
    def mistakes(self) -> Path:
        return self.results / "mistakes.png"

    @property
    def predictions(self) -> Path:
        return self.results / "predictions.npz"

    def predicted(self, *names: str) -> list[np.ndarray] | None:
        """Return arrays of predictions.npz (probs, predicted, labels, wrong, images); None if they cannot be read."""
        import numpy as np

        try:
            with np.load(self.predictions) as saved:
                return [saved[name] for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def result(self, name: str) -> Path:
        """Return the path of results/<prefix>_<name>, e.g. of "acc.png"."""
        return self.results / f"{self.prefix}_{name}"


@contextlib.contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the run in ``path``; a process may take it again. Raises RunLockedError if another has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunLockedError(f"{path} is being written by another process; wait for it, or stop it first") from error
    try:
        yield
    finally:
        lock.release()


def is_run(path: Path) -> bool:
    """Whether ``path`` holds a run."""
    return (path / "run.json").exists()


def is_locked(path: Path) -> bool:
    """Whether some process is writing the run in ``path``."""
    from filelock import FileLock, Timeout

    if not (path / ".lock").exists():
        return False
    try:
        with FileLock(path / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def refuse_existing(path: Path) -> None:
    """Raise UserError if ``path`` holds a run already."""
    if is_run(path):
        raise UserError(
            f"{path} already holds a run. Go on with it: `resume={path}`; "
            "or start another: leave hydra.run.dir out, or name a new folder"
        )


def read_yaml(file: Path) -> Any:
    """Return what a YAML file of a run holds; None if it cannot be read. Not to be changed: it is read once."""
    try:
        found = file.stat()
        return _read_yaml(file, found.st_mtime_ns, found.st_size)
    except (OSError, yaml.YAMLError):
        return None


@functools.lru_cache(maxsize=4096)
def _read_yaml(file: Path, changed: int, size: int) -> Any:
    return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _named(run: RunFolder) -> dict[str, Any]:
    """Return {key named on the command line: value}, of a key that is a mapping all keys below it."""
    found: dict[str, Any] = {}
    for override in run.info.get("overrides", []):
        key = override.lstrip("+~").partition("=")[0]
        if not recipe.below(key, recipe.PLACES):
            found[key] = "deleted" if override.startswith("~") else None
    found |= {key: value for key in found if (value := run.composed(key)) is not None}
    return {key: value for key, value in recipe.flatten(found).items() if value is not None}
