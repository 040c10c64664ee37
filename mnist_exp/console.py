"""What is printed, wherever it is printed: log lines, times, tables; and never a password."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


class ConsoleHandler(logging.Handler):
    """Log to the terminal above a running progress bar; bare messages, never wrapped.

    A line that cannot be written, as to a file on a full disk, is lost, and nothing else.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "")
            rich.get_console().print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)
        except OSError:
            pass
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log in a file. A line that cannot be written is lost, and nothing else."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def without_password(text: str) -> str:
    """Return ``text`` with the password taken out of every URL in it."""
    return re.sub(r"(\w://[^:/@\s]*):[^@/\s]*@", r"\1@", text)


def console() -> Console:
    """Return a console that cuts nothing where a program reads."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=10_000)


def table(rows: pd.DataFrame, columns: Sequence[str], title: str) -> Any:
    """Return ``title`` above a rich table of ``columns``; numbers right-aligned, columns that are empty left out."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    kept = [c for c in columns if c == "name" or any(cell(c, v) for v in rows[c])]
    for column in kept:
        numeric = rows[column].dtype.kind in "if"
        shown.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for _, row in rows.iterrows():
        shown.add_row(*(cell(column, row[column]) for column in kept))
    return Group(Text(title), shown)


def cell(column: str, value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if column.endswith(("_acc", "_mean", "_best", "_tta", "_swa", "_low", "_high")):
            return f"{value:.2f}"
        if column == "difference" or column.endswith("_gain"):
            return f"{value:+.2f}"
        if column == "images_per_s":
            return f"{value:,.0f}"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"
    return str(value)
