"""predict through the command line: every kind of input, its answers, and what is wrong with what."""

import csv
import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SMALL, idx
from PIL import Image

from mnist_exp import load_model
from mnist_exp.data.formats import read_sample
from mnist_exp.errors import UserError
from mnist_exp.runs import figures as figures_module
from mnist_exp.runs.figures import drawn

HEADER = ["file", "label", "confidence", "second", "second_confidence", "note"]


def answers(text: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    assert reader.fieldnames == HEADER
    return list(reader)


@pytest.fixture(scope="module")
def run(digits_run) -> str:
    return str(digits_run)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A run of the same classes, hardly trained."""
    from helpers import run_command

    folder = tmp_path_factory.mktemp("other") / "other"
    assert run_command("train", *SMALL, "data=sample", f"hydra.run.dir={folder}") == 0
    return str(folder)


def lay(images: np.ndarray) -> None:
    """The same images in every kind of file."""
    Path("images.idx").write_bytes(idx(images))
    Path("images.idx.gz").write_bytes(gzip.compress(idx(images)))
    np.save("images.npy", images)
    np.savez_compressed("mnist.npz", x_train=images[::-1], y_train=np.arange(5), x_test=images, y_test=np.arange(9))
    np.savez("one.npz", images=images)
    Path("folder/deeper").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"folder/deeper/{number:03}.png")
    Path("folder/notes.txt").write_text("none")
    Path("folder/.hidden.png").write_text("none")


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("images.idx", []),
        ("images.idx.gz", []),
        ("images.npy", []),
        ("mnist.npz", ["--array", "x_test"]),
        ("one.npz", []),
        ("folder", []),
    ],
)
def test_every_kind_of_input_gives_the_same_answers(command, place, run, held_out, source, more):
    images = held_out.images[:120]
    lay(images)
    done = command("predict", run, "--input", source, "--output", "answers.csv", "--tta", "3", *more)
    assert done.status == 0, done.err
    assert "images   120: " in done.out
    assert "written  answers.csv" in done.out
    labels, probabilities = load_model(run).predict(images, tta_runs=3)
    found = answers((place / "answers.csv").read_text())
    assert [int(row["label"]) for row in found] == labels.tolist()
    order = np.sort(probabilities, 1)
    assert np.allclose([float(row["confidence"]) for row in found], order[:, -1], atol=2e-6)
    assert np.allclose([float(row["second_confidence"]) for row in found], order[:, -2], atol=2e-6)
    assert [row["second"] for row in found] == [str(n) for n in probabilities.argsort(1)[:, -2]]
    expected = [f"deeper/{n:03}.png" for n in range(120)] if source == "folder" else [str(n) for n in range(120)]
    assert [row["file"] for row in found] == expected
    assert [row["note"] for row in found] == ["unsure" if p < 0.8 else "" for p in order[:, -1]]


def test_enlarged_dark_digits_on_paper_are_read_as_well_as_the_originals(command, place, run, held_out):
    images, labels = held_out
    draws = np.random.default_rng(0)
    (place / "scans").mkdir()
    for number, image in enumerate(images):
        top, left = draws.integers(0, 41, 2)
        page = np.full((180, 180), 255, np.uint8)
        page[top : top + 140, left : left + 140] = 255 - np.asarray(Image.fromarray(image).resize((140, 140)))
        Image.fromarray(page).save(place / "scans" / f"{number:04}.png", compress_level=1)
    done = command("predict", run, "--input", "scans", "--output", "-")
    assert done.status == 0, done.err
    read = np.array([int(row["label"]) for row in answers(done.out)])
    original = load_model(run).predict(images)[0]
    assert len(read) == 1000
    assert 100 * (original == labels).mean() > 94
    # of 1,000 digits some six change sides by chance, by the network's random numbers
    assert 100 * ((original == labels).mean() - (read == labels).mean()) <= 1


def test_several_runs_are_averaged(command, run, other, held_out):
    lay(held_out.images[:50])
    done = command("predict", run, other, "--input", "images.idx", "--output", "-")
    assert done.status == 0, done.err
    both = (load_model(run).predict(held_out.images[:50])[1] + load_model(other).predict(held_out.images[:50])[1]) / 2
    assert np.allclose([float(row["confidence"]) for row in answers(done.out)], both.max(1), atol=2e-6)


def test_a_picture_is_one_answer_and_blank_ones_are_noted(command, place, run, held_out):
    Image.new("RGB", (300, 200), "ivory").save("blank.jpg")
    Image.fromarray(255 - held_out.images[0]).save("digit.webp", lossless=True)
    done = command("predict", run, "--input", "blank.jpg", "--output", "-")
    assert [(row["file"], row["note"]) for row in answers(done.out)] == [("blank.jpg", "blank")]
    done = command("predict", run, "--input", "digit.webp", "--output", "-", "--unsure", "1")
    assert [(row["file"], row["note"]) for row in answers(done.out)] == [("digit.webp", "unsure")]
    assert "1 unsure (confidence below 1), 0 blank" in done.err
    Image.fromarray(np.pad(np.full((200, 300), 250, np.uint8), 50)).save("sheet.png")
    done = command("predict", run, "--input", "sheet.png", "--output", "-", "--unsure", "0")
    assert [row["note"] for row in answers(done.out)] == ["unsure"]


def test_what_is_left_out_of_a_folder_is_told(command, place, run, held_out):
    lay(held_out.images[:2])
    for name in ("folder/a.GIF", "folder/deeper/Thumbs.db", "folder/README", "folder/b.gif"):
        Path(name).write_bytes(b"")
    done = command("predict", run, "--input", "folder", "--output", "-")
    assert "left out 1 .db, 2 .gif, 1 .txt, 1 hidden, 1 without an ending\n" in done.err
    assert [row["file"] for row in answers(done.out)] == ["deeper/000.png", "deeper/001.png"]
    assert "left out" not in command("predict", run, "--input", "folder/deeper/000.png", "--output", "-").err


def test_pictures_as_text_and_a_page_of_tiff_are_read(command, place, run, held_out):
    image = held_out.images[0]
    rows = "\n".join(" ".join(map(str, row)) for row in image.tolist())
    Path("plain.ppm").write_text(f"P2\n28 28 255\n{rows}\n")
    Path("raw.pgm").write_bytes(b"P5\n28 28\n255\n" + np.where(image > 0, 100, 50).astype(np.uint8).tobytes())
    Image.fromarray(image).save("one.tif")
    label = str(load_model(run).predict(image[None])[0][0])
    for name in ("plain.ppm", "raw.pgm", "one.tif"):
        done = command("predict", run, "--input", name, "--output", "-")
        assert done.status == 0, done.err
        assert name == "raw.pgm" or answers(done.out)[0]["label"] == label


def test_the_picture_of_one_answer_holds_its_title_and_any_name(command, place, run, held_out, monkeypatch, recwarn):
    figures = []
    monkeypatch.setattr(figures_module, "drawn", lambda figure, *kind: figures.append(figure) or drawn(figure, *kind))
    Image.fromarray(held_out.images[0]).save("\u6570\u5b57.png")
    done = command("predict", run, "--input", "\u6570\u5b57.png", "--output", "a.csv", "--show", "x.png")
    assert (done.status, done.err) == (0, "")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    (figure,) = figures
    title = figure.axes[0].title.get_window_extent()
    assert figure.bbox.x0 < title.x0 < title.x1 < figure.bbox.x1


def test_code_of_the_readme_works(place, run, held_out):
    found = re.search(
        r"```python\n(from mnist_exp import load_model\n.*?)```", (ROOT / "mnist_exp/README.md").read_text(), re.S
    )
    Image.fromarray(255 - held_out.images[0]).convert("RGB").resize((200, 200)).save("digit.jpg")
    known = {"images": held_out.images}
    exec(compile(found[1].replace("outputs/runs/NAME", run), "mnist_exp/README.md", "exec"), known)
    assert known["labels"].tolist() == load_model(run).predict(held_out.images)[0].tolist()
    assert known["label"] == [held_out.labels[0]]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("digit.png", "not the name of a file, 'digit.png'"),
        (Path("digit.png"), "not the name of a file, 'digit.png'"),
        (Image.new("RGB", (280, 280)), "not uint8 [280, 280, 3]; mnist_exp.inference.frame brings"),
        (np.zeros((28, 28), np.uint8), "not uint8 [28, 28]; for one image type images[None]"),
        (torch.zeros(2, 28, 28), "not float32 [2, 28, 28]"),
        ([None], "not object [1]"),
        ([[1], [1, 2]], "inhomogeneous"),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else type(value).__name__,
)
def test_what_a_notebook_gives_is_no_array_of_images(run, images, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_model(run).predict(images)


def test_arrays_are_inverted_only_where_it_is_said(command, run, held_out):
    lay(255 - held_out.images[:60])
    right = load_model(run).predict(held_out.images[:60])[0]
    done = command("predict", run, "--input", "images.idx", "--output", "-")
    assert "the edges of the images are light: for dark ink on light paper type --invert yes" in done.err
    assert [int(row["label"]) for row in answers(done.out)] != right.tolist()
    done = command("predict", run, "--input", "images.idx", "--output", "-", "--invert", "yes")
    assert "edges" not in done.err
    assert [int(row["label"]) for row in answers(done.out)] == right.tolist()


def test_what_the_network_saw_is_shown(command, place, run, held_out):
    lay(held_out.images[:120])
    for name, source in (("few.svg", "folder/deeper/007.png"), ("many.svg", "images.idx"), ("x.png", "folder")):
        done = command("predict", run, "--input", source, "--output", "a.csv", "--show", name)
        assert done.status == 0, done.err
        assert f"written  {name}" in done.out
    assert "007.png" in (place / "few.svg").read_text()
    assert "the 100 least sure of 120" in (place / "many.svg").read_text()
    with Image.open("x.png") as picture:
        assert picture.format == "PNG"


def test_standard_input_may_be_a_pipe(place, run, held_out):
    lay(held_out.images[:30])
    Image.fromarray(held_out.images[0]).save("digit.png")
    words = [sys.executable, "-m", "mnist_exp", "predict", run, "--input", "-", "--output", "-"]
    for source, count, name in (("images.idx.gz", 30, "0"), ("one.npz", 30, "0"), ("digit.png", 1, "standard input")):
        done = subprocess.run(words, input=Path(source).read_bytes(), capture_output=True, cwd=place)
        assert done.returncode == 0, done.stderr
        found = answers(done.stdout.decode())
        assert len(found) == count
        assert found[0]["file"] == name
        assert b"images   " in done.stderr


def test_a_network_of_other_pictures_sees_them_as_it_was_trained(command, place):
    draws = np.random.default_rng(0)
    for name, side in (("left", slice(0, 14)), ("right", slice(14, 28))):
        (place / "mine" / name).mkdir(parents=True)
        for number in range(30):
            pixels = draws.integers(160, 255, (28, 28), dtype=np.uint8)
            pixels[:, side] = draws.integers(0, 60)
            Image.fromarray(pixels).resize((56, 56)).save(place / "mine" / name / f"{number}.png")
    options = ["data=image_folder", "data.root=mine", "data.invert=true", "data.val_size=8", "data.batch_size=8"]
    done = command("train", "experiment=fast", *options, "augment=none", "hydra.run.dir=run")
    assert done.status == 0, done.err
    done = command("predict", "run", "--input", "mine", "--output", "-")
    assert done.status == 0, done.err
    found = answers(done.out)
    assert np.mean([row["file"].startswith(row["label"] + "/") for row in found]) > 0.95


WRONG = {
    "nothing there": (["--input", "absent.png"], ["absent.png does not exist", "a picture (PNG"]),
    "an empty folder": (["--input", "empty"], ["empty holds no picture (.jpg", "); name a folder"]),
    "a folder of others": (["--input", "others"], ["others holds no picture (.jpg", "it holds 1 .gif, 1 hidden; name"]),
    "no picture": (["--input", "noise.png"], ["noise.png is none of PNG, JPEG"]),
    "text": (["--input", "text.png"], ["text.png is text; wanted is a picture (PNG,", "Kaggle's test.csv"]),
    "a GIF": (["--input", "others/a.gif"], ["others/a.gif is a GIF; save it as PNG or JPEG"]),
    "an SVG": (["--input", "a.svg"], ["a.svg is an SVG; save it as PNG or JPEG"]),
    "a HEIC by the name of a JPEG": (["--input", "heic"], ["heic/a.jpg is an HEIC or AVIF; save it as PNG or JPEG"]),
    "pages": (["--input", "pages.tif"], ["pages.tif has several pages"]),
    "an empty file": (["--input", "nothing"], ["nothing is empty"]),
    "a torn one among good ones": (["--input", "folder"], ["folder/deeper/003.png cannot be read", "truncated"]),
    "a huge one": (["--input", "huge.png"], ["huge.png has 900,000,000 pixels, more than 40,000,000; make it smaller"]),
    "a large one": (["--input", "large.png"], ["large.png has 100,000,000 pixels, more than 40,000,000; make it"]),
    "a PDF": (["--input", "paper.pdf"], ["paper.pdf is a PDF", "PNG"]),
    "a pipe": (["--input", "pipe"], ["pipe cannot be read: it is not a regular file", "--input -"]),
    "a device": (["--input", "/dev/zero"], ["/dev/zero", "not a regular file"]),
    "a torn idx": (["--input", "torn.idx"], ["torn.idx is torn", "ends too early"]),
    "more than an idx says": (["--input", "more.idx"], ["more.idx is torn: more follows"]),
    "a torn gz": (["--input", "torn.gz"], ["torn.gz is torn"]),
    "labels": (["--input", "labels.idx"], ["labels.idx holds uint8 [7]", "labels?"]),
    "several arrays": (["--input", "mnist.npz"], ["x_train (uint8 [40, 28, 28])", "--array x_"]),
    "no such array": (["--input", "mnist.npz", "--array", "x"], ["has no array x"]),
    "another array": (["--input", "mnist.npz", "--array", "y_test"], ["holds int64 [9]"]),
    "an array of no npz": (["--input", "images.idx", "--array", "x"], ["images.idx is none"]),
    "an array of a folder": (["--input", "folder", "--array", "x"], ["--array x", "folder is none"]),
    "a torn npz": (["--input", "torn.npz"], ["torn.npz"]),
    "a folder as output": (["--output", "empty"], ["--output is the folder empty; it must be a file"]),
    "below a file": (["--output", "nothing/x.csv"], ["nothing/x.csv cannot be written", "no folder"]),
    "where no file can be": (["--output", "/proc/nowhere/x.csv"], ["--output /proc/nowhere/x.csv cannot be written"]),
    "a name too long": (["--output", "new/" + 300 * "x"], ["cannot be written: File name too long"]),
    "the input as output": (["--output", "images.idx"], ["is the input"]),
    "one file for both": (["--output", "x.png", "--show", "x.png"], ["are one file"]),
    "another kind of picture": (["--show", "x.gif"], ["--show is x.gif", "png, pdf, svg"]),
    "too many shifts": (["--tta", "26"], ["--tta 26", "25"]),
    "no shift": (["--tta", "0"], ["--tta is 0"]),
    "no probability": (["--unsure", "80"], ["--unsure is 80"]),
    "no such file of a checkpoint": (["--checkpoint", "lst.pth"], ["/checkpoints: kaggle_seed42_ckpt", "last.pth"]),
    "no checkpoint": (["--checkpoint", "swa"], ["has no swa checkpoint", "--checkpoint best and last"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(command, place, run, held_out, kind):
    images = held_out.images[:40]
    lay(images)
    content = idx(images)
    (place / "empty").mkdir()
    for name, data in {
        "text.png": b"no picture\n",
        "noise.png": b"\x89\0" * 99,
        "others/a.gif": b"GIF89a\1\0\1\0\0\0\0;",
        "others/.b.png": b"",
        "heic/a.jpg": b"\0\0\0\x18ftypheic" + bytes(99),
        "a.svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "nothing": b"",
        "torn.idx": content[:-1],
        "more.idx": content + b"x",
        "torn.gz": gzip.compress(content)[:-40],
        "labels.idx": idx(np.arange(7, dtype=np.uint8)),
        "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "torn.npz": (place / "one.npz").read_bytes()[:-300],
        "folder/deeper/003.png": (place / "folder/deeper/003.png").read_bytes()[:120],
        "answers.csv": b"of before",
    }.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(data)
    pages = [Image.fromarray(image) for image in images[:2]]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    for name, side in (("huge", 30_000), ("large", 10_000)):
        if name in kind:
            Image.new("1", (side, side)).save(f"{name}.png")
    os.mkfifo("pipe")
    arguments, words = WRONG[kind]
    usual = {"--input": "images.idx", "--output": "answers.csv"}
    usual |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    before = sorted(str(path) for path in place.rglob("*"))
    done = command("predict", run, *[word for pair in usual.items() for word in pair])
    assert done.status == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert (place / "answers.csv").read_bytes() == b"of before"
    assert sorted(str(path) for path in place.rglob("*")) == before


def test_names_steer_no_terminal_but_stay_in_files(command, place, run, held_out, monkeypatch):
    Path("scans").mkdir()
    Image.fromarray(held_out.images[0]).save("scans/\x1b[31mred.png")
    printed = command("predict", run, "--input", "scans", "--output", "-")
    assert answers(printed.out)[0]["file"] == "\x1b[31mred.png"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    printed = command("predict", run, "--input", "scans", "--output", "-")
    assert answers(printed.out)[0]["file"] == "\\x1b[31mred.png"


def test_runs_that_do_not_go_together_are_named(command, place, run, held_out):
    lay(held_out.images[:3])
    for label in ("cat", "dog"):
        (place / "mine" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (28, 28), 20 * number).save(place / "mine" / label / f"{number}.png")
    options = ["data.root=mine", "data.val_size=4", "data.train_limit=null", "trainer.max_steps=1"]
    assert command("train", *SMALL, "data=image_folder", *options, "hydra.run.dir=cats").status == 0
    usual = ["--input", "images.idx", "--output", "a.csv"]
    done = command("predict", run, "cats", *usual)
    assert done.status == 2
    assert "tells 0, 1, 2" in done.err
    done = command("predict", "mine", *usual)
    assert done.status == 2
    assert "mine is not a run folder: it has no run.json\n" in done.err
    assert "error: absent does not exist; name the folder of a run" in command("predict", "absent", *usual).err
    shutil.copytree("cats", "sweep/one/trial-0")
    for folder in ("sweep", "sweep/one"):
        assert (
            f"{folder} is not a run folder: it has no run.json; it holds runs, name one of them, such as sweep/one/trial-0"
            in (command("predict", folder, *usual).err)
        )
    assert "RUN is cats cats/; it must be each run once" in command("predict", "cats", "cats/", *usual).err
    done = command("predict", run, "cats", *usual, "--checkpoint", "cats/checkpoints/last.pth")
    assert "a file is of one run only" in done.err
    (best,) = (place / "cats" / "checkpoints").glob("*_ckpt_epoch1.pth")
    best.write_bytes(best.read_bytes()[:2000])
    assert "; --checkpoint last may do\n" in command("predict", "cats", *usual).err
    (place / "cats" / "checkpoints" / "last.pth").write_bytes(b"torn")
    assert "may do" not in command("predict", "cats", *usual, "--checkpoint", "last").err
    for file in (place / "cats" / "checkpoints").iterdir():
        file.unlink()
    done = command("predict", "cats", *usual)
    assert done.status == 2
    assert "cats has no best checkpoint, nor another; was it cut off before its first?" in done.err
    assert not (place / "a.csv").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(place, other):
    program = (
        "import resource, sys; from mnist_exp.cli.predict import predict; predict(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for count in (20_000, 300_000):  # 15 and 235 MB
        with gzip.open("many.gz", "wb", 1) as file:
            file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28))
            for _ in range(count // 1000):
                file.write(bytes(784_000))
        words = [sys.executable, "-c", program, other, "--input", "many.gz", "--output", "x.csv"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1024
    assert peaks[1] - peaks[0] < 60


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_thousands_is_read(command, place, run, save):
    save("many.npz", images=read_sample()[0])
    assert command("predict", str(run), "--input", "many.npz", "--output", "out.csv").status == 0
    assert len(Path("out.csv").read_text().splitlines()) == 5001


def test_a_type_that_numpy_does_not_know_is_a_message(command, place, run):
    np.save("a.npy", np.zeros((1, 28, 28), np.float32))
    Path("a.npy").write_bytes(Path("a.npy").read_bytes().replace(b"<f4", b"<f1"))
    done = command("predict", str(run), "--input", "a.npy", "--output", "out.csv")
    assert done.status == 2
    assert "a.npy" in done.err
