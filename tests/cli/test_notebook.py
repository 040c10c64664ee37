"""The names for notebooks: the same as the command line, returning what a notebook goes on with."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SMALL, info, only_run

import mnist_exp
from mnist_exp.errors import RunFailed, UserError


def test_a_run_can_be_composed_trained_and_loaded(place):
    assert mnist_exp.compose(*SMALL, "seed=5").data.train_limit == 128
    run = mnist_exp.train(*SMALL, "seed=5")
    assert run.path == only_run(place)
    assert run.finished
    assert repr(run) == f"<run {run.path}: finished>"
    assert run.info == info(run.path)
    assert [row["epoch"] for row in run.history()] == [1, 2]
    runs = mnist_exp.load_runs("outputs")
    assert runs["test_acc"].tolist() == [run.info["metrics"]["test_acc"]]
    again = mnist_exp.train(f"resume={run.path}", "schedule.extra_epochs=1")
    assert again.path != run.path
    assert run.info["command"] == "train('debug=tiny', 'data.train_limit=128', 'seed=5')"


def test_a_notebook_keeps_its_own_logging_and_environment(place):
    root, before = logging.getLogger(), dict(os.environ)
    handlers, level = root.handlers[:], root.level
    run = mnist_exp.train(*SMALL)
    assert (root.handlers, root.level) == (handlers, level)
    assert dict(os.environ) == before
    logging.getLogger("mine").warning("mine")
    assert "mine" not in (run.path / "train.log").read_text().splitlines()[-1]


@pytest.mark.slow
def test_a_folder_that_is_used_again_is_read_again(place):
    found = []
    for k in (3, 4):
        mnist_exp.train(*SMALL, f"optimizer.k={k}", "hydra.run.dir=run")
        found.append(mnist_exp.load_runs("run")["recipe"].item())
        shutil.rmtree("run")
    assert found[0] != found[1]


def test_mistakes_and_failures_are_raised(place):
    with pytest.raises(UserError, match=r"optimizer\.lr is 'fast'"):
        mnist_exp.train(*SMALL, "optimizer.lr=fast")
    with pytest.raises(UserError, match=r"did you mean optimizer\.lr\?"):
        mnist_exp.train(*SMALL, "optimizer.lrr=1")
    with pytest.raises(UserError, match="MNIST_EXP_ALLOW"):
        mnist_exp.train(*SMALL, "model._target_=os.system")
    with pytest.raises(UserError, match="several"):
        mnist_exp.train("--multirun", "seed=1,2")
    with pytest.raises(RunFailed, match="not finite"):
        mnist_exp.train(*SMALL, "optimizer=sgd", "optimizer.lr=1e30")
    with pytest.raises(AttributeError, match="nothing"):
        mnist_exp.nothing  # noqa: B018


@pytest.mark.slow
def test_the_tour_walks_through(place):
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tour.py"], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout
    assert "are told the same by all three" in done.stdout
    runs = mnist_exp.load_runs("outputs")
    assert len(runs) == 7
    assert list(runs.columns)[:2] == ["name", "augment.mix.prob"]


def test_names_are_lazy(place):
    program = """
import sys, mnist_exp
assert len([m for m in sys.modules if m.startswith("mnist_exp")]) == 1
from mnist_exp import load_runs
from mnist_exp.compare import load_runs as same
assert load_runs is same
mnist_exp.compose("data=sample")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
