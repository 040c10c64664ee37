"""Pictures in folders become a data set like the built-in ones; class names are kept."""

import hashlib
import json
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_result, info, lay
from PIL import Image

from mnist_exp.data.pictures import read_picture, read_tree
from mnist_exp.data.sets import Data, ImageFolder
from mnist_exp.errors import UserError
from mnist_exp.runs.pictures import confusion

TRAIN = [
    *("train", "data=image_folder", "data.root=mine", "data.val_size=9", "data.batch_size=17", "model=small_cnn"),
    *("schedule.initial_epochs=4", "schedule.extra_epochs=0", "optimizer=adamw", "evaluate.tta_runs=2"),
]


def png_of(side: int) -> bytes:
    """The beginning of one that is as large."""
    header = b"IHDR" + struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I4s", 99, b"IDAT")
        + bytes(99)
    )


def a_program(path: Path) -> None:
    """A picture for which Pillow starts the program gs."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n")
    program = Path("gs")
    program.write_text("#!/bin/sh\ntouch 'was here'\n")
    program.chmod(0o755)


HARMFUL = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: path.write_bytes(png_of(9_000)),
    "bomb": lambda path: path.write_bytes(png_of(30_000)),
    "program": a_program,
    "deep": lambda path: path.with_suffix("").joinpath(*["d"] * 101).mkdir(parents=True),
}


def assert_classes(command, run: Path, classes: list[str]) -> None:
    """The names stand in run.json and on the page, and no other class does."""
    assert info(run)["dataset"]["classes"] == classes
    assert command("compare", str(run), "--html", "page.html").status == 0
    page = json.loads(re.search(r'id="data">(.*?)</script>', Path("page.html").read_text())[1])
    assert page["confusions"][0]["classes"] == classes
    assert np.array(page["confusions"][0]["counts"]).shape == (len(classes), len(classes))
    for digit in page["wall"]:
        assert {digit["label"], *digit["said"].values()} <= set(classes)


def test_a_tree_trains_as_a_built_in_set_does(command, place, monkeypatch):
    classes = ["Ankle boot", "Eastern long-necked turtle of the Murray-Darling basin", "zebra"]
    lay(place / "mine" / "train", classes, 20, (60, 60), "jpg")
    lay(place / "mine" / "test", classes, 5)
    seen = []
    from mnist_exp.parts.augment import RandomRotation

    rotate = RandomRotation.forward

    def counted(self, images, generator):
        seen.append(len(images))
        return rotate(self, images, generator)

    monkeypatch.setattr(RandomRotation, "forward", counted)
    done = command(*TRAIN, "hydra.run.dir=run")
    assert done.status == 0, done.err
    about = info(place / "run")
    sizes = {key: about["dataset"][key] for key in ("train", "val", "test")}
    assert sizes == {"train": 51, "val": 9, "test": 15}
    assert about["metrics"]["test_acc"] > 60
    assert sum(seen) == 4 * 51, "the augment group applies to each image of training, to no other"
    assert_classes(command, place / "run", classes)
    assert command(*TRAIN, "hydra.run.dir=cut", "trainer.max_steps=6").status == 0
    about = info(place / "cut")
    (place / "cut" / "run.json").write_text(json.dumps({**about, "status": "interrupted"}))
    assert command("train", "resume=cut", "trainer.max_steps=null").status == 0
    assert_same_result(place / "run", place / "cut")
    lay(place / "mine" / "train" / "more", classes, 1)  # a fourth class, of pictures at any depth
    (place / "cut" / "run.json").write_text(json.dumps({**about, "status": "interrupted"}))
    done = command("train", "resume=cut")
    assert done.status == 2
    assert "the same as in the run that is resumed" in done.err


def test_a_model_may_know_more_classes_than_there_are(command, place):
    lay(place / "mine", ["no", "yes"], 30)
    done = command(*TRAIN, "hydra.run.dir=run", "schedule.initial_epochs=1")
    assert done.status == 0, done.err
    dataset = info(place / "run")["dataset"]
    assert (dataset["train"], dataset["val"], dataset["test"]) == (41, 9, 10)
    names, counts = confusion(np.array([0, 1, 7, 1]), np.array([0, 1, 1, 0]), ["no", "yes"])
    assert (names, counts.tolist()) == (["no", "yes", "#7"], [[1, 1, 0], [0, 1, 1], [0, 0, 0]])


def test_more_than_ten_classes_need_a_larger_model(command, place):
    classes = [f"class {number:02}" for number in range(12)]
    lay(place / "mine", classes, 6)
    done = command(*TRAIN, "data.val_size=12")
    assert done.status == 2
    assert "model.num_classes is 10; it must be at least 12" in done.err
    done = command(
        *TRAIN, "data.val_size=12", "model.num_classes=20", "hydra.run.dir=more", "schedule.initial_epochs=1"
    )
    assert "Type model.num_classes=12" in done.out
    done = command(*TRAIN, "data.val_size=12", "model.num_classes=12", "hydra.run.dir=run", "schedule.initial_epochs=1")
    assert done.status == 0, done.err
    assert_classes(command, place / "run", classes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("absent", ["mine is no folder", "mine/train/<class>/<picture>", "data.root=FOLDER"]),
        ("flat pictures", ["mine holds no folder of a class"]),
        ("empty test", ["mine/test holds no picture. Wanted: mine/train/<class>/<picture>"]),
        ("no test", ["holds one of train and test, but not test"]),
        ("one class", ["mine/train holds pictures of 1 classes", "at least 2"]),
        ("unknown in test", ["mine/test holds pictures of classes that", "lacks: dog"]),
        ("broken", ["mine/train/cat/0.png cannot be read as a picture", "truncated"]),
        ("32 bits", ["mine/train/cat/x.tiff", "32 bits"]),
        ("pipe", ["mine/train/cat/x.png", "is not a regular file"]),
        ("device", ["mine/train/cat/x.png", "is not a regular file"]),
        ("huge", ["mine/train/cat/x.png", "has 81,000,000 pixels, more than 40,000,000; make it smaller"]),
        ("bomb", ["mine/train/cat/x.png", "000,000 pixels, more than 40,000,000; make it smaller"]),
        ("program", ["mine/train/cat/x.png", "none of PNG, JPEG"]),
        ("deep", ["lies deeper than 100 folders"]),
        ("test_size", ["data.test_size is 40", "below 40"]),
    ],
)
def test_a_wrong_tree_is_named(command, place, monkeypatch, change, words):
    lay(place / "mine" / "train", ["cat", "yak"], 20)
    lay(place / "mine" / "test", ["cat", "yak"], 2)
    mine = place / "mine"
    if change == "absent":
        mine.rename("elsewhere")
    elif change == "flat pictures":
        (mine / "train" / "cat").rename("flat")
        mine.rename("elsewhere")
        (place / "flat").rename(mine)
    elif change == "no test":
        (mine / "test").rename("elsewhere")
    elif change == "empty test":
        for picture in (mine / "test").rglob("*.png"):
            picture.unlink()
    elif change == "one class":
        (mine / "train" / "yak").rename("elsewhere")
    elif change == "unknown in test":
        lay(mine / "test", ["dog"], 1)
    elif change == "broken":
        picture = mine / "train" / "cat" / "0.png"
        picture.write_bytes(picture.read_bytes()[:200])
    elif change == "32 bits":
        Image.fromarray(np.ones((28, 28), np.float32)).save(mine / "train" / "cat" / "x.tiff")
    elif change in HARMFUL:
        monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
        HARMFUL[change](mine / "train" / "cat" / "x.png")
    else:
        (mine / "train").rename("flat")
        mine.rename("elsewhere")
        (place / "flat").rename(mine)
    done = command(*TRAIN, "data.test_size=40")
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert not list(place.glob("outputs/runs/*"))
    assert not (place / "was here").exists()


def test_links_in_a_circle_end(place):
    lay(place / "mine", ["cat", "yak"], 6)
    for name in ("one", "other"):
        (place / "mine" / "cat" / name).symlink_to(place / "mine" / "cat")
    (place / "elsewhere").mkdir()
    (place / "mine" / "yak").rename(place / "elsewhere" / "yak")
    (place / "mine" / "yak").symlink_to(place / "elsewhere" / "yak")  # as of pictures on another disk
    splits = ImageFolder("mine", str(place / "mine"), 2).load()
    assert len(splits.train) + len(splits.val) + len(splits.test) == 12


def test_what_is_left_out_is_said(place, caplog):
    lay(place / "mine" / "train", ["cat", "yak", "dog"], 20)
    lay(place / "mine" / "test", ["cat", "yak"], 2)
    for yak in (place / "mine" / "test" / "yak").iterdir():
        yak.unlink()
    for name in ("train/empty", "test/empty", "val", "train/.hidden"):
        (place / "mine" / name).mkdir()
    (place / "mine" / "train" / "empty" / "notes.txt").write_text("no picture")
    for hidden in (".hidden/x.png", "cat/._0.png"):
        (place / "mine" / "train" / hidden).write_bytes(b"not one either")
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(place / "mine" / "test" / "cat" / "blank.png")
    splits = ImageFolder("mine", str(place / "mine"), 6).load()
    assert splits.classes == ["cat", "dog", "yak"]
    assert len(splits.train) + len(splits.val) == 60
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 6, told
    for words in (
        "train: left out, since no picture",
        "test: left out",
        "empty, yak",
        "not val",
        "no picture of dog",
        "no picture of yak",
    ):
        assert any(words in line for line in told), words
    assert any("1 pictures are of one grey all over" in line and "blank.png" in line for line in told), told


def test_a_picture_becomes_what_its_docstring_says(place):
    draws = np.random.default_rng(0)
    grey = draws.integers(0, 256, (28, 28), dtype=np.uint8)

    def read(image: Image.Image, name: str = "x.png", **options) -> np.ndarray:
        image.save(name, **options)
        found = read_picture(Path(name))
        assert (found.shape, found.dtype) == ((28, 28), np.uint8)
        return found

    assert np.array_equal(read(Image.fromarray(grey)), grey)
    assert np.array_equal(read(Image.fromarray(grey).convert("RGB")), grey)
    assert np.array_equal(read(Image.fromarray(grey.astype(np.uint16) * 256 + 7)), grey), "16 bits"
    assert np.array_equal(read(Image.fromarray(grey).quantize(256)), grey), "a palette"
    bits = Image.fromarray((grey > 99).astype(np.uint8) * 255)
    assert np.array_equal(read(bits.convert("1")), np.asarray(bits))
    clear = np.zeros((28, 28, 4), np.uint8)
    clear[10:18, 10:18, 3] = 255
    inked = read(Image.fromarray(clear))
    assert (inked[10:18, 10:18] == 0).all()
    assert (inked[:10] == 255).all(), "what is transparent is white"

    wide = np.full((40, 80), 30, np.uint8)
    wide[:, 35:45] = 250
    found = read(Image.fromarray(wide))
    assert (found[:7] == 30).all(), "padded with the background"
    assert (found[21:] == 30).all()
    assert (found[7:21, 13:15] > 200).all()
    assert (found[7:21, [0, 27]] == 30).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = read(Image.fromarray(wide), "x.jpg", exif=exif, quality=100)
    assert np.abs(turned.astype(int) - found.T).max() < 8
    checks = Image.fromarray((np.indices((1120, 1120)).sum(0) % 2 * 255).astype(np.uint8))
    for kind in ("x.png", "x.jpg"):
        assert np.abs(read(checks, kind).astype(int) - 127).max() < 9, "antialiased"


def test_dark_ink_is_told_of_and_can_be_inverted(place, caplog):
    paper = np.full((28, 28), 240, np.uint8)
    paper[8:20, 12:16] = 10
    for name in ("a", "b"):
        (place / "mine" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(paper).save(place / "mine" / name / f"{number}.png")
    as_is = ImageFolder("mine", str(place / "mine"), 2).load()
    assert "data.invert=true" in caplog.text
    caplog.clear()
    inverted = ImageFolder("mine", str(place / "mine"), 2, invert=True).load()
    assert "invert" not in caplog.text
    assert (inverted.train.images == 255 - as_is.train.images).all()
    assert inverted.md5 == as_is.md5, "the data are the same, the recipe is not"


def test_pictures_are_read_in_little_more_memory_than_they_take(place):
    lay(place / "mine", ["a", "b"], 1)
    for name in ("a", "b"):
        for copy in range(1, 700):
            os.link(f"mine/{name}/0.png", f"mine/{name}/{copy}.png")
    read_picture(place / "mine" / "a" / "0.png")  # what is imported for it counts not
    tracemalloc.start()
    contents, classes = read_tree(place / "mine")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (images,), (labels,) = contents.images, contents.labels
    assert most < 2 * images.nbytes
    told = json.dumps([classes, [1400]]).encode()
    assert contents.md5 == hashlib.md5(images.tobytes() + labels.tobytes() + told).hexdigest()


def test_the_md5_is_of_pictures_labels_and_names(place):
    lay(place / "mine", ["cat", "yak"], 6)

    def md5() -> str:
        return ImageFolder("mine", str(place / "mine"), 2).load().md5

    before = md5()
    assert md5() == before
    (place / "mine" / "yak").rename(place / "mine" / "zebra")
    renamed = md5()
    picture = place / "mine" / "cat" / "3.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    assert len({before, renamed, md5()}) == 3


def test_named_sets_have_the_names_of_their_classes(place, data_root):
    from test_data import idx
    from test_data import lay as write

    from mnist_exp.data.formats import SOURCES

    images, labels = idx(np.zeros((20, 28, 28), np.uint8)), idx(np.arange(20, dtype=np.uint8) % 10)
    for name in ("fashion_mnist", "kmnist"):
        source = SOURCES[name]
        write(place / source.folder / "raw", dict(zip(source.files, [images, labels] * 2, strict=True)))
    assert Data("fashion_mnist", str(place), 10).load().classes[-1] == "Ankle boot"
    assert Data("kmnist", str(place), 10).load().classes[:2] == ["o", "ki"]
    assert Data("sample", str(data_root), 10).load().classes == list("0123456789")
    with pytest.raises(UserError):
        Data("fashion_mnist", str(place), 30).load()
