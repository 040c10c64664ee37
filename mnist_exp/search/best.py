"""The best trial of a search as an experiment: by choices and values, so that what is typed beside it wins."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mnist_exp.config import recipe
from mnist_exp.config.job import compose
from mnist_exp.config.ours import config_folder
from mnist_exp.console import shown
from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.runs.folder import RunFolder, refuse_links

_GROUPS = ("data", "model", "augment", "optimizer", "schedule", "trainer", "evaluate")
_SEARCHING = ("optimized_metric", "evaluate.test")  # with what is in recipe.PLACES, a search's own business
_HERE = "best"  # the choice that stands for what no choice and values of ours can say


def write_best(folder: Path, best: Any, metric: str) -> Path | None:
    """Write the trial ``best``, by ``metric``, of the search in ``folder`` as conf/experiment/best.yaml there; return its path.

    It names the choices that the trial was composed of, and the values that differ from what they compose. A group that
    this cannot say, since a key of it was deleted, its transforms go in another order, or its choice is not one of ours,
    is written whole, as a choice of its own: conf/<group>/best.yaml. None if the trial's folder is not on this machine.
    Raises UserError if its config cannot be said, or a folder that is written to is a link.
    """
    run = RunFolder(folder / f"trial-{best.number}", {})
    if not run.config():
        return None
    conf = folder / "conf"
    names = {group: conf / group / f"{_HERE}.yaml" for group in (*_GROUPS, "experiment")}
    refuse_links(folder, "conf", *(f"conf/{group}" for group in names))
    try:
        contents = _contents(run)
    except Exception as error:  # it may be from anyone, and hold anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{run.hydra_config} cannot be said as an experiment: {reason}") from error
    what = f"best of a search, trial {best.number}"
    for group, file in names.items():
        if group not in contents:
            file.unlink(missing_ok=True)  # of a trial that was the best before
            continue
        head = f"# The {group} of the {what}, whole: no choice of ours with single values gives it.\n"
        if group == "experiment":
            head = f"# @package _global_\n# The {what}, by validation: {metric} {best.value:.4f}.\n"
        command = shown(f"python -m mnist_exp train --config-dir {shlex.quote(str(conf))} {group}={_HERE}")
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, f"{head}#   {command}\n{contents[group]}".encode())
    return names["experiment"]


def _contents(run: RunFolder) -> dict[str, str]:
    """Return the YAML that is to say the config of ``run``: of an experiment, and of each group that is written whole."""
    config, choices = recipe.modernised(run.config()), run.choices()
    ours = {group: choices[group] for group in _GROUPS if _is_ours(group, choices.get(group))}
    base: Any = OmegaConf.to_container(compose(*(f"{group}={choice}" for group, choice in ours.items())))
    for key in recipe.ADDED:
        group, name = key.split(".")
        if name not in config[group] and base[group].get(name) == recipe.default_of_added(key, config):
            base[group].pop(name, None)
    _forget_the_search(config, base)
    values = _difference(config, base)
    said: Any = OmegaConf.to_container(OmegaConf.merge(base, values))  # all at once: it follows references
    trees: dict[str, Any] = {"experiment": values}
    for group in _GROUPS:
        if group not in ours or not _same(said[group], config[group]):
            ours[group] = _HERE
            values.pop(group, None)
            trees[group] = config[group]
    for tree in trees.values():
        tree.pop("defaults", None)  # Hydra would compose what it names
    trees["experiment"] = {"defaults": [{f"override /{group}": ours[group]} for group in _GROUPS], **values}
    return {group: OmegaConf.to_yaml(tree) for group, tree in trees.items()}


def _is_ours(group: str, choice: Any) -> bool:
    return f"{choice}.yaml" in (file.name for file in Path(config_folder(), group).iterdir())


def _forget_the_search(config: Any, base: Any) -> None:
    """Give ``config`` what ``base`` has of the keys that say where it was computed, or that only a search sets."""
    for key in (*recipe.PLACES, *_SEARCHING):
        *above, last = key.split(".")
        here, there = config, base
        for part in above:
            here, there = here[part], there[part]
        if last in here and last in there:
            here[last] = there[last]
        else:
            here.pop(last, None)
            there.pop(last, None)


def _difference(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of nested mappings is not the same in ``base``."""
    found = {}
    for key, value in config.items():
        other = base.get(key, ...)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if inner := _difference(value, other):
                found[key] = inner
        elif value != other:
            found[key] = value
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two groups have the same values, in the same order where that matters."""
    return one == other and recipe.values(one, follow=False) == recipe.values(other, follow=False)
