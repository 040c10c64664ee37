"""The files of a run: the one place that knows their names. Training writes through it, comparing reads through it."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import RunLockedError, UserError
from mnist_exp.files import atomic_write, naming, sync_folder
from mnist_exp.reading import MIB, read_arrays, read_text, refusal
from mnist_exp.runs import schema
from mnist_exp.runs.composed import Composed
from mnist_exp.runs.notebook import Shown

if TYPE_CHECKING:
    import numpy as np

# the scores of validation data, any of which a search may ask for
VAL_METRICS = ("val_acc", "val_loss", "val_acc_tta", "val_acc_swa", "val_ensemble_acc")
# of results, of a run or of an evaluation
PREDICTIONS, CONFUSION, MISTAKES = "predictions.npz", "confusion.png", "mistakes.png"
CALIBRATION, EVALUATION = "reliability.png", "evaluation.json"
HISTORY = ("epoch", "phase", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "images_per_s")
_WRITTEN = (".lock", ".hydra", "checkpoints", "results", "history.csv", "train.log")  # but for what is replaced
_RANGES = {
    "epoch": (1, 1e9),
    **dict.fromkeys(("train_acc", "val_acc"), (0, 100)),
    **dict.fromkeys(("train_loss", "val_loss"), (-1e39, 1e39)),  # of float32
}
_PREDICTED = {  # in predictions.npz: type and dimensions
    "probs": ("float16", 2),
    **dict.fromkeys(("predicted", "labels", "wrong"), ("int64", 1)),
    "images": ("uint8", 3),
}
_HISTORY, _ROWS = 16 * MIB, 100_000  # of history.csv: bytes, epochs


class RunFolder(Composed, Shown):
    """A run's folder. ``info`` is run.json; ``update`` changes it on disk.

    Percent for accuracies, seconds for times, nats for losses. See "The outputs" in mnist_exp/README.md.
    """

    def __repr__(self) -> str:
        return f"<run {self.path}: {self.info.get('status', 'not read')}>"

    @classmethod
    def create(cls, path: Path, info: dict[str, Any], hydra_files: dict[str, str]) -> RunFolder:
        """Make the folder with its .hydra files ({name: text}) and run.json. Raises UserError if it holds a run."""
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {"format": schema.FORMAT, **info})
        run.info = {**run.info, "overrides": info.get("overrides", []), "metrics": info.get("metrics", {})}
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
        """Open an existing run. Raises UserError naming what is missing, torn, or not as runs/schema.py has it."""
        try:
            return cls(path, schema.read(path / "run.json"))
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) and not is_run(path):
                raise UserError(_no_run(path)) from error
            raise

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, as planned."""
        return bool(self.info["status"] == "finished")

    @property
    def test_scored(self) -> int:
        """How often the test set has been scored with its weights; an older version did not count."""
        found: int = self.info.get("test_scored", int(self.info["metrics"].get("test_acc") is not None))
        return found

    def lock(self) -> None:
        """Keep other processes from writing this run until ``unlock`` or the end of this process, however it ends."""
        self._lock = run_lock(self.path)
        self._lock.__enter__()

    def unlock(self) -> None:
        """Let others write this run."""
        self._lock.__exit__(None, None, None)

    def update(self, **changes: Any) -> None:
        """Change run.json, atomically, to what can be read again. Raises UserError, and changes nothing, if it cannot."""
        file = self.path / "run.json"
        info, content = schema.written({**self.info, **changes}, file)
        self.info.update(info)
        atomic_write(file, content)

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
        """Return the rows, numbers as numbers (empty: None); a torn last row is left out. Raises UserError for a damage."""
        if not os.path.lexists(self.history_file):
            return []
        *lines, _ = read_text(self.history_file, _HISTORY).split("\n")  # a row is there once its line has ended
        try:
            reader = csv.DictReader(lines[: _ROWS + 2])
            if not set(HISTORY) <= set(reader.fieldnames or ()):
                raise ValueError("its first line does not name its columns")
            rows = list(reader)
            if len(rows) > _ROWS:
                raise ValueError(f"it has more than {_ROWS:,} epochs")
            return [_epoch(row, number) for number, row in enumerate(rows, 2)]
        except (csv.Error, ValueError) as error:
            raise refusal(self.history_file, error) from error

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
    def predictions(self) -> Path:
        return self.results / PREDICTIONS

    def predicted(self, *names: str) -> list[np.ndarray] | None:
        """Return arrays of predictions.npz (probs, predicted, labels, wrong, images); None if they are not there.

        Raises UserError where it is damaged, or not of the run's test images and classes.
        """
        if not os.path.lexists(self.predictions):
            return None
        found = read_arrays(self.predictions, *names)
        if found is None:
            return None
        arrays = dict(zip(names, found, strict=True))
        if (reason := _misfit(arrays, self.info.get("dataset") or {})) is not None:
            raise refusal(self.predictions, reason)
        return found

    def result(self, name: str) -> Path:
        """Return the path of results/<prefix>_<name>, e.g. of "acc.png"."""
        return self.results / f"{self.prefix}_{name}"


def _no_run(path: Path) -> str:
    """Return what is wrong with ``path``, which has no run.json, and what to name in its place if it holds runs."""
    if not os.path.lexists(path):
        return f"{path} does not exist; name the folder of a run, which has a run.json"
    held = next(itertools.chain(path.glob("*/run.json"), path.glob("*/*/run.json")), None)
    hint = "" if held is None else f"; it holds runs, name one of them, such as {held.parent}"
    return f"{path} is not a run folder: it has no run.json{hint}"


def _epoch(row: dict[str, Any], line: int) -> dict[str, Any]:
    """Return a row of the history as numbers. Raises ValueError naming its line and column."""
    values: dict[str, Any] = dict(row)
    for key in (key for key in HISTORY if key != "phase"):
        text = row.get(key)
        low, high = _RANGES.get(key, (-math.inf, math.inf))
        try:
            values[key] = None if text == "" and key.startswith("val_") else float(text or "missing")
            fits = values[key] is None or not math.isfinite(values[key]) or low <= values[key] <= high
            values["epoch"] = int(values["epoch"])
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"line {line}: {key} is {text}; it must be a number from {low:g} to {high:g}")
    return {key: values.get(key) for key in HISTORY}


def _misfit(arrays: Mapping[str, np.ndarray], dataset: Mapping[str, Any]) -> str | None:
    """Return what is wrong with arrays of predictions.npz about the test images and classes of ``dataset``; None if nothing."""
    test, classes = dataset.get("test"), len(dataset.get("classes") or ())
    for name, array in arrays.items():
        kind, dimensions = _PREDICTED[name]
        if array.dtype != kind or array.ndim != dimensions or (name == "images" and array.shape[1:] != (28, 28)):
            return f"{name} is {array.dtype} {list(array.shape)}"
        most = {"labels": classes, "wrong": test}.get(name) or 2**31
        if kind == "int64" and array.size and not 0 <= array.min() <= array.max() < most:
            return f"{name} has values that are not from 0 to {most - 1}"
    images = {len(array) for name, array in arrays.items() if name not in ("wrong", "images")}
    mistakes = {len(array) for name, array in arrays.items() if name in ("wrong", "images")}
    if len(mistakes) > 1 or len(images) > 1 or images & {0} or (test and images - {test}):
        return "its arrays are not all of the same test images"
    return None


@contextlib.contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the run in ``path``; a process may take it again. Raises RunLockedError if another has it.

    Raises UserError if what is written in the folder would go elsewhere.
    """
    from filelock import FileLock, Timeout

    refuse_links(path, *_WRITTEN)
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
    return os.path.lexists(path / "run.json")


def is_locked(path: Path) -> bool:
    """Whether some process is writing the run in ``path``. Nothing is written to find out."""
    try:
        if not stat.S_ISREG((path / ".lock").lstat().st_mode):
            return False
        descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (OSError, ImportError):  # it is held, or nobody can know
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_links(path: Path, *names: str) -> None:
    """Raise UserError if one of ``names`` in ``path`` is a link, pipe or device: what is written would go elsewhere."""
    for name in names:
        try:
            mode = (path / name).lstat().st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            raise UserError(
                f"{path / name} is a link: nothing is written through it. Put what it leads to in its place"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path / name} is neither a file nor a folder: nothing is written to it; delete it")


def refuse_existing(path: Path) -> None:
    """Raise UserError if ``path`` holds a run already."""
    if is_run(path):
        raise UserError(
            f"{path} already holds a run. Go on with it: `resume={path}`; "
            "or start another: leave hydra.run.dir out, or name a new folder"
        )
