"""Whether a data set of one's own is the same as another run's: a hash of what it holds, before any transforms."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mnist_exp.data.formats import md5

_TRANSFORMS = ("transform", "transforms")  # torchvision's names for those of pictures


def identity(datasets: Sequence[Any], num_workers: int) -> str | None:
    """Return an MD5 of all items, (picture, label), of map-style ``datasets``; None where it cannot be known.

    Pictures are taken before the transforms of torchvision's attributes ``transform`` and ``transforms``; labels after
    ``target_transform``, since these are what is learnt and scored. What may draw random numbers elsewhere, as other
    classes than torchvision's, is read twice, and if an item differs, nothing is known. It is a pass over the data, by
    ``num_workers`` processes.
    """
    digests: list[list[str]] = []
    for dataset in datasets:
        raw = untransformed(dataset)
        items = _Fingerprints(raw, twice=not _of_torchvision(raw))
        digests.append([])
        # a generator of its own: the run's random numbers are not touched
        for digest in DataLoader(items, batch_size=None, num_workers=num_workers, generator=torch.Generator()):
            if digest is None:
                return None
            digests[-1].append(digest)
    return md5(repr(digests).encode())


def changes(dataset: Any, most: int = 100) -> bool:
    """Whether items of ``dataset`` are other ones when read again; up to ``most`` are, evenly spaced."""
    items = _Fingerprints(dataset, twice=True)
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), most)).astype(int).tolist()
    return any(items[place] is None for place in places)


def untransformed(dataset: Any) -> Any:
    """Return ``dataset`` without the transforms of its pictures; as it is, where it has none or cannot do without."""
    if isinstance(dataset, Subset):
        return Subset(untransformed(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([untransformed(part) for part in dataset.datasets])
    plain = copy.copy(dataset)
    try:
        for name in _TRANSFORMS:
            if getattr(plain, name, None) is not None:
                setattr(plain, name, None)
        plain[0]
    except Exception:  # of somebody else's class
        return dataset
    return plain


def _of_torchvision(dataset: Any) -> bool:
    """Whether what a data set returns is what its files hold: one of torchvision's classes, without transforms."""
    if isinstance(dataset, Subset):
        return _of_torchvision(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(_of_torchvision(part) for part in dataset.datasets)
    left = any(getattr(dataset, name, None) is not None for name in (*_TRANSFORMS, "target_transform"))
    return type(dataset).__module__.startswith("torchvision.") and not left


class _Fingerprints(torch.utils.data.Dataset[str | None]):
    """The MD5 of each item of a data set; None if, read ``twice``, it is not the same, or is nothing that has bytes."""

    def __init__(self, dataset: Any, twice: bool):
        self.dataset = dataset
        self.twice = twice

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str | None:
        digest = _fingerprint(self.dataset[index])
        return digest if not self.twice or digest == _fingerprint(self.dataset[index]) else None


def _fingerprint(item: Any) -> str | None:
    picture, label = item
    if getattr(picture, "mode", None) == "P":  # of Pillow: its pixels are places in a palette
        picture = picture.convert("RGBA")
    array = np.asarray(picture)
    if array.dtype.hasobject:
        return None
    content = hashlib.md5(f"{array.dtype} {array.shape} {int(label)}".encode(), usedforsecurity=False)
    content.update(array.tobytes())
    return content.hexdigest()
