"""Searches on several processes and machines: joblib, submitit, SLURM, Ray, PostgreSQL."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys

import optuna
import pytest
import yaml
from helpers import info, start, wait_until
from small import BASELINE, TINY, states, trials


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def test_two_processes_share_the_trials_and_the_threads(shell, place, monkeypatch):
    (place / "mine.py").write_text(
        "import gc, os\nfrom mnist_exp.parts.models import SmallCNN\n"
        "class Net(SmallCNN):\n"
        "    def forward(self, x):\n"
        "        with open('frozen', 'a') as file:\n"
        "            file.write(f'{os.getpid()} {gc.get_freeze_count()}\\n')\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.setenv("MNIST_EXP_ALLOW", "mine.*")
    done = shell(*TINY, "model._target_=mine.Net", "hydra/launcher=joblib", "hydra.sweeper.n_trials=3")
    assert done.status == 0, done.err
    assert states(place) == ["COMPLETE"] * 3
    # what a worker has imported is not searched for garbage after each of its trials, which takes a third of a second
    frozen = [tuple(map(int, line.split())) for line in (place / "frozen").read_text().splitlines()]
    assert len({pid for pid, _ in frozen}) == 2
    assert min(count for _, count in frozen) == 0
    assert max(count for _, count in frozen) > 100_000
    config = yaml.safe_load((place / "outputs/sweeps/quick/trial-1/.hydra/config.yaml").read_text())
    assert config["trainer"]["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.slow
def test_a_dead_worker_does_not_end_the_search(shell, place, monkeypatch):
    (place / "mine.py").write_text(
        "import os, pathlib\nfrom mnist_exp.parts.models import SmallCNN\n"
        "class Net(SmallCNN):\n"
        "    def forward(self, x):\n"
        "        flag = pathlib.Path(os.environ['FLAG'])\n"
        "        if self.training and not flag.exists():\n"
        "            flag.touch()\n            os._exit(7)\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("MNIST_EXP_ALLOW", "mine.*")
    monkeypatch.setenv("FLAG", str(place / "died"))
    done = shell(*TINY, "model._target_=mine.Net", "hydra/launcher=joblib", "hydra.sweeper.n_trials=3")
    assert done.status == 0, done.err + done.out
    assert (place / "died").exists()
    assert "a worker died" in done.out
    assert [s for s in states(place) if s != "COMPLETE"] in ([], ["PRUNED"])


def has_slurm() -> bool:
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "submitit_local",
        pytest.param("submitit_slurm", marks=pytest.mark.skipif(not has_slurm(), reason="no SLURM cluster here")),
        pytest.param("ray", marks=pytest.mark.skipif(not has("ray"), reason="needs: pip install 'mnist_exp[ray]'")),
    ],
)
def test_a_cluster_runs_the_trials_with_the_threads_it_reserves(shell, place, launcher):
    done = shell(*TINY, f"hydra/launcher={launcher}", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    assert done.status == 0, done.err
    assert states(place) == ["COMPLETE"] * 2
    config = yaml.safe_load((place / "outputs/sweeps/quick/trial-1/.hydra/config.yaml").read_text())
    assert config["trainer"]["threads"] == 1


@pytest.mark.slow
def test_two_sweepers_share_one_study_in_postgresql(place, shell, postgres):
    arguments = [*TINY, "hydra.sweeper.n_trials=6", f"hydra.sweeper.storage={postgres}"]
    words = [sys.executable, "-m", "mnist_exp", *arguments]
    both = [
        subprocess.Popen(
            [*words, f"paths.outputs=machine{n}"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    study = optuna.load_study(study_name="quick", storage=postgres)
    found = study.get_trials(deepcopy=False)
    assert all(t.state.is_finished() for t in found)
    assert len(found) == 6
    assert [t.params for t in found].count(BASELINE) == 1
    assert len({json.dumps(t.params, sort_keys=True) for t in found}) == len(found)
    assert len({t.user_attrs["owner"] for t in found}) == 2
    done = shell("compare", "machine0/sweeps/quick")
    assert done.status == 2
    assert "compare machine0/sweeps/quick --storage URL" in done.err
    assert postgres in done.err
    done = shell("compare", "machine0/sweeps/quick", "--storage", postgres)
    assert done.status == 0, done.err
    assert "quick: 6 trials" in done.out
    done = shell("compare", "machine0/sweeps/quick", "--storage", f"{postgres}_other")
    assert done.status == 2
    assert "is not to be read as the study of a search" in done.err


@pytest.mark.slow
def test_two_sweepers_share_one_study_on_disk_and_one_takes_over_from_the_other(place):
    more = ["data.train_limit=400", "data.batch_size=8", "schedule.initial_epochs=3", "hydra.sweeper.n_trials=5"]
    first, second = (start(place, *TINY, *more) for _ in range(2))
    sweep = place / "outputs" / "sweeps" / "quick"
    wait_until(lambda: all(list((sweep / f"trial-{n}").glob("checkpoints/last.pth")) for n in range(2)))
    first.kill()
    first.wait()
    assert second.wait(200) == 0, second.stderr.read()
    assert states(place) == ["COMPLETE"] * 5
    assert len({tuple(t.params.values()) for t in trials(place)}) == 5
    assert sum(info(sweep / f"trial-{n}")["resumed"] for n in range(5)) == 1
    assert len({t.user_attrs["owner"] for t in trials(place)}) == 1, "the trial that was taken over has a new owner"
    assert not list(sweep.glob(".sweeper*"))


def test_a_run_of_a_worker_tells_what_runs_it_again(shell, place):
    mine = place / "my own" / "experiment"
    mine.mkdir(parents=True)
    (mine / "small.yaml").write_text("# @package _global_\ndata: {train_limit: 128}\n")
    words = ["--config-dir", "my own", "experiment=small", "hydra/launcher=joblib", "debug=tiny", "task_name=a b"]
    done = shell("--multirun", *words, "seed=1,2", "hydra.sweep.dir=out")
    assert done.status == 0, done.err + done.out
    command = info(place / "out/trial-1")["command"]
    folder = shlex.quote(str(mine.parent))
    assert (
        command
        == f"python -m mnist_exp train --config-dir {folder} experiment=small debug=tiny 'task_name=a\\ b' seed=2"
    )
    again = shell(*shlex.split(command)[3:], "hydra.run.dir=again")
    assert again.status == 0, again.err + again.out
    assert info(place / "again")["recipe"] == info(place / "out/trial-1")["recipe"]
    for metric in ("val_acc", "test_acc"):
        assert info(place / "again")["metrics"][metric] == info(place / "out/trial-1")["metrics"][metric]
