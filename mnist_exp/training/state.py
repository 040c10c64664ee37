"""Where a training stands: what a checkpoint holds, and from where a run goes on to the same bits."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from mnist_exp.training.components import Components


class State:
    """All that the next step of a training depends on.

    ``epoch`` (from 1) and ``step`` (from 0) of the next step to take; ``total_steps`` taken; ``base_lr``, the rate that
    the optimizer was built with; ``average`` of the weights, None if the schedule has none; ``device_draws`` and
    ``host_draws``, the random numbers of transforms and of mixing; ``sums`` of loss and hits of this epoch.
    """

    def __init__(self, parts: Components, seed: int):
        device = parts.trainer.device
        self.seed = seed
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
        self.device_draws.manual_seed(epoch_seed(self.seed, self.epoch, 0))
        self.host_draws.manual_seed(epoch_seed(self.seed, self.epoch, 1))
        torch.manual_seed(epoch_seed(self.seed, self.epoch, 2))
        self.sums.zero_()

    @property
    def order_seed(self) -> int:
        """The seed of the epoch's permutation."""
        return epoch_seed(self.seed, self.epoch, 3)

    def end_epoch(self) -> None:
        """Go on to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: tensors, numbers, strings, dicts and lists."""
        return {
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
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        if self.step:  # in the middle of an epoch; another one starts its own
            torch.set_rng_state(saved["rng"]["torch"])
            self.device_draws.set_state(saved["rng"]["device"])
            self.host_draws.set_state(saved["rng"]["host"])
            self.sums.copy_(saved["sums"])


def epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """Return the seed of one of an epoch's independent streams of random numbers (at most 8)."""
    return (seed << 24) + (epoch << 3) + stream
