"""``explain [GROUP|GROUP=CHOICE|KEY ...]``: what may be typed, what it means, and which values it takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mnist_exp.config.explained import Explained, plain

if TYPE_CHECKING:
    from rich.console import Console

    from mnist_exp.config.comments import Choice
    from mnist_exp.config.explained import Key

_INDENT = 6  # letters before a meaning


def explain(arguments: list[str]) -> None:
    """Carry out the command."""
    names = command_parser().parse_args(arguments).names
    from mnist_exp.console import console

    known, screen = Explained(), console()
    told = [_found(known, name) for name in names]  # a wrong name, before anything is told
    if not names:
        _tell_all(screen, known)
    for number, found in enumerate(told):
        if number:
            screen.print()
        if isinstance(found, str):
            _tell_group(screen, known, found)
        elif isinstance(found, list):
            _tell_keys(screen, found)
        else:
            _tell_choice(screen, known, found)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp explain", description="What groups, choices and keys mean."
    )
    parser.add_argument(
        "names", nargs="*", metavar="GROUP|GROUP=CHOICE|KEY", help="such as optimizer, optimizer=sgd, lr"
    )
    return parser


def _found(known: Explained, name: str) -> str | Choice | list[Key]:
    """Return what ``name`` names: a group, a choice or keys. Raises UserError if there is none."""
    group, _, choice = name.partition("=")
    if group in known.groups and choice:
        return known.choice(group, choice)
    if group in known.groups:
        return group
    return [known.key(key) for key in known.keys(group)]


def _tell_all(screen: Console, known: Explained) -> None:
    """Print all groups, and the keys of none."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("group", "for", "choices (*: the default)"):
        table.add_column(title, overflow="fold")
    for group, choices in known.groups.items():
        names = ", ".join(f"{c.name}{'*' if c.name == known.defaults.get(group) else ''}" for c in choices)
        if names:
            table.add_row(Text(group, "bold"), known.purposes.get(group, ""), names)
    screen.print(table)
    screen.print("\n[bold]keys of no group[/bold]")
    _tell_briefly(screen, (known.key(key) for key in known.primary.entries if key in known.known))
    screen.print(
        "\nexplain GROUP, GROUP=CHOICE or KEY tells more, as in: python -m mnist_exp explain optimizer lr", style="dim"
    )


def _tell_group(screen: Console, known: Explained, group: str) -> None:
    """Print the choices of a group, and the keys of all of them."""
    from rich.table import Table
    from rich.text import Text

    screen.print(Text.assemble((group, "bold"), f"  {known.purposes.get(group, '')}"))
    table = Table(box=None, show_header=False, padding=(0, 1))
    for choice in known.groups[group]:
        name = f"{group}={choice.name}"
        default = choice.name == known.defaults.get(group)
        table.add_row(Text(name, "bold" if default else ""), f"{choice.title}{' (default)' if default else ''}")
    screen.print(table)
    prefix = group.replace("/", ".") + "."
    keys = [known.key(key) for key in known.known if key.startswith(prefix)]
    if keys:
        screen.print("[bold]keys[/bold]")
        _tell_briefly(screen, keys)


def _tell_choice(screen: Console, known: Explained, choice: Choice) -> None:
    """Print what a choice is, how it is used, and what it sets."""
    from rich.text import Text

    default = " (default)" if choice.name == known.defaults.get(choice.group) else ""
    screen.print(Text.assemble((f"{choice.group}={choice.name}", "bold"), f"{default}  {choice.about}"))
    for command in choice.commands:
        screen.print(Text(f"  {command}"), soft_wrap=True)
    sets: Mapping[str, Any] = known.chosen(choice) | {
        key: entry.value
        for key, entry in known.entries(choice).items()
        if key in known.known and not isinstance(entry.value, dict)
    }
    screen.print("[bold]sets[/bold]")
    for key, value in sets.items():
        screen.print(Text(f"  {key}={plain(value)}"), soft_wrap=True)


def _tell_briefly(screen: Console, keys: Iterable[Key]) -> None:
    """Print keys with their defaults, the values they take and what they mean."""
    from rich.padding import Padding
    from rich.text import Text

    for key in keys:
        only = f"  only with {key.only}" if key.only else ""
        value = "" if isinstance(key.default, dict) else f" = {plain(key.default)}"
        screen.print(Text.assemble("  ", (key.name, "bold"), value, (only, "dim")), soft_wrap=True)
        takes = f" ({key.takes})" if key.takes and not isinstance(key.default, dict) else ""
        screen.print(Padding(Text.assemble(key.meaning, (takes, "dim")), (0, 0, 0, _INDENT), expand=False))


def _tell_keys(screen: Console, keys: Iterable[Key]) -> None:
    """Print all that is known of keys."""
    from rich.table import Table
    from rich.text import Text

    for key in keys:
        screen.print(Text.assemble((key.name, "bold"), f"  {key.meaning}"))
        table = Table(box=None, show_header=False, padding=(0, 1))
        whole = isinstance(key.default, dict)
        rows = {
            "takes": "" if whole else key.takes,
            "default": "" if whole else plain(key.default),
            "only with": key.only,
            "argument of": key.target,
            "set in": "\n".join(p if isinstance(v, dict) else f"{p}  {plain(v)}" for p, v in key.places),
        }
        for title, text in rows.items():
            if text:
                table.add_row(Text(title, "dim"), Text(text))
        screen.print(table)
