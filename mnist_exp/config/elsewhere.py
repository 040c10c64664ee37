"""What a config from elsewhere may say: what to compute; not where, and no more of Hydra's settings than a search.

A folder of configs (``--config-dir``) and a run folder (``resume=``) may be somebody else's. What their values build is
restricted in ``config.build``. Here it is seen to that they name no place to write or to send to, that no variable of
the environment lands in a file, and that reading them ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import split_key
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config import recipe
from mnist_exp.config.ours import config_folder, without_our_search
from mnist_exp.config.recipe import below
from mnist_exp.errors import UserError
from mnist_exp.reading import MIB, load_yaml, read_text, read_yaml, refusal

# keys that say where a run writes, what it goes on with, and how Hydra starts it; with all below them
_PLACES = ("paths", "resume", "hydra")
_SEARCH = ("study_name", "direction", "max_failure_rate", "n_trials", "n_jobs", "sampler", "params")
_SEARCHED = tuple(f"hydra.sweeper.{key}" for key in _SEARCH)
_TYPED = ("data.root", "paths.data", "paths.outputs", "hydra.run.dir", "hydra.sweep.dir")
# values that lead nowhere else than the command line says, as conf/ has them
_USUAL_ROOT = re.compile(r"\$\{paths\.data\}(/\w[\w.-]*)*")
_USUAL_SERVER = re.compile(r"sqlite:///\$\{paths\.outputs\}/mlflow\.db")
_DOWNLOADS = "mnist_exp.data.sets.Data"
# what may be resolved: references between keys, and the one variable of conf/paths
_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w.\[\]-]*\}")
_MUCH, _FAR = 100_000, 64  # letters and values that references bring in; references one after another
RESOLVED = "${oc.env:MNIST_EXP_DATA,'~/.cache/mnist_exp'}"


class Elsewhere(FileConfigSource):
    """Files below ``--config-dir``. Hydra asks for each that it composes; a UserError names the one that says too much."""

    @staticmethod
    def scheme() -> str:
        return "elsewhere"

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        tree = load_yaml(file)
        tree = {} if tree is None else tree
        if not isinstance(tree, dict):
            raise refusal(file, "it must hold keys and values")
        try:
            header = self._get_header_dict(read_text(file, MIB))
            found = ConfigResult(self.provider, self.full_path(), OmegaConf.create(tree), header)
        except (ValueError, OmegaConfBaseException) as error:
            raise refusal(file, error) from error
        if found.header["package"] not in (None, "_global_"):
            raise UserError(f"{file}: its package must be _global_, or left out, which is that of its folder")
        _refuse_choices(tree.get("defaults"), file)
        values = {key: value for key, value in tree.items() if key != "defaults"}
        if found.header["package"] is None:  # that of its folder
            for group in reversed(Path(config_path).parts[:-1]):
                tree, values = {group: tree}, {group: values}
        tree = without_our_search(tree)
        refuse_places(without_our_search(values), file)
        _refuse_references_of_hydra(tree, file)
        refuse_resolvers(tree, file)
        return found


def refuse_names_of_ours(folder: Path) -> None:
    """Raise UserError for a config in ``folder`` that Hydra would never read: one of conf/ has its name, and says else."""
    ours = Path(config_folder())
    for file in sorted(ours.rglob("*.yaml")):
        theirs = folder / file.relative_to(ours)
        if theirs.exists() and read_yaml(theirs) != read_yaml(file):
            name = file.relative_to(ours).with_suffix("")
            raise UserError(
                f"{theirs} would not be read, since mnist_exp has a config of that name: rename it, and choose it by its "
                f"new name, as in {name.parent if name.parent.name else 'experiment'}=my_{name.name}"
            )


_ASK = "where things are written, and how Hydra starts a run, is said on the command line"


def refuse_places(tree: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a config of others, from ``file``, says where things are written or how Hydra starts a run."""
    for key in places(tree):
        found = _spread(tree)[key]
        typed = f": type {key}={found}" if key in _TYPED and isinstance(found, str) else ""
        only_read = ". Or, for pictures in folders, which are only read, write `_target_: mnist_exp.data.sets.ImageFolder` there"
        raise UserError(
            f"{file}: {key} is not taken from there; {_ASK}{typed}{only_read if key == 'data.root' else ''}"
        )


def places(tree: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config that say where things are written, but for values that are as in conf/."""
    found = _spread(tree)
    return [key for key in found if _says_where(key, found)]


def _spread(node: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one: {dotted key: value}, each list too, and what it holds by its place."""
    if not isinstance(node, Mapping | list):
        return {key: node}
    flat = {key: node} if isinstance(node, list) else {}
    for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
        flat |= _spread(child, f"{key}.{name}" if key else str(name))
    return flat


def _says_where(key: str, found: Mapping[str, Any]) -> bool:
    """Whether the dotted ``key``, with what else was ``found``, says where.

    A group of a group may come to stand for that of the root, so any end of the key counts.
    """
    parts = [part.lstrip("+~") for part in key.split(".")]
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    if any(below(end, _PLACES) and not below(end, _SEARCHED) for end in ends):
        return True
    if any(below(end, ("hydra.sweeper.params",)) for end in ends) and "{" in str(found.get(key)):
        return True  # a mapping in a range would be read as one
    if parts[-1] == "tracking_uri":
        return not _USUAL_SERVER.fullmatch(str(found[key]))
    if parts[-2:-1] != ["data"] or parts[-1] not in ("root", "_target_", "_args_"):
        return parts[-1] == "data" and isinstance(found.get(key), str)  # which stands for all of them
    # the root of data that are downloaded, unless it is the usual one
    group = key.rpartition(".")[0]
    target = str(recipe.modern(found.get(f"{group}._target_", _DOWNLOADS)))
    downloads = target == _DOWNLOADS or "${" in target or "hydra" in parts
    usual = parts[-1] != "_args_" and _USUAL_ROOT.fullmatch(str(found.get(f"{group}.root")))
    return downloads and not usual


def refuse_resolvers(tree: Any, origin: str | Path) -> None:
    """Raise UserError if a value of a config, from ``origin``, is more than a reference to another key.

    ``${oc.env:TOKEN}`` would be resolved into the files of the run.
    """
    for key, text in _texts(tree):
        if "${" in _REFERENCE.sub("", text.replace(RESOLVED, "")):
            raise UserError(
                f"{origin}: {key} is {text}; only references to other keys, as ${{data.mean}}, are resolved, since what "
                "comes of others lands in the files of a run. On the command line let the shell put its value there"
            )


def _refuse_references_of_hydra(tree: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a setting of Hydra's, which is resolved before anything of ours is called, is a reference."""
    for key, text in _texts({"hydra": tree.get("hydra")}):
        if "${" in text:
            raise UserError(f"{file}: {key} is {text}; write the value itself, which is taken from there")


def refuse_endless(tree: Mapping[str, Any], origin: str | Path) -> None:
    """Raise UserError if the references of a config, from ``origin``, bring in too much, or follow each other too far.

    Twenty keys, each of which names the next one twice, would take a million steps to resolve.
    """
    known: dict[tuple[str, ...], tuple[int, int]] = {}
    endless = (_MUCH + 1, _FAR + 1)

    def size(node: Any, path: tuple[str, ...], depth: int) -> tuple[int, int]:
        """Return the letters and values that ``node`` is, resolved, and how many references follow one another in it."""
        if isinstance(node, Mapping | list):
            pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
            parts = [size(child, (*path, str(key)), depth) for key, child in pairs]
            return 1 + sum(part[0] for part in parts), max((part[1] for part in parts), default=0)
        text = str(node)
        references = _REFERENCE.findall(text) if isinstance(node, str) else ()
        parts = [named(_absolute(reference, path), depth + 1) for reference in references]
        return 1 + len(text) + sum(part[0] for part in parts), max((1 + part[1] for part in parts), default=0)

    def named(path: tuple[str, ...], depth: int) -> tuple[int, int]:
        if path not in known:
            known[path] = endless  # of one that leads back here
            node: Any = tree
            for place, key in enumerate(path):
                if depth > _FAR:
                    return endless
                if isinstance(node, str) and _REFERENCE.fullmatch(node):  # what it names holds the rest of the path
                    letters, far = named((*_absolute(node, path[:place]), *path[place:]), depth + 1)
                    known[path] = min((letters + 1, far + 1), endless)
                    return known[path]
                node = _child(node, key)
            known[path] = min(size(node, path, depth), endless)
        return known[path]

    for key, child in tree.items():
        letters, far = size(child, (str(key),), 0)
        if letters > _MUCH or far > _FAR:
            raise UserError(
                f"{origin}: {key} refers to keys that refer to others, too far ({_FAR} times) or to too much "
                f"({_MUCH:,} letters); put values in their place"
            )


def _absolute(reference: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path that ``${a.b}`` names, or ``${..a}``, in a value at ``path``."""
    name = reference[2:-1]
    dots = len(name) - len(name.lstrip("."))
    return (*(path[:-dots] if dots else ()), *split_key(name[dots:]))


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(key)
    return node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None


def _refuse_choices(defaults: Any, file: Path) -> None:
    """Raise UserError if the defaults list of a config of others puts a group elsewhere, or chooses where and how."""
    for choice in defaults if isinstance(defaults, list) else []:
        name = choice if isinstance(choice, str) else str(next(iter(choice or [""])))
        group = re.sub(r"^(?:(?:optional|override)\s+)*/?", "", name).replace("/", ".")
        if "@" in group or (_says_where(group, {}) and group not in ("hydra.sweeper", "hydra.sweeper.sampler")):
            raise UserError(f"{file}: its defaults may not choose {name}; {_ASK}")


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all texts in nested mappings and lists, their keys included."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield key or str(name), str(name)
            yield from _texts(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child, key)
    elif isinstance(node, str):
        yield key, node
