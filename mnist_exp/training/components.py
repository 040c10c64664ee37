"""From a composed config to everything that a run is made of."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import random
import re
import warnings
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_exp.checked import check_arguments
from mnist_exp.config.build import build, standing_at
from mnist_exp.data.sets import CustomData, Data
from mnist_exp.data.splits import Split, Splits
from mnist_exp.errors import UserError, require
from mnist_exp.parts.augment import Augment, per_image
from mnist_exp.parts.evaluate import Evaluator
from mnist_exp.parts.interfaces import Network, RateSchedule, RunLogger, members
from mnist_exp.parts.models import GHOSTS, GhostBatchNorm2d
from mnist_exp.parts.optim import Lookahead
from mnist_exp.parts.trainer import Trainer
from mnist_exp.training.forward import Forward

log = logging.getLogger(__name__)
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # have such kernels for GPUs
# what tells a component of a group from others
_KINDS = {
    "data": ["load"],
    "trainer": ["device", "epochs", "autocast", "place"],
    "augment": ["strong", "light", "mix"],
    "schedule": members(RateSchedule),
    "evaluate": ["probabilities", "shifts", "recompute_bn"],
    "model": members(Network),
}


@dataclasses.dataclass
class Components:
    """Everything a run is made of, built from its config; the model and the splits are on the training device."""

    splits: Splits
    batch_size: int
    model: nn.Module
    augment: Augment
    optimizer: torch.optim.Optimizer
    schedule: RateSchedule
    trainer: Trainer
    evaluator: Evaluator
    loggers: list[RunLogger]
    optimizer_keys: frozenset[str] = frozenset()  # of its settings, those that the config gives

    @functools.cached_property
    def forward(self) -> Forward:
        """The model as it is called in training and scoring; a batch of either size may be compiled."""
        sizes = {self.batch_size, self.evaluator.batch_size}
        return Forward(self.model, self.trainer, sizes, self.steps * self.epochs)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.splits.train) / self.batch_size)

    @property
    def epochs(self) -> int:
        """Epochs of the run, ``trainer.max_steps`` considered."""
        return self.trainer.epochs(self.schedule, self.steps)

    @property
    def together(self) -> int:
        """Batches that are transformed at once, about 512 images; 1 where somebody's own part makes or transforms them."""
        ours = type(self.splits.train) is Split and per_image(self.augment.strong) and per_image(self.augment.light)
        return max(512 // self.batch_size, 1) if ours else 1

    def facts(self) -> dict[str, Any]:
        """Return what run.json says of them."""
        return {
            "device": str(self.trainer.device),
            "device_name": self.trainer.device_name,
            "precision": self.trainer.precision,
            "memory_format": self.trainer.memory_format,
            **({"ghosts": GHOSTS} if any(isinstance(m, GhostBatchNorm2d) for m in self.model.modules()) else {}),
            "dataset": self.splits.describe(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epochs,
        }


def build_components(
    config: DictConfig, restart: bool = False, new: bool = False, reads_only: bool = False
) -> Components:
    """Build the components of ``config`` on their device, the random weights from its seed.

    ``restart``: for the ``schedule.extra_epochs`` of a run that was finished, from ``schedule.resume_lr`` on. ``new``: a
    run that was not begun before, whose data must take its augment. ``reads_only``: nothing is written to ``data.root``.
    Raises UserError naming the key or file that is wrong.
    """
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    dataset = _part(config, "data")  # first, since others refer to its values; read last
    trainer = _part(config, "trainer")
    augment = _part(config, "augment")
    schedule = _part(config, "schedule")
    evaluator = _part(config, "evaluate")
    model = trainer.place(_part(config, "model"))
    if restart:
        with standing_at("schedule"):
            schedule = schedule.restarted()
        config = OmegaConf.merge(config, {"optimizer": {"lr": schedule.resume_lr}})  # type: ignore[assignment]
    optimizer, keys = _optimizer(config, model, trainer.device)
    loggers = {} if config.logger is None else build(config, "logger")
    require(isinstance(loggers, dict), "logger", config.logger, "names, and a logger each")
    for name, logger in loggers.items():
        able = all(hasattr(logger, method) for method in members(RunLogger))
        require(able, f"logger.{name}", logger, f"a component with {', '.join(members(RunLogger))}")
    with standing_at("data"):
        if new and isinstance(dataset, CustomData):
            dataset.check(augment.transforms() if isinstance(augment, Augment) else ["augment"])
        if isinstance(dataset, Data):
            dataset.reads_only = reads_only
        splits = dataset.load()
    _check_classes(config, model, splits, trainer)
    splits = splits.to(trainer.device)
    return Components(
        splits,
        config.data.batch_size,
        model,
        augment,
        optimizer,
        schedule,
        trainer,
        evaluator,
        [*loggers.values()],
        keys,
    )


def _check_classes(config: DictConfig, model: nn.Module, splits: Splits, trainer: Trainer) -> None:
    """Raise UserError unless ``model`` tells as many classes apart as the data have."""
    classes, told = len(splits.classes), config.model.get("num_classes")
    if told is None:  # a network of one's own, which says it by what it answers
        told, key = _outputs(model, trainer), "the number of outputs of the model"
    else:
        key = "model.num_classes"
    require(told >= classes, key, told, f"at least {classes}, the classes of {splits.name}")
    if told > classes:
        found = f"{key} is {told}, {splits.name} has {classes} classes"
        way_out = f" Type model.num_classes={classes}" if key == "model.num_classes" else ""
        log.warning("%s: some confidence will go to classes that do not exist.%s", found, way_out)


def _outputs(model: nn.Module, trainer: Trainer) -> int:
    """Return how many logits ``model`` gives an image. Raises UserError if it gives something else."""
    training = model.training
    model.eval()
    with torch.no_grad(), trainer.autocast():
        found = model(torch.zeros(2, 1, 28, 28, device=trainer.device))
    model.train(training)
    fine = isinstance(found, torch.Tensor) and found.ndim == 2 and len(found) == 2
    shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    require(fine, "what the model makes of [2, 1, 28, 28]", shape, "logits [2, classes]")
    return int(found.shape[1])


def load_weights(model: nn.Module, weights: dict[str, Any], origin: Any) -> None:
    """Load ``weights`` into ``model``. Raises UserError naming their ``origin`` if they do not fit."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Casting complex")  # half of them would be lost
            model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:300]
        raise UserError(f"the weights of {origin} do not fit this model: {reason}") from error


def _part(config: DictConfig, group: str) -> Any:
    """Return the component of a group. Raises UserError if it is of another kind than the group's."""
    part, names = build(config, group), _KINDS[group]
    fits = all(hasattr(part, name) for name in names)
    found = config[group].get("_target_") if OmegaConf.is_dict(config[group]) else config[group]
    require(fits, f"{group}._target_", found, f"a component of this group, which has {', '.join(names)}")
    return part


def _optimizer(
    config: DictConfig, model: nn.Module, device: torch.device
) -> tuple[torch.optim.Optimizer, frozenset[str]]:
    """Return the optimizer of ``model``, and which of its settings the config gives."""
    make = build(config, "optimizer")
    require(isinstance(make, functools.partial), "optimizer._partial_", config.optimizer.get("_partial_"), "true")
    with standing_at("optimizer"):
        check_arguments(getattr(make, "func", make), getattr(make, "keywords", {}))  # torch's own check little
        try:
            optimizer: torch.optim.Optimizer = make(model.parameters(), **_kernels(make, device))
        except (TypeError, ValueError, AttributeError) as error:
            unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
            hint = f". {unknown[1]} does not take it: type ~optimizer.{unknown[2]}" if unknown else ""
            raise UserError(f"optimizer cannot be built: {error}{hint}") from error
        ok = isinstance(optimizer, torch.optim.Optimizer)
        require(ok, "_target_", config.optimizer._target_, "an optimizer")
        lr = optimizer.param_groups[0]["lr"]
        require(math.isfinite(lr), "lr", lr, "a finite number")
        _begin_momentum(optimizer)
        own = {"k", "alpha"} if make.func is Lookahead else set()  # which are no settings of the one inside
        return optimizer, frozenset(_typed(make) - own)


def _kernels(make: functools.partial[Any], device: torch.device) -> dict[str, bool]:
    """Return what has an optimizer take a step in one kernel on a GPU, which does not wait for GradScaler either.

    Not on a CPU, where torch's fused kernels do not look at sizes and memory formats.
    """
    base = make.keywords.get("base", make) if make.func is Lookahead else make
    kind = getattr(base, "func", base)
    chosen = _typed(make) & {"fused", "foreach", "capturable", "differentiable"}
    return {"fused": True} if device.type == "cuda" and kind in _FUSED and not chosen else {}


def _typed(make: functools.partial[Any]) -> set[str]:
    """Return the names of the settings of an optimizer, and of the one inside, that the config gives."""
    base = make.keywords.get("base")
    return {*make.keywords, *getattr(base, "keywords", {})}


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let fused SGD begin with no momentum: of a first step that GradScaler forbids, torch keeps memory as it was found.

    A first step then is the usual one, but with dampening, which is left as it is.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum") and not group.get("dampening"):
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
