"""Writing a file so that it is either the old one or the new one, whatever happens in between; and where it was meant."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mnist_exp.errors import RunFailed, UserError

_UNFINISHED = ".mnist_exp-unfinished"


def write_output(name: str, content: bytes | Iterable[bytes]) -> None:
    """Write ``content``, whole or as it is made, to the file that a user has named; "-" is standard output.

    Links are followed. A regular file is the old one or the new one, whatever happens, with the mode and the owner it
    had; missing folders are made. A pipe or device is written to, once all is made. Raises RunFailed if that cannot be.
    """
    parts = [content] if isinstance(content, bytes) else content
    try:
        if name == "-":
            if sys.stdout is None:
                raise OSError(None, "standard output is closed")
            sys.stdout.buffer.writelines(_made(parts))
            sys.stdout.buffer.flush()
            return
        try:
            found = Path(name).stat()
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode):
            with Path(name).open("wb") as file:
                file.writelines(_made(parts))
            return
        path = Path(os.path.realpath(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if found is not None and not os.access(path, os.W_OK):
            raise PermissionError(None, "it may not be changed")
        atomic_write(path, parts, found)
    except BrokenPipeError:
        raise  # nobody reads on: no mistake
    except OSError as error:
        raise RunFailed(f"{name} cannot be written: {error.strerror}") from error


def _made(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Return ``parts`` once they are all made, without filling the memory."""
    with tempfile.SpooledTemporaryFile(64 << 20) as whole:
        whole.writelines(parts)
        whole.seek(0)
        yield from iter(lambda: whole.read(1 << 20), b"")


def expanded(path: object) -> Path:
    """Return ``path``, its ~ the home folder; one of a user who is not there stays as it is. Raises UserError."""
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is no path: it holds a null character")
    return Path(os.path.expanduser(str(path)))  # noqa: PTH111  # of pathlib raises for ~nobody


def atomic_write(path: Path, content: bytes | Iterable[bytes], like: os.stat_result | None = None) -> None:
    """Write beside ``path``, flush to disk, and put it in place; on an error, which names ``path``, it is as it was.

    ``like``: what mode and owner it gets. What a killed process has left unfinished in the folder is swept up.
    """
    write_together({path: content}, like)


def write_together(contents: Mapping[Path, bytes | Iterable[bytes]], like: os.stat_result | None = None) -> None:
    """Write files that belong together, each atomically; cut off in between, some are missing, but none is of before.

    ``like``: what mode and owner they get.
    """
    with contextlib.ExitStack() as files:
        ready = {}
        for path, content in contents.items():
            with naming(path):
                file = files.enter_context(_beside(path))
                if like is not None:
                    with contextlib.suppress(OSError):  # only root may give files away
                        os.fchown(file.fileno(), like.st_uid, like.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
                file.writelines([content] if isinstance(content, bytes) else content)
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


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, to be filled; it takes the place of ``path`` when the block ends.

    If the block raises, nothing is left. Missing folders above are made. Raises UserError if ``path`` is there and is no
    empty folder, or cannot be made.
    """
    path, missing = Path(os.path.realpath(path)), []
    folder = path.parent / f".{os.urandom(8).hex()}{_UNFINISHED}"
    try:
        try:
            refuse_filled(path)
            missing = [above for above in path.parents if not above.exists()]
            folder.mkdir(parents=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        try:
            _lock(descriptor, wait=True)
            yield folder
            sync_folder(folder)
            refuse_filled(path)
            with naming(path):
                folder.rename(path)  # of an empty folder that is there, it takes the place
                sync_folder(path.parent)
        finally:
            os.close(descriptor)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in missing:
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise
    sweep(path.parent)


def refuse_filled(path: Path) -> None:
    """Raise UserError if ``path`` is there and no empty folder."""
    try:
        path.lstat()
        if not path.is_dir() or any(path.iterdir()):
            kind = "is a folder that is not empty" if path.is_dir() else "is no folder"
            raise UserError(f"{path} {kind}; it is left as it is. Name a new folder")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def sweep(folder: Path) -> None:
    """Delete what killed processes have left unfinished in ``folder``; never what is being written."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        if left.is_symlink() or not (left.is_file() or left.is_dir()):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY if left.is_dir() else os.O_RDWR)
            try:
                if _lock(descriptor, wait=False):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


def _lock(file: BinaryIO | int, wait: bool) -> bool:
    """Lock ``file`` until it is closed, or its process ends; return whether it is."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, ImportError):  # it is locked, or the system knows no such locks: then no file is swept up there
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
