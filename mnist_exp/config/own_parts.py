"""Another constructor named by ``..._target_=`` on the command line: it is not asked to take the keys of the one before."""

from __future__ import annotations

import fnmatch
import inspect
import logging
import pydoc
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_exp.config.build import allowed
from mnist_exp.config.recipe import below

log = logging.getLogger(__name__)


def without_keys_of_others(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return ``config`` without the keys that only the constructors take which ``overrides`` have put others in place of.

    Keys that were typed stay, and are refused when it is built; so do those of a constructor that takes any.
    """
    named = {line.partition("=")[0].lstrip("+~") for line in overrides}
    for parent in sorted(key.removesuffix("._target_") for key in named if key.endswith("._target_")):
        node = OmegaConf.select(config, parent)
        names = _parameters(node.get("_target_")) if OmegaConf.is_dict(node) and parent != "data" else None
        if names is None:
            continue
        gone = [str(key) for key in node if not str(key).startswith("_") and key not in names]
        gone = [key for key in gone if not any(below(typed, [f"{parent}.{key}"]) for typed in named)]
        with open_dict(node):
            for key in gone:
                del node[key]
        if gone:
            log.info("%s: %s does not take %s, which is left out", parent, node["_target_"], ", ".join(gone))
    return config


def _parameters(target: Any) -> set[str] | None:
    """Return the names that a constructor takes; None if it takes any, is not allowed, or cannot be found."""
    if not isinstance(target, str) or not any(fnmatch.fnmatchcase(target, one) for one in (*allowed(), "torch.*")):
        return None
    try:
        found = inspect.signature(pydoc.locate(target)).parameters.values()  # type: ignore[arg-type]
    except (pydoc.ErrorDuringImport, TypeError, ValueError):
        return None  # it will be said when it is built
    return None if any(p.kind is p.VAR_KEYWORD for p in found) else {p.name for p in found}
