"""Checkpoints that survive a kill at any moment: written beside and moved, one before kept, top k by validation."""

from __future__ import annotations

import io
import logging
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.runs.folder import RunFolder

log = logging.getLogger(__name__)
_FORMAT = "mnist_exp checkpoint 1"
_DAMAGES = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error),
    *(pickle.UnpicklingError, NotImplementedError, struct.error),
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, dicts and lists) so that ``torch.load(weights_only=True)`` reads it."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    atomic_write(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises UserError naming the file if it is missing, damaged or not one of ours.

    torch keeps a checksum of each part, but does not look at it when it loads; here it is.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except _DAMAGES as error:
        raise UserError(f"{path} is torn or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of mnist_exp")
    return state


class Checkpoints:
    """The checkpoints of one run: last.pth, previous.pth and the ``top_k`` best by validation.

    previous.pth is the newest one before last.pth that stands at the start of an epoch.

    ``best`` lists {"epoch", "val_acc", "val_loss"} of the kept ones, best first: higher accuracy, then lower loss,
    then earlier epoch.
    """

    def __init__(self, run: RunFolder, top_k: int):
        self.run = run
        self.top_k = top_k
        self.last = run.checkpoints / "last.pth"
        self.previous = run.checkpoints / "previous.pth"
        self.best: list[dict[str, Any]] = []
        self._starts_epoch = False  # whether last.pth does, and is whole

    @property
    def first(self) -> dict[str, Any] | None:
        """The entry of the best epoch; None if there is none."""
        return self.best[0] if self.best else None

    def save_best(self, epoch: int, val_acc: float, val_loss: float, model: dict[str, Any]) -> bool:
        """Keep this epoch's model if it is among the best; return whether it is. Stale files go in save_last."""
        entry = {"epoch": epoch, "val_acc": val_acc, "val_loss": val_loss}
        ranked = sorted([*self.best, entry], key=lambda e: (-e["val_acc"], e["val_loss"], e["epoch"]))[: self.top_k]
        if entry not in ranked:
            return False
        save(self.run.checkpoint(epoch), {**entry, "model": model})
        self.best = ranked
        return True

    def save_last(self, state: dict[str, Any]) -> None:
        """Write last.pth, keeping the one before as said, then delete best checkpoints that have been overtaken."""
        fresh = self.last.with_name("next.pth")
        save(fresh, {**state, "best": self.best})
        if self._starts_epoch:
            self.last.replace(self.previous)
        fresh.replace(self.last)
        self._starts_epoch = state["step"] == 0
        kept = {self.run.checkpoint(entry["epoch"]) for entry in self.best}
        for stale in set(self.run.checkpoints.glob(f"{self.run.prefix}_ckpt_epoch*.pth")) - kept:
            stale.unlink()

    def load_last(self, obstacle: Callable[[dict[str, Any]], str | None] = lambda state: None) -> dict[str, Any] | None:
        """Return the newest state that can be gone on from, saying so if it is not the last; None if there is none yet.

        ``obstacle`` says why a state cannot be. Raises UserError if that, and no damage, would cost whole epochs.
        """
        problems, passed = [], 1
        for path in (self.last, self.previous):
            try:
                state = load(path)
            except UserError as error:
                if path.exists() or self.previous.exists():
                    problems.append(str(error))
                continue
            if "optimizer" not in state:
                problems.append(f"{path} is not the state of a training run")
                continue
            reason = obstacle(state)
            if reason is not None:
                problems.append(f"{path} {reason}")
                passed = max(passed, state["epoch"])
                continue
            for problem in problems:
                log.warning("%s; going on from %s (epoch %d)", problem, path.name, state["epoch"])
            self.best = [entry for entry in state["best"] if self.run.checkpoint(entry["epoch"]).exists()]
            self._starts_epoch = path == self.last and state["step"] == 0
            return state
        if passed > 1:
            raise UserError(f"{'; '.join(problems)}. Go on where that was written, or start a new run")
        if problems:
            log.warning(
                "%s; no checkpoint before it can be used either, so starting from the first epoch", "; ".join(problems)
            )
        return None
