"""evaluate: what a finished run, or an ensemble, says of the images that were held out, and of test, which is counted."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, info, lay, run_command

from mnist_exp import load_model, load_runs
from mnist_exp.data.formats import read_sample
from mnist_exp.data.sets import Data
from mnist_exp.statistics import calibration_error, mcnemar

TRAIN = [*SMALL, "data.train_limit=600", "optimizer.lr=0.02"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_root) -> Path:
    """Three runs in a folder: two of the same network, one of another."""
    made = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        patch.chdir(made)
        for name, extra in (("a", ()), ("b", ["seed=2"]), ("c", ["model.channels=[4,8,8]"])):
            assert run_command("train", *TRAIN, *extra, "data=sample", f"hydra.run.dir=runs/{name}") == 0
    return made


@pytest.fixture
def runs(made, place) -> Path:
    shutil.copytree(made / "runs", place / "runs")
    return place / "runs"


def found(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "evaluation.json").read_text())


def test_a_run_scored_again_gets_what_it_got(command, runs):
    """On validation, on test, with TTA, and by its weight average."""
    metrics = info(runs / "a")["metrics"]
    for typed, metric in (
        ([], "val_acc"),
        (["--split", "test"], "test_acc"),
        (["--split", "test", "--tta", "5"], "test_acc_tta"),
        (["--checkpoint", "swa"], "val_acc_swa"),
    ):
        done = command("evaluate", "runs/a", *typed, "--output", "out")
        assert done.status == 0, done.err
        assert found("out")["scores"]["accuracy"] == pytest.approx(metrics[metric])
        assert f"{metrics[metric]:.2f} %" in done.out
    assert found("out")["scores"]["loss"] > 0


def test_members_that_are_called_alike_are_all_called_by_their_folders(command, runs):
    for name in ("x/a", "y/a"):
        shutil.copytree(runs / "a", name)
    folders = ["x/a", "y/a", "runs/b"]
    done = command("evaluate", *folders, "--split", "test", "--output", "out")
    assert done.status == 0, done.err
    assert [row["name"] for row in found("out")["members"]] == folders
    assert all(f"scored 2 times for {folder}\n" in done.out for folder in folders)
    assert all(Path(row["run"]).is_absolute() for row in found("out")["members"])


def test_each_scoring_of_test_is_counted_and_shown(command, runs):
    assert info(runs / "a")["test_scored"] == 1
    assert "test_scored" not in command("compare", "runs").out
    assert command("evaluate", "runs/a", "--output", "out").status == 0
    assert info(runs / "a")["test_scored"] == 1, "validation is not test"
    done = command("evaluate", "runs/a", "runs/b", "--split", "test", "--output", "out")
    assert "scored 2 times for a" in done.out
    assert [info(runs / name)["test_scored"] for name in "abc"] == [2, 2, 1]
    assert "test_scored" in command("compare", "runs").out
    assert load_runs("runs").set_index("name")["test_scored"].to_dict() == {"a": 2, "b": 2, "c": 1}


def test_a_run_of_an_older_version_was_scored_if_it_has_a_score(command, runs):
    file = runs / "a" / "run.json"
    file.write_text(json.dumps({k: v for k, v in info(runs / "a").items() if k != "test_scored"}))
    assert command("evaluate", "runs/a", "--split", "test", "--output", "out").status == 0
    assert info(runs / "a")["test_scored"] == 2


def test_an_ensemble_is_the_mean_of_its_members(command, runs):
    done = command("evaluate", "runs/a", "runs/b", "runs/c", "--split", "test", "--output", "out")
    assert done.status == 0, done.err
    about, kept = found("out"), np.load("out/predictions.npz")
    members = [np.load(runs / name / "results" / "predictions.npz")["probs"] for name in "abc"]
    np.testing.assert_allclose(kept["probs"], np.mean(members, 0, dtype=np.float32), atol=2e-3)
    labels, said = kept["labels"], np.stack([m.argmax(1) for m in members])
    assert about["scores"]["accuracy"] == pytest.approx(100 * (kept["predicted"] == labels).mean())
    assert about["agreement"] == pytest.approx(100 * (said == said[0]).all(0).mean(), abs=0.2)
    best = max("abc", key=lambda name: info(runs / name)["metrics"]["val_acc"])
    assert about["gain"]["over"] == best
    ours, theirs = kept["predicted"] == labels, said["abc".index(best)] == labels
    more, less = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert (about["gain"]["only_ensemble"], about["gain"]["only_member"]) == (more, less)
    assert about["gain"]["p"] == pytest.approx(mcnemar(more, less))
    assert [row["name"] for row in about["members"]] == ["a", "b", "c"]
    assert about["data"]["name"] == "sample"
    for picture in ("confusion.png", "mistakes.png", "reliability.png"):
        assert Path("out", picture).read_bytes().startswith(b"\x89PNG")
    rows = {row["name"]: row for row in about["classes"]}
    assert rows["3"]["recall"] == pytest.approx(100 * (kept["predicted"][labels == 3] == 3).mean())
    assert rows["3"]["precision"] == pytest.approx(100 * (labels[kept["predicted"] == 3] == 3).mean())
    assert "gain " in done.out
    assert "agreement" in done.out


def test_the_best_of_a_folder_are_chosen_by_validation(command, runs):
    ranked = sorted("abc", key=lambda n: (-info(runs / n)["metrics"]["val_acc"], info(runs / n)["metrics"]["val_loss"]))
    done = command("evaluate", "runs", "--top", "2", "--output", "out")
    assert done.status == 0, done.err
    assert [Path(row["run"]).name for row in found("out")["members"]] == ranked[:2]
    assert command("evaluate", "runs", "--output", "out").status == 0
    assert len(found("out")["members"]) == 3
    done = command("evaluate", "runs", "--top", "4", "--output", "out")
    assert (done.status, "at most 3" in done.err) == (2, True)


def test_a_run_that_has_not_finished_is_left_out_of_a_folder_but_not_where_it_is_named(command, runs):
    for name in "ab":
        (runs / name / "run.json").write_text(json.dumps(info(runs / name) | {"status": "interrupted"}))
    done = command("evaluate", "runs/a", "runs", "--output", "out")
    assert done.status == 0, done.err
    assert sorted(Path(row["run"]).name for row in found("out")["members"]) == ["a", "c"]
    assert "left out, as they have not finished: b" in done.out + done.err


def test_a_folder_that_is_written_to_again_keeps_nothing_of_what_it_had(command, runs):
    Path("out").mkdir()
    for name in ("confusion.pdf", "mistakes.svg", "mine.pdf"):
        Path("out", name).write_text("of another")
    assert command("evaluate", "runs/a", "--output", "out").status == 0
    assert {path.name for path in Path("out").iterdir() if path.suffix != ".png"} == {
        *("evaluation.json", "predictions.npz", "mine.pdf")
    }


def test_test_is_counted_in_all_runs_or_in_none(command, runs, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("runs/b") and allowed(path, mode))
    done = command("evaluate", "runs/a", "runs/b", "--split", "test", "--output", "out")
    assert (done.status, "it may not be changed" in done.err) == (2, True), done.err
    assert [info(runs / name)["test_scored"] for name in "ab"] == [1, 1]


def test_the_folder_where_one_stands_has_a_name(runs, monkeypatch):
    monkeypatch.chdir(runs / "a")
    assert [member.name for member in load_model(".").members] == ["a"]


def test_the_images_are_those_that_were_held_out(command, runs):
    """None of them was trained on."""
    assert command("evaluate", "runs/a", "--output", "out").status == 0
    kept, splits = np.load("out/predictions.npz"), Data("sample", "", val_size=500).load()
    assert kept["labels"].tolist() == splits.val.labels.tolist()
    np.testing.assert_array_equal(kept["images"], splits.val.images.numpy()[kept["wrong"]])
    trained = {image.tobytes() for image in splits.train.images.numpy()}
    assert not trained & {image.tobytes() for image in splits.val.images.numpy()}


def test_what_cannot_be_scored_together_is_refused(command, runs, data_root):
    assert command("train", *TRAIN, "data=sample", "data.split_seed=1", "hydra.run.dir=runs/d").status == 0
    assert command("train", *TRAIN, "data=sample", "data.test_size=800", "hydra.run.dir=runs/e").status == 0
    done = command("evaluate", "runs/a", "runs/d", "--output", "out")
    assert (done.status, "split_seed 0 and 1" in done.err) == (2, True), done.err
    assert command("evaluate", "runs/a", "runs/d", "--split", "test", "--output", "out").status == 0
    done = command("evaluate", "runs/a", "runs/e", "--split", "test", "--output", "out2")
    assert (done.status, "test 1000 and 800" in done.err) == (2, True), done.err
    assert info(runs / "e")["test_scored"] == 1, "nothing was scored"
    done = command("evaluate", "runs/a", "runs/e", "--output", "out2")  # what one holds out, the other tests on
    assert (done.status, "test 1000 and 800" in done.err) == (2, True), done.err
    assert not Path("out2").exists()


def break_run(what: str, run: Path) -> None:
    best = run / "checkpoints" / f"sample_seed42_ckpt_epoch{info(run)['best_epoch']}.pth"
    if what == "no numbers":
        saved = torch.load(best, weights_only=True)
        saved["model"] = {name: tensor * float("nan") for name, tensor in saved["model"].items()}
        torch.save(saved, best)
    if what == "a large network":
        file = run / ".hydra" / "config.yaml"
        file.write_text(re.sub(r"channels:(\n  - \d+)+", "channels: [16, 30000, 30000]", file.read_text()))
    if what == "a link":
        shutil.move(best, run / "elsewhere")
        best.symlink_to(run / "elsewhere")
    if what == "no checkpoint":
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
    elif what == "a torn checkpoint":
        for file in (run / "checkpoints").iterdir():
            file.write_bytes(file.read_bytes()[:2000])
    elif what == "other data":
        (run / "run.json").write_text(json.dumps(info(run) | {"dataset": info(run)["dataset"] | {"md5": "0" * 32}}))
    elif what == "data that are gone":
        (run / "run.json").write_text(json.dumps(info(run) | {"dataset": info(run)["dataset"] | {"name": "mnist"}}))
        file = run / ".hydra" / "config.yaml"
        text = re.sub(r"(\n  name: )sample(\n  root: ).*", r"\1mnist\2gone", file.read_text())
        file.write_text(text)
    elif what == "a target":
        file = run / ".hydra" / "config.yaml"
        file.write_text(file.read_text().replace("mnist_exp.parts.models.SmallCNN", "os.system"))
    elif what == "no validation":
        (run / ".hydra" / "config.yaml").write_text(
            (run / ".hydra" / "config.yaml").read_text().replace("val_size: 500", "val_size: 0")
        )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no checkpoint", "has no best checkpoint"),
        ("a torn checkpoint", "torn or not a checkpoint"),
        ("other data", "is not what"),
        (
            "data that are gone",
            ": gone/MNIST/raw/train-images-idx3-ubyte does not exist. Name their folder: --data FOLDER\n",
        ),
        ("no numbers", "are no numbers"),
        ("a large network", "says a network of"),
        ("a link", "is a link"),
        ("a target", "config.yaml"),
        ("no validation", "--split test"),
    ],
)
def test_a_run_that_cannot_be_scored_is_named(command, runs, what, words):
    break_run(what, runs / "a")
    done = command("evaluate", "runs/a", "--output", "out")
    assert done.status == 2, done.out
    assert words in done.err
    assert "runs/a" in done.err
    assert "Traceback" not in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["nothing"], "RUN is nothing"),
        (["runs/a", "--tta", "0"], "--tta"),
        (["runs/a", "--tta", "26"], "tta_runs"),
        (["runs/a", "--top", "0"], "--top"),
        (["runs/a", "--checkpoint", "best.pth"], "--checkpoint"),
        (["runs/a", "--output", "runs/a"], "--output"),
        (["runs/a", "--output", "runs/a/results"], "--output"),
        (["runs/a", "--output", "file/out"], "--output"),
        (["runs/a", "runs/../runs/a"], "each run once"),
        (["runs/a", "--checkpoint", "runs/b/checkpoints/last.pth"], "a file in runs/a/checkpoints"),
        (["runs/a", "--output", "file"], "--output"),
        (["runs/a", "--output", "/proc/nowhere"], "--output /proc/nowhere cannot be written"),
        (["runs/a", "--output", "new/" + 300 * "x"], "File name too long"),
        (["runs/a", "--data", "nowhere", "--split", "tst"], "--split"),
        (
            ["runs/a", "--data", "nowhere"],
            "error: --data nowhere is no folder; name the one in which the data set lies\n",
        ),
    ],
)
def test_a_mistake_is_one_message(command, runs, typed, words):
    Path("file").write_text("x")
    kept = (runs / "a" / "results" / "predictions.npz").read_bytes()
    done = command("evaluate", *typed, *([] if "--split" in typed else ["--split", "test"]))
    assert done.status == 2
    assert info(runs / "a")["test_scored"] == 1
    assert (runs / "a" / "results" / "predictions.npz").read_bytes() == kept
    assert words in done.err
    assert "Traceback" not in done.err


def test_the_last_average_is_taken_by_its_epoch(command, runs):
    checkpoints = runs / "a" / "checkpoints"
    (average,) = checkpoints.glob("*_swa_epoch*.pth")
    prefix = average.name.partition("_swa_epoch")[0]
    for name in (f"{prefix}_swa_epoch10.pth", f"{prefix}_swa_epoch9.pth", f"{prefix}_swa_epoch9 (copy).pth"):
        shutil.copy(average, checkpoints / name)
    done = command("evaluate", "runs/a", "--checkpoint", "swa")
    assert f"{prefix}_swa_epoch10.pth" in done.out, done.err


def test_code_of_ones_own_is_built_where_it_is_allowed(command, runs, monkeypatch):
    lines = ["from mnist_exp.parts.evaluate import Evaluator", "class Mine(Evaluator):", "    pass", ""]
    Path("judging.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(".")
    config = runs / "a" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("mnist_exp.parts.evaluate.Evaluator", "judging.Mine"))
    asked = ["evaluate", "runs/a", "--tta", "3"]
    refused = command(*asked)
    assert (refused.status, "judging.Mine" in refused.err) == (2, True), refused.err
    monkeypatch.setenv("MNIST_EXP_ALLOW", "judging.*")
    assert command(*asked).status == 0


def test_negatives_are_not_scored_with_what_they_are_of(command, place):
    for part, count in (("train", 12), ("test", 3)):
        lay(place / "mine" / part, ["a", "b"], count)
    folders = ["data=image_folder", "data.root=mine", "data.val_size=6", "data.train_limit=null"]
    for name in ("plain", "negative"):
        invert = f"data.invert={name == 'negative'}"
        assert command("train", *SMALL, *folders, invert, "augment=none", f"hydra.run.dir={name}").status == 0
    done = command("evaluate", "plain", "negative")
    assert (done.status, "invert" in done.err) == (2, True), done.err
    done = command("evaluate", "plain", "--data", "${seed}")  # a name, no reference
    assert (done.status, "${seed} is no folder" in done.err) == (2, True), done.err


def test_data_of_ones_own_are_those_that_were_trained_on(command, place):
    for part, count in (("train", 12), ("test", 3)):
        lay(place / "mine" / part, ["a", "b"], count)
    own = ["data=custom", "data.root=mine", "data.val_size=6", "data.num_workers=0", "augment=none"]
    assert command("train", *SMALL, *own, "data.train_limit=null", "hydra.run.dir=run").status == 0
    done = command("evaluate", "run", "--output", "out")
    assert done.status == 0, done.err
    assert found("out")["scores"]["accuracy"] == pytest.approx(info(Path("run"))["metrics"]["val_acc"])
    told = command("predict", "run", "--input", "mine/test", "--output", "answers.csv")
    assert "transforms of their own" in told.out
    shutil.copy(next(Path("mine/train/a").iterdir()), "mine/train/a/more.png")
    done = command("evaluate", "run", "--output", "other")
    assert (done.status, "25" in done.err) == (2, True), done.err
    assert not Path("other").exists()


def test_a_notebook_asks_a_run(runs):
    images, _ = read_sample()
    model = load_model(runs / "a", runs / "c")
    labels, probabilities = model.predict(images[::50])
    assert (labels.shape, probabilities.shape, model.classes) == ((100,), (100, 10), list("0123456789"))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    each = model.probabilities(images[::50], 3)
    assert each.shape == (2, 100, 10)
    alone = load_model(runs / "c").predict(images[::50], 3)[1]
    np.testing.assert_allclose(each[1].numpy(), alone, atol=1e-6)
    assert model.predict(images[:0])[1].shape == (0, 10)


def test_calibration_is_measured_as_it_is_defined():
    """Two bins: 0.6 sure and right half of the time; 0.9 sure and always right."""
    confidence, right = np.array([0.6] * 4 + [0.9] * 6), np.array([1, 0, 1, 0] + [1] * 6, bool)
    assert calibration_error(confidence, right, 10) == pytest.approx(100 * (0.4 * 0.1 + 0.6 * 0.1))
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
