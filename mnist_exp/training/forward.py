"""The forward pass of a training, compiled where that pays and where it agrees with the plain one."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Collection, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from mnist_exp.errors import RunFailed
from mnist_exp.parts.trainer import Trainer

log = logging.getLogger(__name__)
_PAYS = 2000  # steps; compiling takes about a minute
_TOLERANCE = {"fp32": 0.01, "bf16": 0.2, "fp16": 0.2}  # relative, of outputs and gradients as a whole


class Forward(nn.Module):
    """Calls ``model``, through torch.compile where that is switched on, once it has been tried.

    Batches of the given ``sizes`` only: each size is compiled for itself, on a GPU as a CUDA graph, so a last batch of
    another size goes the plain way. The first whole training batch is computed both ways, forward and backward; they must
    agree (relative error below 1 %; 20 % in half precision, whose own is up to 9 % in gradients). Where
    ``trainer.compile`` is "auto", which is for GPUs and ``steps`` enough to pay for a minute of compiling, what cannot be
    compiled is trained plainly, and a line says so.

    Raises RunFailed, before the first step, where "on" cannot be had.
    """

    def __init__(self, model: nn.Module, trainer: Trainer, sizes: Collection[int], steps: int):
        super().__init__()
        self.model = model
        self.trainer = trainer
        self.sizes = frozenset(sizes)
        self.asked = trainer.compile == "on"
        self.waiting = self.asked or (trainer.compile == "auto" and _pays(trainer.device, steps))
        self.compiled: nn.Module | None = None

    def forward(self, images: Tensor) -> Tensor:
        if len(images) not in self.sizes:
            return self.model(images)
        if self.waiting and self.training:
            self.waiting = False
            self._try(images)
        if self.compiled is None:
            return self.model(images)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self.compiled(images)
        except Exception as error:  # each size, and scoring, is compiled when it first comes
            log.warning("%s; going on without", _refused(error))
            self.compiled = None
            return self.model(images)

    def _try(self, images: Tensor) -> None:
        """Compile the model; keep that if it does on ``images`` as the plain one does."""
        mode = "reduce-overhead" if self.trainer.device.type == "cuda" else "default"
        compiled = cast(nn.Module, torch.compile(self.model, mode=mode, dynamic=False))
        started = time.monotonic()
        try:
            with self._untouched():
                apart = self._apart(compiled, images)
            if apart > _TOLERANCE[self.trainer.precision]:
                raise ValueError(f"it comes out otherwise, with a relative error of {apart:.2g}")
        except Exception as error:  # of a compiler, which may not even be there
            if self.asked:
                raise RunFailed(f"{_refused(error)}. Try trainer.compile=off") from error
            log.warning("%s; going on without", _refused(error))
            return
        log.info("compiled the model in %.0f s; relative error %.1g", time.monotonic() - started, apart)
        self.compiled = compiled

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Give statistics and random numbers their old values afterwards."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            with torch.random.fork_rng([device] if (device := self.trainer.device).type == "cuda" else []):
                yield
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            self.model.train(self.training)

    def _apart(self, compiled: nn.Module, images: Tensor) -> float:
        """Return the largest relative error of the compiled outputs and gradients."""
        plain, again = self._pass(self.model, images), self._pass(self.model, images)
        if _error(plain, again) > 1e-3:  # dropout and the like: another order of random numbers is no error
            self.model.eval()
            plain = self._pass(self.model, images)
        return _error(self._pass(compiled, images), plain)

    def _pass(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (outputs, all gradients of a loss as one vector), as copies of their own."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        with torch.enable_grad(), self.trainer.autocast():
            outputs = model(images)
            loss = 1024 * torch.logsumexp(outputs.float(), 1).mean()  # far from what fp16 takes for 0
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        gradients = [g.flatten().float() for g in found if g is not None]
        return outputs.detach().float().clone(), torch.cat(gradients)


def _error(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(found, right, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")


def _refused(error: Exception) -> str:
    return f"torch.compile cannot compile this model ({' '.join(str(error).split())[:300]})"


def _pays(device: torch.device, steps: int) -> bool:
    if device.type != "cuda" or steps < _PAYS or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)  # what Triton is for
