"""Workers of a search whose sweeper is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, info, start, wait_until

ROOMY = [
    *("--multirun", "hparams_search=quick", "hydra/launcher=joblib", "hydra.sweeper.n_trials=2", "pruner=none"),
    *("data.train_limit=3000", "data.batch_size=4", "schedule.initial_epochs=1", "schedule.extra_epochs=1"),
]


def family(process: int) -> list[int]:
    """The processes that ``process`` has started, and those that they have."""
    children = [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return children + [pid for child in children for pid in family(child)]


def ends_soon(process: int) -> bool:
    """Whether a process is gone, or is a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_ends_with_its_parent(tmp_path):
    """One at a run ends as it does on SIGTERM; one that waits for work ends at once."""
    program = "import os, signal, sys, time; from mnist_exp.signals import end_with, terminate_as_interrupt\n"
    program += "end_with(os.getppid()); os.write(1, b'%d\\n' % os.getpid())\n"  # at once, as two write
    at_run = "try:\n    with terminate_as_interrupt(): time.sleep(99)\nexcept KeyboardInterrupt: open('ended', 'w'); time.sleep(99)"
    parent = "import subprocess, sys; [subprocess.Popen([sys.executable, '-c', p]) for p in sys.argv[1:]]; input()"
    words = [sys.executable, "-c", parent, program + "time.sleep(99)", program + at_run]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    wait_until(lambda: all(map(ends_soon, workers)), 15)
    assert (tmp_path / "ended").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to see its processes")
def test_workers_end_with_their_sweeper_and_their_trials_go_on(place):
    sweep = place / "outputs" / "sweeps" / "quick"
    shared = Path("/dev/shm")
    before = {p.name for p in shared.iterdir()}
    sweeper = start(place, *ROOMY)
    wait_until(lambda: all((sweep / f"trial-{n}" / "history.csv").exists() for n in range(2)))
    time.sleep(1)
    workers = family(sweeper.pid)
    assert len(workers) >= 2
    sweeper.kill()
    sweeper.wait()
    wait_until(lambda: all(map(ends_soon, workers)), 12)
    assert not [n for n in {p.name for p in shared.iterdir()} - before if "loky" in n or "joblib" in n]
    for number in range(2):
        assert info(sweep / f"trial-{number}")["status"] == "interrupted"
        state = torch.load(sweep / f"trial-{number}" / "checkpoints" / "last.pth", weights_only=True)
        assert state["step"] > 0, "not from where it was"
    words = [sys.executable, "-m", "mnist_exp", *ROOMY]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [info(sweep / f"trial-{n}")["resumed"] for n in range(2)] == [1, 1]
