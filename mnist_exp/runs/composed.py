"""What a run was composed of: its config, its choices, what its command line named, its recipe."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_exp.config import recipe
from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.reading import load_yaml, read_yaml
from mnist_exp.runs.schema import KEYS

_KEY = re.compile(r"[\w./@:-]{1,200}")  # that may name a column
_CELL = 1000  # letters of a value in a table


class Composed:
    """The .hydra files of the run in ``path``, and what run.json (``info``) keeps of them."""

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path = path
        self.info = info

    @property
    def hydra_config(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    @property
    def hydra_settings(self) -> Path:
        return self.path / ".hydra" / "hydra.yaml"

    @property
    def hydra_overrides(self) -> Path:
        return self.path / ".hydra" / "overrides.yaml"

    def config(self) -> dict[str, Any]:
        """Return the composed config as plain data, references unresolved; {} where it cannot be read."""
        found = read_yaml(self.hydra_config)
        return found if isinstance(found, dict) else {}

    def choices(self) -> dict[str, Any]:
        """Return {group: choice} of what was composed; {} where it cannot be read."""
        node = read_yaml(self.hydra_settings)
        for part in ("hydra", "runtime", "choices"):
            node = node.get(part) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}

    def damages(self) -> Iterator[str]:
        """Yield a line for each of these files that is there and cannot be read."""
        for file in (self.hydra_config, self.hydra_settings):
            try:
                if os.path.lexists(file):
                    load_yaml(file)
            except UserError as error:
                yield str(error)

    def composed(self, key: str) -> Any:
        """Return what ``key`` was composed to: its value, references followed; the choice of a group.

        Text, a number, "null" for null, a mapping where keys stand below. None where there is no such key or choice.
        """
        if "." not in key and key in (choices := self.choices()):
            return None if choices[key] is None else _cell(choices[key])
        config = self.config()
        node: Any = config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return recipe.default_of_added(key, config)
            node = recipe.followed(node[part], config) if isinstance(node[part], str) else node[part]
        return node if isinstance(node, dict) else _cell(node)

    def named(self) -> dict[str, Any]:
        """Return what the keys of the recipe that the command line named were composed to; "deleted" for what was."""
        known = self.info.get("named")
        if known is None:  # by an older version, else it is known without reading the config
            return _named(self)
        return {key: _cell(value) for key, value in known.items() if _KEY.fullmatch(key)}

    @property
    def recipe(self) -> str | None:
        """A digest that repetitions share; None without a config."""
        known = self.info.get("recipe") or {}
        if known.get("rule") == recipe.RULE:
            return known["digest"]
        config = self.config()
        return recipe.digest(config, self.info.get("warm_start"), self.computed) if config else None

    @property
    def computed(self) -> dict[str, Any]:
        """What its config may have left to the machine, {dotted key: value}: the precision."""
        return {"trainer.precision": self.info["precision"]} if self.info.get("precision") else {}

    @property
    def dataset(self) -> dict[str, Any]:
        """What run.json says of the data, {} before it is known; the MD5 is None where it does not tell data apart.

        An older version, which named no classes, took it of the labels alone for data of one's own.
        """
        dataset = self.info.get("dataset") or {}
        if "classes" in dataset:  # known without reading the config
            return dataset
        custom = recipe.modern(self.composed("data._target_")) == "mnist_exp.data.sets.CustomData"
        return {**dataset, "md5": None} if custom else dataset

    def go_on(self, config: str, changes: list[str]) -> None:
        """Take down the composed ``config`` (YAML) that a resumed run goes on with; ``changes``: overrides that it was given.

        So a run that was made to end early is no repetition of others.
        """
        atomic_write(self.hydra_config, config.encode())
        self.info["overrides"] = [*self.info["overrides"], *changes]
        self.keep_composed()

    def keep_composed(self) -> None:
        """Keep in ``info`` what the config says, so that ``compare`` need not read it."""
        self.info |= {"recipe": None, "named": None}
        self.info |= {"recipe": {"rule": recipe.RULE, "digest": self.recipe}, "named": self.named()}


def _cell(value: Any) -> str | int | float:
    """Return a value as it may stand in a table."""
    whole, number = isinstance(value, int), isinstance(value, float)
    if (whole and abs(value) < 2**63) or (number and math.isfinite(value)):
        return value
    text = "null" if value is None else str(value)
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}\u2026"


def _named(run: Composed) -> dict[str, Any]:
    """Return {key named on the command line: value}, of a key that is a mapping all keys below it."""
    found: dict[str, Any] = {}
    for override in run.info["overrides"]:
        key = override.lstrip("+~").partition("=")[0]
        if not recipe.below(key, recipe.PLACES):
            found[key] = "deleted" if override.startswith("~") else None
    found |= {key: value for key in found if (value := run.composed(key)) is not None}
    named = ((key, _cell(value)) for key, value in recipe.flatten(found).items() if value is not None)
    return dict(itertools.islice((one for one in named if _KEY.fullmatch(one[0])), KEYS))
