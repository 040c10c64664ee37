"""Where a training stands: what a checkpoint holds, and from where a run goes on to the same bits."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from numpy.random import SeedSequence
from torch.optim.swa_utils import AveragedModel

from mnist_exp.training.checkpoints import shapes
from mnist_exp.training.components import Components

# The rule by which runs that begin now draw their random numbers; kept in run.json. 2: each group of batches has a stream
# of its own for its transforms. 1: all of an epoch have one. 0: and 256 seeds share it.
STREAMS = 2
TRANSFORMS = 4  # of the streams of an epoch the first for transforms; each group of batches has its own


class State:
    """All that the next step of a training depends on. ``rule``: see ``STREAMS``.

    ``epochs_before``: of the runs whose weights it begins with, so that it draws other random numbers than those.
    ``epoch`` (from 1) and ``step`` (from 0) of the next step to take; ``total_steps`` taken; ``base_lr``, the rate that
    the optimizer was built with; ``together``, how many batches are transformed at once; ``average`` of the weights, None
    if the schedule has none; ``device_draws`` and ``host_draws``, the random numbers of transforms and of mixing; ``sums``
    of loss and hits of this epoch.
    """

    def __init__(self, parts: Components, seed: int, rule: int = STREAMS, epochs_before: int = 0):
        device = parts.trainer.device
        self.seed, self.rule, self.epochs_before = seed, rule, epochs_before
        self.typed = parts.optimizer_keys
        self.own_transforms = parts.splits.train.own_transforms
        self.steps, self.epochs = parts.steps, parts.schedule.total
        self.together = parts.together if rule >= 2 else 1
        self.computed = {"device": device.type}
        self.computed |= {key: getattr(parts.trainer, key) for key in ("precision", "memory_format")}
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

    def begin_group(self) -> None:
        """Start the random numbers of the transforms of the batches that stand at ``step``."""
        if self.rule >= 2:
            self.device_draws.manual_seed(self._seed(TRANSFORMS + self.step // self.together))

    @property
    def order_seed(self) -> int:
        """The seed of the epoch's permutation."""
        return self._seed(3)

    def _seed(self, stream: int) -> int:
        return stream_seed(self.seed, self.epochs_before + self.epoch, stream, self.rule)

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
        self.optimizer.load_state_dict(self._own_kernels(saved["optimizer"]))
        _lay_out(self.optimizer)
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
        if shapes(saved["model"]) != shapes(self.model.state_dict()):
            return "holds the weights of another model"
        if not saved["step"]:
            return None
        if self.rule == 0 and self.own_transforms:
            return "was written in mid-epoch by an older version, which dealt out images in another way"
        found: dict[str, Any] = {"memory_format": "contiguous"}  # all that an older version knew
        found = {key: saved.get(key) or found.get(key) for key in self.computed}
        if found["device"] is None:  # an older version did not say
            alike = saved["rng"]["device"].shape == self.device_draws.get_state().shape
            found = self.computed if alike and bool(saved["scaler"]) == self.scaler.is_enabled() else found
        if found == self.computed:
            return None
        there, here = (" in ".join(map(str, x.values())) for x in (found, self.computed))
        there = "another device" if found["device"] is None else there
        return f"was written in mid-epoch on {there}, and this is {here}"

    def misfit(self, saved: dict[str, Any]) -> str | None:
        """Return why ``saved``, a checkpoint without obstacle, cannot be of this run; None if it can. Nothing changes."""
        epoch, step, total = saved["epoch"], saved["step"], saved["total_steps"]
        if epoch > self.epochs + (step == 0) or step > self.steps:
            return f"stands in epoch {epoch:,}, step {step:,}, beyond this run"
        if not epoch - 1 <= total <= (epoch - 1) * self.steps + step:
            return f"has taken {total:,} steps by epoch {epoch:,}, step {step:,}, which cannot be"
        best = [entry["epoch"] for entry in saved["best"]]
        if len(set(best)) < len(best) or max(best, default=0) >= epoch:
            return f"names best epochs that cannot be: {str(best)[:60]}"
        if not math.isclose(saved["base_lr"], self.base_lr):
            return f"was trained with the rate {saved['base_lr']:g}, not {self.base_lr:g}"
        if saved["scaler"] and self.scaler.is_enabled() and saved["scaler"].keys() != self.scaler.state_dict().keys():
            return "holds another scale of gradients"
        if self.average is not None and shapes(saved["average"] or {}) != shapes(self.average.state_dict()):
            return "holds another average of weights"
        try:
            if step:
                self.sums.clone().copy_(saved["sums"])
                for name, device in (("torch", "cpu"), ("device", self.device_draws.device), ("host", "cpu")):
                    torch.Generator(device).set_state(saved["rng"][name])
            return self._misfit_of_optimizer(saved["optimizer"])
        except Exception as error:  # of torch, or of anybody's optimizer
            return f"holds a state that cannot be gone on from: {' '.join(str(error).split())[:200]}"

    def _misfit_of_optimizer(self, saved: dict[str, Any]) -> str | None:
        """Return how the recipe of a ``saved`` optimizer differs. Raises anything if it cannot take a step."""
        parameters = list(self.model.parameters())
        weights = [parameter.detach().clone() for parameter in parameters]
        before = copy.deepcopy(self.optimizer.state_dict())
        groups = [dict(group) for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(self._own_kernels(copy.deepcopy(saved)))
            _lay_out(self.optimizer)
            for group, found in zip(groups, self.optimizer.param_groups, strict=True):
                for key in self.typed & group.keys() & found.keys() - {"lr"}:  # others may be counters of its own
                    if group[key] != found[key]:
                        return f"was trained with an optimizer whose {key} is {str(found[key])[:40]}, not {group[key]}"
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            for group in self.optimizer.param_groups:  # one kernel would not look where it writes to
                group |= {key: False for key in ("fused", "foreach") if key in group}
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()
            self.optimizer.load_state_dict(before)
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
        return None

    def _own_kernels(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the ``saved`` state of an optimizer with the kernels of this one; those of another device may not run."""
        inner, groups = saved.get("base", saved), self.optimizer.param_groups  # under Lookahead
        if "param_groups" not in inner:  # somebody's own way of keeping it
            return saved
        kernels = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in groups]
        here = [old | own for old, own in zip(inner["param_groups"], kernels, strict=True)]
        inner = inner | {"param_groups": here}
        return saved | {"base": inner} if "base" in saved else inner


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Bring what ``optimizer`` keeps beside each weight into the weight's memory format: fused kernels rely on that."""
    for weight, kept in optimizer.state.items():
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                kept[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


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
