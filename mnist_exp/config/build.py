"""From a config group to the object it describes, and what a config may build at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from mnist_exp.errors import UserError, WrongValue

# a person at the keyboard can allow more; a config file cannot
ALLOW = "MNIST_EXP_ALLOW"
_PATTERNS = (
    "mnist_exp.*",
    "hydra_plugins.*",
    "torch.optim.*",
    "torch.nn.*",
    "torchvision.*",
    "optuna.pruners.*",
    "logging.*",
)


def execution_whitelist() -> list[str]:
    """Return the targets that Hydra's ``instantiate`` may call, with those that $MNIST_EXP_ALLOW adds, by comma."""
    return [*_PATTERNS, *filter(None, os.environ.get(ALLOW, "").split(","))]


def build(config: DictConfig, group: str) -> Any:
    """Return the object that ``group`` of ``config`` describes. Raises UserError naming the key that is wrong."""
    from hydra.utils import instantiate

    if config[group] is None:
        raise UserError(f"{group} is null; type {group}=CHOICE with one of the files in conf/{group}")
    with standing_at(group):
        try:
            return instantiate(config[group], _convert_="all", _execution_whitelist_=execution_whitelist())
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{group} cannot be built: {error}") from error


@contextlib.contextmanager
def standing_at(group: str) -> Iterator[None]:
    """Say the config key of a value that a component refuses; the component only knows its own name for it."""
    try:
        yield
    except WrongValue as error:
        # Hydra notes where the component stands, which may be below the group
        notes = [note.partition("full_key: ")[2] for note in getattr(error, "__notes__", ())]
        raise error.below(next(filter(None, notes), group)) from error
