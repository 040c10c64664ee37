"""Files of data sets, out of a folder, a zip or a tar, each plain or packed by gzip.

They may be made to harm, so nothing is unpacked to disk, links, pipes and devices are not read, and bytes are counted
as they come out, whatever a header claims. tarfile, gzip and numpy.load have been made to hang or to fill the memory.
"""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from mnist_exp.reading import open_regular, open_zip

MOST_BYTES = 512 << 20  # of an archive, and of what a tar unpacks to
MOST_FILES = 10_000
_CHUNK = 1 << 18
_BLOCK = 512  # of a tar
_LONG_NAME = 1 << 16
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


class Refused(Exception):
    """What is not read, and why, of "it": the folder or archive."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Member(NamedTuple):
    """A file that was found: its bare ``name`` without .gz, its ``place`` in the folder or archive ("": it is that file
    itself), whether it is ``packed`` by gzip, and what it is, if not a file that is read ("").
    """

    name: str
    place: str
    packed: bool
    open: Callable[[], _Stream]
    problem: str = ""

    def read(self, most: int) -> bytes:
        """Return what it holds, unpacked, before the next member is asked for. Raises Refused above ``most`` bytes."""
        if self.problem:
            raise Refused(f"its {self.place!a} is {self.problem}; wanted is the file itself")
        content, source = io.BytesIO(), self.open()
        if self.packed:
            source = _Gunzip(source)
        while chunk := source.read(_CHUNK):
            content.write(chunk)
            if content.tell() > most:
                raise Refused(f"its {self.name} is larger than {most:,} bytes, which no such file is")
        return content.getvalue()


def members(path: Path) -> Iterator[Member]:
    """Yield the files at ``path``, whatever they are packed in. Raises Refused and, where it is torn, anything."""
    if path.is_dir():
        yield from _folder(path)
        return
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise Refused(f"it is larger than {MOST_BYTES:,} bytes, which no data set is")
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            yield from _zip(file)
            return
        packed = magic == b"\x1f\x8b"
        if _is_tar(_at_most(_Gunzip(file) if packed else file, _BLOCK)):
            file.seek(0)
            yield from _tar(_Gunzip(file) if packed else file)
            return
        file.seek(0)
        yield Member(_bare(path.name), "", packed, lambda: file)


def _bare(place: str) -> str:
    name = PurePosixPath(place.replace("\\", "/")).name.removesuffix(".gz")
    return name.replace(".idx", "-idx")  # some archives write train-images.idx3-ubyte


def _member(place: str, opened: Callable[[], _Stream], problem: str = "") -> Member:
    """Return a member of an archive, whose ``place`` is checked."""
    parts = PurePosixPath(place.replace("\\", "/")).parts
    if ".." in parts or parts[:1] == ("/",):
        raise Refused(f"it holds {place[:200]!a}, a path out of it")
    return Member(_bare(place), place[:200], place.endswith(".gz"), opened, problem)


def _too_many() -> Refused:
    return Refused(f"it holds more than {MOST_FILES:,} files; wanted are those of one data set alone")


def _folder(folder: Path) -> Iterator[Member]:
    """Yield the files below ``folder``; links to folders are left alone."""
    count, waiting = 0, [folder]
    while waiting:
        entries = []
        for entry in os.scandir(waiting.pop()):
            count += 1
            if count > MOST_FILES:
                raise _too_many()
            entries.append(entry)
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
                continue
            opened = functools.partial(open_regular, path)
            yield _member(str(path.relative_to(folder)), opened, "a link" if entry.is_symlink() else "")


def _zip(file: io.BufferedReader) -> Iterator[Member]:
    with open_zip(file, MOST_FILES) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            problem = ""
            if stat.S_ISLNK(info.external_attr >> 16):
                problem = "a link"
            elif info.flag_bits & 1:
                problem = "encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                problem = "packed in another way than by deflate"
            yield _member(info.filename, functools.partial(archive.open, info), problem)


def _tar(stream: _Stream) -> Iterator[Member]:
    count, total, long_name = 0, 0, ""
    while (block := _exactly(stream, _BLOCK)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        size = 0 if info.type in _WITHOUT_CONTENT else info.size
        count, total = count + 1, total + _BLOCK + size
        if count > MOST_FILES:
            raise _too_many()
        if size < 0 or total > MOST_BYTES:
            raise Refused(f"it unpacks to more than {MOST_BYTES:,} bytes, which no data set does")
        part = _Part(stream, size)
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > _LONG_NAME:
                raise Refused(f"it holds a name of {size:,} bytes")
            text = _exactly(part, size)
            if info.type == tarfile.XHDTYPE:
                found = re.search(rb"\d{1,9} path=([^\n]*)\n", text)
                text = found[1] if found else b""
            long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            place, long_name = long_name or info.name, ""
            plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            if info.type != tarfile.DIRTYPE:
                yield _member(place, part.open, "" if plain else "a link, a device or the like")
        while part.read(_CHUNK):
            pass
        _exactly(stream, -size % _BLOCK)


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # it has a checksum
        return False
    return True


def _exactly(stream: _Stream, size: int) -> bytes:
    content = _at_most(stream, size)
    if len(content) < size:
        raise EOFError("it ends too early")
    return content


def _at_most(stream: _Stream, size: int) -> bytes:
    content = b""
    while len(content) < size and (chunk := stream.read(size - len(content))):
        content += chunk
    return content


class _Part:
    """The next ``left`` bytes of a stream."""

    def __init__(self, stream: _Stream, left: int):
        self.stream = stream
        self.left = left

    def open(self) -> _Part:
        return self

    def read(self, size: int, /) -> bytes:
        wanted = min(size, self.left)
        chunk = self.stream.read(wanted) if wanted else b""
        if wanted and not chunk:
            raise EOFError("it ends too early")
        self.left -= len(chunk)
        return chunk


class _Gunzip:
    """What a stream packed by gzip unpacks to."""

    def __init__(self, stream: _Stream):
        self.stream = stream
        self.unpack = zlib.decompressobj(31)

    def read(self, size: int, /) -> bytes:
        while not self.unpack.eof:
            packed = self.unpack.unconsumed_tail or self.stream.read(_CHUNK)
            if not packed:
                raise EOFError("it ends too early")
            content = self.unpack.decompress(packed, size)
            if content:
                return content
        if self.unpack.unused_data.strip(b"\0") or self.stream.read(1):
            raise ValueError("something follows its end")
        return b""
