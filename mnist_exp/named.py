"""The files that a command line names to be written: what can be said of them before anything is read."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mnist_exp.errors import UserError, require

PICTURES = ("png", "pdf", "svg")


def check_files(files: Mapping[str, str]) -> None:
    """Raise UserError if one of ``files`` {option: name} cannot be written, or two are one; "-" is standard output."""
    for option, name in files.items():
        found = f"the folder {name}" if is_folder(name) else name or repr(name)
        fine = name and "\0" not in name and not name.endswith("/") and not is_folder(name)
        require(bool(fine), f"--{option}", found, "a file, or - to print it")
    if len({os.path.realpath(name) for name in files.values()}) < len(files):
        raise UserError(f"two of {', '.join(f'--{option} {name}' for option, name in files.items())} are one file")
    for option, name in files.items():
        check_writable(option, name)


def check_writable(option: str, name: str) -> None:
    """Raise UserError if the file, or folder, ``name`` cannot be made or changed: long work would be for nothing."""
    if name == "-":
        return
    path = Path(os.path.realpath(name))
    try:
        if os.path.exists(name) and not (os.path.isfile(name) or os.path.isdir(name)):  # noqa: PTH110, PTH112, PTH113
            if not os.access(name, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return  # a pipe or a device, of which realpath may know no path
        there = next(p for p in (path, *path.parents) if p.exists())
        if there != path and not there.is_dir():
            raise UserError(f"--{option} {name} cannot be written: {there} is no folder")
        if os.path.lexists(path) and not path.exists():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        longest = max(map(len, map(os.fsencode, path.relative_to(there).parts)), default=0)
        if there.is_dir() and longest > os.pathconf(there, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if not os.access(there, os.W_OK):
            raise UserError(f"--{option} {name} cannot be written: {there} may not be changed; name another place")
        # what may be changed by its mode may still take no file, which is written inside or beside
        tempfile.TemporaryFile(dir=there if there.is_dir() else there.parent).close()
    except OSError as error:
        raise UserError(f"--{option} {name} cannot be written: {error.strerror}; name another place") from error


def picture_kind(option: str, name: str) -> str:
    """Return the kind of picture, png, pdf or svg, that ``name`` asks for. Raises UserError for another one."""
    kind = "png" if name == "-" else Path(name).suffix.lower()[1:]
    require(kind in PICTURES, f"--{option}", name, f"the name of a picture, ending in {', '.join(PICTURES)}")
    return kind


def is_folder(name: str) -> bool:
    """Whether ``name`` is a folder's, or a link to one."""
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # what is wrong with it will be seen where it is used
        return False
