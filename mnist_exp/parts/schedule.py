"""How many epochs, which augmentation phase each is in, its learning rate, and from where weights are averaged.

A schedule is a pure function of the epoch and step, so a resumed run needs no state of it. Epochs count from 1, steps
within an epoch from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from mnist_exp.checked import Natural, Positive, Share, checked
from mnist_exp.errors import require


@checked
@dataclass(frozen=True)
class Schedule:
    """A constant rate; the base of the others.

    ``initial_epochs + extra_epochs`` epochs in all, the last ``final_frac`` of them light. ``swa_start``: the average
    starts with epoch int(total * swa_start) (None: no averaging). ``resume_lr``: the rate a warm restart begins with.
    """

    initial_epochs: Natural
    extra_epochs: Natural
    final_frac: Share = 0.25
    swa_start: Annotated[float, Field(ge=0, le=1, description="null: no averaging")] | None = None
    resume_lr: Positive = 5e-4

    def __post_init__(self) -> None:
        require(self.total >= 1, "initial_epochs + extra_epochs", self.total, "at least 1")

    @property
    def total(self) -> int:
        """Epochs in all."""
        return self.initial_epochs + self.extra_epochs

    @property
    def swa_epoch(self) -> int:
        """First epoch whose weights enter the average; ``total + 1`` where there is none."""
        return self.total + 1 if self.swa_start is None else max(1, int(_share(self.total, self.swa_start)))

    def light(self, epoch: int) -> bool:
        """Whether ``epoch`` belongs to the last phase: light transforms, no mixing."""
        return epoch > _share(self.total, 1 - self.final_frac)

    def phase(self, epoch: int) -> str:
        """Return "strong" or "light", with "+swa" where the epoch's weights enter the average."""
        return ("light" if self.light(epoch) else "strong") + ("+swa" if epoch >= self.swa_epoch else "")

    def lr(self, base_lr: float, epoch: int, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` (of ``steps``) in ``epoch``, for an optimizer built with ``base_lr``."""
        return base_lr

    def restarted(self) -> Schedule:
        """Return the schedule of a warm restart: ``extra_epochs`` epochs."""
        require(self.extra_epochs >= 1, "extra_epochs", self.extra_epochs, "at least 1 to train a finished run on")
        return replace(self, initial_epochs=0)


@checked
@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine annealing from the base rate to ``eta_min``; with ``swa_start`` it ends where SWA starts.

    In the SWA epochs the rate then goes, by half a cosine over ``swa_anneal_epochs`` epochs, to ``swa_lr`` and stays;
    None: over 10 of them, as torch does, or over all where there are fewer. ``interval`` "step": each step has its rate,
    and the last one of a curve that curve's end. "epoch": each epoch has one, as by torch's CosineAnnealingLR and SWALR
    stepped once an epoch; ``eta_min`` is then what the epoch after the curve's last would have.

    Sources: Loshchilov, Hutter, "SGDR" (2016), https://arxiv.org/abs/1608.03983; Izmailov et al., "Averaging Weights
    Leads to Wider Optima and Better Generalization" (2018), https://arxiv.org/abs/1803.05407.
    """

    eta_min: Annotated[float, Field(ge=0)] = 1e-6
    swa_lr: Positive = 0.01
    swa_anneal_epochs: Annotated[int, Field(ge=1, description="null: at most 10")] | None = None
    interval: Literal["step", "epoch"] = "epoch"

    def lr(self, base_lr: float, epoch: int, step: int, steps: int) -> float:
        before = min(self.swa_epoch - 1, self.total)  # epochs of the first curve
        anneal = self.swa_anneal_epochs or min(10, self.total - before)
        by_step = self.interval == "step"
        now, unit = (epoch - 1 + step / steps, 1 / steps) if by_step else (epoch - 1, 1)  # in epochs
        last = before - unit
        if epoch <= before:
            end = last if by_step else before
            return _cosine(base_lr, self.eta_min, now / end if end else 0.0)
        if before == 0:  # averaging from the first epoch: the curve starts at the base rate itself
            end = anneal - 1 / steps if by_step else anneal
            return _cosine(base_lr, self.swa_lr, min(1.0, now / end if end else 0.0))
        return _cosine(self.eta_min, self.swa_lr, min(1.0, (now - last) / anneal))


@checked
@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle by the step: up from base / ``div_factor`` to the base rate, down to that start / ``final_div_factor``.

    As torch's OneCycleLR without momentum cycling; ``pct_start`` is the share of the steps that goes up.

    Source: Smith, Topin, "Super-Convergence" (2017), https://arxiv.org/abs/1708.07120.
    """

    pct_start: Share = 0.3
    div_factor: Annotated[float, Field(ge=1)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4

    def lr(self, base_lr: float, epoch: int, step: int, steps: int) -> float:
        now, last = (epoch - 1) * steps + step, self.total * steps - 1
        peak = self.pct_start * (last + 1) - 1
        start = base_lr / self.div_factor
        if now <= peak:
            return _cosine(start, base_lr, now / peak if peak > 0 else 1.0)
        return _cosine(base_lr, start / self.final_div_factor, (now - max(peak, 0)) / max(last - max(peak, 0), 1))


def _share(epochs: int, share: float) -> float:
    """Return a share of the epochs, a whole number where it is meant to be one: 0.29 * 100 is 28.999999999999996."""
    return round(epochs * share, 9)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
