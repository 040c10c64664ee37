"""Several seeds in one line, and what several runs end with."""

import re

import numpy as np
import pytest
from helpers import SMALL, info
from scipy import stats

import mnist_exp
from mnist_exp.errors import UserError


def test_seeds_end_with_their_mean_deviation_and_interval(command, place):
    done = command("train", *SMALL, "seeds=3")
    assert done.status == 0, done.err
    (sweep,) = (place / "outputs" / "sweeps").iterdir()
    runs = [info(path) for path in sorted(sweep.glob("trial-*"))]
    assert [run["seed"] for run in runs] == [1, 2, 3]
    *_, first, line = done.out.splitlines()
    assert first.startswith("mean +- standard deviation over seeds")
    scores = [run["metrics"]["test_acc"] for run in runs]
    low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    told = f"test {np.mean(scores):.2f} +- {np.std(scores, ddof=1):.2f} % ({low:.2f} to {high:.2f})"
    assert line.strip().startswith("val ")
    assert line.endswith(f"{told}, over 3 seeds")
    assert "3 runs: 3 finished" in done.out
    row = command("compare", str(sweep), "--group-by", "--csv", "-").out.splitlines()
    assert float(dict(zip(row[0].split(","), row[1].split(","), strict=False))["test_acc_low"]) == pytest.approx(low)


def test_several_recipes_end_with_a_table_and_a_line_each(command, place):
    done = command("--multirun", *SMALL, "seed=range(1,3)", "optimizer.lr=0.01,0.03")
    assert done.status == 0, done.err
    assert "4 runs: 4 finished" in done.out
    table = done.out[done.out.index("4 runs") :]
    assert {"name", "optimizer.lr", "seed", "test_acc"} <= set(table.splitlines()[1].split())
    assert len(re.findall(r"optimizer\.lr=0\.0[13]: val .* over 2 seeds", table)) == 2
    hint = table.splitlines()[-1]
    assert "--baseline trial-0 --group-by" in hint
    assert command(*hint.partition("mnist_exp ")[2].split()).status == 0


@pytest.mark.slow
def test_runs_of_one_seed_end_with_their_table_alone(command, place):
    done = command("--multirun", *SMALL, "optimizer.lr=0.01,0.03")
    assert done.status == 0, done.err
    assert "2 runs: 2 finished" in done.out
    assert "over seeds" not in done.out


def test_a_key_is_left_out_of_several_runs_and_those_that_fail_are_told(command, place):
    words = [*SMALL, "augment=strong_light", "~augment.strong.erasing", "optimizer=sgd,adamw", "optimizer.momentum=0.5"]
    done = command("--multirun", *words)
    assert done.status == 2
    assert "optimizer.momentum" in done.err
    words = [
        *SMALL,
        "~augment.strong.erasing",
        "optimizer=adamw",
        "optimizer._target_=torch.optim.SGD,torch.optim.AdamW",
    ]
    done = command("--multirun", *words, "+optimizer.betas=[0.9,0.99]")
    assert "failed" in done.out
    assert "_target_=torch.optim.SGD" in next(line for line in done.out.splitlines() if line.startswith("failed"))
    assert "1 run: 1 finished" in done.out
    assert "1 more failed" in done.out
    (run,) = (place / "outputs" / "sweeps").glob("*/trial-*")
    assert "erasing" not in (run / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seeds=0"], ["seeds is 0", "seeds=5 runs seeds 1 to 5"]),
        (["seeds="], ["seeds is empty"]),
        (["seeds=1,2"], ["seeds is 1,2", "--multirun seed=7,8"]),
        (["seeds=2", "seed=7"], ["seeds=2 and seed=7 do not go together"]),
        (["seeds=2", "resume=run"], ["seeds=2 and resume=run"]),
        (["--multirun", "hparams_search=quick", "seeds=2"], ["seeds=2 and hparams_search=quick"]),
    ],
)
def test_mistakes_name_the_way_out(command, place, words, told):
    done = command("train", *SMALL, *words)
    assert (done.status, done.out) == (2, "")
    assert all(word in done.err for word in told)
    assert not (place / "outputs").exists()


def test_a_notebook_trains_one_run(place):
    with pytest.raises(UserError, match="several"):
        mnist_exp.train(*SMALL, "seeds=2")
