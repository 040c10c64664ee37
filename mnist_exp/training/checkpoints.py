"""Checkpoints that survive a kill at any moment: written beside and moved, one before kept, top k by validation."""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from mnist_exp.checked import STRICT, Count, Natural, Positive
from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.reading import open_zip, read_bytes
from mnist_exp.runs.folder import RunFolder

log = logging.getLogger(__name__)
_FORMAT = "mnist_exp checkpoint 1"


class Weights(BaseModel):
    """What every checkpoint holds; it may hold more."""

    model_config = STRICT
    epoch: Count
    model: dict[str, Tensor]


class Best(BaseModel):
    """An epoch whose weights are kept in a checkpoint of its own."""

    model_config = STRICT
    epoch: Count
    val_acc: Annotated[float, Field(ge=0, le=100)]
    val_loss: float


class RandomNumbers(BaseModel):
    """States of torch's generators."""

    model_config = STRICT
    torch: Tensor
    device: Tensor
    host: Tensor


class Training(Weights):
    """What last.pth and previous.pth hold: see ``State``."""

    step: Natural
    total_steps: Natural
    optimizer: dict[str, Any]
    base_lr: Positive
    scaler: dict[str, float]
    average: dict[str, Tensor] | None
    sums: Tensor
    rng: RandomNumbers
    best: list[Best]
    device: str | None = None
    precision: str | None = None
    memory_format: str | None = None


class Resumable(Protocol):
    """What goes on from a checkpoint: a ``State``, which says what keeps it from that, None if nothing does."""

    def obstacle(self, saved: dict[str, Any]) -> str | None: ...

    def misfit(self, saved: dict[str, Any]) -> str | None: ...


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, dicts and lists) so that ``torch.load(weights_only=True)`` reads it."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    atomic_write(path, buffer.getvalue())


def load(path: Path, model: Mapping[str, Tensor], kind: type[Weights] = Weights) -> dict[str, Any]:
    """Read a checkpoint of a run with such a ``model`` to the CPU.

    Raises UserError naming the file if it is missing, damaged, not one of ours, not of its ``kind``, or larger than it
    can be. torch keeps a checksum of each part, but does not look at it when it loads; here it is.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    weights = sum(tensor.nbytes for tensor in model.values())
    content = read_bytes(path, 16 * weights + (64 << 20))  # an optimizer keeps a few tensors beside each weight
    try:
        _check_parts(content, 4096 * len(model) + (1 << 20))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has its thoughts about some
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _check_plain(state)
    except MemoryError:  # of the machine: nothing is wrong with the file
        raise
    except Exception as error:  # any bytes may raise anything
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is torn or not a checkpoint ({type(error).__name__}: {text})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of mnist_exp")
    try:
        kind.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))[:100]
        what = "a whole checkpoint" if kind is Weights else "the state of a training run"
        raise UserError(f"{path} is not {what}: {key}: {first['msg']}") from error
    # torch would take what is noted beside the weights, which may be anything, for the versions of layers
    return state | {key: dict(state[key]) for key in ("model", "average") if state.get(key) is not None}


def _check_parts(content: bytes, most: int) -> None:
    """Raise an error if a checkpoint is damaged, or would be more than ``content`` once unpacked; ``most``: of its plan."""
    with open_zip(io.BufferedReader(io.BytesIO(content)), 100_000) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed")
        if sum(part.file_size for part in parts) > len(content):
            raise ValueError("its parts are larger than itself")
        if any(part.file_size > most for part in parts if part.filename.lower().endswith(".pkl")):
            raise ValueError("it names too many things")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _check_plain(state: Any, most: int = 1_000_000) -> None:
    """Raise ValueError unless ``state`` is of dicts, lists, tensors and values, at most so many, each tensor stored whole."""
    waiting, count = [(state, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > most or depth > 20:
            raise ValueError("it is too deep or too long")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError(f"it holds a tensor that is {value.layout} on {value.device}")
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"it holds a tensor of {value.nbytes:,} bytes that are not there")
        elif not (value is None or isinstance(value, float | str) or (isinstance(value, int) and abs(value) < 2**64)):
            raise ValueError(f"it holds a {type(value).__name__} that no checkpoint has")


class Checkpoints:
    """The checkpoints of one run: last.pth, previous.pth and the ``top_k`` best by validation.

    previous.pth is the newest one before last.pth that stands at the start of an epoch.

    ``model``: the run's weights, or some like them. ``best`` lists {"epoch", "val_acc", "val_loss"} of the kept ones,
    best first: higher accuracy, then lower loss, then earlier epoch.
    """

    def __init__(self, run: RunFolder, top_k: int, model: Mapping[str, Tensor]):
        self.run = run
        self.top_k = top_k
        self.model = model
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

    def load_best(self, epoch: int) -> dict[str, Any]:
        """Return the weights of one of the best. Raises UserError if they cannot be read."""
        path = self.run.checkpoint(epoch)
        weights: dict[str, Any] = load(path, self.model)["model"]
        if shapes(weights) != shapes(self.model):
            raise UserError(f"{path} holds the weights of another model")
        return weights

    def load_last(self, state: Resumable | None = None) -> dict[str, Any] | None:
        """Return the newest checkpoint that ``state`` can go on from (None: any), saying so if it is not the last.

        None if there is none. Raises UserError if an obstacle, and no damage, would cost whole epochs.
        """
        problems, passed = [], 1
        for path in (self.last, self.previous):
            try:
                saved = load(path, self.model, Training)
            except UserError as error:
                if path.exists() or self.previous.exists():
                    problems.append(str(error))
                continue
            obstacle = None if state is None else state.obstacle(saved)
            misfit = None if state is None or obstacle else state.misfit(saved)
            if obstacle is not None:
                passed = max(passed, saved["epoch"])
            if obstacle or misfit:
                problems.append(f"{path} {obstacle or misfit}")
                continue
            for problem in problems:
                log.warning("%s; going on from %s (epoch %d)", problem, path.name, saved["epoch"])
            if state is not None:
                self.best = [entry for entry in saved["best"] if self._is_kept(entry["epoch"])]
            self._starts_epoch = path == self.last and saved["step"] == 0
            return saved
        if passed > 1:
            raise UserError(f"{'; '.join(problems)}. Go on where that was written, or start a new run")
        for problem in problems:
            log.warning("%s", problem)
        return None

    def _is_kept(self, epoch: int) -> bool:
        """Whether the weights of one of the best are there and whole; those that were overtaken may be gone."""
        if not self.run.checkpoint(epoch).exists():
            return False
        try:
            self.load_best(epoch)
        except UserError as error:
            log.warning("%s; epoch %d is not among the best any more", error, epoch)
            return False
        return True


def shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what two models have in common if one can take the weights of the other."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
