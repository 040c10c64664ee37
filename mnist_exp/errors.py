"""The errors that the command line answers with a message instead of a traceback."""

from __future__ import annotations

import errno
import os
import re
from typing import Any


class UserError(Exception):
    """A request that cannot be carried out: the message names the key or file, what is allowed and what to type."""


class WrongValue(UserError):
    """A value that is refused: its ``name``, what was ``found``, and what is ``allowed``."""

    def __init__(self, name: str, found: Any, allowed: str):
        super().__init__(f"{name} is {found}; it must be {allowed}")
        self.name = name
        self.found = found
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[WrongValue], tuple[str, Any, str]]:
        return WrongValue, (self.name, self.found, self.allowed)  # for errors that come from worker processes

    def below(self, key: str) -> WrongValue:
        """Return the same for a component that stands at config key ``key``; it does not know where it stands."""
        return WrongValue(f"{key}.{self.name}", self.found, self.allowed)


class RunFailed(Exception):
    """A run that was asked for rightly and went wrong, such as a loss that is not finite: what happened, what to try."""


class RunLockedError(UserError):
    """A run that another process is writing."""


class MachineFailed(RunFailed):
    """A failure of the machine that a run or a search met, not its own: the ``problem``, and the way out of it."""

    def __init__(self, problem: str, way_out: str):
        super().__init__(problem, way_out)
        self.problem = problem

    def __str__(self) -> str:
        return ". ".join(self.args)


class TrialPruned(Exception):
    """A run that was stopped early because others did better."""


def require(condition: bool, name: str, found: Any, allowed: str) -> None:
    """Raise WrongValue saying that ``name`` is ``found`` where ``allowed`` was wanted, unless ``condition``."""
    if not condition:
        raise WrongValue(name, found, allowed)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SICK = {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOLCK}
_SQLITE = {8, 10, 13, 14}  # SQLite's codes: it may not write, I/O error, the disk is full, it cannot open the file


def machine_failure(error: BaseException | None) -> str | None:
    """Return what of the machine failed, if that is what ``error`` came of; None if it did not.

    That is a full, broken or forbidden disk, and too many open files. It is not memory: how much a run takes is its own
    doing, so that one which does not fit is a failed run, and one that the system kills is tried again, at last alone.
    """
    while error is not None:
        if isinstance(error, MachineFailed):
            return error.problem
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE:
            return f"SQLite says: {error}"
        told = re.search(r"\[Errno (\d+)\]", str(error))  # of one in another process there may be only words
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number in _FULL | _SICK:
            what = "the disk is full" if number in _FULL else os.strerror(number)
            file = getattr(error, "filename", None)
            return (
                what
                if file is None
                else f"{what}: {file} could not be written"
                if number in _FULL
                else f"{what}: {file}"
            )
        error = error.__cause__
    return None
