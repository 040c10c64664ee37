"""Files: read where they are files and of a bounded size, written so that they are either the old or the new one."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

from mnist_exp.errors import UserError


def atomic_write(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, and put it in place; on an error ``path`` is as it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to be read. Raises UserError naming it if there is none, or a pipe, device or folder instead."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open one may wait forever, or set a device going
            raise UserError(f"{path} is not a regular file")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a file of at most ``most`` bytes. Raises UserError naming it otherwise."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path} is larger than {most:,} bytes: it has {size:,}")
        try:
            return file.read(most)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error


def open_zip(file: io.BufferedReader, most: int) -> zipfile.ZipFile:
    """Open an archive of at most ``most`` files. Raises ValueError if it has more, BadZipFile and others if it is torn."""
    archive = zipfile.ZipFile(_Careful(file, 200 * most))
    if len(archive.infolist()) > most:
        raise ValueError(f"it holds more than {most:,} files")
    return archive


class _Careful(io.BufferedReader):
    """A file of which no more than ``most`` bytes can be read at once: zipfile reads as long a list as a header says."""

    def __init__(self, file: io.BufferedReader, most: int):
        super().__init__(file.raw)
        self.file = file  # which would close the raw one with itself
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(self.most + 1 if size is None or size < 0 else min(size, self.most + 1))
        if len(content) > self.most:
            raise ValueError(f"it holds too many files: a list of more than {self.most:,} bytes")
        return content
