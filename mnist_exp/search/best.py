"""The best trial of a search as an experiment: by choices and values, so that what is typed beside it wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mnist_exp.config import recipe
from mnist_exp.config.job import compose, config_folder
from mnist_exp.runs.folder import RunFolder

_GROUPS = ("data", "model", "augment", "optimizer", "schedule", "trainer", "evaluate")
_SEARCHING = ("optimized_metric", "evaluate.test")  # with what is in recipe.PLACES, a search's own business
_HERE = "best"  # the choice that stands for what no choice and values of ours can say


def write_best(folder: Path, best: Any) -> Path | None:
    """Write the trial ``best`` of the search in ``folder`` as conf/experiment/best.yaml there; return its path.

    It names the choices that the trial was composed of, and the values that differ from what they compose. A group that
    this cannot say, since a key of it was deleted, its transforms go in another order, or its choice is not one of ours,
    is written whole, as a choice of its own: conf/<group>/best.yaml. None if the trial's folder is not on this machine.
    """
    run = RunFolder(folder / f"trial-{best.number}", {})
    config, choices = recipe.modernised(run.config()), run.choices()
    if not config:
        return None
    ours = {group: choices[group] for group in _GROUPS if _is_ours(group, choices.get(group))}
    base: Any = OmegaConf.to_container(compose(*(f"{group}={choice}" for group, choice in ours.items())))
    _forget_the_search(config, base)
    values = _difference(config, base)
    said: Any = OmegaConf.to_container(OmegaConf.merge(base, values))  # all at once: it follows references
    conf, of = folder / "conf", f"he best of a search, trial {best.number}"
    for group in _GROUPS:
        file = conf / group / f"{_HERE}.yaml"
        file.unlink(missing_ok=True)  # of a trial that was the best before
        if group in ours and _same(said[group], config[group]):
            continue
        ours[group] = _HERE
        values.pop(group, None)
        text = f"# The {group} of t{of}, whole: no choice of ours with single values gives it.\n"
        text += f"#   python -m mnist_exp train --config-dir {conf} {group}={_HERE}\n"
        _write(file, text + OmegaConf.to_yaml(config[group]))
    header = (
        f"# @package _global_\n# T{of}, by validation: {run.config()['optimized_metric']} {best.value:.4f}.\n"
        f"#   python -m mnist_exp train --config-dir {conf} experiment=best\n"
    )
    defaults = [{f"override /{group}": ours[group]} for group in _GROUPS]
    return _write(conf / "experiment" / "best.yaml", header + OmegaConf.to_yaml({"defaults": defaults, **values}))


def _is_ours(group: str, choice: Any) -> bool:
    return (Path(config_folder()) / group / f"{choice}.yaml").exists()


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


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file
