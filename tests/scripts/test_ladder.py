"""The README's table and picture of results, made from run folders, and a row of it run again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from omegaconf import OmegaConf
from PIL import Image

from mnist_exp import compose

SCRIPTS = ROOT / "scripts"
README = "before\n<!-- ladder: begin -->\nold\n<!-- ladder: end -->\nafter\n"
SMALL = ["data=sample", "data.train_limit=400", "model=small_cnn", "model.channels=[4,8,8]", "schedule.extra_epochs=0"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def test_the_readmes_table_is_that_of_its_json():
    from ladder import placed, table

    readme = (ROOT / "README.md").read_text()
    assert placed(table(json.loads((ROOT / ".github/ladder.json").read_text())), readme) == readme


def test_what_a_row_names_still_composes_to_its_recipe():
    from rungs import recipe_of

    for name, row in json.loads((ROOT / ".github/ladder.json").read_text()).items():
        if "runs" in row:
            found = OmegaConf.to_container(compose(*row["overrides"]))
            assert recipe_of(found) == row["recipe"], f"{name} is another recipe now: run it again"


def test_rows_are_summed_up_over_their_seeds():
    from ladder import table
    from rungs import summary

    runs = [
        {"seed": s, "test_acc": a, "test_acc_tta": a + 0.1, "val_acc": 99.0, "test_scored": 2}
        | {"train_seconds": t, "seconds": 130.0}
        for s, a, t in ((1, 99.4, 50), (2, 99.6, 51), (3, 99.5, 900))
    ]
    row = {"overrides": ["experiment=fast"], "dataset": {"test": 10_000}, "runs": runs}
    row |= {"device_name": "CPU", "precision": "bf16"}
    found = summary(row)
    assert found["test_acc"] == pytest.approx(99.5)
    assert found["train_seconds"] == 51
    assert (found["low"], found["high"]) == pytest.approx((99.34, 99.62), abs=0.01), "what 10,000 images can tell"
    members = [{"row": "fast", "seed": s, "train_seconds": 50.0, "seconds": 130.0} for s in (1, 2)]
    both = {"members": members, "tta_runs": 5, "scoring_seconds": 40.0, "wrong": 20, "accuracy": 99.8}
    both |= {"low": 99.7, "high": 99.9, "device_name": "CPU", "precision": "bf16"}
    fast, ensemble = table({"fast": row, "ensemble": both}).splitlines()[2:]
    command = "`train experiment=fast` | 99.50 % (99.34 to 99.62) | 1: 99.40, 2: 99.60, 3: 99.50 (test scored 2 times)"
    assert f"{command} | 99.60 % | 99.00 % | 51 s | 2 min | CPU, bf16 |" in fast
    assert (
        "the runs of `fast` 1, 2 | 99.80 % (99.70 to 99.90) | 20 wrong | - | - | 2 min | 5 min | CPU, bf16 |"
        in ensemble
    )


@pytest.mark.timeout(300)
@pytest.mark.slow  # it trains, and trains again
def test_the_ladder_is_made_from_run_folders_and_a_row_is_run_again(place, command):
    for seed in (1, 2):
        command("train", *SMALL, f"seed={seed}", f"hydra.run.dir=rungs/small/seed-{seed}")
    runs = [f"rungs/small/seed-{seed}" for seed in (1, 2)]
    command("evaluate", *runs, "--split", "test", "--tta", "2", "--output", "rungs/ensemble")
    Path("README.md").write_text(README)
    made = script("ladder", "rungs", "--output", "out", "--peers", str(ROOT / ".github/peers.json"))
    assert made.returncode == 0, made.stderr
    rows = json.loads(Path("out/ladder.json").read_text())
    assert list(rows) == ["ensemble", "small"]
    assert rows["small"]["overrides"] == SMALL
    assert [run["seed"] for run in rows["small"]["runs"]] == [1, 2]
    assert [member["row"] for member in rows["ensemble"]["members"]] == ["small", "small"]
    text = Path("README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| small | `train data=sample" in text
    assert "times)" not in text, "both were scored by themselves, and for the ensemble"
    for picture in ("ladder.png", "hard_digits.png"):
        Image.open(Path("out", picture)).verify()

    again = ["--output", "again", "--ladder", "out/ladder.json"]
    done = script("reproduce", "ensemble", *again)
    assert done.returncode == 0, done.stderr
    scores = [
        json.loads(Path(f, "evaluation.json").read_text())["scores"] for f in ("rungs/ensemble", "again/ensemble")
    ]
    assert scores[0] == scores[1], "the same seeds on the same machine"
    assert "within what 1,000 images can tell" in done.stdout
    done = script("reproduce", "small", *again, "--seeds", "1,2")
    assert "$" not in done.stdout, "finished runs are not run again"
    assert "difference +0.000 points" in done.stdout

    # what is there already is never taken for something else
    done = script("reproduce", "ensemble", *again, "--seeds", "1")
    assert "again/ensemble/evaluation.json is of other runs" in done.stderr
    done = script("reproduce", "small", "optimizer.lr=0.5", *again)
    assert "name a new folder: --output" in done.stderr
    done = script("reproduce", "small", "optimizer.lr=0.5", "--seeds", "3", *again)
    assert "no verdict, as it is another recipe" in done.stdout
    shutil.copytree("again/small/seed-3", "rungs/small/seed-3")
    assert "rungs/small holds runs of several recipes" in script("ladder", "rungs", "--output", "out").stderr
    assert "must be one of ensemble, small" in script("reproduce", "none", *again).stderr
