"""Scoring finished runs again: one network, or the ensemble of several. Each scoring of the test set is counted."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from mnist_exp.config.build import build, trusting
from mnist_exp.data.pictures import MOST_PIXELS
from mnist_exp.data.sets import CustomData, Data
from mnist_exp.data.splits import LoaderSplit, Split, Splits
from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded
from mnist_exp.inference.bounded import bounded
from mnist_exp.inference.load import Member, Model
from mnist_exp.named import is_folder
from mnist_exp.parts.evaluate import PLAIN
from mnist_exp.runs.folder import RunFolder, run_lock
from mnist_exp.statistics import calibration_error, mcnemar, wilson
from mnist_exp.training.results import pictures_of

_MOST = 10_000_000  # images of a part
_DATA = 64 << 20  # bytes of what is built before anything is read


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What networks said of a split: ``probs`` float32 [members, N, classes], ``labels`` int64 [N].

    ``images``: uint8 [N, 28, 28], to be looked at; ``data``: the name of the data set.
    """

    members: list[Member]
    split: str
    data: str
    classes: list[str]
    images: np.ndarray
    probs: np.ndarray
    labels: np.ndarray

    @property
    def together(self) -> np.ndarray:
        """The mean of the members' probabilities, float32 [N, classes]."""
        return np.asarray(self.probs.mean(0))

    def scores(self, probs: np.ndarray | None = None) -> dict[str, Any]:
        """Return how good ``probs`` (None: of all together) are: accuracy with its 95 % interval and calibration, percent."""
        probs = self.together if probs is None else probs
        right = probs.argmax(1) == self.labels
        low, high = wilson(int(right.sum()), len(right))
        chosen = probs[np.arange(len(right)), self.labels].astype(float)
        return {
            "accuracy": 100 * float(right.mean()),
            "low": float(low),
            "high": float(high),
            "loss": float(-np.log(np.maximum(chosen, 1e-12)).mean()),
            "calibration_error": calibration_error(probs.max(1), right),
            "wrong": int((~right).sum()),
            "images": len(right),
        }

    def of_classes(self) -> list[dict[str, Any]]:
        """Return a row a class that is there: its images, recall and precision in percent, what it is most taken for."""
        predicted, rows = self.together.argmax(1), []
        for label in np.unique(self.labels).tolist():
            said = predicted[self.labels == label]
            others = said[said != label]
            most = int(np.bincount(others).argmax()) if len(others) else None
            named = "" if most is None else f"{self.classes[most]} ({int((others == most).sum())})"
            taken = predicted == label
            rows.append(
                {
                    "name": self.classes[label],
                    "images": len(said),
                    "wrong": len(others),
                    "recall": 100 * float((said == label).mean()),
                    "precision": 100 * float((self.labels[taken] == label).mean()) if taken.any() else None,
                    "taken for": named,
                }
            )
        return rows

    def of_members(self) -> list[dict[str, Any]]:
        """Return a row a member: its scores, and the validation accuracy of its run, percent."""
        return [
            {"name": name, "val_acc": _val_acc(member), **self.scores(probs)}
            for member, name, probs in zip(self.members, self.names(), self.probs, strict=True)
        ]

    def names(self) -> list[str]:
        """Return what each member is called: as its run is, or all by their folders where two runs are called alike."""
        names = [member.name for member in self.members]
        return names if len(set(names)) == len(names) else [str(member.run.path) for member in self.members]

    def agreement(self) -> float:
        """Return the share of images, in percent, of which all members say the same."""
        said = self.probs.argmax(2)
        return 100 * float((said == said[0]).all(0).mean())

    def gain(self) -> dict[str, Any]:
        """Return what the ensemble gains over its best member by validation (the first where none has any), in points.

        ``p``: of McNemar's exact test, image by image.
        """
        best = max(range(len(self.members)), key=lambda place: (_val_acc(self.members[place]) or -1.0, -place))
        ours, theirs = (probs.argmax(1) == self.labels for probs in (self.together, self.probs[best]))
        more, less = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        points = 100 * (more - less) / len(ours)
        return {
            "over": self.of_members()[best]["name"],
            "validated": _val_acc(self.members[best]) is not None,
            "difference": points,
            "only_ensemble": more,
            "only_member": less,
            "p": mcnemar(more, less),
        }


def evaluate(model: Model, split: str, tta_runs: int = 1, root: str | None = None) -> Evaluation:
    """Score the members of ``model`` on "val", what was held out of their training, or on "test", which is counted.

    ``tta_runs``: see ``Model.probabilities``. ``root``: the folder of the data set (None: as the run has it). Raises
    UserError if the data are not there or not the run's, or if members were not trained on the same ones.
    """
    if root is not None and not is_folder(str(expanded(root))):
        raise UserError(f"--data {root or repr(root)} is no folder; name the one in which the data set lies")
    first, *others = model.members
    for other in others:
        _refuse_others(first, other, split)
    splits = _splits(first, root)
    parts = [_part(first, splits, split)]
    # data with transforms of their own are as each member's config has them
    parts += [_part(m, _splits(m, root), split) if parts[0].own_transforms else parts[0] for m in others]
    shifts = [PLAIN if tta_runs == 1 else member.with_tta(tta_runs).shifts for member in model.members]
    if split == "test":  # all that can be wrong has been looked at
        _count(model.members)
    found, labels = [], None
    for member, part, views in zip(model.members, parts, shifts, strict=True):
        autocast, device = member.trainer.autocast(), member.trainer.device
        probs, labels = member.evaluator.probabilities(member.network, part.to(device), autocast, views)
        found.append(member.told(probs).numpy())
    assert labels is not None
    images = pictures_of(parts[0])
    return Evaluation(model.members, split, splits.name, model.classes, images, np.stack(found), labels.numpy())


def _splits(member: Member, root: str | None) -> Splits:
    """Return the data of the member's run, only read. Raises UserError if they are others."""
    saved, config = member.run.dataset, member.config
    if not saved:
        raise UserError(f"{member.run.path} never began to train: it says nothing of its data")
    changes: dict[str, Any] = {} if root is None else {"root": root.replace("${", r"\${")}  # a name, no reference
    # what stood in for a set that was not there
    named = OmegaConf.select(config, "data._target_") == f"{Data.__module__}.{Data.__name__}"
    if saved["name"] == "sample" and named and config.data.name != "sample":
        changes = {"name": "sample", "val_size": saved["val"]}
    try:
        changed: DictConfig = OmegaConf.merge(config, {"data": changes})  # type: ignore[assignment]
        with trusting(), bounded(_DATA):
            dataset = build(changed, "data")
        require(hasattr(dataset, "load"), "data._target_", type(dataset).__name__, "a data set")
        if isinstance(dataset, Data):  # nothing is downloaded, and nothing stands in
            dataset.reads_only, dataset.fallback = True, None
            if dataset.missing is not None:
                raise UserError(f"{dataset.missing} does not exist")
        if isinstance(dataset, CustomData):  # before all of it is read
            _refuse_other_sizes(dataset, saved)
            dataset.num_workers = min(dataset.num_workers, os.cpu_count() or 1)
        splits: Splits = dataset.load()
    except MemoryError:
        raise
    except Exception as error:  # of data that may be anybody's
        raise UserError(
            f"the data of {member.run.path}: {str(error)[:1000]}. Name their folder: --data FOLDER"
        ) from error
    if saved["md5"] is not None and splits.md5 != saved["md5"]:
        raise UserError(
            f"the {splits.name} that is found (MD5 {splits.md5}) is not what {member.run.path} was trained on (MD5 "
            f"{saved['md5']}), so what was held out is not known. Name the folder of its data: --data FOLDER"
        )
    if len(splits.classes) > member.outputs:
        raise UserError(
            f"{splits.name} has {len(splits.classes):,} classes, the network of {member.run.path} tells {member.outputs:,} apart"
        )
    return splits


def _refuse_other_sizes(dataset: CustomData, saved: dict[str, Any]) -> None:
    for part in (dataset.train, dataset.val, dataset.test):  # torchvision's FakeData makes as many as it is told to
        pixels = math.prod(getattr(part, "image_size", ()))
        large = pixels > MOST_PIXELS or (part is not None and pixels * len(part) > _MOST * 28 * 28)
        if part is not None and (large or len(part) > _MOST):
            raise UserError(
                f"{type(part).__name__} has more than {_MOST:,} images, or pixels in one than {MOST_PIXELS:,}"
            )
    found, known = (len(dataset.train), len(dataset.test)), (saved["train"] + saved["val"], saved["test"])
    if found[1] != known[1] or (dataset.train_limit is None and found[0] != known[0]):
        raise UserError(
            f"{found[0]:,} and {found[1]:,} images are found, {known[0]:,} and {known[1]:,} were trained on"
        )


def _part(member: Member, splits: Splits, split: str) -> Split | LoaderSplit:
    part: Split | LoaderSplit | None = getattr(splits, split)
    if part is None:
        other = "test" if split == "val" else "val"
        hint = f"; type --split {other}" if getattr(splits, other) is not None else ""
        raise UserError(f"{member.run.path} has no {split} split: all images were trained on{hint}")
    return part


def _refuse_others(first: Member, other: Member, split: str) -> None:
    """Raise UserError if ``other`` was not trained on the data of ``first``, or has seen what those are scored on."""
    keys = ("md5", "test", *(("val", "split_seed") if split == "val" else ()))
    ours, theirs = (
        {key: member.run.dataset.get(key) for key in keys} | {"invert": OmegaConf.select(member.config, "data.invert")}
        for member in (first, other)
    )
    if ours == theirs and ours["md5"] is not None:
        return
    differ = ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key])
    reason = f"have other data ({differ})" if differ else "say nothing that tells their data apart"
    raise UserError(
        f"{first.run.path} and {other.run.path} {reason}: one may have been trained on what the other is scored on, "
        "so their ensemble cannot be scored"
    )


def _count(members: Sequence[Member]) -> None:
    """Count one more scoring of the test set, in all runs or in none. Raises UserError if that cannot be written down."""
    with contextlib.ExitStack() as locks:
        runs = {member.run.path.resolve(): member.run for member in members}
        try:
            for path in runs:
                locks.enter_context(run_lock(path))
            if not all(os.access(path, os.W_OK) for path in runs):
                raise PermissionError(None, "it may not be changed")
            current = [(run, RunFolder.open(run.path)) for run in runs.values()]
            for run, now in current:
                now.update(test_scored=now.test_scored + 1)
                run.info = now.info
        except OSError as error:
            raise UserError(
                f"{', '.join(map(str, runs))}: {error.strerror}; each scoring of the test set is counted in its run. Copy "
                "the run to where you may write, or type --split val"
            ) from error


def _val_acc(member: Member) -> float | None:
    found: float | None = member.run.info["metrics"].get("val_acc")
    return found
