"""Run folders and studies that the package wrote before it had wings, when its components had other names.

The archive was written by that version (commit 864d52c): two finished runs, one interrupted in the middle of an epoch, a
search of three trials interrupted in its second, an experiment=best; pictures, logs and spare checkpoints are left out.
``continued.json`` has the metrics that the same version got when it went on.
"""

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from helpers import info, rows
from omegaconf import OmegaConf

from mnist_exp import load_runs
from mnist_exp.config import recipe

TINY = [
    *("model.channels=[2,3,4]", "data.train_limit=32", "data.batch_size=16", "data.test_size=20", "data.val_size=20"),
]
SEARCH = [
    *("--multirun", "hparams_search=quick", *TINY, "schedule.initial_epochs=2", "schedule.extra_epochs=0"),
    *("pruner=none", "paths.outputs=.", "hydra.sweeper.n_trials=3"),
]
# the ranges that it searched
RANGES = [
    *("augment.mix.prob=interval(0.0,0.5)", "augment.mix.mixup_alpha=tag(log,interval(0.01,1.0))"),
    *("augment.mix.cutmix_beta=tag(log,interval(0.05,2.0))", "optimizer.lr=tag(log,interval(0.001,0.1))"),
    "optimizer.weight_decay=tag(log,interval(1e-6,1e-3))",
]


@pytest.fixture
def older(place) -> dict:
    with tarfile.open(Path(__file__).with_name("written_before_the_wings.tar.xz")) as archive:
        archive.extractall(place, filter="data")
    return json.loads((place / "continued.json").read_text())


def assert_as_continued(older: dict, run: str, rel: float = 1e-4) -> None:
    metrics = info(Path(run))["metrics"]
    losses = [key for key in older[run] if "loss" in key]  # accuracies of 20 images may turn on the last bit
    assert losses
    assert {k: metrics[k] for k in losses} == pytest.approx({k: older[run][k] for k in losses}, rel=rel)
    assert set(older[run]) <= set(metrics)


def test_compare_reads_them_and_knows_repetitions_of_today(command, older):
    done = command("compare")
    assert done.status == 2  # there is no folder outputs here
    default = ["schedule.swa_anneal_epochs=10", "trainer.precision=fp32"]  # as it was
    arguments = ["debug=tiny", *TINY, *default, "seed=3"]
    assert command("train", *arguments, "hydra.run.dir=runs/today", "tags=[new]").status == 0
    done = command("compare", "runs", "sweeps", "--group-by", "--csv", "groups.csv")
    assert done.status == 0, done.err
    assert command("compare", "runs", "sweeps").out.startswith("6 runs: 4 finished, 2 interrupted")
    assert "1,2,3" in pd.read_csv("groups.csv")["seeds"].tolist()
    for key in recipe.ADDED:  # of which they say nothing
        done = command("compare", "runs", "--group-by", key, "--csv", "groups.csv")
        assert done.status == 0, done.err
        assert "1,2,3" in pd.read_csv("groups.csv")["seeds"].tolist()
    today = info(Path("runs/today"))
    for known in (None, {"rule": 0, "digest": "made by another rule"}):
        Path("runs/today/run.json").write_text(json.dumps({**today, "recipe": known}))
        assert load_runs("runs").groupby("recipe")["seed"].agg(set).tolist().count({1, 2, 3}) == 1
    done = command("compare", "runs", "--baseline", "finished-1", "--csv", "against.csv")
    assert set(pd.read_csv("against.csv")["name"]) == {"finished-2", "today"}


def test_an_interrupted_run_goes_on_as_it_would_have(command, older):
    done = command("train", "resume=runs/interrupted")
    assert done.status == 0, done.err
    assert "resuming in epoch 2" in done.out
    assert len(rows(Path("runs/interrupted"))) == 4
    assert_as_continued(older, "runs/interrupted")


def test_a_finished_run_is_trained_further(command, older):
    done = command("train", "resume=runs/finished-1", "schedule.extra_epochs=1", "hydra.run.dir=runs/further")
    assert done.status == 0, done.err
    assert_as_continued(older, "runs/further", rel=1e-3)  # with the random numbers of today


def test_a_search_is_finished_by_repeating_its_command(command, older):
    before = info(Path("sweeps/quick/trial-0"))
    done = command(*SEARCH)
    assert done.status == 2
    assert "augment.mix.prob=interval(0.0,0.5)" in done.err
    assert "augment.mix.prob=interval(0.0,1.0)" in done.err
    done = command(*SEARCH, *RANGES)  # with another default than theirs
    assert done.status == 2
    assert "there schedule.swa_anneal_epochs=10\n  here  schedule.swa_anneal_epochs=null\n" in done.err
    assert info(Path("sweeps/quick/trial-1"))["status"] == "interrupted"
    done = command(*SEARCH, *RANGES, "schedule.swa_anneal_epochs=10")
    assert done.status == 0, done.err
    assert_as_continued(older, "sweeps/quick/trial-1")
    assert info(Path("sweeps/quick/trial-1"))["resumed"] == 1
    assert info(Path("sweeps/quick/trial-0")) == before
    assert "quick: 3 trials" in command("compare", "sweeps/quick").out
    assert command("--config-dir", "sweeps/quick/conf", "experiment=best", "hydra.run.dir=best").status == 0
    done = command(*SEARCH, *RANGES, "schedule.swa_anneal_epochs=10", "optimizer.momentum=0.5")
    assert done.status == 2
    assert "optimizer.momentum=0.9" in done.err


def test_a_best_experiment_can_be_trained(command, older):
    done = command("train", "--config-dir", "conf", "experiment=best", "hydra.run.dir=best")
    assert done.status == 0, done.err
    assert info(Path("best"))["metrics"]["val_loss"] > 0
    assert "mnist_exp.parts.models.SmallCNN" in Path("best/.hydra/config.yaml").read_text()


def test_the_best_of_an_older_search_has_its_recipe(command, older):
    assert command("compare", "sweeps/quick").status == 0
    assert [path.name for path in Path("sweeps/quick/conf").iterdir()] == ["experiment"]  # the groups are ours
    done = command("train", "--config-dir", "sweeps/quick/conf", "--cfg", "job", "experiment=best")
    assert done.status == 0, done.err
    configs = [OmegaConf.create(done.out), OmegaConf.load("sweeps/quick/trial-0/.hydra/config.yaml")]
    found = [recipe.values(OmegaConf.to_container(config)) for config in configs]
    searching = ("optimized_metric", "evaluate.test", "pruner")
    one, other = ({k: v for k, v in values.items() if not recipe.below(k, searching)} for values in found)
    assert one == other
    done = command("train", "--config-dir", "sweeps/quick/conf", "--cfg", "job", "experiment=best", "data=mnist")
    assert OmegaConf.create(done.out).data.name == "mnist"
