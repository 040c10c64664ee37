"""What is to be predicted, whatever it comes in, as a stream of batches: a picture, a folder of them, idx, npz, CSV.

The kind is found from the first bytes. No more than a batch is ever in memory.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from mnist_exp.data.formats import PIXELS, parse_rows
from mnist_exp.data.pictures import ENDINGS, FORMATS, counted, pictures_below, read_grey
from mnist_exp.errors import UserError
from mnist_exp.files import expanded
from mnist_exp.inference.frame import Framed
from mnist_exp.named import is_folder
from mnist_exp.reading import MIB, array_header, open_regular, open_zip

Frame = Callable[..., Framed]
AT_ONCE = 4096  # images of a batch
_LEAST = 1024  # pixels a side that are decoded of a JPEG: a digit may be a small part of it
_SIZE = 784  # bytes of an image
_PIPED = 256 * MIB  # of what is not to be read from its start to its end, and comes through a pipe
_CHUNK = 1 << 16  # bytes that are read of an archive at once
_WANTED = f"a picture ({', '.join(FORMATS)}), a folder of them, idx, npz or Kaggle's test.csv"
_TORN = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError)


class Batch(NamedTuple):
    """Images uint8 [N, 28, 28], what each is called, whether each shows anything, and whether it is doubtful that that is a digit."""

    names: Sequence[str]
    images: np.ndarray
    inked: np.ndarray
    doubtful: np.ndarray


class Input(NamedTuple):
    """``kind``: pictures, array or kaggle; ``batches``: its images, in order; ``left_out``: files of a folder, in words."""

    kind: str
    batches: Iterator[Batch]
    left_out: str = ""


def open_input(name: str, frame: Frame, array: str | None = None) -> Input:
    """Return what lies at the path ``name``; "-" is standard input.

    Pictures are brought to 28 x 28 by ``frame``, and called as their files; arrays must be uint8 [N, 28, 28], and are
    taken as they are, numbered from 0. ``array``: its name in an npz file that holds several. Raises UserError, at once
    or from a batch, naming what is wrong.
    """
    path = expanded(name)
    if name != "-" and is_folder(str(path)):
        _refuse_array(array, name)
        others: Counter[str] = Counter()
        pictures = pictures_below(path, left_out=others)
        if not pictures:
            found = f"; it holds {counted(others)}" if others else ""
            raise UserError(f"{name} holds no picture ({', '.join(ENDINGS)}){found}; name a folder that does")
        return Input("pictures", _pictures(path, pictures, frame), counted(others))
    called = "standard input" if name == "-" else name
    source = _standard_input() if name == "-" else _opened(path)
    with naming(called):
        first, file = _begun(source)
        packed = first[:2] == b"\x1f\x8b"
        if packed:
            first, file = _begun(gzip.GzipFile(fileobj=file))
    here = source if source.seekable() and not packed else None
    if first[:2] != b"PK":
        _refuse_array(array, called)
    if first[:3] == b"\0\0\x08":
        return Input("array", _named(called, _numbered(_idx(file, called))))
    if first[:6] == b"\x93NUMPY":
        return Input("array", _named(called, _numbered(_npy(file, called))))
    if first[:2] == b"PK":
        return Input("array", _named(called, _numbered(_npz(_seekable(here, file, called), called, array))))
    if b"," in first.partition(b"\n")[0] and b"pixel" in first[:64]:
        return Input("kaggle", _named(called, _numbered(_csv(file, called), 1)))
    _refuse(first, called)
    return Input("pictures", _picture(_seekable(here, file, called), called, frame))


def _refuse_array(array: str | None, called: str) -> None:
    if array is not None:
        raise UserError(f"--array {array} names an array of an npz file; {called} is none")


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise UserError("standard input is closed; name a file with --input")
    return sys.stdin.buffer


def _begun(file: Any) -> tuple[bytes, BinaryIO]:
    """Return the first bytes of ``file``, and a stream of all of it, those included."""
    first = file.read(1024)
    return first, io.BufferedReader(_Again(first, file))


class _Again(io.RawIOBase):
    """A stream whose ``first`` bytes have been read already: they are read again, and then its ``rest``."""

    def __init__(self, first: bytes, rest: BinaryIO):
        self.first = first
        self.rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk, self.first = self.first[: len(buffer)], self.first[len(buffer) :]
        chunk = chunk or self.rest.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _opened(path: Path) -> BinaryIO:
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist; --input is {_WANTED}, or - for standard input")
    try:
        return open_regular(path)
    except UserError as error:
        special = path.exists() and not path.is_file()
        raise UserError(f"{error}; pipe it: --input -" if special else str(error)) from error


def _refuse(first: bytes, name: str) -> None:
    """Say of what is often taken for digits what it is."""
    if not first:
        raise UserError(f"{name} is empty; wanted is {_WANTED}")
    if first[:4] == b"%PDF":
        raise UserError(f"{name} is a PDF; save its page as a PNG, as `pdftoppm -png` does, and name that")
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(first.partition(b"\n")[0]).strip()
    picture = re.match(rb"P[1-6]\s", first) or b"<svg" in first  # all the same
    if picture or "\ufffd" in text or re.search(rb"[\0-\x08\x0e-\x1a]", first):
        return
    found = re.split("[,;\t]", text)
    if len(found) == 1:
        raise UserError(f"{name} is text; wanted is {_WANTED}")
    told = ", ".join(column[:40] for column in found[:3]) + ", ..." * (len(found) > 3)
    raise UserError(
        f"{name} has the columns {told}; wanted are {PIXELS[0]}, ..., {PIXELS[-1]}, as in Kaggle's test.csv, with commas"
    )


def _seekable(here: BinaryIO | None, file: BinaryIO, name: str) -> BinaryIO:
    """Return what can be read here and there: ``here`` from its start, or the stream ``file`` in memory, if not large."""
    if here is not None:
        here.seek(0)
        return here
    with naming(name):
        content = file.read(_PIPED + 1)
    if len(content) > _PIPED:
        raise UserError(f"{name} is larger than {_PIPED // MIB} MiB; only idx and CSV may be, or save it in a file")
    return io.BufferedReader(io.BytesIO(content))


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Let what torn bytes raise be one UserError with the ``name`` of the file."""
    try:
        yield
    except _TORN as error:
        text = str(getattr(error, "strerror", None) or error)[:200] or "it ends too early"
        raise UserError(f"{name} is torn or cannot be read: {text}; get it anew") from error


def _named(name: str, batches: Iterator[Batch]) -> Iterator[Batch]:
    with naming(name):
        yield from batches


def _numbered(parts: Iterator[np.ndarray], start: int = 0) -> Iterator[Batch]:
    for images in parts:
        names = [str(number) for number in range(start, start + len(images))]
        start += len(images)
        yield Batch(names, images, images.min((1, 2)) != images.max((1, 2)), np.zeros(len(images), bool))


# ------------------------------------------------------------------------------------------------------------ pictures


def _pictures(folder: Path, paths: list[Path], frame: Frame) -> Iterator[Batch]:
    for start in range(0, len(paths), AT_ONCE):
        some = paths[start : start + AT_ONCE]
        seen = []
        for path in some:
            with open_regular(path) as file:
                seen.append(frame(read_grey(file, path, _LEAST)))
        yield _batch([path.relative_to(folder).as_posix() for path in some], seen)


def _picture(file: BinaryIO, name: str, frame: Frame) -> Iterator[Batch]:
    yield _batch([name if name == "standard input" else Path(name).name], [frame(read_grey(file, name, _LEAST))])


def _batch(names: list[str], seen: list[Framed]) -> Batch:
    images, inked, doubtful = zip(*seen, strict=True)
    return Batch(names, np.stack(images), np.array(inked), np.array(doubtful))


# -------------------------------------------------------------------------------------------------------------- arrays


def _idx(file: BinaryIO, name: str) -> Iterator[np.ndarray]:
    """Yield the images of an idx file (http://yann.lecun.com/exdb/mnist), in parts."""
    dims = _exactly(file, 4)[3]
    shape = struct.unpack(f">{dims}I", _exactly(file, 4 * dims))
    _check_shape(shape, "uint8", name)
    yield from _images(file, shape[0])
    if file.read(1):
        raise UserError(f"{name} is torn: more follows than the {shape[0]:,} images that its header says; get it anew")


def _npy(file: IO[bytes], name: str) -> Iterator[np.ndarray]:
    kind, shape, by_columns = array_header(file, name)
    _check_shape(shape, f"{kind}, column by column," if by_columns else str(kind), name)
    yield from _images(file, shape[0])


def _npz(file: BinaryIO, name: str, wanted: str | None) -> Iterator[np.ndarray]:
    """Yield the images of an array of an .npz file, in parts: the one that is ``wanted``, or the only one there is."""
    with naming(name), open_zip(file, 1000) as archive:  # type: ignore[arg-type]
        found = {}
        for member in archive.infolist():
            if member.filename.endswith(".npy") and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                with archive.open(member) as opened:
                    found[member.filename.removesuffix(".npy")] = array_header(opened, member.filename)
        packed = [member.filename for member in archive.infolist() if not member.filename.endswith((".npy", "/"))]
        if packed and not found:
            best = next((one for one in packed if one.rpartition("/")[2] == "test.csv"), "what is wanted of it")
            raise UserError(f"{name} is an archive, of {', '.join(packed[:3])[:200]}; unpack it and name {best[:100]}")
        told = ", ".join(f"{k[:100]} ({kind} {str(list(shape))[:100]})" for k, (kind, shape, _) in [*found.items()][:9])
        fits = [key for key, (kind, shape, _) in found.items() if kind == np.uint8 and shape[1:] == [28, 28]]
        if wanted is None and len(fits) != 1:
            say = f"say which: --array {fits[0]}" if fits else "wanted is uint8 [N, 28, 28]"
            raise UserError(f"{name} holds {told or 'no array'}; {say}")
        if wanted is not None and wanted not in found:
            raise UserError(f"{name} has no array {wanted}; it holds {told or 'none'}")
        chosen = fits[0] if wanted is None else wanted
        with archive.open(f"{chosen}.npy") as opened:
            yield from _npy(opened, f"{name} ({chosen})")


def _check_shape(shape: Sequence[int], kind: str, name: str) -> None:
    if kind != "uint8" or len(shape) != 3 or tuple(shape[1:]) != (28, 28) or not shape[0]:
        labels = ": are these labels?" if len(shape) == 1 else ""
        raise UserError(
            f"{name} holds {kind} {str(list(shape))[:100]}{labels}; wanted are images, uint8 [N, 28, 28], N above 0"
        )


def _images(file: IO[bytes], count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        yield np.frombuffer(bytearray(_exactly(file, size * _SIZE)), np.uint8).reshape(-1, 28, 28)


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = b""
    while len(content) < size and (chunk := file.read(min(size - len(content), _CHUNK))):
        content += chunk
    if len(content) < size:
        raise EOFError("it ends too early")
    return content


def _csv(file: BinaryIO, name: str) -> Iterator[np.ndarray]:
    """Yield the images of Kaggle's test.csv (pixel0 .. pixel783), in parts."""
    for table in parse_rows(file, name, PIXELS, AT_ONCE):
        yield table.reshape(-1, 28, 28)
