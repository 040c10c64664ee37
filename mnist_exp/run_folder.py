"""The files of a run: the one place that knows their names. Training writes through it, comparing reads through it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_exp.errors import RunLockedError, UserError
from mnist_exp.files import atomic_write

HISTORY = ("epoch", "phase", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "images_per_s")
_FORMAT = 1  # of run.json; a later version may add keys without raising it


class RunFolder:
    """A run's folder. ``info`` is run.json; ``update`` changes it on disk.

    Percent for accuracies, seconds for times, nats for losses. See DESIGN of the outputs in the README.
    """

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path = path
        self.info = info

    @classmethod
    def create(cls, path: Path, info: dict[str, Any], hydra_files: dict[str, str]) -> RunFolder:
        """Make the folder with its .hydra files ({name: text}) and run.json. Raises UserError if it holds a run."""
        refuse_existing(path)
        for folder in (".hydra", "checkpoints", "results"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in hydra_files.items():
            atomic_write(path / ".hydra" / name, text.encode())
        run = cls(path, {"format": _FORMAT, **info})
        run.lock()
        run.update()
        run.write_history([])
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run. Raises UserError naming what is missing or torn."""
        file = path / "run.json"
        if not file.exists():
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

    # ------------------------------------------------------------------------------------------ other files

    @property
    def prefix(self) -> str:
        return str(self.info["prefix"])

    @property
    def hydra_config(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

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
    def predictions(self) -> Path:
        return self.path / "results" / "predictions.npz"

    def result(self, name: str) -> Path:
        """Return the path of results/<prefix>_<name>, e.g. of "acc.png"."""
        return self.path / "results" / f"{self.prefix}_{name}"


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


def refuse_existing(path: Path) -> None:
    """Raise UserError if ``path`` holds a run already."""
    if (path / "run.json").exists():
        raise UserError(
            f"{path} already holds a run. Go on with it: `resume={path}`; "
            "or start another: leave hydra.run.dir out, or name a new folder"
        )


def without_password(text: str) -> str:
    """Return ``text`` with the password taken out of every URL in it."""
    return re.sub(r"(\w://[^:/@\s]*):[^@/\s]*@", r"\1@", text)
