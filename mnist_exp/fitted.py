"""Tables as wide as the terminal, of which no word is cut: what does not fit is folded, put together, or named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from mnist_exp.console import cell, shown

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType

_GAP = 2  # letters between columns
_FOLDED = ("name", "differs")  # columns that may be narrower than what is in them, down to a share of the width
_SHARE, _LEAST = 4, 12  # a quarter, but so many letters
_SCORES = 3  # columns for whose sake those that tell rows apart are put into one cell
_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "cannot tell": "yellow",
    "failed": "red",
    "interrupted": "yellow",
    "running": "cyan",
}
Texts = dict[str, list[str]]  # of each column


class Fitted:
    """A title above a table of the ``columns`` of ``rows``, those first that are used most.

    ``stacked``: columns that tell rows apart. Where they would push scores out they are one cell of the form
    ``lr=0.01 seed=2``, folded if need be, as the name is. Other columns for which there is no room are left out, and named
    below with ``how`` they are seen. Columns that are empty are left out without a word.
    """

    def __init__(
        self, rows: pd.DataFrame, columns: Sequence[str], title: str, stacked: Sequence[str] = (), how: str = ""
    ):
        texts = {c: [cell(c, value) for value in rows[c]] for c in columns}
        self.texts: Texts = {c: t for c, t in texts.items() if c == "name" or any(t)}
        self.numeric = {c for c in self.texts if rows[c].dtype.kind in "if"}
        self.stacked = [c for c in stacked if c in self.texts]
        self.title, self.how = title, how or "a wider terminal shows them"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield what fits into ``options.max_width`` letters."""
        room, texts, least = options.max_width, self.texts, max(options.max_width // _SHARE, _LEAST)
        needed = ["name", *self.stacked, *[c for c in texts if c not in ("name", *self.stacked)][:_SCORES]]
        kept = _kept(texts, room, least)
        if self.stacked and not set(needed) & set(texts) <= set(kept):
            texts = self._together()
            kept = _kept(texts, room, least)
        if not set(needed) & set(texts) <= set(kept):
            kept = _kept(texts, room, least := _LEAST)
        yield Text(shown(self.title))
        yield self._grid(texts, kept, room, least)
        left = [shown(c) for c in texts if c not in kept]
        if left:
            yield Text(f"not shown: {', '.join(left)} ({self.how})", "dim")

    def _together(self) -> Texts:
        """Return the columns with one, first but for the name, in place of those that tell rows apart."""
        others = {c: t for c, t in self.texts.items() if c not in self.stacked}
        short = short_names(self.stacked, list(others))
        rows = zip(*(self.texts[c] for c in self.stacked), strict=True)
        pairs = [[f"{short[c]}={text}" for c, text in zip(self.stacked, row, strict=True) if text] for row in rows]
        name = {"name": others.pop("name")} if "name" in others else {}
        return {**name, "differs": [" ".join(row) for row in pairs], **others}

    def _grid(self, texts: Texts, kept: Sequence[str], room: int, least: int) -> Table:
        grid = Table(box=None, header_style="bold", pad_edge=False)
        widths = {c: _width(c, texts[c]) for c in kept}
        missing = sum(widths.values()) + _GAP * (len(kept) - 1) - room
        for column in reversed([c for c in _FOLDED if c in widths]):
            taken = max(min(missing, widths[column] - _narrowest(column, texts[column], least)), 0)
            widths[column], missing = widths[column] - taken, missing - taken
        for column in kept:
            right = "right" if column in self.numeric else "left"
            grid.add_column(Text(shown(column)), justify=right, width=widths[column], overflow="fold")  # type: ignore[arg-type]
        for row in zip(*(texts[c] for c in kept), strict=True):
            grid.add_row(*(_styled(c, text) for c, text in zip(kept, row, strict=True)))
        return grid


def _kept(texts: Texts, room: int, least: int) -> list[str]:
    """Return the columns that fit into ``room`` letters: each for which those before it leave enough, if these are folded to ``least``."""
    kept: list[str] = []
    used = -_GAP
    for column, found in texts.items():
        needed = _GAP + _narrowest(column, found, least)
        if used + needed <= room or not kept:
            kept.append(column)
            used += needed
    return kept


def _narrowest(column: str, texts: Sequence[str], least: int) -> int:
    width = _width(column, texts)
    return min(width, least) if column in _FOLDED else width


def _styled(column: str, text: str) -> Text:
    return Text(text, _STYLES.get(text, "") if column in ("verdict", "status", "state") else "")


def _width(column: str, texts: Sequence[str]) -> int:
    return max(map(cell_len, (shown(column), *texts)))


def short_names(names: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Return the last part of each dotted name; the whole where others, or what is ``taken``, are the same."""
    last = [*(name.rpartition(".")[2] for name in names), *taken]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=False)}
