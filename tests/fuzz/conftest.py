"""The folder that each case begins with."""

import shutil
from pathlib import Path

import pytest
from exploring import SHORT
from helpers import run_command
from search.small import TINY


@pytest.fixture(scope="session")
def room(tmp_path_factory, data_root) -> Path:
    """A folder with two good runs, one that was cut off, and a search; made in this process, which so has all imports."""
    room = tmp_path_factory.mktemp("room")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        for name, seed in (("good", 1), ("other", 2)):
            assert run_command("train", *SHORT, f"seed={seed}", "optimizer.lr=0.02", f"hydra.run.dir={name}") == 0
        assert run_command(*TINY, "hydra.sweeper.n_trials=2", "paths.outputs=.") == 0
        assert run_command("train", *SHORT, "trainer.max_steps=1", "hydra.run.dir=bad") == 0
        assert run_command("compare", ".", "--html", "page.html", "--plot", "curves.png") == 0
    shutil.move(room / "sweeps" / "quick", room / "sweep")
    described = room / "bad" / "run.json"
    described.write_text(described.read_text().replace('"status": "finished"', '"status": "interrupted"'))
    (room / "FOLDER").mkdir()
    return room


@pytest.fixture
def lay(room, tmp_path):
    """Lay out the folder of a case, the same each time: a copy of ``room``'s ``names``."""
    work = tmp_path / "work"

    def call(*names: str) -> Path:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in names:
            shutil.copytree(room / name, work / name)
        return work

    return call
