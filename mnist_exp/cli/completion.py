"""``--shell-completion``: what may stand where the cursor is, for bash, zsh and fish; and what switches it on there.

Hydra's own completes neither commands nor the values of a key, and composes a config for every press of the key.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from mnist_exp.config.explained import Explained
from mnist_exp.errors import UserError
from mnist_exp.files import expanded

_HYDRAS = ("--multirun", "--config-dir", "--cfg", "--resolve", "--package", "--help", "--hydra-help", "--info")
_SCRIPTS = {
    # what a completion replaces begins after the last = or : in COMP_WORDBREAKS, so what is before is cut off
    "bash": r"""_mnist_exp() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    local kept=${word%"${word##*[$COMP_WORDBREAKS]}"}
    local one
    COMPREPLY=()
    while IFS= read -r one; do COMPREPLY+=("${one#"$kept"}"); done < <(
        COMP_LINE=$line mnist-exp --shell-completion query=bash 2>/dev/null
    )
}
complete -o nospace -o default -F _mnist_exp mnist-exp
""",
    "zsh": r"""autoload -Uz compinit && compinit
_mnist_exp() {
    local -a found
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" mnist-exp --shell-completion query=zsh 2>/dev/null)"})
    if (( $#found )); then compadd -S '' -- $found; else _files; fi
}
compdef _mnist_exp mnist-exp
""",
    "fish": r"""complete -c mnist-exp -a '(COMP_LINE=(commandline -cp | string collect) mnist-exp --shell-completion query=fish 2>/dev/null)'
""",
}
_PLAIN = re.compile(r"[\w+~./=:,@%-]+", re.ASCII)
_OFF = {
    "bash": "complete -r mnist-exp; unset -f _mnist_exp\n",
    "zsh": "compdef -d mnist-exp; unfunction _mnist_exp\n",
    "fish": "complete -c mnist-exp -e\n",
}


def complete(arguments: list[str], commands: Collection[str]) -> None:
    """Print the script of a shell, what takes it back, or what may stand at the end of $COMP_LINE, a line each."""
    text = next((a for a in arguments if re.fullmatch(r"(.*=)?(install|uninstall|query)=\w+", a)), "")
    action, _, shell = text.rpartition("=")
    action = action.rpartition("=")[2]
    if shell not in _SCRIPTS:
        raise UserError(
            f"--shell-completion {text or 'without a shell'}: type --shell-completion install=SHELL, or uninstall=SHELL, "
            f"with one of {', '.join(_SCRIPTS)}"
        )
    if action == "query":
        print("\n".join(candidates(os.environ.get("COMP_LINE", ""), commands)))
    else:
        print((_SCRIPTS if action == "install" else _OFF)[shell], end="")


def candidates(line: str, commands: Collection[str]) -> list[str]:
    """Return what the last word of a command ``line`` may become; [] leaves it to the shell, which knows files."""
    words = line.split()[1:]
    word = "" if line.endswith((" ", "\t")) or not words else words.pop()
    command = words[0] if words and words[0] in commands else "train"
    found: Iterable[str] = commands if not words else ()
    if command in ("train", "preview", "explain"):
        named = [after for before, after in itertools.pairwise(words) if before == "--config-dir"]
        named += [one.partition("=")[2] for one in words if one.startswith("--config-dir=")]
        known = Explained(*filter(Path.is_dir, map(expanded, named)))
        found = [*found, *_of_configs(known, word, with_values=command != "explain")]
    if command == "train":
        found = [*found, *(_HYDRAS if word.startswith("-") else ())]
    else:
        found = [*found, *_of_options(command, words[1:], word)]
    # the shell puts them into a command line as they are, so nothing that it would carry out, expand or split is one
    return sorted({one for one in found if one.startswith(word) and _PLAIN.fullmatch(one)})


def _of_configs(known: Explained, word: str, with_values: bool) -> Iterable[str]:
    """Yield groups, their choices, keys and values, as overrides or, without values, as names to be explained."""
    mark, name, equals, _ = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", word).groups()  # type: ignore[union-attr]
    if equals and name in known.groups:
        yield from (f"{mark}{name}={choice.name}" for choice in known.groups[name])
    elif equals and name in known.known:
        yield from (f"{mark}{name}={value}" for value in known.values(name))
    elif not equals:
        end = "=" if with_values and mark != "~" else ""
        yield from (f"{mark}{group}{end}" for group, choices in known.groups.items() if choices)
        # a part of a dotted key at a time
        whole = len(name) - len(name.rpartition(".")[2])
        for key in known.known:
            if key.startswith(name) and not (with_values and known.is_part(key)):
                part, dot, _ = key[whole:].partition(".")
                yield f"{mark}{name[:whole]}{part}{dot or end}"


def _of_options(command: str, before: list[str], word: str) -> Iterable[str]:
    """Yield the options of a command, or the values of the one before, if they are few."""
    parser: argparse.ArgumentParser = importlib.import_module(f"mnist_exp.cli.{command}").command_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and not before:
            yield from action.choices
        elif before and before[-1] in action.option_strings:
            yield from map(str, action.choices or ())
            return
    if word.startswith("-"):
        yield from (option for action in parser._actions for option in action.option_strings if option.startswith("--"))
