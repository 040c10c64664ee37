"""The errors that the command line answers with a message instead of a traceback."""

from __future__ import annotations

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


class TrialPruned(Exception):
    """A run that was stopped early because others did better."""


def require(condition: bool, name: str, found: Any, allowed: str) -> None:
    """Raise WrongValue saying that ``name`` is ``found`` where ``allowed`` was wanted, unless ``condition``."""
    if not condition:
        raise WrongValue(name, found, allowed)
