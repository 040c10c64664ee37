"""Where a training stands: what a checkpoint holds, and from where a run goes on to the same bits."""

from __future__ import annotations

from typing import Any

import torch
from numpy.random import SeedSequence
from torch.optim.swa_utils import AveragedModel

from mnist_exp.training.components import Components

STREAMS = 1  # the rule of stream_seed by which runs that begin now draw their random numbers; kept in run.json


class State:
    """All that the next step of a training depends on. ``rule``: see ``stream_seed``.

    ``epoch`` (from 1) and ``step`` (from 0) of the next step to take; ``total_steps`` taken; ``base_lr``, the rate that
    the optimizer was built with; ``average`` of the weights, None if the schedule has none; ``device_draws`` and
    ``host_draws``, the random numbers of transforms and of mixing; ``sums`` of loss and hits of this epoch.
    """

    def __init__(self, parts: Components, seed: int, rule: int = STREAMS):
        device = parts.trainer.device
        self.seed, self.rule = seed, rule
        self.own_transforms = parts.splits.train.own_transforms
        self.computed = {"device": device.type, "precision": parts.trainer.precision}
        self.epoch, self.step, self.total_steps = 1, 0, 0
        self.model = parts.model
        self.optimizer = parts.optimizer
        self.base_lr: float = parts.optimizer.param_groups[0]["lr"]
        self.scaler = torch.amp.GradScaler(device.type, enabled=parts.trainer.precision == "fp16")
        averages = parts.schedule.swa_epoch <= parts.schedule.total
        self.average = AveragedModel(parts.model) if averages else None
        self.device_draws, self.host_draws = torch.Generator(device), torch.Generator()
        self.sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def begin_epoch(self) -> None:
        """Start the epoch's random numbers and sums: all its randomness follows from the seed and the epoch."""
        self.device_draws.manual_seed(self._seed(0))
        self.host_draws.manual_seed(self._seed(1))
        torch.manual_seed(self._seed(2))
        self.sums.zero_()

    @property
    def order_seed(self) -> int:
        """The seed of the epoch's permutation."""
        return self._seed(3)

    def _seed(self, stream: int) -> int:
        return stream_seed(self.seed, self.epoch, stream, self.rule)

    def end_epoch(self) -> None:
        """Go on to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: tensors, numbers, strings, dicts and lists."""
        return {
            **self.computed,
            "epoch": self.epoch,
            "step": self.step,
            "total_steps": self.total_steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "base_lr": self.base_lr,
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "sums": self.sums,
            "rng": {
                "torch": torch.get_rng_state(),
                "device": self.device_draws.get_state(),
                "host": self.host_draws.get_state(),
            },
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.epoch, self.step, self.total_steps = saved["epoch"], saved["step"], saved["total_steps"]
        self.base_lr = saved["base_lr"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:  # that of another precision is empty
            self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        if self.step:  # in the middle of an epoch; another one starts its own
            torch.set_rng_state(saved["rng"]["torch"])
            self.device_draws.set_state(saved["rng"]["device"])
            self.host_draws.set_state(saved["rng"]["host"])
            self.sums.copy_(saved["sums"])

    def obstacle(self, saved: dict[str, Any]) -> str | None:
        """Return why this process cannot go on from ``saved``; None if it can, as any can at the start of an epoch."""
        if _shapes(saved["model"]) != _shapes(self.model.state_dict()):
            return "holds the weights of another model"
        if not saved["step"]:
            return None
        if self.rule == 0 and self.own_transforms:
            return "was written in mid-epoch by an older version, which dealt out images in another way"
        found: dict[str, Any] = {key: saved.get(key) for key in self.computed}
        if found["device"] is None:  # an older version did not say
            alike = saved["rng"]["device"].shape == self.device_draws.get_state().shape
            found = self.computed if alike and bool(saved["scaler"]) == self.scaler.is_enabled() else found
        if found == self.computed:
            return None
        there, here = (" in ".join(filter(None, x.values())) or "another device" for x in (found, self.computed))
        return f"was written in mid-epoch on {there}, and this is {here}"


def stream_seed(seed: int, epoch: int, stream: int, rule: int = STREAMS) -> int:
    """Return the seed, of 64 bits, of one of the independent streams of random numbers of an epoch.

    torch's CPU generator takes the low 32 bits only (at::mt19937).
    Here they are the run's ``seed`` (32 bits) times an odd number plus another, both hashed from ``epoch`` and
    ``stream``: one to one, so no two seeds share a stream. ``rule`` 0, of runs begun before, left 256 different ones.
    """
    if rule == 0:
        return (seed << 24) + (epoch << 3) + stream
    factor, shift, high = SeedSequence((epoch, stream)).generate_state(3).tolist()
    return high << 32 | ((factor | 1) * seed + shift) % 2**32


def _shapes(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value.shape for name, value in weights.items()}
