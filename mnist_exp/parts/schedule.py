"""How many epochs, which augmentation phase each is in, its learning rate, and from where weights are averaged.

A schedule is a pure function of the epoch and step, so a resumed run needs no state of it. Epochs count from 1, steps
within an epoch from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from mnist_exp.checked import Count, Natural, Positive, Share, checked
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
    """Cosine annealing by the epoch, from the base rate to ``eta_min``; with ``swa_start`` it ends where SWA starts.

    In the SWA epochs the rate then goes, by half a cosine over ``swa_anneal_epochs`` epochs, to ``swa_lr`` and stays.

    Sources: Loshchilov, Hutter, "SGDR" (2016), https://arxiv.org/abs/1608.03983; Izmailov et al., "Averaging Weights
    Leads to Wider Optima and Better Generalization" (2018), https://arxiv.org/abs/1803.05407.
    """

    eta_min: Annotated[float, Field(ge=0)] = 1e-6
    swa_lr: Positive = 0.01
    swa_anneal_epochs: Count = 10

    def lr(self, base_lr: float, epoch: int, step: int, steps: int) -> float:
        before = min(self.swa_epoch - 1, self.total)  # epochs of the first curve
        if epoch <= before:
            return _cosine(base_lr, self.eta_min, (epoch - 1) / before)
        if before == 0:  # averaging from the first epoch: the curve starts at the base rate itself
            return _cosine(base_lr, self.swa_lr, min(1.0, (epoch - 1) / self.swa_anneal_epochs))
        return _cosine(self.eta_min, self.swa_lr, min(1.0, (epoch - before) / self.swa_anneal_epochs))


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
