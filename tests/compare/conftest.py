"""Real runs to be compared."""

import shutil
from pathlib import Path

import pytest
from helpers import SMALL, run_command


@pytest.fixture(scope="session")
def made(tmp_path_factory, data_root) -> Path:
    """Real runs: two seeds of one recipe, two of another, one on another split, one that failed."""
    place = tmp_path_factory.mktemp("runs")
    runs = {
        "a1": ["seed=1"],
        "a2": ["seed=2"],
        "b1": ["seed=1", "optimizer.lr=0.03"],
        "b2": ["seed=2", "optimizer.lr=0.03"],
        "split": ["data.split_seed=7"],
        "broken": ["optimizer=sgd", "optimizer.lr=1e30", "schedule=one_cycle", "schedule.initial_epochs=9"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        for name, overrides in runs.items():
            arguments = [*SMALL, "schedule.extra_epochs=2", *overrides, f"hydra.run.dir={place / name}"]
            assert run_command(*arguments) == (1 if name == "broken" else 0)
    return place


@pytest.fixture
def runs(made, place) -> Path:
    shutil.copytree(made, place / "outputs")
    return place / "outputs"
