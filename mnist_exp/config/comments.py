"""The YAML files of conf/ with their comments, which say what a choice is and what a key means."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mnist_exp.errors import UserError
from mnist_exp.reading import MIB, load_yaml, read_text

_FILES = 1_000
_PACKAGE = re.compile(r"#\s*@package\s+(\S+)")
_COMMAND = re.compile(r"#\s+(python -m mnist_exp\b.*)")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A key in a file: its ``value``, the comment above it or behind it, and its line, from 1."""

    value: Any
    comment: str
    line: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """A file of a group: what it is, the commands that use it, the files it begins with, and {dotted key: entry}.

    ``group``: "" for the primary config. ``chosen``: {group: choice} of a preset. Keys are those of the whole config, such
    as "optimizer.lr".
    """

    path: Path
    group: str
    name: str
    about: str
    commands: tuple[str, ...]
    parents: tuple[str, ...]
    chosen: dict[str, str]
    entries: dict[str, Entry]

    @property
    def title(self) -> str:
        """The first sentence about it."""
        return re.split(r"(?<=[.!?])\s", self.about, maxsplit=1)[0].rstrip(".")


def read_choices(folder: Path) -> Iterator[Choice]:
    """Yield the files below ``folder``, a folder for configs of Hydra; what is none of such files is left out."""
    for path in sorted(itertools.islice(folder.rglob("*.yaml"), _FILES)):
        group = path.parent.relative_to(folder)
        if not any(part.startswith(".") for part in group.parts):
            with contextlib.suppress(UserError):
                yield _choice(path, "/".join(group.parts))


def _choice(path: Path, group: str) -> Choice:
    held = load_yaml(path)  # which is read as plain data of bounded size: it may be anybody's
    held = held if isinstance(held, dict) else {}
    lines = read_text(path, MIB).splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    package = next((found[1] for line in lines[:head] if (found := _PACKAGE.match(line))), group.replace("/", "."))
    commands = tuple(found[1] for line in lines[:head] if (found := _COMMAND.match(line)))
    said = [line for line in lines[:head] if not _PACKAGE.match(line) and not _COMMAND.match(line)]
    root = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
    prefix = "" if package == "_global_" else package
    own_list = f"{prefix}.defaults".lstrip(".")
    entries = {key: entry for key, entry in _entries(root, prefix, lines, head) if key != own_list}
    listed = held.get("defaults")
    defaults = listed if isinstance(listed, list) else []
    parents = tuple(one for one in defaults if isinstance(one, str) and one != "_self_")
    chosen = {
        key.removeprefix("override").strip(" /"): value
        for one in defaults
        if isinstance(one, dict)
        for key, value in one.items()
        if key.startswith("override")
    }
    return Choice(path, group, path.stem, _text(said), commands, parents, chosen, entries)


def _entries(node: Any, prefix: str, lines: list[str], head: int) -> Iterator[tuple[str, Entry]]:
    """Yield the keys of a mapping and of those in it."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}.{key.value}" if prefix else key.value
        line = key.start_mark.line
        first = lines[line].strip().startswith(key.value)  # of the keys in one line only the first has its comment
        found: Any = yaml.SafeLoader("").construct_object(value, deep=True)
        yield name, Entry(found, _comment(value, line, lines, head) if first else "", line + 1)
        yield from _entries(value, name, lines, head)


def _comment(value: Any, line: int, lines: list[str], head: int) -> str:
    """Return the comment behind what stands in ``line`` and ends with ``value``, or the one above it."""
    end = value.end_mark
    behind = lines[line][end.column :].strip() if end.line == line else ""
    if behind.startswith("#"):
        return _text([behind])
    above = line
    while above > head and lines[above - 1].strip().startswith("#"):
        above -= 1
    return _text(lines[above:line])


def _text(lines: list[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in lines).strip()
