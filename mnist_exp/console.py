"""What is printed, wherever it is printed: log lines, times, values; and never a password."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich

if TYPE_CHECKING:
    from rich.console import Console


class ConsoleHandler(logging.Handler):
    """Log to the terminal above a running progress bar; bare messages, never wrapped.

    A line that cannot be written, as to a file on a full disk, is lost, and nothing else.
    """

    screen: Console | None = None  # where to, if it is not that terminal

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        try:
            style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "")
            screen = self.screen or rich.get_console()
            screen.print(Text(shown(self.format(record), keep="\n"), style), soft_wrap=True)
        except OSError:
            lose_output()
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log in a file, which is opened with its first line. A line that cannot be written is lost, and nothing else."""

    def __init__(self, filename: str):
        super().__init__(filename, delay=True)  # a config may name it as any part, and that must not touch a file

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def lose_output() -> None:
    """Let standard output lead nowhere: what it could not take stays in its buffer, and would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def without_password(text: str) -> str:
    """Return ``text`` with the password taken out of every URL in it."""
    text = re.sub(r"(\w://[^:/@\s]*):[^@\s]*@", r"\1@", text)
    return re.sub(r"(password=)[^&\s'\"]+", r"\1***", text)


def shown(text: str, keep: str = "") -> str:
    """Return ``text`` with an escape, as Python writes it, in place of each character that is not to be seen.

    A name of a stranger may hold some that steer the terminal, turn the direction of writing, or begin another line.
    ``keep``: those that stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def console(stderr: bool = False) -> Console:
    """Return a console that cuts nothing where a program reads."""
    from rich.console import Console

    terminal = Console(stderr=stderr)
    return terminal if terminal.is_terminal else Console(stderr=stderr, width=10_000)


def say(screen: Console, line: str, style: str = "") -> None:
    """Print a line as it is, whatever is in it: no markup, no wrapping."""
    from rich.text import Text

    screen.print(Text(shown(line), style), soft_wrap=True)


_PERCENT = (
    "_acc",
    "_mean",
    "_best",
    "_tta",
    "_swa",
    "low",
    "high",
    "accuracy",
    "recall",
    "precision",
    "calibration_error",
)


def cell(column: str, value: Any) -> str:
    """Return a value as a table shows it, in one line."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if column.endswith(_PERCENT):
            return f"{value:.2f}"
        if column == "difference" or column.endswith("_gain"):
            return f"{value:+.2f}"
        if column == "images_per_s":
            return f"{value:,.0f}"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"
    return shown(str(value))
