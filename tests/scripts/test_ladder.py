"""The README's table and picture of results, made from run folders, and a row of it run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

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


def test_rows_are_summed_up_over_their_seeds():
    from ladder import table
    from rungs import summary

    runs = [
        {"seed": s, "test_acc": a, "test_acc_tta": a + 0.1, "val_acc": 99.0, "train_seconds": 50.0, "seconds": 130.0}
        for s, a in ((1, 99.4), (2, 99.6))
    ]
    row = {"overrides": ["experiment=fast"], "dataset": {"test": 10_000}, "epochs": 3, "runs": runs}
    found = summary(row)
    assert found["test_acc"] == pytest.approx(99.5)
    assert (found["low"], found["high"]) == pytest.approx((99.34, 99.62), abs=0.01), "what 10,000 images can tell"
    line = table({"fast": row}).splitlines()[-1]
    assert (
        "`train experiment=fast` | 99.50 % (99.34 to 99.62) | 1: 99.40, 2: 99.60 | 99.60 % | 99.00 % | 50 s | 2 min"
        in line
    )


@pytest.mark.timeout(300)
def test_the_ladder_is_made_from_run_folders_and_a_row_is_run_again(place, command):
    for seed in (1, 2):
        command("train", *SMALL, f"seed={seed}", f"hydra.run.dir=rungs/small/{seed}")
    runs = [f"rungs/small/{seed}" for seed in (1, 2)]
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
    Image.open("out/ladder.png").verify()

    again = ["ensemble", "--output", "again", "--ladder", "out/ladder.json"]
    first = script("reproduce", *again)
    assert first.returncode == 0, first.stderr
    scores = [
        json.loads(Path(f, "evaluation.json").read_text())["scores"] for f in ("rungs/ensemble", "again/ensemble")
    ]
    assert scores[0] == scores[1], "the same seeds on the same machine"
    assert "within what 1,000 images can tell" in first.stdout
    second = script("reproduce", "small", *again[1:], "--seeds", "1", "2")
    assert "$" not in second.stdout, "finished runs are not run again"
    assert "difference   +0.000 points" in second.stdout

    command("train", *SMALL, "seed=3", "optimizer.lr=0.02", "hydra.run.dir=rungs/small/3")
    assert "several recipes" in script("ladder", "rungs", "--output", "out").stderr
    assert "must be one of ensemble, small" in script("reproduce", "none", *again[1:]).stderr
