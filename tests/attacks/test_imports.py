"""`data import` of what was made to harm: one message, little time, little memory, nothing installed, nothing left."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import ROOT, idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
COLUMNS = ",".join(["label", *(f"pixel{number}" for number in range(784))])
ROW = ",".join(["7"] * 785)
# carries out each command in a process of its own, forked where all is imported, and tells what it took at most
PROGRAM = """
import json, os, re, signal, sys, time
from mnist_exp.cli.main import main
from mnist_exp.config.job import compose
import mnist_exp.data.install
compose()
for line in sys.stdin:
    sys.argv = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(sys.argv[0])
    os.environ["TMPDIR"] = os.path.join(sys.argv[0], "temporary")
    signal.alarm(30)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
    status = 1
    try:
        main()
    except SystemExit as end:
        status = end.code
    finally:
        taken = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
        sys.stdout.flush()
        with open("took", "w") as file:
            file.write(f"{taken} {time.process_time()} {'torch' in sys.modules}")
        os._exit(status)
"""


def idx_file(kind: int, sizes: list[int], content: bytes = b"") -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def zeros(megabytes: int, wbits: int) -> bytes:
    """So many zeros, packed: the same block over and over."""
    packer = zlib.compressobj(9, wbits=wbits)
    first = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (megabytes // 16 - 1) + packer.flush()


def folder(**files: bytes) -> Path:
    path = Path("source")
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("_", "-")).write_bytes(content)
    return path


def file(name: str, content: bytes) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def a_pipe() -> Path:
    os.mkfifo("pipe")
    return Path("pipe")


def a_pipe_in_a_folder() -> Path:
    os.mkfifo(folder() / IMAGES)
    return Path("source")


def a_link(target: str) -> Path:
    (folder() / IMAGES).symlink_to(target)
    return Path("source")


def a_sparse_file(name: str) -> Path:
    path = folder() / name
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    return path if name.endswith(".zip") else path.parent


def many_files() -> Path:
    path = folder()
    for number in range(10_001):
        os.close(os.open(path / f"{number}.txt", os.O_CREAT | os.O_WRONLY))
    return path


def deep_folders() -> Path:
    path, here = folder(), os.open("source", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return path


def a_zip(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile("digits.zip", "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return Path("digits.zip")


def a_zip_of(packed: bytes, size: int, flags: int = 0, attributes: int = 0) -> Path:
    """A zip of one member, whose headers claim ``size``."""
    name = IMAGES.encode()
    common = struct.pack("<HHHHIIIHH", flags, 8, 0, 0, 0, len(packed), size, len(name), 0)
    local = b"PK\3\4" + struct.pack("<H", 20) + common + name + packed
    central = b"PK\1\2" + struct.pack("<HH", 0x314, 20) + common + struct.pack("<HHHII", 0, 0, 0, attributes, 0) + name
    return file(
        "digits.zip", local + central + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0)
    )


def a_zip_of_many() -> Path:
    entry = b"PK\1\2" + struct.pack("<HHHHHIIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    central = entry * 1_000_000
    return file("digits.zip", b"PK" + central + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, len(central), 2, 0))


def header(name: str = IMAGES, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT)


def a_tar(content: bytes) -> Path:
    return file("digits.tar", content + bytes(10_240))


def a_tgz(content: bytes) -> Path:
    return file("digits.tgz", gzip.compress(content, 1))


def a_tgz_of_zeros() -> Path:
    whole = zlib.compressobj(wbits=31)
    start = whole.compress(header("huge", 8 << 30)) + whole.flush(zlib.Z_FULL_FLUSH)
    return file("digits.tgz", start + zeros(4096, -15))


def a_negative_tar() -> Path:
    block = bytearray(header(size=0))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024: back to where it began
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return a_tar(bytes(block))


def a_csv(*rows: str, columns: str = COLUMNS) -> Path:
    return file("train.csv", "\n".join([columns, *rows, ""]).encode())


def a_value(value: str) -> Path:
    return a_csv(ROW, ROW.replace("7", value, 1)[::-1].replace("7", value[::-1], 1)[::-1])


def an_npz(**arrays: np.ndarray | bytes) -> Path:
    whole = {"x_train": np.zeros((9, 28, 28), np.uint8), "y_train": np.zeros(9, np.uint8)}
    with zipfile.ZipFile("mnist.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {**whole, **arrays}.items():
            content = io.BytesIO()
            if isinstance(array, bytes):
                content.write(array)
            else:
                np.save(content, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return Path("mnist.npz")


def npy(shape: str, size: int = 0) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\0" + struct.pack("<I", size or len(text)) + text


ATTACKS: dict[str, tuple[Callable[[], Path], str]] = {
    "an endless device": (lambda: Path("/dev/zero"), "not a regular file"),
    "a pipe that nobody writes": (a_pipe, "not a regular file"),
    "such a pipe in a folder": (a_pipe_in_a_folder, "not a regular file"),
    "a link to a device": (lambda: a_link("/dev/zero"), "is a link"),
    "a link out of the folder": (lambda: a_link("/etc/passwd"), "is a link"),
    "a terabyte of nothing": (lambda: a_sparse_file(IMAGES), "larger than 67,108,864 bytes"),
    "a terabyte of nothing as an archive": (lambda: a_sparse_file("digits.zip"), "larger than 536,870,912 bytes"),
    "10,001 files": (many_files, "more than 10,000 files"),
    "folders deeper than a path is long": (deep_folders, "cannot be read"),
    "a gzip bomb": (lambda: file(f"{IMAGES}.gz", zeros(2048, 31)), "larger than 67,108,864 bytes"),
    "a gzip bomb of another name": (lambda: file("digits.gz", zeros(2048, 31)), "holds no file of mnist"),
    "a gzip whose name has no end": (lambda: file(f"{IMAGES}.gz", b"\x1f\x8b\x08\x08" + b"a" * (64 << 20)), "torn"),
    "a gzip of ten million parts": (
        lambda: file(f"{IMAGES}.gz", gzip.compress(b"") * 5_000_000),
        "something follows its end",
    ),
    "a zip bomb": (lambda: a_zip_of(zeros(2048, -15), 2048 << 20), "larger than 67,108,864 bytes"),
    "a zip bomb that says it is small": (lambda: a_zip_of(zeros(2048, -15), 9), "Bad CRC"),
    "a bomb in a zip": (lambda: a_zip((f"{IMAGES}.gz", zeros(2048, 31))), "larger than 67,108,864 bytes"),
    "an encrypted zip": (lambda: a_zip_of(b"secret", 6, flags=1), "encrypted"),
    "a zip packed by bzip2": (lambda: a_zip((IMAGES, b"x" * 999), method=zipfile.ZIP_BZIP2), "in another way"),
    "a link in a zip": (lambda: a_zip_of(b"/etc/passwd", 11, attributes=0o120777 << 16), "is a link"),
    "a zip of a million files": (a_zip_of_many, "too many files"),
    "a path out of a zip": (lambda: a_zip((f"../../{IMAGES}", b"x")), "a path out of it"),
    "two of one name in a zip": (lambda: a_zip((f"a/{LABELS}", b"x"), (f"b/{LABELS}", b"y")), "damaged or not mnist"),
    "a tgz of 4 GB": (a_tgz_of_zeros, "unpacks to more than 536,870,912 bytes"),
    "a tar that claims terabytes": (lambda: a_tar(header(size=1 << 42)), "unpacks to more than"),
    "a tar of negative size": (a_negative_tar, "unpacks to more than"),
    "a long name in a tar": (
        lambda: a_tar(header(size=1 << 28, kind=tarfile.GNUTYPE_LONGNAME)),
        "a name of 268,435,456",
    ),
    "a long name in a tar by POSIX": (
        lambda: a_tar(header(size=1 << 28, kind=tarfile.XHDTYPE)),
        "a name of 268,435,456",
    ),
    "a symbolic link in a tar": (lambda: a_tar(header(kind=tarfile.SYMTYPE)), "is a link"),
    "a hard link in a tar": (lambda: a_tar(header(kind=tarfile.LNKTYPE)), "is a link"),
    "a device in a tar": (lambda: a_tar(header(kind=tarfile.CHRTYPE)), "a device"),
    "a pipe in a tar": (lambda: a_tar(header(kind=tarfile.FIFOTYPE)), "a device or the like"),
    "a path out of a tar": (lambda: a_tar(header(f"../../{IMAGES}")), "a path out of it"),
    "an absolute path in a tar": (lambda: a_tar(header(f"/tmp/{IMAGES}")), "a path out of it"),
    "a tgz of many files": (lambda: a_tgz(header("a") * 100_000), "more than 10,000 files"),
    "an idx file that claims terabytes": (lambda: file(LABELS, idx_file(8, [4 << 20] * 3, b"x")), "MD5"),
    "an array that claims terabytes": (
        lambda: an_npz(x_train=npy("(1099511627776,)")),
        "not as much as its header says",
    ),
    "an array of many dimensions": (lambda: an_npz(x_train=npy("(" + "1," * 999 + ")")), "wanted are bytes"),
    "a header without end": (lambda: an_npz(x_train=npy("(9,)", 1 << 31)), "cannot be read"),
    "a header of brackets": (lambda: an_npz(x_train=npy("(" * 9_000)), "cannot be read"),
    "an array of objects": (lambda: an_npz(x_train=np.array([{}, print], object)), "holds object"),
    "an array of true and false": (lambda: an_npz(x_train=np.ones((9, 28, 28), bool)), "holds bool"),
    "an array of halves": (lambda: an_npz(x_train=np.full((9, 28, 28), 1.5)), "holds float64"),
    "an array of negative pixels": (lambda: an_npz(x_train=np.full((9, 28, 28), -1)), "outside 0..255"),
    "300,000 columns": (lambda: a_csv(columns=COLUMNS + ",x" * 300_000), "has the columns label, pixel0"),
    "a line of 90 MB": (lambda: a_csv("1," * 45_000_000), "line 2 holds"),
    "90 MB of empty lines": (lambda: a_csv("\n" * 90_000_000), "line 2 holds 1 values"),
    "no lines": (a_csv, "no digit below"),
    "a value too few": (lambda: a_csv(ROW, ROW[2:]), "line 3 holds 784 values"),
    "a number of 400 digits": (lambda: a_value("9" * 400), "whole numbers from 0 to 255"),
    "a half": (lambda: a_value("1.5"), "whole numbers from 0 to 255"),
    "true": (lambda: a_value("True"), "whole numbers from 0 to 255"),
    "not a number": (lambda: a_value("NaN"), "whole numbers from 0 to 255"),
    "nothing": (lambda: a_value(""), "whole numbers from 0 to 255"),
    "a negative": (lambda: a_value("-1"), "whole numbers from 0 to 255"),
    "a pixel of 256": (lambda: a_value("256"), "whole numbers from 0 to 255"),
    "a label of 10": (lambda: a_csv("10" + ROW[1:]), "labels outside 0..9"),
    "noise": (lambda: file("digits.zip", np.random.default_rng(0).bytes(99_999)), "holds no file"),
    "noise after all": (
        lambda: file("digits.zip", b"PK\3\4" + np.random.default_rng(0).bytes(99_999)),
        "cannot be read",
    ),
}


class Outcome(NamedTuple):
    """MB of memory, seconds of CPU."""

    status: int
    out: str
    err: str
    memory: float
    seconds: float
    torch: bool


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen]:
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": python_path}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(place, nursery) -> Callable[..., Outcome]:
    """Import a source in a process of its own."""

    def call(source: Path, *options: str) -> Outcome:
        (place / "temporary").mkdir()
        words = [str(place), "data", "import", str(source), *options, "data.root=root"]
        nursery.stdin.write(json.dumps(words) + "\n")
        nursery.stdin.flush()
        status = int(nursery.stdout.readline())
        memory, seconds, torch = (place / "took").read_text().split() if status >= 0 else (0, 99, "")
        texts = [(place / name).read_text() for name in ("out", "err")]
        assert not list((place / "temporary").iterdir())
        return Outcome(status, *texts, float(memory), float(seconds), torch == "True")

    return call


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_a_message(run, name):
    make, words = ATTACKS[name]
    done = run(make())
    assert done.status == 2, done
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert len(done.err) < 1_000
    assert words in done.err
    assert_frugal(done)
    assert not Path("root").exists()


def assert_frugal(done: Outcome) -> None:
    assert done.memory < 300
    assert done.seconds < 5
    assert not done.torch


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("kmnist", {IMAGES: idx_file(8, [4 << 20] * 3, b"x"), LABELS: idx_file(8, [1], b"\1")}, "its header says"),
        ("kmnist", {IMAGES: idx_file(8, [(1 << 32) - 1] * 255, b"x")}, "its header says"),
        ("kmnist", {IMAGES: idx_file(13, [1, 28, 28], b"\x7f\xc0\0\0" * 784)}, "of bytes or whole numbers"),
        ("kmnist", {IMAGES: idx_file(8, [1, 29, 27], bytes(783))}, "of shape (1, 29, 27)"),
        ("kmnist", {IMAGES: idx(np.zeros((2, 28, 28), np.uint8)), LABELS: idx_file(8, [3], b"\1\2\3")}, "3 labels"),
        ("kmnist", {LABELS: idx_file(8, [2], b"\1\x0a")}, "labels outside 0..9"),
        ("kmnist", {LABELS: idx_file(8, [], b"\1")}, "has 0 dimensions"),
        ("qmnist", {"qmnist-train-labels-idx2-int": idx_file(12, [3, 0])}, "of shape (3, 0)"),
    ],
)
def test_files_without_a_published_md5_are_looked_through(place, command, name, files, words):
    source = folder()
    for file_name, content in files.items():
        (source / file_name).write_bytes(content)
    names = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    for file_name in names if name == "kmnist" else []:
        if file_name not in files:
            (source / file_name).write_bytes(idx(np.zeros((2, *[28, 28] * ("images" in file_name)), np.uint8)))
    done = command("data", "import", "source", "--name", name, "data.root=root")
    assert done.status == 2
    assert words in done.err
    assert not Path("root").exists()


def test_a_file_again_and_again_is_not_read_for_ever(run):
    packed = gzip.compress(idx_file(8, [80_000, 28, 28], bytes(80_000 * 784)), 1)
    done = run(a_zip(*((f"{n}/{IMAGES}.gz", packed) for n in range(1_000))), "--name", "kmnist")
    assert done.status == 2
    assert "again and again" in done.err
    assert_frugal(done)
    assert not Path("root").exists()


def test_a_real_data_set_takes_less_than_an_attack_may(run):
    """As large as MNIST, and as Kaggle's, of other digits."""
    draws = np.random.default_rng(0)
    with zipfile.ZipFile("digits.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part, n in (("train", 60_000), ("t10k", 10_000)):
            images = np.repeat(draws.integers(0, 256, (n, 28), dtype=np.uint8), 28)
            archive.writestr(f"{part}-images-idx3-ubyte", idx(images.reshape(n, 28, 28)))
            archive.writestr(f"{part}-labels-idx1-ubyte", idx(draws.integers(0, 10, n, dtype=np.uint8)))
    done = run(Path("digits.zip"), "--name", "fashion_mnist")
    assert done.status == 0, done.err
    assert "verified and installed 4 file(s)" in done.out
    assert_frugal(done)
    Path("temporary").rmdir()
    done = run(a_csv(*[",".join(["7", *["0"] * 584, *["142"] * 200])] * 42_000))
    assert done.status == 0, done.err
    assert "kaggle: verified and installed 1 file(s)" in done.out
    assert done.memory < 300


def test_a_file_is_installed_as_it_was_verified(place, command, monkeypatch):
    """One that changes while it is read, and an import that is cut off: never old beside new."""
    from mnist_exp.data import formats, install

    source, raw = folder(), Path("root/KMNIST/raw")
    old, new = (np.full((2, 28, 28), value, np.uint8) for value in (1, 2))
    for name in formats.IDX:
        (source / name).write_bytes(idx(old if "images" in name else old[:, 0, 0]))
    assert command("data", "import", "source", "--name", "kmnist", "data.root=root").status == 0
    for name in formats.IDX:
        (source / name).write_bytes(idx(new if "images" in name else new[:, 0, 0]))
    replace, moved = Path.replace, []

    def cut_off(self, target):
        if Path(target).parent == raw.absolute() and not Path(target).name.startswith("."):
            moved.append(target)
            if len(moved) == 2:
                raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    verified = formats.verified

    def changed(*arguments):
        for name in formats.IDX:
            (source / name).write_bytes(b"something else")
        return verified(*arguments)

    contents = {name: (source / name).read_bytes() for name in formats.IDX}
    monkeypatch.setattr(install, "verified", lambda *arguments: verified(*arguments))
    done = command("data", "import", "source", "--name", "kmnist", "data.root=root")
    assert done.status == 1
    assert "Input/output error" in done.err
    assert [p.name for p in raw.glob("*-ubyte")] == [formats.IDX[0]], "new beside old"
    monkeypatch.setattr(Path, "replace", replace)
    assert command("data", "import", "source", "--name", "kmnist", "data.root=root").status == 0
    for name, content in contents.items():
        assert (raw / name).read_bytes() == content
    monkeypatch.setattr(install, "verified", changed)
    done = command("data", "import", "source", "--name", "kmnist", "data.root=root")
    assert done.status == 2, "the first was whole, the second not"
    assert {p.name: p.read_bytes() for p in raw.glob("*-ubyte")} == contents


def test_an_installed_pipe_or_link_does_not_stop_a_run(place, command):
    raw = place / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    started = time.monotonic()
    from mnist_exp.data.formats import IDX

    for name in IDX:
        os.mkfifo(raw / name)
    done = command("train", "data.root=root")
    assert done.status == 2
    assert f"{IMAGES} cannot be read: it is not a regular file" in done.err
    assert "mnist          damaged" in command("data", "status", "data.root=root").out
    for name in IDX:
        (raw / name).unlink()
        (raw / name).symlink_to("/dev/zero")
    done = command("train", "data.root=root")
    assert f"{IMAGES} cannot be read: it is not a regular file" in done.err
    assert time.monotonic() - started < 30
