"""The training loop: built objects in, epochs on disk out. Knows nothing of configs."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mnist_exp.augment import Augment, Mixed
from mnist_exp.checkpoint import Checkpoints
from mnist_exp.data import Splits
from mnist_exp.errors import RunFailed, UserError, require
from mnist_exp.evaluate import Evaluator, accuracy, nll
from mnist_exp.progress import RunProgress, clock
from mnist_exp.run_folder import RunFolder
from mnist_exp.schedule import Schedule
from mnist_exp.signals import stop_on_signal

log = logging.getLogger(__name__)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains a model as the schedule says, on one device.

    ``device``: auto (a GPU if there is one), cpu, cuda, cuda:N or mps. ``precision``: auto (bf16 or fp16 on GPUs that
    have it, fp32 elsewhere), fp32, bf16 or fp16. ``compile``: torch.compile the training step's forward pass.
    ``threads``: of the CPU.
    ``max_steps`` ends a run after that many steps. ``profile``: write a torch.profiler trace of the first 20 steps.
    Raises UserError for a device or precision that this machine does not have.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        threads: int | None = None,
        max_steps: int | None = None,
        profile: bool = False,
    ):
        require(max_steps is None or max_steps >= 1, "trainer.max_steps", max_steps, "null or at least 1")
        require(threads is None or threads >= 1, "trainer.threads", threads, "null or at least 1")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.compile = compile
        self.max_steps = max_steps
        self.profile = profile
        if self.device.type == "cpu":
            keep_freed_memory()

    def autocast(self) -> torch.autocast:
        """Return a fresh autocast context of the chosen precision (disabled in fp32)."""
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def epochs(self, schedule: Schedule, steps: int) -> int:
        """Return how many epochs of ``steps`` steps a run has, ``max_steps`` considered."""
        return schedule.total if self.max_steps is None else min(schedule.total, math.ceil(self.max_steps / steps))

    def fit(
        self,
        model: nn.Module,
        splits: Splits,
        batch_size: int,
        augment: Augment,
        optimizer: Optimizer,
        schedule: Schedule,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        run: RunFolder,
        seed: int,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        resumed: dict[str, Any] | None = None,
    ) -> AveragedModel | None:
        """Train to the end and return the weight average, if the schedule has one.

        ``model`` and ``splits`` are on the device; ``resumed`` is a state from ``checkpoints``. After each epoch
        ``on_epoch`` gets the row that was written to the history. SIGINT and SIGTERM write a checkpoint, then raise
        KeyboardInterrupt. Raises RunFailed as soon as the loss is seen not to be finite.
        """
        train, val = splits.train, splits.val
        steps = math.ceil(len(train) / batch_size)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        average = AveragedModel(model) if schedule.swa_epoch <= schedule.total else None
        base_lr = optimizer.param_groups[0]["lr"]
        generators = {"device": torch.Generator(self.device), "host": torch.Generator()}
        sums = torch.zeros(2, dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        epoch, step, total_steps = 1, 0, 0  # of the next step to take; steps taken in all

        def state() -> dict[str, Any]:
            return {
                "epoch": epoch,
                "step": step,
                "total_steps": total_steps,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "base_lr": base_lr,
                "scaler": scaler.state_dict(),
                "average": None if average is None else average.state_dict(),
                "sums": sums,
                "rng": {"torch": torch.get_rng_state(), **{k: g.get_state() for k, g in generators.items()}},
            }

        if resumed is not None:
            epoch, step, total_steps = resumed["epoch"], resumed["step"], resumed["total_steps"]
            base_lr = resumed["base_lr"]
            model.load_state_dict(resumed["model"])
            optimizer.load_state_dict(resumed["optimizer"])
            scaler.load_state_dict(resumed["scaler"])
            if average is not None:
                average.load_state_dict(resumed["average"])

        run.write_history([row for row in run.history() if row["epoch"] < epoch])
        forward = torch.compile(model) if self.compile else model
        epochs = self.epochs(schedule, steps)
        scored = 0 if val is None else len(val)
        passes = evaluator.tta_runs + (0 if val is None else evaluator.top_k) + (0 if average is None else 1)
        final = (scored + evaluator.test * len(splits.test)) * passes + (0 if average is None else len(train))
        with (
            RunProgress(epochs, len(train), scored, final, self.device.type == "cpu") as progress,
            stop_on_signal() as stop,
            self._profiler(run) as profiler,
        ):
            while epoch <= epochs:
                if step == 0:
                    # all randomness of an epoch follows from the seed and the epoch
                    for number, generator in enumerate(generators.values()):
                        generator.manual_seed(epoch_seed(seed, epoch, number))
                    torch.manual_seed(epoch_seed(seed, epoch, 2))
                    sums.zero_()
                elif resumed is not None:
                    torch.set_rng_state(resumed["rng"]["torch"])
                    for name, generator in generators.items():
                        generator.set_state(resumed["rng"][name])
                    sums.copy_(resumed["sums"])
                resumed = None
                model.train()
                light = schedule.light(epoch)
                transform = augment.light if light else augment.strong
                mix = None if light else augment.mix
                progress.start_epoch(epoch, step * batch_size)
                started, looked, first_step = time.monotonic(), 0.0, step
                lr = schedule.lr(base_lr, epoch, max(step - 1, 0), steps)
                for images, labels in train.batches(batch_size, epoch_seed(seed, epoch, 3), skip=step):
                    lr = schedule.lr(base_lr, epoch, step, steps)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    if not train.own_transforms:
                        images = transform(images, generators["device"])
                    batch = Mixed(images, labels, labels, 1.0)
                    if mix is not None:
                        batch = mix(images, labels, generators["host"])
                    train_step(forward, batch, optimizer, scaler, self.autocast(), sums)
                    step += 1
                    total_steps += 1
                    now = time.monotonic()
                    # reading a number makes a GPU wait, so there it is done once a second
                    if self.device.type == "cpu" or now - looked > 1:
                        looked = now
                        seen = min(step * batch_size, len(train))
                        loss = float(sums[0]) / seen
                        if not math.isfinite(loss):
                            raise self._not_finite(epoch, step, lr, run)
                        progress.step(seen, loss)
                    if profiler is not None:
                        profiler.step()
                    if stop and step < steps:
                        checkpoints.save_last(state())
                        raise KeyboardInterrupt
                    if total_steps == self.max_steps:
                        break
                seen = min(step * batch_size, len(train))
                train_loss, train_acc = float(sums[0]) / seen, 100 * float(sums[1]) / seen
                trained = time.monotonic() - started
                if not math.isfinite(train_loss):
                    raise self._not_finite(epoch, step, lr, run)
                if average is not None and epoch >= schedule.swa_epoch:
                    average.update_parameters(model)
                row: dict[str, Any] = {"epoch": epoch, "phase": schedule.phase(epoch), "lr": lr}
                row |= {"train_loss": train_loss, "train_acc": train_acc, "val_loss": None, "val_acc": None}
                better = False
                if val is not None:
                    probs, labels = evaluator.probabilities(model, val, self.autocast())
                    row |= {"val_loss": nll(probs, labels), "val_acc": accuracy(probs, labels)}
                    better = checkpoints.save_best(epoch, row["val_acc"], row["val_loss"], model.state_dict())
                row["seconds"] = round(time.monotonic() - started, 3)
                row["images_per_s"] = round(max(seen - first_step * batch_size, 0) / max(trained, 1e-9), 1)
                run.append_history(row)
                epoch, step = epoch + 1, 0
                checkpoints.save_last(state())
                self._report(row, epochs, better)
                try:
                    on_epoch(row)
                finally:
                    if stop:  # rather than TrialPruned, or a search would go on
                        raise KeyboardInterrupt
        return average

    @staticmethod
    def _report(row: dict[str, Any], epochs: int, better: bool) -> None:
        val = "" if row["val_acc"] is None else f"  val loss {row['val_loss']:.4f} acc {row['val_acc']:.2f} %"
        log.info(
            "epoch %d/%d  %-10s  lr %.2e  train loss %.4f acc %.2f %%%s  %.0f images/s  %s%s",
            *(row["epoch"], epochs, row["phase"], row["lr"], row["train_loss"], row["train_acc"], val),
            *(row["images_per_s"], clock(row["seconds"]), "  *" if better else ""),
        )

    @staticmethod
    def _not_finite(epoch: int, step: int, lr: float, run: RunFolder) -> RunFailed:
        return RunFailed(
            f"the loss is not finite any more in epoch {epoch}, step {step} (learning rate {lr:g}). "
            f"The checkpoints in {run.checkpoints} are from before. "
            "Try a lower optimizer.lr, or trainer.precision=fp32"
        )

    @contextlib.contextmanager
    def _profiler(self, run: RunFolder) -> Iterator[Any]:
        if not self.profile:
            yield None
            return

        def write(profiler: Any) -> None:
            trace = run.result("trace.json")
            profiler.export_chrome_trace(str(trace))
            log.info("%s", profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
            log.info("Trace for chrome://tracing or https://ui.perfetto.dev: %s", trace)

        when = torch.profiler.schedule(wait=1, warmup=2, active=20, repeat=1)
        with torch.profiler.profile(schedule=when, on_trace_ready=write) as profiler:
            yield profiler


def train_step(
    forward: Callable[[Tensor], Tensor],
    batch: Mixed,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    autocast: torch.autocast,
    sums: Tensor,
) -> None:
    """Take one step on ``batch`` and add its loss and (weighted) hits, summed over the images, to ``sums`` [2]."""
    images, labels, partners, weight = batch
    with autocast:
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        if weight < 1:
            loss = weight * loss + (1 - weight) * F.cross_entropy(logits, partners)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    with torch.no_grad():
        guess = logits.argmax(1)
        hits = (guess == labels).sum() * weight
        if weight < 1:
            hits = hits + (guess == partners).sum() * (1 - weight)
        sums += torch.stack([loss.detach() * len(labels), hits]).to(sums.dtype)


def epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """Return the seed of one of an epoch's independent streams of random numbers (at most 8)."""
    return (seed << 24) + (epoch << 3) + stream


def resolve_device(name: str) -> torch.device:
    """Return the torch device of ``trainer.device``. Raises UserError if this machine does not have it."""
    gpus = torch.cuda.device_count()
    there = ["cpu", *(f"cuda:{n}" for n in range(gpus))] + (["mps"] if torch.backends.mps.is_available() else [])
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    require(wanted in there, "trainer.device", name, "auto or one of what this machine has: " + ", ".join(there))
    return torch.device(wanted)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16 for ``trainer.precision`` on ``device``. Raises UserError where it cannot work."""
    require(name in ("auto", *PRECISIONS), "trainer.precision", name, "auto, fp32, bf16 or fp16")
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("trainer.precision is fp16, which trains on GPUs only; on the CPU type fp32 (fast) or bf16")
    return name


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 20 MB: on a CPU, asking for them anew each step costs page faults."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 20 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
