"""Disks that are full, or may not be written: the machine's failure, which costs no trial."""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import RUN, SEARCH, found, states
from helpers import assert_same_result, info

from mnist_exp.errors import MachineFailed, UserError, machine_failure


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_sqlite(code: int) -> Exception:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "the disk is full: x/y could not be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only file system: x"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "Too many open files: x"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: x"),
        (caused(UserError("x cannot be read"), OSError(errno.EIO, "Input/output error", "x")), "Input/output error: x"),
        (caused(ValueError("!"), of_sqlite(sqlite3.SQLITE_FULL)), "SQLite says: database or disk is full"),
        (of_sqlite(sqlite3.SQLITE_IOERR | 12 << 8), "SQLite says: database or disk is full"),
        (RuntimeError("job 3 ended with\nOSError: [Errno 28] No space left on device"), "the disk is full"),
        (MachineFailed("the disk is full", "type this"), "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), None),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), None),
        (MemoryError("of its own doing"), None),
        (of_sqlite(sqlite3.SQLITE_CONSTRAINT), None),
        (ValueError("the loss is not finite"), None),
    ],
)
def test_what_the_machine_has_done_is_told_from_what_a_trial_has(error, problem):
    assert machine_failure(error) == problem


def full_at(whole: tuple[list[dict], list[str]], file: str) -> int:
    """The last boundary at ``file`` that opens something."""
    return max(n for n, boundary in enumerate(whole[1], 1) if boundary.startswith("open ") and file in boundary)


def test_a_disk_that_gets_full_stops_a_search_and_costs_no_trial(machine, place, whole_search):
    done = machine(place, *SEARCH, kind="full", at=full_at(whole_search, "trial-1/checkpoints"))
    assert done.status == 1
    assert done.err.startswith("error: the disk is full: ")
    assert "the same command goes on with the search" in done.err
    assert "Traceback" not in done.out + done.err
    assert states(place) == ["COMPLETE", "RUNNING"]
    again = machine(place, *SEARCH)
    assert again.status == 0, again.err
    assert found(place) == whole_search[0]


def test_a_run_is_not_finished_before_its_last_words_are_written(machine, place, whole_run):
    done = machine(place, *RUN, kind="full", at=len(whole_run[1]) - 1)
    assert done.status == 1
    assert info(place / "run")["status"] == "running"
    assert "run.json" in done.err
    assert machine(place, "train", "resume=run").status == 0
    assert_same_result(whole_run[0], place / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_printed_to_a_full_disk_is_lost_and_nothing_else(place, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        options = {"stdout": full, "stderr": subprocess.PIPE, "text": True, "cwd": place, "timeout": 200}
        done = subprocess.run([sys.executable, "-m", "mnist_exp", *RUN], **options)
        assert (done.returncode, done.stderr) == (0, "")
        done = subprocess.run([sys.executable, "-m", "mnist_exp", "compare", "run"], **options)
        assert (done.returncode, done.stderr) == (1, "error: the disk is full\n")
        done = subprocess.run([sys.executable, "-m", "mnist_exp", "--help"], **options)
        assert (done.returncode, done.stderr) == (1, "error: the disk is full\n")
    assert info(place / "run")["status"] == "finished"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount: {error}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 40_000, 120_000, 160_000, 200_000])
def test_a_search_on_a_disk_that_fills_up_completes_when_it_is_freed(machine, small_disk, whole_search, free):
    filling = small_disk / "filling"
    with filling.open("wb") as file:
        there = os.statvfs(small_disk)
        file.write(bytes(there.f_bavail * there.f_frsize - free))
    done = machine(small_disk, *SEARCH)
    assert done.status == 1, done
    assert done.err.count("error: ") == 1
    assert "full" in done.err, done.err
    assert "Traceback" not in done.out + done.err
    filling.unlink()
    again = machine(small_disk, *SEARCH)
    assert again.status == 0, again.err
    assert found(small_disk) == whole_search[0]


def test_a_run_on_a_disk_that_may_not_be_written_any_more_goes_on_when_it_may(machine, small_disk, whole_run):
    done = machine(small_disk, *RUN, kind="kill", at=30)
    assert done.status == 137
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = machine(small_disk, "train", "resume=run")
    assert done.status == 1, done
    assert "ead-only file system" in done.err
    assert "Traceback" not in done.out + done.err
    assert machine(small_disk, "compare", "run").status == 0
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert machine(small_disk, "train", "resume=run").status == 0
    assert_same_result(whole_run[0], small_disk / "run")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_tell_their_sweeper_of_a_full_disk(place, launcher):
    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (240_000, 240_000))  # enough for study.db, too few for a checkpoint

    arguments = [
        *SEARCH,
        f"hydra/launcher={launcher}",
        "hydra.sweeper.n_trials=3",
        "model.channels=[16,64,64]",
        "hydra.sweeper.n_jobs=2",
    ]
    words = [sys.executable, "-m", "mnist_exp", *arguments]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=200, preexec_fn=no_large_files)
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: the disk is full"), done.stderr
    assert "Traceback" not in done.stderr
    assert "FAIL" not in states(place)
    again = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert states(place) == ["COMPLETE"] * 3
