"""Runs, and the answer to a question about them, as a terminal shows them: what is used most first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnist_exp.compare.table import differing
from mnist_exp.console import say
from mnist_exp.fitted import Fitted

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

# what is shown after the name and what differs, unless --columns says otherwise
SHOWN = (
    "val_acc",
    "test_acc",
    "test_95",
    "status",
    "epochs",
    "ensemble_acc",
    "images_per_s",
    "duration",
    "dataset",
    "seed",
)
_CANNOT_TELL = (
    "cannot tell: equal recipes differ as much often enough (p_holm, for all rows together, is 0.05 or more, or unknown); "
    "more seeds tell more"
)


def usual(runs: pd.DataFrame) -> list[str]:
    """Return the columns that are shown of ``runs`` unless others are asked for: the name, what differs, the rest."""
    seeds = ["seed"] if runs["seed"].nunique() > 1 else []
    again = ["test_scored"] if (runs["test_scored"] > 1).any() else []
    again += ["memory_format"] if runs["memory_format"].nunique() > 1 else []
    return list(dict.fromkeys(["name", *differing(runs), *seeds, *SHOWN, *again]))


def overview(
    runs: pd.DataFrame, columns: Sequence[str] | None = None, room: int | None = None, sort: str | None = None
) -> Fitted:
    """Return the table of ``runs`` under their number; of more than ``room`` of them the newest, or the first of a ``sort``."""
    counts = ", ".join(f"{n} {status}" for status, n in runs["status"].value_counts().items())
    title = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {counts}"
    shown = columns or usual(runs)
    apart = shown[1 : shown.index(SHOWN[0])] if columns is None else []
    if room is not None and len(runs) > room:
        runs, which = (runs.tail(room), "newest") if sort is None else (runs.head(room), "first")
        title += f"; the {which} {room}"
    return Fitted(runs, shown, title, apart, "--columns name,KEY or --csv - shows them")


def tell_answer(screen: Console, title: str, answer: pd.DataFrame, apart: Sequence[str]) -> None:
    """Print the answer to a question, whose rows are told from each other by some of ``apart``."""
    if answer.empty:
        say(screen, f"{title}: nothing to compare with")
        return
    keys = [c for c in answer.columns if c in apart and c not in ("name", *SHOWN)]
    screen.print(Fitted(answer, list(answer.columns), title, keys, "--csv - shows them"))
    if "verdict" in answer.columns and (answer["verdict"] == "cannot tell").any():
        say(screen, _CANNOT_TELL, "dim")
