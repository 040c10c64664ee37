"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, and early word of a long wait."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import rich
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)
_LONG = 600.0  # seconds; a longer run on a CPU is announced
_EVERY = 30.0  # seconds between plain lines
_SHARE_OF_FORWARD = 1 / 3  # of a training step's time that scoring an image takes


class ConsoleHandler(logging.Handler):
    """Log to the terminal above a running progress bar; bare messages, never wrapped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "")
            rich.get_console().print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


class RunProgress:
    """Progress of a whole run, counted in training images; scoring counts as a third of an image.

    ``epochs`` in all of ``images`` training and ``scored`` validation images, then ``final`` images scored at the end.
    """

    def __init__(self, epochs: int, images: int, scored: int, final: int, on_cpu: bool):
        self.epochs = epochs
        self.images = images
        self.scored = scored * _SHARE_OF_FORWARD
        self.final = final * _SHARE_OF_FORWARD
        self.announce = on_cpu
        self.terminal = rich.get_console().is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[facts]}"),
            disable=not self.terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=images, facts="")
        self.started = self.said = time.monotonic()
        self.first = self.warm_up = 0

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begin ``epoch``, of which ``done`` images have been seen before (a resumed epoch)."""
        self.epoch = epoch
        self.started = time.monotonic()
        self.first = done
        self.rate = 0.0
        self.bar.reset(self.task, description=f"epoch {epoch}/{self.epochs}", total=self.images, facts="")

    def left(self, done: int) -> float:
        """Return the seconds left of the whole run, at the rate of this epoch."""
        epochs = self.epochs - self.epoch
        images = (self.images - done + self.scored) + epochs * (self.images + self.scored) + self.final
        return images / self.rate if self.rate else 0.0

    def step(self, done: int, loss: float) -> None:
        """Show that ``done`` images of this epoch have been seen, with the mean loss so far."""
        now = time.monotonic()
        if self.warm_up < 3:  # the first steps of a process are slower than the rest
            self.warm_up += 1
            self.started, self.first = now, done
            return
        self.rate = (done - self.first) / max(now - self.started, 1e-9)
        if self.announce and now - self.started > 8:
            self.announce = False
            if self.left(done) > _LONG:
                log.warning(
                    "This run will take about %s on this CPU (%.0f images/s). Faster: experiment=fast (under a minute), "
                    "data.train_limit=5000, or a GPU. Ctrl-C writes a checkpoint to go on from.",
                    clock(self.left(done)),
                    self.rate,
                )
        facts = f"{self.rate:,.0f} images/s  loss {loss:.4f}  left {clock(self.left(done))}"
        self.bar.update(self.task, completed=done, facts=facts)
        if not self.terminal and now - self.said >= _EVERY:
            self.said = now
            log.info("epoch %d/%d  %3.0f %%  %s", self.epoch, self.epochs, 100 * done / self.images, facts)
