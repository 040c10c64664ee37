"""What groups, choices and keys of the config mean: from the comments in conf/ and the annotations of what is built."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import pydoc
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_exp.checked import allowed, few_values
from mnist_exp.config.comments import Choice, Entry, read_choices
from mnist_exp.config.ours import config_folder
from mnist_exp.errors import UserError

_NO_GROUP = "mnist_exp.config.job.keys_of_no_group"
_BELOW = {"hydra/launcher": "where the trials of a search run"}  # what groups are for that begin in no defaults list
_ALWAYS = {
    "_target_": "the class or function that is built: another is named by where it is imported from",
    "_partial_": "whether the last arguments come later, from the program",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """What is known of a key: its ``meaning``, the values it takes in words, its default, and where it is set.

    ``only``: the choice that has it, as in "schedule=one_cycle", if that is not the default. ``target``: what takes it.
    ``places``: (file and line, value there).
    """

    name: str
    meaning: str
    takes: str
    default: Any
    only: str
    target: str
    places: tuple[tuple[str, Any], ...]


class Explained:
    """The config files of a folder, and what may be asked of them."""

    def __init__(self, *more: Path):
        """Read our own config files, and those of the folders ``more``."""
        ours = list(read_choices(Path(config_folder())))
        # to explain a config of others imports nothing that it names
        self.ours = {str(e.value) for c in ours for key, e in c.entries.items() if key.endswith("_target_")}
        self.choices = [*ours, *(choice for folder in more for choice in read_choices(folder) if choice.group)]
        self.primary = next(c for c in ours if not c.group)
        self.defaults, self.purposes = _defaults(self.primary)

    @functools.cached_property
    def groups(self) -> dict[str, list[Choice]]:
        """{group: its choices}, in the order of the primary config; then those below other groups."""
        found: dict[str, list[Choice]] = {group: [] for group in self.defaults}
        for choice in self.choices:
            if choice.group:
                found.setdefault(choice.group, []).append(choice)
        return found

    def entries(self, choice: Choice) -> dict[str, Entry]:
        """Return {key: entry} of a choice, with those of the choices it begins with."""
        found: dict[str, Entry] = {}
        for one in self._line(choice):
            found |= one.entries
        return found

    def chosen(self, choice: Choice) -> dict[str, str]:
        """Return {group: choice} of a preset, with those of the presets it begins with."""
        found: dict[str, str] = {}
        for one in self._line(choice):
            found |= one.chosen
        return found

    def _line(self, choice: Choice, seen: tuple[str, ...] = ()) -> list[Choice]:
        """Return the choices of its group that a choice begins with, and itself, in the order in which they are merged."""
        there = {c.name: c for c in self.groups.get(choice.group, ()) if c.name not in (*seen, choice.name)}
        known = [there[name] for name in choice.parents if name in there]
        return [*(one for parent in known for one in self._line(parent, (*seen, choice.name))), choice]

    def choice(self, group: str, name: str) -> Choice:
        """Return a choice of a group. Raises UserError naming those there are."""
        for choice in self.groups[group]:
            if choice.name == name:
                return choice
        names = ", ".join(choice.name for choice in self.groups[group])
        raise UserError(f"{group}={name}: there is no such choice in conf/{group}; there are {names}")

    @functools.cached_property
    def known(self) -> list[str]:
        """Every key that a command line may set, and those of whole parts."""
        return [key for key, here in self._by_key.items() if _is_set(key, here[0][1])]

    def is_part(self, name: str) -> bool:
        """Return whether a key is that of something that is built, with keys of its own."""
        return any(f"{name}._target_" in entries for _, entries in self._by_key[name])

    def keys(self, words: str) -> list[str]:
        """Return the keys that ``words`` names: itself, or all that end with it. Raises UserError with close ones."""
        known = self.known
        found = [key for key in known if key == words] or [key for key in known if key.endswith(f".{words}")]
        if not found:
            ends = {key.rpartition(".")[2] for key in known}
            near = difflib.get_close_matches(words, [*self.groups, *known, *ends], 1)
            hint = f"did you mean {near[0]}?" if near else "without a name, explain lists all groups"
            raise UserError(f"explain {words}: there is no such group or key; {hint}")
        return found

    def key(self, name: str) -> Key:
        """Return what is known of the key ``name``, which must be one."""
        here = self._by_key[name]
        first, entries = here[0]
        target, takes = self._takes(name, entries)
        places = tuple(
            (f"{_shown(c)}:{c.entries[name].line}", c.entries[name].value) for c, _ in here if name in c.entries
        )
        usual = not first.group or self.defaults.get(first.group) == first.name
        only = "" if usual else f"{first.group}={first.name}"
        return Key(name, self._meaning(name), takes, entries[name].value, only, target, places)

    @functools.cached_property
    def _by_key(self) -> dict[str, list[tuple[Choice, dict[str, Entry]]]]:
        """{key: the choices that have it, with all their entries}: of its own group before presets, the default first."""
        usual = [c for c in self.choices if self.defaults.get(c.group) == c.name]
        presets = [c for c in self.choices if c.group in ("experiment", "debug", "hparams_search")]
        others = [c for c in self.choices if c not in usual and c not in presets]
        found: dict[str, list[tuple[Choice, dict[str, Entry]]]] = {}
        for choice in [self.primary, *usual, *(c for c in others if c is not self.primary), *presets]:
            entries = self.entries(choice)
            for key in entries:
                found.setdefault(key, []).append((choice, entries))
        return found

    def _meaning(self, name: str) -> str:
        """Return the comment at a key: its own, that of the same argument elsewhere, or what is said of all around it."""
        last = name.rpartition(".")[2]
        if last in _ALWAYS:
            return _ALWAYS[last]
        for _, entries in self._by_key[name]:
            if entries[name].comment:
                return entries[name].comment
        targets = {_target(name, entries) for _, entries in self._by_key[name]}
        for other, here in self._by_key.items():
            if other.rpartition(".")[2] == last:
                for _, entries in here:
                    if entries[other].comment and _target(other, entries) in targets - {""}:
                        return entries[other].comment
        built = self._by_key[name][0][1].get(f"{name}._target_")
        if built is not None and built.value in self.ours:
            return _first_sentence(pydoc.locate(built.value))
        around = name.rpartition(".")[0]
        while around and around not in self.groups:
            here = self._by_key.get(around, []) if targets <= {""} else []
            if said := next((e[around].comment for _, e in here if e[around].comment), ""):
                return said
            around = around.rpartition(".")[0]
        return ""

    def values(self, name: str) -> list[str]:
        """Return what may stand behind ``name=``: the default, and all there is where it is named one by one."""
        _, entries = self._by_key[name][0]
        value, hint = entries[name].value, self._hint(_target(name, entries), name.rpartition(".")[2])
        default = [] if isinstance(value, dict | list) else [plain(value)]
        return list(dict.fromkeys([*default, *([] if hint is None else few_values(hint))]))

    def _hint(self, target: str, name: str) -> Any:
        return _hint(target, name) if target in self.ours else None

    def _takes(self, name: str, entries: Mapping[str, Entry]) -> tuple[str, str]:
        """Return what takes a key, as it is imported, and the values it takes, in words."""
        last, value = name.rpartition(".")[2], entries[name].value
        target = _target(name, entries)
        if (hint := _hint(_NO_GROUP, name)) is not None:
            return "", allowed(hint)
        parent = name.rpartition(".")[0]
        inner = [e.value for key, e in entries.items() if key.startswith(f"{parent}.") and key.endswith("._target_")]
        for path in filter(None, [target, *inner]) if target else ():
            hint = self._hint(path, last)
            if hint is not None:
                return path, allowed(hint)
        return target, _kind(value)


def plain(value: Any) -> str:
    """Return a value as one types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return str(value)


def _defaults(primary: Choice) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return {group: its default choice} and {group: what it is for}, from the defaults list of the primary config."""
    lines = [line.strip() for line in primary.path.read_text().splitlines()]
    defaults: dict[str, str | None] = {}
    purposes: dict[str, str] = dict(_BELOW)
    for line in lines:
        words, _, comment = line.partition("#")
        if line.startswith("- ") and ":" in words:
            group, choice = (part.strip() for part in words[2:].split(":"))
            defaults[group], purposes[group] = None if choice == "null" else choice, comment.strip()
    return defaults, purposes


def _target(name: str, entries: Mapping[str, Entry]) -> str:
    """Return what is built of the mapping in which a key stands; "" of none."""
    found = entries.get(f"{name.rpartition('.')[0]}._target_")
    return "" if found is None else str(found.value)


@functools.cache
def _hint(target: str, name: str) -> Any:
    """Return the annotation of a parameter of ``target``, with its limits; None if there is none."""
    try:
        found: Any = pydoc.locate(target)
        function = found.__init__ if inspect.isclass(found) else found
        return typing.get_type_hints(function, include_extras=True).get(name)
    except (pydoc.ErrorDuringImport, AttributeError, TypeError, NameError):
        return None


def _kind(value: Any) -> str:
    """Return what kind of value the default is."""
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "keys and values",
    }
    return kinds.get(type(value), "")


def _first_sentence(found: Any) -> str:
    text = " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".").replace("``", "")


def _is_set(key: str, entries: Mapping[str, Entry]) -> bool:
    value = entries[key].value
    whole = isinstance(value, dict) and bool(value) and f"{key}._target_" not in entries
    of_others = key.startswith(("search.baseline.", "hydra.sweeper.params."))  # named as the keys that they are of
    return not (whole or of_others or key.rpartition(".")[2].startswith("_"))


def _shown(choice: Choice) -> str:
    return "/".join(filter(None, ("conf", choice.group, f"{choice.name}.yaml")))
