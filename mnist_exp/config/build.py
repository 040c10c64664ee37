"""From a config group to the object it describes, and what a config may build at all: the one list of it."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import UserError, WrongValue
from mnist_exp.vision import import_torchvision

# a person at the keyboard can allow more; a config file cannot
ALLOW = "MNIST_EXP_ALLOW"
_PARTS = {
    "mnist_exp.data.sets": "Data ImageFolder CustomData image_folder",
    "mnist_exp.parts.models": "WideSmallResNet SmallCNN SprintCNN PlainCNN",
    "mnist_exp.parts.augment": "Augment Compose RandomCrop RandomRotation RandomAffine Normalize RandomErasing Mix",
    "mnist_exp.parts.optim": "Lookahead",
    "mnist_exp.parts.schedule": "Schedule Cosine OneCycle",
    "mnist_exp.parts.trainer": "Trainer",
    "mnist_exp.parts.evaluate": "Evaluator",
    "mnist_exp.parts.loggers": "TensorBoardLogger MLflowLogger",
    "mnist_exp.console": "ConsoleHandler LogFile",
    "mnist_exp.compare.multirun": "TellRuns",
    # data sets that read what lies there: others download, or unpickle
    "torchvision.datasets": "ImageFolder FakeData",
    "optuna.pruners": "HyperbandPruner MedianPruner NopPruner PatientPruner PercentilePruner SuccessiveHalvingPruner "
    "ThresholdPruner WilcoxonPruner",
    "optuna.samplers": "BruteForceSampler CmaEsSampler GPSampler GridSampler NSGAIISampler NSGAIIISampler "
    "PartialFixedSampler QMCSampler RandomSampler TPESampler",
    "hydra_plugins.hydra_optuna_sweeper._impl": "create_nsgaii_sampler create_nsgaiii_sampler",
}
# bases, what calls any function, and optimizers that want to be driven in another way than by step()
_NO_PARTS = ("Module", "Optimizer", "Transform", "Lambda", "LBFGS", "SparseAdam")
# launchers and sweepers are none of these: Hydra builds those that are registered with it, and nothing else as one
COMPONENTS = tuple(f"{module}.{name}" for module, names in _PARTS.items() for name in names.split())


def allowed() -> list[str]:
    """Return the targets that a request may build: ours, and those that $MNIST_EXP_ALLOW adds, by comma.

    It is asked once, before a config is composed; Hydra takes the answer along, to workers too.
    """
    return [*COMPONENTS, *filter(None, map(str.strip, os.environ.get(ALLOW, "").split(",")))]


def trusting() -> contextlib.AbstractContextManager[Any]:
    """Let what $MNIST_EXP_ALLOW adds be built inside, too; ``train`` has Hydra see to that."""
    from hydra.utils import execution_whitelist

    found: contextlib.AbstractContextManager[Any] = execution_whitelist(allowed())
    return found


def build(config: DictConfig, group: str) -> Any:
    """Return the object that ``group`` of ``config`` describes. Raises UserError naming the key that is wrong."""
    if config[group] is None:
        raise UserError(f"{group} is null; type {group}=CHOICE with one of the files in conf/{group}")
    with standing_at(group):
        try:
            return instantiated(config[group])
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{group} cannot be built: {error}") from error


def instantiated(config: DictConfig) -> Any:
    """Return what ``config`` describes, of the components above and of what was allowed at the start."""
    from hydra.utils import instantiate

    # where a layer is defined is looked up only where one is named: torch and torchvision take seconds
    text = OmegaConf.to_yaml(config, resolve=True)
    libraries = [*(_torch() if "torch." in text else ()), *(_torchvision() if "torchvision." in text else ())]
    try:
        return instantiate(config, _convert_="all", _execution_whitelist_=[*COMPONENTS, *libraries])
    except HydraException as error:
        message = refused(str(error))
        if message is None:
            raise
        raise UserError(message) from error


def refused(message: str) -> str | None:
    """Return what to say where Hydra's ``message`` is that a target may not be built; None if it is another."""
    found = re.search(r"Target '([^']*)'.*?whitelist.*?full_key: (\S+)", message, re.S)
    if found is None:
        return None
    return (
        f"{found[2]}._target_ must be a component of mnist_exp or a layer, optimizer or transform of torch's, not {found[1]}. "
        f"To allow code of your own, name its package: {ALLOW}='my_package.*' python -m mnist_exp ..."
    )


def _torch() -> Iterator[str]:
    """Yield torch's own optimizers, layers, activations, losses and containers."""
    from torch import nn, optim

    yield from _classes(optim, optim.Optimizer, "torch.optim")
    yield from _classes(nn, nn.Module, "torch.nn.modules.")


def _torchvision() -> Iterator[str]:
    """Yield torchvision's transforms, but for those that call any function."""
    transforms, v2 = map(import_torchvision, ("torchvision.transforms", "torchvision.transforms.v2"))
    yield from _classes(transforms, object, "torchvision.transforms.transforms", "torchvision.transforms.autoaugment")
    yield from _classes(v2, v2.Transform, "torchvision.transforms.v2.")


def _classes(module: Any, base: type, *places: str) -> Iterator[str]:
    """Yield the classes of ``base`` that ``module`` offers and that are defined below ``places``, by both their names.

    Hydra asks for the name that a config says, and again for that of the class, if it can be called.
    """
    for name, found in vars(module).items():
        if not inspect.isclass(found) or not issubclass(found, base) or name in _NO_PARTS:
            continue
        if found.__module__.startswith(places):
            yield f"{module.__name__}.{name}"
            yield f"{found.__module__}.{found.__qualname__}"


@contextlib.contextmanager
def standing_at(group: str) -> Iterator[None]:
    """Say the config key of a value that a component refuses; the component only knows its own name for it."""
    try:
        yield
    except WrongValue as error:
        # Hydra notes where the component stands, which may be below the group
        notes = [note.partition("full_key: ")[2] for note in getattr(error, "__notes__", ())]
        raise error.below(next(filter(None, notes), group)) from error
