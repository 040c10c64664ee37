"""Writing a file so that it is either the old one or the new one, whatever happens in between; and where it was meant."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from mnist_exp.errors import RunFailed, UserError


def write_output(name: str, content: bytes) -> None:
    """Write ``content`` to the file that a user has named; "-" is standard output.

    Links are followed. A regular file is the old one or the new one, whatever happens, with the mode and the owner it
    had; missing folders are made. A pipe or device is written to. Raises RunFailed if that cannot be.
    """
    try:
        if name == "-":
            if sys.stdout is None:
                raise OSError(None, "standard output is closed")
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return
        try:
            found = Path(name).stat()
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode):
            Path(name).write_bytes(content)
            return
        path = Path(os.path.realpath(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if found is not None and not os.access(path, os.W_OK):
            raise PermissionError(None, "it may not be changed")
        atomic_write(path, content, found)
    except BrokenPipeError:
        raise  # nobody reads on: no mistake
    except OSError as error:
        raise RunFailed(f"{name} cannot be written: {error.strerror}") from error


def refuse_leaving(folder: Path, *paths: Path) -> None:
    """Raise UserError if a link takes one of ``paths`` out of its ``folder``: who made it does not say where is written."""
    home = Path(os.path.realpath(folder))
    for path in paths:
        if not Path(os.path.realpath(path)).is_relative_to(home):
            raise UserError(f"{path} is a link that leads out of {folder}, so nothing is written there; delete it")


def atomic_write(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Write beside ``path``, flush to disk, and put it in place; on an error ``path`` is as it was.

    ``like``: what mode and owner it gets.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            if like is not None:
                with contextlib.suppress(OSError):  # only root may give files away
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
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
