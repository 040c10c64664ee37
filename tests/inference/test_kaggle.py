"""From Kaggle's two files to its submission; and training on all labelled digits, with none left for a test."""

import csv
import zipfile

import numpy as np
import pytest
from helpers import SMALL, info

from mnist_exp.data.formats import PIXELS
from mnist_exp.inference.predict import as_submission


def test_two_files_become_a_submission(command, place, kaggle, digits_run, held_out):
    done = command("predict", str(digits_run), "--input", str(kaggle / "test.csv"), "--output", "submission.csv")
    assert done.status == 0, done.err
    assert "these are 1,000 digits, and Kaggle's test.csv has 28,000" in done.out
    first, *rows = csv.reader((place / "submission.csv").read_text().splitlines())
    assert first == ["ImageId", "Label"]
    assert [int(number) for number, _ in rows] == list(range(1, 1001))
    right = np.mean([int(label) == truth for (_, label), truth in zip(rows, held_out.labels, strict=True)])
    assert 100 * right > 94


def test_all_labelled_digits_are_trained_on_and_none_is_scored_on_test(command, digits_run):
    about = info(digits_run)
    sizes = {key: about["dataset"][key] for key in ("train", "val", "test")}
    assert sizes == {"train": 3800, "val": 200, "test": 0}
    assert "val_acc" in about["metrics"]
    assert not [key for key in about["metrics"] if "test" in key or key == "ensemble_acc"]
    assert not (digits_run / "results" / "predictions.npz").exists()
    log = (digits_run / "train.log").read_text()
    assert "test     plain" not in log
    assert "scored once" not in log
    assert "3,800 train, 200 val, 0 test" in log
    for more in ([], ["--group-by"], ["--html", "page.html"]):
        done = command("compare", str(digits_run), *more)
        assert done.status == 0, done.err
        assert "nan" not in done.out
    done = command("compare", str(digits_run), "--baseline", "run")
    assert done.status == 2
    assert "no results/predictions.npz" in done.err


def test_the_bundled_digits_can_all_be_trained_on(command, place):
    options = ["data=sample", "data.test_size=0", "data.val_size=0", "data.train_limit=null", "trainer.max_steps=3"]
    done = command("train", *SMALL, *options, "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert info(place / "run")["dataset"]["train"] == 5000
    assert info(place / "run")["metrics"].keys() == {"images_per_s"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "import", "test.csv"], ["test.csv is Kaggle's test.csv", "predict RUN --input", "submission.csv"]),
        (["train", "data=sample", "data.test_size=5000"], ["data.test_size is 5000", "below 5000"]),
        (["train", "data=sample", "data.test_size=-1"], ["data.test_size is -1", "at least 0"]),
        (["predict", "RUN", "--input", "train.csv", "--output", "x.csv"], ["train.csv", "data import"]),
        (
            ["predict", "RUN", "--input", "other.csv", "--output", "x.csv"],
            ["other.csv has the columns a, b", "pixel783"],
        ),
        (["predict", "RUN", "--input", "torn.csv", "--output", "x.csv"], ["torn.csv is torn: line 1,001 holds"]),
        (["predict", "RUN", "--input", "words.csv", "--output", "x.csv"], ["words.csv holds something else"]),
        (
            ["predict", "RUN", "--input", "none.csv", "--output", "x.csv"],
            ["none.csv has the names of its columns, and no"],
        ),
        (
            ["predict", "RUN", "--input", "narrow.csv", "--output", "x.csv"],
            ["pixel0, pixel1, pixel2, ... (700 of 784); Kaggle's"],
        ),
        (
            ["predict", "RUN", "--input", "digits.zip", "--output", "x.csv"],
            ["digits.zip is an archive, of train.csv, test.csv; unpack it and name test.csv"],
        ),
        (
            ["predict", "RUN", "--input", "answers.csv", "--output", "x.csv"],
            ["answers.csv has the columns ImageId, Label; wanted are pixel0"],
        ),
        (
            ["predict", "RUN", "--input", "semi.csv", "--output", "x.csv"],
            ["semi.csv has the columns a\u00e9, b, c, ...; w"],
        ),
    ],
)
def test_what_is_another_file_is_said(command, place, kaggle, digits_run, arguments, words):
    content = (kaggle / "test.csv").read_bytes()
    (place / "test.csv").write_bytes(content)
    (place / "train.csv").symlink_to(kaggle / "train.csv")
    (place / "other.csv").write_text("a,b,c\n1,2,3\n")
    (place / "torn.csv").write_bytes(content[:-700])
    (place / "words.csv").write_bytes(content[:-4] + b",xy\n")
    (place / "none.csv").write_bytes(content.partition(b"\n")[0])
    (place / "narrow.csv").write_text(",".join(PIXELS[:700]) + "\n")
    (place / "answers.csv").write_text("ImageId,Label\n1,2\n")
    (place / "semi.csv").write_text("a\u00e9;b;c;d\n1;2;3;4\n")
    with zipfile.ZipFile("digits.zip", "w") as archive:
        for name in ("train.csv", "test.csv"):
            archive.writestr(name, "pixel0\n")
    done = command(*[str(digits_run) if word == "RUN" else word for word in arguments])
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert not (place / "x.csv").exists()


def test_only_digits_are_submitted():
    with pytest.raises(Exception, match="tells cat, dog apart"):
        list(as_submission([], ["cat", "dog"]))
