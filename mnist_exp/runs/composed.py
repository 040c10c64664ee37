"""What a run was composed of: its config, its choices, what its command line named, its recipe."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from mnist_exp.config import recipe
from mnist_exp.files import atomic_write


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
        try:
            return dict(read_yaml(self.hydra_settings)["hydra"]["runtime"]["choices"])
        except (KeyError, TypeError):
            return {}

    def composed(self, key: str) -> Any:
        """Return what ``key`` was composed to: its value, references followed; the choice of a group.

        "null" for a value that is null, a mapping where keys stand below. None where there is no such key or choice.
        """
        if "." not in key and key in (choices := self.choices()):
            return choices[key]
        config = self.config()
        node: Any = config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = recipe.followed(node[part], config) if isinstance(node[part], str) else node[part]
        return "null" if node is None else str(node) if isinstance(node, list) else node

    def named(self) -> dict[str, Any]:
        """Return what the keys of the recipe that the command line named were composed to; "deleted" for what was."""
        known = self.info.get("named")
        return _named(self) if known is None else dict(known)  # known without reading the config

    @property
    def recipe(self) -> str | None:
        """A digest that repetitions share; None without a config."""
        known = self.info.get("recipe") or {}
        if known.get("rule") == recipe.RULE:
            return known["digest"]
        config = self.config()
        return recipe.digest(config, self.info.get("warm_start")) if config else None

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


def read_yaml(file: Path) -> Any:
    """Return what a YAML file of a run holds; None if it cannot be read. Not to be changed: it is read once."""
    try:
        found = file.stat()
        return _read_yaml(file, found.st_mtime_ns, found.st_size)
    except (OSError, yaml.YAMLError):
        return None


@functools.lru_cache(maxsize=4096)
def _read_yaml(file: Path, changed: int, size: int) -> Any:
    return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _named(run: Composed) -> dict[str, Any]:
    """Return {key named on the command line: value}, of a key that is a mapping all keys below it."""
    found: dict[str, Any] = {}
    for override in run.info.get("overrides", []):
        key = override.lstrip("+~").partition("=")[0]
        if not recipe.below(key, recipe.PLACES):
            found[key] = "deleted" if override.startswith("~") else None
    found |= {key: value for key in found if (value := run.composed(key)) is not None}
    return {key: value for key, value in recipe.flatten(found).items() if value is not None}
