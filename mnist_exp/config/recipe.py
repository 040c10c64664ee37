"""What a run computes, apart from where: the one list of what belongs to its recipe, and the targets that have moved.

Resuming, searching, comparing and best.yaml all ask here. Reads plain data; builds nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RULE = 5  # of digests; to be raised when equal configs get another one than before
# keys, with all below them, that say where and as what a run is computed; every other key is what it computes
PLACES = (
    *(
        "paths",
        "data.root",
        "data.download_timeout",
        "trainer.device",
        "trainer.memory_format",
        "trainer.compile",
        "trainer.threads",
        "logger",
    ),
    *("task_name", "tags", "save_prefix", "resume", "search", "pruner", "hydra"),
)
# what a resumed run may change: its places, but for what has named its files already; and it may end early
RESUMABLE = (*(p for p in PLACES if p not in ("save_prefix", "search", "pruner", "hydra")), "trainer.max_steps")
# modules of components as older run folders, studies and experiments name them
_MOVED = {
    **{
        f"mnist_exp.{name}": f"mnist_exp.parts.{name}"
        for name in ("models", "augment", "optim", "schedule", "trainer", "evaluate", "loggers")
    },
    "mnist_exp.data": "mnist_exp.data.sets",
    "mnist_exp.sweep": "mnist_exp.search.sweeper",
    "mnist_exp.progress": "mnist_exp.console",
}
# keys that configs of older versions do not have, what they meant by that, and the component that takes each
ADDED = {"schedule.interval": "epoch", "augment.label_smoothing": 0}
_TAKES = {
    "schedule.interval": "mnist_exp.parts.schedule.Cosine",
    "augment.label_smoothing": "mnist_exp.parts.augment.Augment",
}
_DEPTH = 64  # of mappings, lists and references in each other, which are followed
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


def below(key: str, keys: Iterable[str]) -> bool:
    """Whether ``key``, as in a config or an override, is one of ``keys`` or stands below one."""
    dotted = key.lstrip("+~").replace("/", ".")
    return any(dotted == k or dotted.startswith(f"{k}.") for k in keys)


def overrides(given: Iterable[str]) -> set[str]:
    """Return those of the overrides ``given`` that belong to the recipe."""
    return {_current(o) for o in given if not below(o.partition("=")[0], PLACES)}


def digest(config: Mapping[str, Any], warm_start: Any = None, computed: Mapping[str, Any] | None = None) -> str:
    """Return 8 hex digits that are equal for repetitions: the same values composed, but for places and the seed.

    ``warm_start``: the run whose weights it began with. ``computed``: {key: value} of what was left to the machine.
    """
    found = {**values(config), **(computed or {})}
    text = json.dumps(_sortable([found, warm_start and str(warm_start)]), sort_keys=True, default=str)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:8]


def values(config: Mapping[str, Any], follow: bool = True) -> dict[str, Any]:
    """Return {dotted key: value} of what belongs to the recipe of a composed ``config``, which is plain data.

    With ``follow``, references between keys are followed, but for those to a place or to the seed, which differ between
    repetitions. "<key>.(order)" has the order of parts that are applied in turn.
    """
    tree = modernised(followed(config, config) if follow else config)
    found = ADDED | flatten(tree) | {f"{key}(order)": names for key, names in _applied_in_turn(tree)}
    return {key: _plain(value) for key, value in found.items() if not below(key, (*PLACES, "seed"))}


def default_of_added(key: str, config: Mapping[str, Any]) -> Any:
    """Return what an older ``config``, which has no ``key``, means by that; None if it means nothing."""
    group = config.get(key.partition(".")[0])
    takes = isinstance(group, Mapping) and modern(group.get("_target_")) == _TAKES.get(key, ...)
    return ADDED[key] if takes else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one: {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def modern(target: Any) -> Any:
    """Return today's name of a component that an older version has named ``target``."""
    module, _, name = str(target).rpartition(".")
    return f"{_MOVED[module]}.{name}" if module in _MOVED else target


def modernised(tree: Any) -> Any:
    """Return a copy of plain data with today's name at every ``_target_``."""
    if isinstance(tree, dict):
        return {key: modern(value) if key == "_target_" else modernised(value) for key, value in tree.items()}
    return [modernised(value) for value in tree] if isinstance(tree, list) else tree


def _plain(value: Any) -> Any:
    """Return whole numbers as such, however they are written."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sortable(value: Any) -> Any:
    """Return ``value`` with text for all keys."""
    if isinstance(value, Mapping):
        return {str(key): _sortable(child) for key, child in value.items()}
    return [_sortable(child) for child in value] if isinstance(value, list) else value


def _applied_in_turn(tree: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the components whose parts are components too, and these in their order: transforms go one after another."""
    if isinstance(tree, Mapping):
        inner = [key for key, child in tree.items() if isinstance(child, Mapping) and "_target_" in child]
        if "_target_" in tree and len(inner) > 1:
            yield prefix, inner
        for key, child in tree.items():
            yield from _applied_in_turn(child, f"{prefix}{key}.")


def _current(override: str) -> str:
    key, equals, value = override.partition("=")
    if equals and key.endswith("_target_"):
        return f"{key}={modern(value)}"
    try:
        return f"{key}={_plain(float(value))}"  # a number, however it is written
    except ValueError:
        return override


def followed(value: Any, tree: Mapping[str, Any]) -> Any:
    """Return ``value`` with what its references name in ``tree`` in their place, but for places and the seed.

    What lies deeper than any config, or brings in more than 100,000 letters, stays a reference: those of a config that
    is made for it never end.
    """
    left = 100_000

    def follow(value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {key: follow(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list):
            return [follow(child, depth + 1) for child in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole is not None:
            found = named(whole[1], depth)
            return value if found is ... else found
        return _REFERENCE.sub(lambda m: m[0] if (part := named(m[1], depth)) is ... else str(_plain(part)), value)

    def named(key: str, depth: int) -> Any:
        nonlocal left
        node: Any = ... if depth > _DEPTH or left <= 0 or below(key, (*PLACES, "seed")) else tree
        for part in key.split("."):
            node = node.get(part, ...) if isinstance(node, Mapping) else ...
        if node is not ...:
            node = follow(node, depth + 1)
            left -= len(str(node))
        return node if left > 0 else ...

    return follow(value, 0)
