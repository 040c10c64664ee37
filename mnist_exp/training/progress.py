"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, and early word of a long wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import rich
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mnist_exp.console import clock

log = logging.getLogger(__name__)
_LONG = 600.0  # seconds; a longer run on a CPU is announced
_EVERY = 30.0  # seconds between plain lines
_SHOWN = 0.1  # seconds between what a bar shows: a step may be shorter, and is not to wait for it
_SHARE_OF_FORWARD = 1 / 3  # of a training step's time that scoring an image takes


class RunProgress:
    """Progress of a whole run, counted in training images; scoring counts as a third of an image.

    ``epochs`` in all of ``images`` training and ``scored`` validation images, then ``final`` images scored at the end.
    """

    def __init__(
        self,
        epochs: int,
        images: int,
        scored: int,
        final: int,
        on_cpu: bool,
        time_of: Callable[[], float] = time.monotonic,
    ):
        self.epochs = epochs
        self.per_epoch = images + scored * _SHARE_OF_FORWARD
        self.announce = on_cpu
        self.time_of = time_of
        self.terminal = rich.get_console().is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[facts]}  left"),
            TimeRemainingColumn(),
            disable=not self.terminal,
            transient=True,
            get_time=time_of,
        )
        self.id = self.bar.add_task("", total=epochs * self.per_epoch + final * _SHARE_OF_FORWARD, facts="")
        self.task = self.bar.tasks[0]
        self.said = self.shown = time_of()

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begin ``epoch``, of which ``done`` images have been seen before (a resumed epoch); the rate is taken anew."""
        self.before = (epoch - 1) * self.per_epoch
        self.epoch = epoch
        self.bar.reset(self.id, description=f"epoch {epoch}/{self.epochs}", facts="")
        self.task.completed = self.before + done

    def step(self, done: int, loss: float) -> None:
        """Show that ``done`` images of this epoch have been seen, with the mean loss so far."""
        now = self.time_of()
        if now - self.shown < _SHOWN:
            return
        self.shown = now
        self.bar.update(self.id, completed=self.before + done)
        speed, left = self.task.speed, self.task.time_remaining
        if speed is None or left is None:
            return
        facts = f"{speed:,.0f} images/s  loss {loss:.4f}"
        self.bar.update(self.id, facts=facts)
        if self.announce and (self.task.elapsed or 0) > 8:
            self.announce = False
            if left > _LONG:
                log.warning(
                    "This run will take about %s on this CPU (%.0f images/s). Faster: experiment=sprint (seconds), "
                    "data.train_limit=5000, or a GPU. Ctrl-C writes a checkpoint to go on from.",
                    clock(left),
                    speed,
                )
        if not self.terminal and now - self.said >= _EVERY:
            self.said = now
            percent = self.task.percentage
            log.info("epoch %d/%d  %3.0f %%  %s  left %s", self.epoch, self.epochs, percent, facts, clock(left))


class Newest:
    """What a small tensor on a GPU held a moment ago, without anybody waiting for the GPU."""

    def __init__(self) -> None:
        self._coming: tuple[torch.cuda.Event, Tensor, int] | None = None

    def read(self, numbers: Tensor, at: int) -> tuple[list[float], int] | None:
        """Return the newest ``numbers`` that have arrived and the ``at`` that they were asked for with; None: none yet.

        On a GPU a copy sets out, to arrive by a later call; elsewhere it is here at once.
        """
        if numbers.device.type != "cuda":
            return numbers.tolist(), at
        arrived = None
        if self._coming is not None and self._coming[0].query():
            arrived, self._coming = (self._coming[1].tolist(), self._coming[2]), None
        if self._coming is None:
            copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            gone = torch.cuda.Event()
            gone.record(torch.cuda.current_stream(numbers.device))
            self._coming = gone, copy, at
        return arrived
