"""What a part of one's own has to be: nothing else is asked of it, and of no class need it be derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Generator, Tensor


class Network(Protocol):
    """``model._target_``: an nn.Module.

    Its constructor may take ``num_classes``, which is then what model.num_classes says.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float [N, classes], of normalised ``images``, float [N, 1, 28, 28]."""

    def parameters(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...


class Transform(Protocol):
    """A part of ``augment.strong`` or ``augment.light``: an nn.Module."""

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        """Return a batch of ``images``, float [N, 1, 28, 28], changed; they are in 0..1 before ``normalize``.

        Whatever is drawn is drawn from ``generator``, on the device of the images: then a run can be had again.
        """


class OptimizerMaker(Protocol):
    """``optimizer._target_``, with ``optimizer._partial_=true``: a torch.optim.Optimizer, or what returns one."""

    def __call__(self, params: Any, lr: float, weight_decay: float) -> Any:
        """Return an optimizer of ``params``, whose ``param_groups`` have an "lr" that the schedule sets at every step."""


class RateSchedule(Protocol):
    """``schedule._target_``: mnist_exp.parts.schedule.Schedule has all but ``lr``, of which it is a base class."""

    @property
    def total(self) -> int:
        """Epochs in all."""

    @property
    def swa_epoch(self) -> int:
        """First epoch whose weights enter the average, from 1; ``total + 1`` where there is none."""

    @property
    def resume_lr(self) -> float:
        """The rate that a finished run which is trained further begins with."""

    def light(self, epoch: int) -> bool:
        """Whether ``epoch``, from 1, has light transforms and no mixing."""

    def phase(self, epoch: int) -> str:
        """Return what history.csv says of ``epoch``."""

    def lr(self, base_lr: float, epoch: int, step: int, steps: int) -> float:
        """Return the rate of ``step`` (0..steps-1) in ``epoch`` (1..total) for an optimizer made with ``base_lr``."""

    def restarted(self) -> RateSchedule:
        """Return the schedule of a finished run that is trained further."""


class Dataset(Protocol):
    """``data.train._target_`` and ``data.test._target_`` of data=custom: map-style, as torch's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, float [1, 28, 28], as the network is to see it, and its label from 0."""


class RunLogger(Protocol):
    """A part of ``logger``, under a name of one's choice."""

    def start(self, folder: Path, parameters: dict[str, Any]) -> None:
        """Begin, or go on, with the run in ``folder``, of these keys and values."""

    def log(self, metrics: dict[str, float], epoch: int | None = None) -> None:
        """Take the numbers of ``epoch``; None: those of the end."""

    def finish(self, status: str) -> None:
        """End: finished, failed or interrupted."""


def members(protocol: type) -> list[str]:
    """Return the names that a protocol asks for."""
    return [name for name in vars(protocol) if not name.startswith("_")]
