"""Writing a file so that it is either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = ".mnist_exp-unfinished"


def atomic_write(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, and put it in place; on an error, which names ``path``, it is as it was.

    What a killed process has left unfinished in the folder is swept up.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, each atomically; cut off in between, some are missing, but none is of before."""
    with contextlib.ExitStack() as files:
        ready = {}
        for path, content in contents.items():
            with naming(path):
                file = files.enter_context(_beside(path))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                ready[path] = Path(file.name)
        if len(contents) > 1:
            for path in contents:
                path.unlink(missing_ok=True)
        for path, new in ready.items():
            with naming(path):
                new.replace(path)
                sync_folder(path.parent)
    for folder in {path.parent for path in contents}:
        sweep(folder)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside say that it is about ``path``: writing tells no name, and a file beside it says little."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside ``path``, locked so that nobody sweeps it up; it is deleted if the block raises."""
    while True:
        # not of path's name, which may be as long as a name can be
        with (path.parent / f".{os.urandom(8).hex()}{_UNFINISHED}").open("xb") as file:
            try:
                if _lock(file, wait=True) and not os.fstat(file.fileno()).st_nlink:
                    continue  # swept up before it was locked
                yield file
                return
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(file.name).unlink()
                raise


def sweep(folder: Path) -> None:
    """Delete the files in ``folder`` that killed processes have left unfinished; never one that is being written."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        if left.is_file() and not left.is_symlink():
            with contextlib.suppress(OSError), left.open("r+b") as file:
                if _lock(file, wait=False):
                    left.unlink()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Lock ``file`` until it is closed, or its process ends; return whether it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # it is locked, or the file system knows no locks: then no file is swept up there
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some cannot for a folder
            raise
    finally:
        os.close(descriptor)
