"""The training loop: epochs of steps, each epoch on disk when it ends."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mnist_exp.console import clock
from mnist_exp.errors import RunFailed
from mnist_exp.parts.augment import Mixed, mixed_loss
from mnist_exp.parts.evaluate import accuracy, nll
from mnist_exp.runs.folder import RunFolder
from mnist_exp.signals import Stop, stop_on_signal
from mnist_exp.training.checkpoints import Checkpoints
from mnist_exp.training.components import Components
from mnist_exp.training.progress import Newest, RunProgress
from mnist_exp.training.state import State

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds between checkpoints to go on from, or an epoch, if that is longer


class Loop:
    """Trains ``parts`` from where ``state`` stands to the end, and writes ``run``'s history and ``checkpoints``."""

    def __init__(self, parts: Components, state: State, run: RunFolder, checkpoints: Checkpoints):
        self.parts = parts
        self.state = state
        self.run = run
        self.checkpoints = checkpoints
        self.on_cpu = parts.trainer.device.type == "cpu"
        self.stop = Stop()
        self.saved, self.saved_steps = time.monotonic(), state.total_steps
        self.profiler: Any = None

    def fit(self, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train to the end. After each epoch ``on_epoch`` gets the row that was written to the history.

        SIGINT and SIGTERM write a checkpoint, then raise KeyboardInterrupt. Raises RunFailed as soon as the loss is
        seen not to be finite.
        """
        state, epochs = self.state, self.parts.epochs
        self.run.write_history([row for row in self.run.history() if row["epoch"] < state.epoch])
        with self._progress() as self.progress, stop_on_signal() as self.stop, self._profiled():
            while state.epoch <= epochs:
                row = self._epoch()
                better = self._keep(row)
                self.run.append_history(row)
                state.end_epoch()
                self._save(state.epoch > epochs)
                _report(row, epochs, better)
                try:
                    on_epoch(row)
                except Exception:  # such as TrialPruned
                    self._save()
                    self._interrupt()
                    raise
                self._interrupt()

    def _save(self, now: bool = True) -> None:
        """Write last.pth ``now``, or if the last one is old: a large one takes longer than a short epoch."""
        due = now or time.monotonic() - self.saved >= EVERY
        if due and self.saved_steps != self.state.total_steps:
            self.checkpoints.save_last(self.state.state_dict())
            self.saved, self.saved_steps = time.monotonic(), self.state.total_steps

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt if a signal asks for it, with a checkpoint to go on from."""
        if self.stop:
            self._save()
            raise KeyboardInterrupt

    def _epoch(self) -> dict[str, Any]:
        """Train what is left of this epoch, score it, and return its row of the history."""
        state, parts = self.state, self.parts
        started, first = time.monotonic(), state.step
        lr = self._train()
        images = self._seen()
        loss, train_acc = float(state.sums[0]) / images, 100 * float(state.sums[1]) / images
        trained = time.monotonic() - started
        if not math.isfinite(loss):
            raise self._not_finite(lr)
        if state.average is not None and state.epoch >= parts.schedule.swa_epoch:
            state.average.update_parameters(parts.model)
        row: dict[str, Any] = {"epoch": state.epoch, "phase": parts.schedule.phase(state.epoch), "lr": lr}
        row |= {"train_loss": loss, "train_acc": train_acc, "val_loss": None, "val_acc": None}
        if parts.splits.val is not None:
            probs, labels = parts.evaluator.probabilities(parts.forward, parts.splits.val, parts.trainer.autocast())
            row |= {"val_loss": nll(probs, labels), "val_acc": accuracy(probs, labels)}
        row["seconds"] = round(time.monotonic() - started, 3)
        row["images_per_s"] = round(max(images - first * parts.batch_size, 0) / max(trained, 1e-9), 1)
        return row

    def _train(self) -> float:
        """Take the steps that are left of this epoch; return the last learning rate."""
        state, parts = self.state, self.parts
        if state.step == 0:
            state.begin_epoch()
        parts.forward.train()
        self.newest = Newest()  # what may still be coming is of the epoch before
        self.progress.start_epoch(state.epoch, state.step * parts.batch_size)
        looked, lr = 0.0, self._lr(max(state.step - 1, 0))
        for images, labels in self._batches():
            lr = self._lr(state.step)
            for group in parts.optimizer.param_groups:
                group["lr"] = lr
            self._step(self._mixed(images, labels))
            state.step += 1
            state.total_steps += 1
            now = time.monotonic()
            if self.on_cpu or now - looked > 1:  # on a GPU, what it takes counts
                looked = now
                self._look(lr)
            if self.profiler is not None:
                self.profiler.step()
            if state.total_steps == parts.trainer.max_steps:
                break
            if state.step < parts.steps:
                self._interrupt()
        return lr

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is left of this epoch's batches as its phase transforms them, several in one go: it takes half as long."""
        state, train, size = self.state, self.parts.splits.train, self.parts.batch_size
        augment, light = self.parts.augment, self.parts.schedule.light(state.epoch)
        done = state.step // state.together
        for images, labels in train.batches(size * state.together, state.order_seed, skip=done):
            if not train.own_transforms:
                state.begin_group()
                images = (augment.light if light else augment.strong)(images, state.device_draws)
            batches = zip(images.split(size), labels.split(size), strict=True)
            yield from itertools.islice(batches, state.step % state.together, None)

    def _mixed(self, images: Tensor, labels: Tensor) -> Mixed:
        """Return the batch as the phase of this epoch mixes it."""
        mix = self.parts.augment.mix
        if mix is None or self.parts.schedule.light(self.state.epoch):
            return Mixed(images, labels, labels, 1.0)
        return mix(images, labels, self.state.host_draws)

    def _step(self, batch: Mixed) -> None:
        """Take one step on ``batch`` and add its loss and (weighted) hits, summed over the images, to the epoch's sums."""
        state, parts = self.state, self.parts
        images, labels, partners, weight = batch
        smoothing = getattr(parts.augment, "label_smoothing", 0.0)  # somebody's own augment may know none
        with parts.trainer.autocast():
            logits = parts.forward(images)
            loss = mixed_loss(logits, batch, smoothing)
        parts.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(parts.optimizer)
        state.scaler.update()
        with torch.no_grad():
            guess = logits.argmax(1)
            hits = (guess == labels).sum() * weight
            if weight < 1:
                hits = hits + (guess == partners).sum() * (1 - weight)
            state.sums += torch.stack([loss.detach() * len(labels), hits]).to(state.sums.dtype)

    def _lr(self, step: int) -> float:
        return self.parts.schedule.lr(self.state.base_lr, self.state.epoch, step, self.parts.steps)

    def _seen(self) -> int:
        """Images of this epoch that have been trained on."""
        return min(self.state.step * self.parts.batch_size, len(self.parts.splits.train))

    def _look(self, lr: float) -> None:
        """Show how far the epoch is; raise RunFailed if its loss is not finite any more."""
        arrived = self.newest.read(self.state.sums, self._seen())
        if arrived is None:
            return
        (total, _), seen = arrived
        loss = total / seen
        if not math.isfinite(loss):
            raise self._not_finite(lr)
        self.progress.step(seen, loss)

    def _keep(self, row: dict[str, Any]) -> bool:
        """Keep the weights if this epoch is one of the best by validation; return whether it is."""
        if row["val_acc"] is None:
            return False
        weights = self.parts.model.state_dict()
        return self.checkpoints.save_best(row["epoch"], row["val_acc"], row["val_loss"], weights)

    def _not_finite(self, lr: float) -> RunFailed:
        return RunFailed(
            f"the loss is not finite any more in epoch {self.state.epoch}, step {self.state.step} (learning rate {lr:g}). "
            f"The checkpoints in {self.run.checkpoints} are from before. "
            "Try a lower optimizer.lr, or trainer.precision=fp32"
        )

    def _progress(self) -> RunProgress:
        splits, evaluator = self.parts.splits, self.parts.evaluator
        val, test = (0 if split is None else len(split) for split in (splits.val, splits.test))
        averages = self.state.average is not None
        passes = evaluator.tta_runs + (0 if splits.val is None else evaluator.top_k) + averages
        final = (val + evaluator.test * test) * passes + averages * len(splits.train)
        return RunProgress(self.parts.epochs, len(splits.train), val, final, self.on_cpu)

    @contextlib.contextmanager
    def _profiled(self) -> Iterator[None]:
        if not self.parts.trainer.profile:
            yield
            return

        def write(profiler: Any) -> None:
            trace = self.run.result("trace.json")
            profiler.export_chrome_trace(str(trace))
            log.info("%s", profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
            log.info("Trace for chrome://tracing or https://ui.perfetto.dev: %s", trace)

        when = torch.profiler.schedule(wait=1, warmup=2, active=20, repeat=1)
        with torch.profiler.profile(schedule=when, on_trace_ready=write) as self.profiler:
            yield


def _report(row: dict[str, Any], epochs: int, better: bool) -> None:
    val = "" if row["val_acc"] is None else f"  val loss {row['val_loss']:.4f} acc {row['val_acc']:.2f} %"
    log.info(
        "epoch %d/%d  %-10s  lr %.2e  train loss %.4f acc %.2f %%%s  %.0f images/s  %s%s",
        *(row["epoch"], epochs, row["phase"], row["lr"], row["train_loss"], row["train_acc"], val),
        *(row["images_per_s"], clock(row["seconds"]), "  *" if better else ""),
    )
