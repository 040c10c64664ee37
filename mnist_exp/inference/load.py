"""Networks out of run folders: one, or the ensemble of several. Builds only what a config may, and reads weights only."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mnist_exp.config.build import build, trusting
from mnist_exp.config.job import restored
from mnist_exp.config.ours import config_folder
from mnist_exp.data.sets import CustomData
from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded
from mnist_exp.inference.bounded import as_large_as
from mnist_exp.parts.evaluate import PLAIN, Evaluator
from mnist_exp.parts.trainer import MEMORY_FORMATS, Trainer
from mnist_exp.reading import load_yaml
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training.checkpoints import load
from mnist_exp.training.components import load_weights

KINDS = ("best", "last", "swa")  # of checkpoints
_AT_ONCE = 16_384  # images on the device
CLASSES = 10_000  # a table of them all is 800 MB
_LETTERS, _NAMES = 200, 8  # of a message; of files that are listed


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A trained network: its run, the checkpoint that its weights are of, what it is scored with, how many classes it has."""

    run: RunFolder
    config: DictConfig
    checkpoint: Path
    network: nn.Module
    evaluator: Evaluator
    trainer: Trainer
    outputs: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.run.path.resolve().name

    @property
    def classes(self) -> list[str]:
        """What its outputs stand for: the names of the classes, and a number for each output beyond them."""
        return self.named + [f"#{label}" for label in range(len(self.named), self.outputs)]

    @property
    def named(self) -> list[str]:
        """The names of the classes of its data."""
        return list((self.run.info.get("dataset") or {}).get("classes") or map(str, range(min(10, self.outputs))))

    @property
    def assumed(self) -> str | None:
        """What is not known of its input, and taken for granted here: a data set may transform its images by itself."""
        if self.config.data.get("_target_") != f"{CustomData.__module__}.{CustomData.__name__}":
            return None
        normalize = self.evaluator.normalize
        return (
            f"{self.run.path} was trained on data with transforms of their own (data={self.config.data.name}); here images "
            f"are only scaled to 0..1 and normalised by mean {normalize.mean:g} and std {normalize.std:g}"
        )

    def probabilities(self, images: Tensor, tta_runs: int = 1) -> Tensor:
        """Return float32 [N, classes] on the CPU of uint8 ``images`` [N, 28, 28]; see ``Model.probabilities``."""
        shifts = PLAIN if tta_runs == 1 else self.with_tta(tta_runs).shifts
        parts = images.split(_AT_ONCE) if len(images) else ()
        found = [self.evaluator.of_images(self.network, part, self.trainer, shifts) for part in parts]
        return self.told(torch.cat(found)) if found else torch.empty(0, len(self.classes))

    def told(self, probabilities: Tensor) -> Tensor:
        """Return ``probabilities``. Raises UserError if some are no numbers."""
        if not probabilities.isfinite().all():
            raise UserError(f"{self.checkpoint}: what its network answers are no numbers; try another --checkpoint")
        return probabilities

    @functools.cache  # noqa: B019  # members live as long as the process
    def with_tta(self, tta_runs: int) -> Evaluator:
        """Return its evaluator, but that averages over so many shifts."""
        changed = OmegaConf.merge(self.config, {"evaluate": {"tta_runs": tta_runs}})
        with trusting():
            found: Evaluator = build(changed, "evaluate")  # type: ignore[arg-type]
        return found


class Model:
    """One trained network, or the ensemble of several, whose probabilities are averaged.

    ``classes``: the names of the classes; ``members``: the networks; ``assumed``: what is not known of their input.
    """

    def __init__(self, members: Sequence[Member]):
        first, *others = members
        for other in others:
            if other.classes != first.classes:
                raise UserError(
                    f"{first.run.path} tells {told(first.classes)} apart, {other.run.path} {told(other.classes)}: "
                    "an ensemble is of networks with the same classes"
                )
        self.members = list(members)
        self.classes = first.classes
        self.assumed = [line for member in members if (line := member.assumed) is not None]

    def predict(self, images: Any, tta_runs: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return labels int64 [N] and probabilities float32 [N, classes] of ``images``, see ``probabilities``."""
        probabilities = self.probabilities(images, tta_runs).mean(0).numpy()
        return probabilities.argmax(1), probabilities

    def probabilities(self, images: Any, tta_runs: int = 1) -> Tensor:
        """Return each member's probabilities, float32 [members, N, classes].

        ``images``: uint8 [N, 28, 28], an array or a tensor, light on dark as MNIST's; other pictures are brought there
        by ``inference.frame``. With ``tta_runs`` above 1, the mean over so many fixed shifts of each.
        Raises UserError for images of another kind.
        """
        found = images if isinstance(images, Tensor) else _array(images)
        kind, shape = str(found.dtype).removeprefix("torch."), list(found.shape)
        if kind != "uint8" or len(shape) != 3 or shape[1:] != [28, 28]:
            one = kind == "uint8" and shape == [28, 28]
            hint = "for one image type images[None]" if one else "mnist_exp.inference.frame brings pictures there"
            raise UserError(f"images must be uint8 [N, 28, 28], not {kind} {shape}; {hint}")
        found = found if isinstance(found, Tensor) else torch.tensor(found)  # a copy: it may be read-only
        return torch.stack([member.probabilities(found, tta_runs) for member in self.members])


def told(classes: Sequence[str]) -> str:
    """Return the names of ``classes`` for a message, as many as have room in it."""
    names = ", ".join(classes)
    return names if len(names) <= _LETTERS else f"{names[:_LETTERS]}\u2026"


def _array(images: Any) -> np.ndarray:
    if isinstance(images, str | Path):
        raise UserError(
            f"images must be uint8 [N, 28, 28], not the name of a file, {str(images)!r}; open it, and bring it there by "
            "mnist_exp.inference.frame"
        )
    try:
        return np.asarray(images)
    except (TypeError, ValueError) as error:  # such as a list of arrays that differ in size
        raise UserError(f"images must be uint8 [N, 28, 28]: {error}") from error


def load_model(*runs: str | Path, checkpoint: str = "best") -> Model:
    """Return the network of a run folder, or the ensemble of several.

    ``checkpoint``: "best" by validation (the last one where nothing was held out), "last", "swa" (the weight average), or
    the file of one, of which the name is enough. Raises UserError naming what is missing or wrong.
    """
    require(bool(runs), "runs", len(runs), "the folder of a run, or several")
    twice = len({os.path.realpath(expanded(run)) for run in runs}) < len(runs)
    require(not twice, "RUN", " ".join(map(str, runs)), "each run once")
    one = len(runs) == 1 or checkpoint in KINDS
    require(one, "--checkpoint", checkpoint, f"{', '.join(KINDS)} of several runs: a file is of one run only")
    return Model([load_member(Path(run), checkpoint) for run in runs])


def load_member(path: Path, checkpoint: str = "best") -> Member:
    """Return the network of the run in ``path``. Raises UserError naming what is missing or wrong."""
    run = _own(expanded(path))
    config = run_config(run)
    file = checkpoint_file(run, checkpoint)
    saved = run.info.get("memory_format")
    trainer = Trainer("auto", _precision(run), saved if saved in MEMORY_FORMATS else "auto")
    about = file.stat()
    held = min(about.st_size, 512 * about.st_blocks)  # of a file with holes
    with trusting(), as_large_as(held, file, run.hydra_config):
        network, evaluator = build(config, "model"), build(config, "evaluate")
    for key, part, kind, wanted in (
        ("model", network, nn.Module, "a network"),
        ("evaluate", evaluator, Evaluator, "an Evaluator"),
    ):
        require(isinstance(part, kind), f"{key}._target_", type(part).__name__, f"{wanted}, in {run.hydra_config}")
    try:
        load_weights(network, load(file, network.state_dict())["model"], file)
    except UserError as error:
        last = _of_kind(run, "last")
        hint = "" if last in (None, file) else "; --checkpoint last may do"
        raise UserError(f"{error}{hint}") from error
    return _asked(Member(run, config, file, trainer.place(network).eval(), evaluator, trainer, 0))


def _own(path: Path) -> RunFolder:
    """Open the run in ``path``. Raises UserError if what is read of it lies elsewhere."""
    for file in (path / "run.json", path / ".hydra", path / ".hydra" / "config.yaml"):
        _refuse_link(file)
    return RunFolder.open(path)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link: a run is read from its own folder. Put what it leads to in its place")


def _asked(member: Member) -> Member:
    """Return ``member``, whose network has answered for a blank image. Raises UserError if it does not, or wrongly."""
    run, named = member.run, len(member.run.dataset.get("classes") or ())
    blank = torch.zeros(1, 28, 28, dtype=torch.uint8)
    try:
        answer = member.evaluator.of_images(member.network, blank, member.trainer)
    except MemoryError:
        raise
    except Exception as error:  # of a network that may be anybody's
        raise UserError(f"{run.path}: its network fails: {' '.join(str(error).split())[:300]}") from error
    shape = list(answer.shape)
    fits = len(shape) == 2 and shape[0] == 1 and max(2, named) <= shape[1] <= CLASSES
    allowed = f"[1, N], N at least {max(2, named):,}, its classes, and at most {CLASSES:,}"
    require(fits, f"{run.path}: what its network answers to an image", shape, allowed)
    if not answer.isfinite().all():
        told = f"what the network of {member.checkpoint.name} answers are no numbers; try another --checkpoint"
        raise UserError(f"{run.path}: {told}")
    return dataclasses.replace(member, outputs=shape[1])


def run_config(run: RunFolder) -> DictConfig:
    """Return what ``run`` was composed of, with the places of this machine. Raises UserError naming the file."""
    usual = load_yaml(Path(config_folder(), "paths", "default.yaml"))
    return restored(load_yaml(run.hydra_config), run.hydra_config, {"paths": usual, "resume": None, "logger": None})


def checkpoint_file(run: RunFolder, checkpoint: str) -> Path:
    """Return the file that ``checkpoint`` says: see ``load_model``. Raises UserError if there is none in the run's folder."""
    if checkpoint in KINDS:
        file = _of_kind(run, checkpoint)
        if file is None:
            there = " and ".join(kind for kind in KINDS if _of_kind(run, kind))
            hint = f": there is --checkpoint {there}" if there else ", nor another; was it cut off before its first?"
            raise UserError(f"{run.path} has no {checkpoint} checkpoint{hint}")
    else:  # of another run it would be scored, and counted, as this one's
        held = sorted(path.name for path in run.checkpoints.glob("*.pth"))
        file = run.checkpoints / checkpoint if checkpoint in held else expanded(checkpoint)
        own = os.path.isfile(file) and os.path.realpath(file.parent) == os.path.realpath(run.checkpoints)  # noqa: PTH113
        names = ", ".join([*held[:_NAMES], *["..."] * (len(held) > _NAMES)]) or "it has none"
        require(own, "--checkpoint", checkpoint, f"{', '.join(KINDS)}, or a file in {run.checkpoints}: {names}")
    for path in (run.checkpoints, file):
        _refuse_link(path)
    return file


def _of_kind(run: RunFolder, checkpoint: str) -> Path | None:
    """Return the file of the best, the last or the averaged weights; None if there is none."""
    best = run.info.get("best_epoch")
    file: Path | None = run.checkpoints / "last.pth"
    if checkpoint == "swa":
        name = re.compile(re.escape(run.prefix) + r"_swa_epoch(\d{1,9})\.pth")
        found = {int(m[1]): path for path in run.checkpoints.glob("*.pth") if (m := name.fullmatch(path.name))}
        file = found[max(found)] if found else None
    elif checkpoint == "best" and best is not None:
        file = run.checkpoint(best)
    return file if file is not None and os.path.lexists(file) else None


def _precision(run: RunFolder) -> Any:
    """Return the precision that the run was computed in, if this machine's device has it."""
    precision = run.info.get("precision") or "fp32"
    on_gpu = torch.cuda.is_available()
    return precision if precision in ("fp32", "bf16") or on_gpu else "fp32"
