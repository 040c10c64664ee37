"""A study as sweepers share it: no point twice, no trial twice, and locks that end with their holders."""

import subprocess
import sys
import threading

import optuna
import pytest
from helpers import info, wait_until
from omegaconf import OmegaConf
from small import TINY, trials

from mnist_exp.config.job import Job
from mnist_exp.errors import RunLockedError
from mnist_exp.runs.folder import run_lock
from mnist_exp.search.locks import FileLocks, PostgresLocks
from mnist_exp.search.space import Space
from mnist_exp.search.store import Search
from mnist_exp.search.study import Study
from mnist_exp.search.trial import run_trial


def holder(program: str) -> subprocess.Popen:
    """Return a process that has carried out ``program``, and stays inside its last block until it is killed."""
    words = [sys.executable, "-c", f"{program} print(1, flush=True); input()"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    return process


def test_every_point_of_a_small_space_is_found(tmp_path):
    """TPE alone proposes the same few again and again."""
    choices = optuna.distributions.CategoricalDistribution([1, 2, 3, 4])
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "seed": 0})
    space, config = Space({"a": choices, "b": choices}, []), OmegaConf.create()
    search = Search("small", tmp_path, None, "val_acc", "maximize", 16, space, sampler, config, dict)
    storage = optuna.storages.InMemoryStorage()
    study = Study(search, optuna.create_study(direction="maximize", storage=storage), storage, FileLocks(tmp_path))
    points = set()
    while (asked := study.ask()) is not None:
        points.add(tuple(asked[1].values()))
        study.study.tell(asked[0], sum(asked[1].values()))
    assert len(points) == 16


@pytest.mark.slow
def test_a_trial_that_is_started_twice_is_run_once(command, place):
    """As a cluster's queue does, when a sweeper was killed with jobs in it."""
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    run = place / "outputs" / "sweeps" / "quick" / "trial-0"
    config, hydra, overrides = (OmegaConf.load(run / ".hydra" / f"{n}.yaml") for n in ("config", "hydra", "overrides"))
    job = Job(config, run, list(overrides), "trial 0", hydra.hydra, wanted="val_acc")
    before = (run / "history.csv").stat().st_mtime_ns
    again = run_trial(job)
    assert again.finished
    assert again.info["metrics"]["val_acc"] == trials(place)[0].value
    assert (run / "history.csv").stat().st_mtime_ns == before
    other = holder(f"import filelock; lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire();")
    with pytest.raises(RunLockedError, match="another process"):
        run_trial(job)
    other.kill()
    other.wait()
    with run_lock(run):
        assert info(run)["status"] == "finished"


@pytest.fixture(params=["files", pytest.param("postgres", marks=pytest.mark.slow)])
def locks(request, tmp_path):
    """Each kind of locks, and the program that makes the same ones in another process."""
    if request.param == "files":
        kind, arguments = FileLocks, (str(tmp_path),)
    else:
        kind, arguments = PostgresLocks, (request.getfixturevalue("postgres"), "study")
    made = ", ".join(map(repr, arguments))
    program = f"import pathlib\nfrom mnist_exp.search.locks import *\nlocks = {kind.__name__}({made})\n"
    if kind is FileLocks:
        arguments, program = (tmp_path,), program.replace(made, f"pathlib.Path({made})")
    return kind(*arguments), program


def test_a_sweeper_is_at_work_until_its_process_ends_however_it_ends(locks):
    mine, program = locks
    assert not mine.at_work("other")
    other = holder(f"{program}with locks.present('other'):")
    assert mine.at_work("other")
    assert mine.at_work("other")
    assert not mine.at_work("another")
    other.kill()
    other.wait()
    assert not mine.at_work("other")
    with mine.present("me"):
        pass
    assert not mine.at_work("me")


@pytest.mark.slow
def test_a_sweeper_whose_connection_is_lost_comes_back(postgres, caplog):
    import sqlalchemy

    mine, other = PostgresLocks(postgres, "study"), PostgresLocks(postgres, "study")
    with mine.present("me"):
        mine.stay_present()
        assert other.at_work("me")
        kill = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
        with sqlalchemy.create_engine(postgres).connect() as connection:
            connection.execute(sqlalchemy.text(kill))
        wait_until(lambda: not other.at_work("me"))
        mine.stay_present()
        assert other.at_work("me")
        assert "connection to the study was lost" in caplog.text
    assert not other.at_work("me")


def test_locks_of_killed_sweepers_are_swept_up(tmp_path):
    program = (
        f"import pathlib\nfrom mnist_exp.search.locks import *\nwith FileLocks(pathlib.Path({str(tmp_path)!r})).present"
    )
    killed = holder(f"{program}('killed'):")
    killed.kill()
    killed.wait()
    alive = holder(f"{program}('alive'):")
    with FileLocks(tmp_path).present("me"):
        assert {p.name for p in tmp_path.glob(".sweeper*")} == {".sweeper-alive.lock", ".sweeper-me.lock"}
    alive.communicate(b"\n")
    assert not list(tmp_path.glob(".sweeper*"))


def test_sweepers_take_turns_also_after_one_that_was_killed(locks):
    mine, program = locks
    other = holder(f"{program}with locks.turn():")
    entered = threading.Event()

    def enter() -> None:
        with mine.turn():
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(1)
    other.kill()
    other.wait()
    assert entered.wait(20)
    waiting.join()
