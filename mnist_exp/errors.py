"""The one error a user's mistake raises, so that the command line can answer with a message instead of a traceback."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """A request that cannot be carried out: the message names the key or file, what is allowed and what to type."""


class RunFailed(Exception):
    """A run that was asked for rightly and went wrong, such as a loss that is not finite: what happened, what to try."""


class RunLockedError(UserError):
    """A run that another process is writing."""


class TrialPruned(Exception):
    """A trial of a search that was stopped early because others did better."""


def require(condition: bool, key: str, found: Any, allowed: str) -> None:
    """Raise UserError saying that config key ``key`` is ``found`` where ``allowed`` was wanted, unless ``condition``."""
    if not condition:
        raise UserError(f"{key} is {found}; it must be {allowed}")
