"""Splits: whole on a device or behind a loader, dealt out in batches; and how a set is split."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_exp.errors import require


@dataclass
class Split:
    """One split, whole, on one device: uint8 images [N, 28, 28] and int64 labels [N]."""

    images: Tensor
    labels: Tensor
    own_transforms = False

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, batch_size: int, seed: int | None = None, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels): float [B, 1, 28, 28] in 0..1 and int64 [B], the last batch as large as is left.

        ``seed`` None goes in order; an integer gives the permutation of that seed. ``skip`` leaves out that many
        batches at the start (a resumed epoch).
        """
        device = self.labels.device
        order = None
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator(device).manual_seed(seed), device=device)
        for start in range(skip * batch_size, len(self), batch_size):
            images, labels = self.images[start : start + batch_size], self.labels[start : start + batch_size]
            if order is not None:
                pick = order[start : start + batch_size]
                images, labels = self.images.index_select(0, pick), self.labels.index_select(0, pick)
            yield images.unsqueeze(1).float().div_(255), labels


@dataclass
class LoaderSplit:
    """A map-style data set with torchvision transforms of its own, dealt out by an ordinary DataLoader."""

    dataset: Any
    num_workers: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    own_transforms = True

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device) -> LoaderSplit:
        return LoaderSplit(self.dataset, self.num_workers, device)

    def batches(self, batch_size: int, seed: int | None = None, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) as the data set's transforms return them, moved to the device; see ``Split.batches``.

        Each image has random numbers of its own, which follow from ``seed`` and its place in the data set: they are the
        same in whatever process, after whatever batch it is made. Without ``seed`` they are the same every time.
        """
        order = None if seed is None else torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        indices = list(range(len(self))) if order is None else order.tolist()
        loader = torch.utils.data.DataLoader(
            _Seeded(self.dataset, seed or 0),
            batch_size,
            sampler=indices[skip * batch_size :],
            generator=torch.Generator(),  # of seeds for its processes; else it would draw from the run's random numbers
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for images, labels in loader:
            yield images.to(self.device, non_blocking=True), torch.as_tensor(labels).to(self.device, non_blocking=True)


@dataclass
class _Seeded(torch.utils.data.Dataset[Any]):
    """A map-style data set each of whose items is made with random numbers of its own, in torch, numpy and random."""

    dataset: Any
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        own, *words = np.random.SeedSequence((self.seed, index)).generate_state(3).tolist()
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)
            np.random.seed(words[0])
            random.seed(words[1])
            try:
                return self.dataset[index]
            finally:
                random.setstate(python)
                np.random.set_state(numpy)


@dataclass
class Splits:
    """Train, validation and test (None: all of it is trained on), with the real name and MD5 of what was read.

    ``md5`` None: it cannot be known whether another run had the same data. ``classes``: their names, label 0 first.
    """

    name: str
    md5: str | None
    classes: list[str]
    train: Split | LoaderSplit
    val: Split | LoaderSplit | None
    test: Split | LoaderSplit | None

    def to(self, device: torch.device) -> Splits:
        val, test = (None if split is None else split.to(device) for split in (self.val, self.test))
        return dataclasses.replace(self, train=self.train.to(device), val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the data: name, sizes of the splits, MD5, names of the classes."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        sizes = {part: 0 if split is None else len(split) for part, split in splits.items()}
        return {"name": self.name, **sizes, "md5": self.md5, "classes": self.classes}


def stratified(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split 0..N-1 in two: indices (rest, held out), sorted; ``size`` are held out, each class in its proportion.

    The fractions are rounded by largest remainder, so exactly ``size`` are held out.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, counts = labels.cpu().unique(return_counts=True)
    exact = counts.double() * size / len(labels)
    quota = exact.floor().long()
    quota[(exact - quota).argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(classes, quota.tolist(), strict=True):
        members = (labels.cpu() == label).nonzero().flatten()
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def hold_out(labels: Tensor, val_size: int, train_limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices (train, validation) of a training set with int64 ``labels`` [N], stratified by ``seed``.

    ``val_size`` are held out for validation; ``train_limit`` keeps that many of the others (None: all).
    """
    require(val_size < len(labels), "val_size", val_size, f"below {len(labels)}, the number of training images")
    rest, held = stratified(labels, val_size, seed)
    if train_limit is not None:
        allowed = f"at most {len(rest)}, what val_size={val_size} leaves"
        require(train_limit <= len(rest), "train_limit", train_limit, allowed)
        if train_limit < len(rest):
            rest = rest[stratified(labels[rest], train_limit, seed)[1]]
    return rest, held


def targets_of(dataset: Any) -> Tensor:
    """Return the int64 labels [N] of a map-style data set, from ``targets`` where it has them, else sample by sample."""
    if isinstance(dataset, torch.utils.data.Subset):
        return targets_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    targets, transform = getattr(dataset, "targets", None), getattr(dataset, "target_transform", None)
    if targets is not None and transform is not None:
        targets = [transform(target) for target in targets]
    if targets is None:  # by index: only a length says where a map-style data set ends
        targets = [dataset[index][1] for index in range(len(dataset))]
    return torch.as_tensor(targets, dtype=torch.int64)
