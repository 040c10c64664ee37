"""The files of a run: the one place that knows their names. Training writes through it, comparing reads through it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import RunLockedError, UserError
from mnist_exp.files import atomic_write, naming, sync_folder
from mnist_exp.runs.composed import Composed

if TYPE_CHECKING:
    import numpy as np

# the scores of validation data, any of which a search may ask for
VAL_METRICS = ("val_acc", "val_loss", "val_acc_tta", "val_acc_swa", "val_ensemble_acc")
HISTORY = ("epoch", "phase", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "images_per_s")
_FORMAT = 1  # of run.json; a later version may add keys without raising it


class RunFolder(Composed):
    """A run's folder. ``info`` is run.json; ``update`` changes it on disk.

    Percent for accuracies, seconds for times, nats for losses. See "The outputs" in the README.
    """

    def __repr__(self) -> str:
        return f"<run {self.path}: {self.info.get('status', 'not read')}>"

    @classmethod
    def create(cls, path: Path, info: dict[str, Any], hydra_files: dict[str, str]) -> RunFolder:
        """Make the folder with its .hydra files ({name: text}) and run.json. Raises UserError if it holds a run."""
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {"format": _FORMAT, **info})
        with run_lock(path):
            refuse_existing(path)
            for folder in (".hydra", "checkpoints", "results"):
                (path / folder).mkdir(exist_ok=True)
            for name, text in hydra_files.items():
                atomic_write(path / ".hydra" / name, text.encode())
            run.keep_composed()
            run.update()
            run.write_history([])
            for above in path.parents:
                sync_folder(above)
            run.lock()
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
        with naming(self.history_file), self.history_file.open("a", newline="") as file:
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
        lock.acquire(timeout=0.5)  # more than others take to look whether it is held
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
