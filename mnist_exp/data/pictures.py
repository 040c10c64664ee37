"""Pictures in folders: any tree of PNG or JPEG files, read as images like MNIST's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data.formats import Contents, md5
from mnist_exp.errors import UserError
from mnist_exp.vision import import_torchvision

log = logging.getLogger(__name__)
SIDE = 28


def read_tree(root: Path) -> tuple[Contents, list[str]]:
    """Return what the pictures below ``root`` hold, and the names of the classes, which are their folders', sorted.

    ``root`` has train/<class>/... and test/<class>/..., or <class>/... and no test set. Pictures may lie at any depth
    below their class. Hidden files and folders are left out, and so are, with a warning, classes without a picture.
    The MD5 is of images, labels and class names. Raises UserError naming the folder or file that is wrong.
    """
    parts = _parts(root)
    found = [_paths(part) for part in parts]
    classes = sorted(found[0])
    if len(classes) < 2:
        raise UserError(
            f"{parts[0]} holds pictures of {len(classes)} classes; there must be at least 2. {_wanted(root)}"
        )
    unknown = sorted(set().union(*found) - set(classes))
    if unknown:
        raise UserError(f"{parts[1]} holds pictures of classes that {parts[0]} lacks: {', '.join(unknown)}")
    for name in classes:
        if name not in found[-1]:
            log.warning("%s holds no picture of %s: it cannot be scored", parts[-1], name)
    images, labels = [], []
    for paths in found:
        pairs = [(path, label) for label, name in enumerate(classes) for path in paths.get(name, [])]
        log.info("Reading %s pictures of %d classes below %s ...", f"{len(pairs):,}", len(paths), root)
        images.append(_stack([path for path, _ in pairs]))
        labels.append(torch.tensor([label for _, label in pairs]))
    content = [part.numpy().tobytes() for pair in zip(images, labels, strict=True) for part in pair]
    digest = md5(b"".join([*content, json.dumps([classes, [len(part) for part in labels]]).encode()]))
    return Contents(images, labels, digest), classes


def read_picture(path: Path) -> np.ndarray:
    """Return a picture of any size and mode as uint8 [28, 28].

    It is turned as its EXIF says; what is transparent becomes white, colours become grey (ITU-R 601-2 luma), 16 bits
    their upper 8. The longer side is scaled to 28 pixels (bilinear, antialiased); the shorter one keeps its proportion
    and is padded on both sides with the background, which is the median of the picture's border. A grey picture of
    28 x 28 stays as it is. Raises UserError naming a file that cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.draft("L", (8 * SIDE, 8 * SIDE))  # of a large JPEG only as much is decoded as is needed
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode.startswith("I;16"):
                grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            elif picture.has_transparency_data:
                seen = picture.convert("RGBA")
                grey = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("L")
            elif picture.mode in ("I", "F"):
                raise ValueError("its pixels are 32 bits each, in a range that nothing says")
            else:
                grey = picture.convert("L")
        pixels = np.asarray(grey)
        if pixels.shape == (SIDE, SIDE):
            return pixels
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        background = int(np.median(border))
        return np.asarray(ImageOps.pad(grey, (SIDE, SIDE), Image.Resampling.BILINEAR, color=background))
    except Exception as error:  # Pillow raises one of many
        raise UserError(f"{path} cannot be read as a picture: {error}; repair or remove it") from error


def _parts(root: Path) -> list[Path]:
    """Return the folders of train and test, or ``root`` alone."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder; type data.root=FOLDER. {_wanted(root)}")
    there = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}
    if not there & {"train", "test"}:
        return [root]
    for name in ("train", "test"):
        if name not in there:
            raise UserError(f"{root} holds one of train and test, but not {name}. {_wanted(root)}")
    others = sorted(there - {"train", "test"})
    if others:
        log.warning("%s: only train and test are read, not %s", root, ", ".join(others))
    return [root / "train", root / "test"]


def _wanted(root: Path) -> str:
    return f"Wanted: {root}/train/<class>/<picture> and {root}/test/<class>/<picture>, or {root}/<class>/<picture>"


def _paths(folder: Path) -> dict[str, list[Path]]:
    """Return {class: its pictures, sorted} of the classes in ``folder`` that have any."""
    tree = import_torchvision("torchvision.datasets.folder")

    def seen(path: str) -> bool:
        return bool(tree.is_image_file(path)) and f"{os.sep}." not in path.removeprefix(str(folder))

    try:
        _, numbers = tree.find_classes(folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no folder of a class; wanted: {folder}/<class>/<picture>") from error
    found: dict[str, list[Path]] = {name: [] for name in numbers if not name.startswith(".")}
    for path, number in tree.make_dataset(str(folder), numbers, is_valid_file=seen, allow_empty=True):
        found[list(numbers)[number]].append(Path(path))
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        kinds = ", ".join(tree.IMG_EXTENSIONS)
        log.warning("%s: left out, since no picture (%s) lies in it: %s", folder, kinds, ", ".join(empty))
    return {name: paths for name, paths in found.items() if paths}


def _stack(paths: Sequence[Path]) -> Tensor:
    """Return the pictures as uint8 [N, 28, 28]; say so if some show nothing."""
    images = np.stack([read_picture(path) for path in paths])
    blank = np.flatnonzero(images.min((1, 2)) == images.max((1, 2)))
    if len(blank):
        log.warning("%d pictures are of one grey all over, such as %s", len(blank), paths[blank[0]])
    return torch.from_numpy(images)
