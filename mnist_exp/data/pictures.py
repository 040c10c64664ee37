"""Pictures in folders: any tree of PNG or JPEG files, read as images like MNIST's."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mnist_exp.data.formats import Contents
from mnist_exp.errors import UserError
from mnist_exp.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
SIDE = 28
# of Pillow's formats those of pictures: for another one it would start a program
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP")
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MOST_FILES, MOST_DEPTH, MOST_PIXELS = 1_000_000, 100, 40_000_000
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")
_KINDS = 12  # of files that are left out, as they are told
_STRIP = 512  # rows at a time: several whole copies of a large picture would fill the memory


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
    if not found[-1]:
        raise UserError(f"{parts[-1]} holds no picture. {_wanted(root)}")
    for name in classes:
        if name not in found[-1]:
            log.warning("%s holds no picture of %s: it cannot be scored", parts[-1], name)
    images, labels = [], []
    for paths in found:
        pairs = [(path, label) for label, name in enumerate(classes) for path in paths.get(name, [])]
        log.info("Reading %s pictures of %d classes below %s ...", f"{len(pairs):,}", len(paths), root)
        images.append(_stack([path for path, _ in pairs]))
        labels.append(np.array([label for _, label in pairs], np.int64))
    digest = hashlib.md5(usedforsecurity=False)
    for part in (part for pair in zip(images, labels, strict=True) for part in pair):
        digest.update(part.data)  # as it lies there, since a copy may be a gigabyte
    digest.update(json.dumps([classes, [len(part) for part in labels]]).encode())
    return Contents(images, labels, digest.hexdigest()), classes


def read_picture(path: Path) -> np.ndarray:
    """Return a picture of any size and mode as uint8 [28, 28]: ``padded`` what is ``read_grey``.

    Raises UserError naming a file that cannot be read.
    """
    with open_regular(path) as file:
        return padded(read_grey(file, path, 8 * SIDE))


def refuse_special(dataset: Any) -> None:
    """Raise UserError if a picture that torchvision's ImageFolder would open is a pipe or a device: it would wait."""
    for path, *_ in getattr(dataset, "samples", ()):
        if not os.path.isfile(path):  # noqa: PTH113  # of many
            raise UserError(f"{path} cannot be read: it is not a regular file; remove it")


def padded(grey: Image) -> np.ndarray:
    """Return a grey picture of any size as uint8 [28, 28].

    The longer side is scaled to 28 pixels (bilinear, antialiased); the shorter one keeps its proportion and is padded on
    both sides with the background, which is the median of the picture's border. One of 28 x 28 stays as it is.
    """
    from PIL import Image, ImageOps

    pixels = np.asarray(grey)
    if pixels.shape == (SIDE, SIDE):
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.asarray(ImageOps.pad(grey, (SIDE, SIDE), Image.Resampling.BILINEAR, color=int(np.median(border))))


def read_grey(file: BinaryIO, name: object, least: int) -> Image:
    """Return the picture in ``file`` in grey (mode L), in its own size.

    It is turned as its EXIF says; what is transparent becomes white (black under strokes that are white), colours become grey (ITU-R 601-2 luma), 16 bits
    their upper 8. Of a large JPEG only as much is decoded as leaves at least ``least`` pixels a side. Raises UserError
    with the ``name`` of a file that cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of what is read all the same
            Image.open(file, formats=FORMATS) as picture,
            _silent(picture.format == "TIFF"),
        ):
            picture.draft("L", (least, least))
            if picture.width * picture.height > MOST_PIXELS:
                raise _too_large(name, picture.width * picture.height)
            if picture.format == "TIFF" and getattr(picture, "is_animated", False):
                raise UserError(f"{name} has several pages; save each as a picture of its own")
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.has_transparency_data:
                return _on_white(picture)
            if picture.mode in ("I", "F"):
                raise ValueError("its pixels are 32 bits each, in a range that nothing says")
            return picture.convert("L")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, int(re.findall(r"\d+", str(error))[0])) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise UserError(f"{name} {_otherwise(file.read(1024))}") from error
    except Exception as error:  # Pillow raises one of many
        raise UserError(f"{name} cannot be read as a picture: {error}; repair or remove it") from error


@contextlib.contextmanager
def _silent(tiff: bool) -> Iterator[None]:
    """Let libtiff be silent, which writes to standard error, past Python, what it thinks of a file."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # standard error may be closed
            kept = os.dup(2) if tiff else None
            if kept is not None:
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, 2)
                os.dup2(stack.enter_context(Path(os.devnull).open("wb")).fileno(), 2)
        yield


def _too_large(name: object, pixels: int) -> UserError:
    return UserError(f"{name} has {pixels:,} pixels, more than {MOST_PIXELS:,}; make it smaller")


def _otherwise(first: bytes) -> str:
    """Return what a file that begins so, and is none of ``FORMATS``, is, and what to do with it."""
    kinds = {
        "a GIF": first.startswith(b"GIF8"),
        "an SVG": first.lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in first,
        "an HEIC or AVIF": first[4:8] == b"ftyp" and first[8:12] in _HEIC,
    }
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    if kind is not None:
        return f"is {kind}; save it as PNG or JPEG"
    return f"is none of {', '.join(FORMATS)}, or damaged; repair or remove it"


def _on_white(picture: Image) -> Image:
    from PIL import Image

    grey = Image.new("L", picture.size)
    for top in range(0, picture.height, _STRIP):
        strip = picture.crop((0, top, picture.width, min(top + _STRIP, picture.height))).convert("RGBA")
        grey.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("L"), (0, top))
    if grey.getextrema()[0] == 255:  # white strokes on nothing: these are what is opaque
        return picture.convert("RGBA").getchannel("A")
    return grey


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
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no folder of a class; wanted: {folder}/<class>/<picture>")
    count = itertools.count()
    found = {name: pictures_below(folder / name, count) for name in names}
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        kinds = ", ".join(ENDINGS)
        log.warning("%s: left out, since no picture (%s) lies in it: %s", folder, kinds, ", ".join(empty))
    return {name: paths for name, paths in found.items() if paths}


def pictures_below(
    folder: Path, count: Iterator[int] | None = None, left_out: Counter[str] | None = None
) -> list[Path]:
    """Return the pictures below ``folder``, at any depth, sorted; hidden ones are left out.

    ``count`` goes on over several folders. ``left_out`` counts the others, by their endings, and what is "hidden". Raises
    UserError where there are more, or deeper ones, than 1,000,000 and 100.
    """
    left_out = Counter() if left_out is None else left_out
    found = _below(folder, itertools.count() if count is None else count, left_out)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def counted(left_out: Counter[str]) -> str:
    """Return what ``pictures_below`` has left out in words, such as "1 .gif, 2 hidden"."""
    told = [f"{count:,} {kind[:20]}" for kind, count in sorted(left_out.items())]
    return ", ".join([*told[:_KINDS], *["..."] * (len(told) > _KINDS)])


def _below(
    folder: Path, count: Iterator[int], left_out: Counter[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """Yield the pictures below ``folder``, at any depth, in any order, but not through a link to a folder ``above``."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    if len(above) == MOST_DEPTH:
        raise UserError(f"{folder} lies deeper than {MOST_DEPTH} folders")
    with os.scandir(folder) as entries:
        for entry in entries:
            if next(count) >= MOST_FILES:
                raise UserError(f"{folder} and the folders beside it hold more than {MOST_FILES:,} files")
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif _is_folder(entry):
                yield from _below(Path(entry.path), count, left_out, above | {here})
            elif entry.name.lower().endswith(ENDINGS):
                yield Path(entry.path)
            else:
                left_out[Path(entry.name).suffix.lower() or "without an ending"] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link to itself; what is wrong with it will be seen where it is read
        return False


def _stack(paths: Sequence[Path]) -> np.ndarray:
    """Return the pictures as uint8 [N, 28, 28]; say so if some show nothing."""
    images = np.empty((len(paths), SIDE, SIDE), np.uint8)
    for n, path in enumerate(paths):
        images[n] = read_picture(path)
    blank = np.flatnonzero(images.min((1, 2)) == images.max((1, 2)))
    if len(blank):
        log.warning("%d pictures are of one grey all over, such as %s", len(blank), paths[blank[0]])
    return images
