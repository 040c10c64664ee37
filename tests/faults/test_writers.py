"""Two who write the same: one of them does, or both, one after the other; never half and half."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from faulty import RUN
from helpers import SLOW, assert_same_result, idx, info, start, wait_for_epochs

from mnist_exp.data.formats import IDX, read
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder


def test_a_folder_that_another_has_begun_to_write_is_left_alone(command, place):
    run = place / "run"
    run.mkdir()
    program = f"import filelock; lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire(); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"1\n"
    done = command(*RUN)
    other.communicate(b"\n")
    assert done.status == 2
    assert "being written by another process" in done.err
    assert not (run / ".hydra").exists()


class Meddler:
    """A logger that resumes its run in another process, as it were, while this one is about to."""

    def __init__(self):
        if (run := Path("run")) and (run / "run.json").exists():
            about = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(json.dumps({**about, "resumed": about["resumed"] + 1}))

    def start(self, folder, parameters):
        raise SystemExit(9)

    def log(self, metrics, epoch=None):
        pass

    def finish(self, status):
        pass


def test_a_run_that_another_has_resumed_meanwhile_is_left_alone(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "test_writers.*")
    assert command(*RUN, "+logger.meddler._target_=test_writers.Meddler").status == 9
    done = command("train", "resume=run")
    assert done.status == 2
    assert "has just been written by another process" in done.err
    assert info(place / "run")["status"] == "interrupted"
    RunFolder.open(place / "run").lock()  # nobody holds it


@pytest.mark.slow
def test_two_processes_resume_the_same_run(place):
    whole = start(place, "train", *SLOW, "hydra.run.dir=whole")
    killed = start(place, "train", *SLOW, "hydra.run.dir=killed")
    wait_for_epochs(place / "killed", 1)
    killed.kill()
    killed.wait()
    both = [start(place, "train", "resume=killed") for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert "another process" in "".join(errors)
    assert whole.wait(200) == 0
    assert_same_result(place / "whole", place / "killed")


@pytest.mark.slow
def test_two_processes_begin_the_same_run(place):
    both = [start(place, *RUN, f"seed={seed}") for seed in (1, 2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    seed = 1 if both[0].returncode == 0 else 2
    config = yaml.safe_load((place / "run" / ".hydra" / "config.yaml").read_text())
    assert config["seed"] == info(place / "run")["seed"] == seed
    assert info(place / "run")["status"] == "finished"


def test_a_page_is_whole_whoever_writes_it(machine, place):
    """At every boundary of writing it, and by two at once."""
    assert machine(place, *RUN).status == 0
    whole = machine(place, "compare", "run", "--html", "runs.html")
    page = (place / "runs.html").read_bytes()
    for kind in ("kill", "full"):
        for at in range(1, len(whole.seen) + 1):
            (place / "runs.html").write_bytes(b"the old one")
            done = machine(place, "compare", "run", "--html", "runs.html", kind=kind, at=at)
            assert done.status == (137 if kind == "kill" else 1), done
            assert "Traceback" not in done.err
            assert (place / "runs.html").read_bytes() in (b"the old one", page)
    both = [start(place, "compare", "run", "--html", "runs.html") for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (place / "runs.html").read_bytes() == page
    assert not [p for p in place.iterdir() if "unfinished" in p.name]


def digits(folder: Path, label: int) -> Path:
    """The files of a data set that has no published MD5: images of the colour ``label``, all of that class."""
    folder.mkdir()
    for name in IDX:
        array = np.full((30, 28, 28) if "images" in name else 30, label, np.uint8)
        (folder / name).write_bytes(idx(array))
    return folder


def classes(root: Path) -> set[int]:
    """The labels and colours that are installed; none if the data set is not complete."""
    try:
        contents = read("fashion_mnist", root)
    except UserError:
        return set()
    return {int(v) for part in (*contents.images, *contents.labels) for v in np.unique(part)}


@pytest.mark.parametrize("kind", ["kill", pytest.param("full", marks=pytest.mark.slow)])
def test_a_data_set_is_of_one_import_wherever_it_is_cut_off(machine, place, kind):
    words = ["data.root=root", "--name", "fashion_mnist"]
    for label in (1, 2):
        digits(place / f"set{label}", label)
    machine(place, "data", "import", "set1", *words)
    shutil.copytree(place / "root", place / "one")
    seen = machine(place, "data", "import", "set2", *words).seen
    assert classes(place / "root") == {2}
    for at in range(1, len(seen) + 1):
        shutil.rmtree(place / "root")
        shutil.copytree(place / "one", place / "root")
        done = machine(place, "data", "import", "set2", *words, kind=kind, at=at)
        assert done.status == (137 if kind == "kill" else 1), done
        assert classes(place / "root") in ({1}, {2}, set()), at
        assert "Traceback" not in done.err
    assert machine(place, "data", "import", "set2", *words).status == 0
    assert classes(place / "root") == {2}
    assert not [p for p in (place / "root").rglob(".*") if "unfinished" in p.name]


@pytest.mark.slow
def test_two_imports_at_once_leave_the_data_set_of_one(place):
    for label in (1, 2):
        digits(place / f"set{label}", label)
    for _ in range(3):
        words = ["data.root=root", "--name", "fashion_mnist"]
        both = [start(place, "data", "import", f"set{label}", *words) for label in (1, 2)]
        assert [process.wait(100) for process in both] == [0, 0]
        assert classes(place / "root") in ({1}, {2})
