"""Overrides before Hydra composes them: those that are typed, and those that a finished run was made of."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf._utils import split_key

from mnist_exp.config.elsewhere import places, refuse_resolvers
from mnist_exp.config.ours import config_folder
from mnist_exp.config.recipe import below, flatten
from mnist_exp.errors import UserError, require

log = logging.getLogger(__name__)


def quoted(text: str | Path) -> str:
    """Return ``text`` as the value of an override that means just that, whatever characters are in it."""
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", str(text))
    return QuotedString(escaped, Quote.single).with_quotes()


def check_typed(lines: Sequence[str]) -> None:
    """Raise UserError for overrides that Hydra takes, or stumbles over, and that cannot be meant."""
    for line in lines:
        try:
            override = OverridesParser.create().parse_override(line)
        except HydraException as error:
            if "=" not in line and not line.startswith("~"):
                raise UserError(f"{line} is no override; wanted is KEY=VALUE") from error
            continue  # Hydra will say why
        if not override.is_sweep_override():
            for key, value in flatten(_tree(override)).items():
                _check(key, value)


def _check(key: str, value: Any) -> None:
    if below(key, ("hydra.job.env_set", "hydra.job.env_copy")):
        raise UserError(f"{key} is not taken: set variables in your shell, as in NAME=VALUE python -m mnist_exp ...")
    if key == "hydra.searchpath":
        raise UserError(f"{key} is not taken: configs of your own lie in a folder, --config-dir FOLDER")
    if key == "hydra.output_subdir":
        raise UserError(f"{key} is not taken: the configs of a run lie in its folder, in .hydra")
    if key in ("hydra.run.dir", "hydra.sweep.dir", "paths.outputs", "paths.data", "data.root"):
        require(value not in (None, ""), key, repr(value), "a folder")
    if below(key, ("hydra.verbose",)):
        require(isinstance(value, bool | str | list), key, value, "true, false, or names of loggers")
    if Path(config_folder(), key).is_dir():  # a group
        choices = value if isinstance(value, list) else [value or ""]
        require(all(isinstance(one, str) for one in choices), key, value, f"one of the files in conf/{key}")


def kept(lines: Any, file: Path) -> list[str]:
    """Return the overrides of a finished run, from its ``file``, that a run with its weights is composed of too.

    They are values and choices, no more: nothing of them says where it writes (a warning names what was left out).
    Raises UserError naming the file and the line that is something else.
    """
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{file} cannot be read: it must be a list of overrides")
    found: list[str] = []
    left_out: list[str] = []
    for line in lines:
        try:
            override = OverridesParser.create().parse_override(line)
        except HydraException as error:
            raise UserError(f"{file}: {line!r} is no override") from error
        tree = _tree(override)
        if override.package or override.is_sweep_override() or below(next(iter(tree)), ("hydra",)):
            raise UserError(f"{file}: {line!r} is no value and no choice of the run; delete the line to go on without")
        refuse_resolvers(tree, file)
        where = [key for key in places(tree) if not below(key, ("data",))]  # only read: see Job.reads_only
        (left_out if where else found).append(line)
    if left_out := [line for line in left_out if not below(line.partition("=")[0], ("resume",))]:
        log.warning("not taken from %s: %s; type what is wanted of it", file, " ".join(left_out))
    return found


def _tree(override: Override) -> dict[str, Any]:
    """Return {dotted key: value} of an override."""
    return {".".join(split_key(override.key_or_group.replace("/", "."))): override.value()}
