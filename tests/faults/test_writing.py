"""Files that are the old or the new one, and what killed writers leave."""

import os
import stat
import subprocess
import sys

import pytest
from helpers import ROOT

from mnist_exp.files import atomic_write, write_together

WRITER = """
import os, sys, pathlib
from mnist_exp import files
def stop(descriptor): print("written", flush=True); input()
files.os.fsync = stop
files.atomic_write(pathlib.Path("run.json"), b"new")
"""


def unfinished(place) -> list:
    return [p for p in place.iterdir() if "unfinished" in p.name]


def test_what_a_killed_writer_left_is_swept_up_and_what_one_is_at_is_not(place):
    (place / "run.json").write_text("old")
    words = [sys.executable, "-c", WRITER]
    options = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "cwd": place,
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
    }
    killed, working = (subprocess.Popen(words, **options) for _ in range(2))
    for writer in (killed, working):
        assert writer.stdout.readline() == b"written\n"
    killed.kill()
    killed.wait()
    assert len(unfinished(place)) == 2
    atomic_write(place / "history.csv", b"more")
    assert len(unfinished(place)) == 1
    working.communicate(b"\n\n")
    assert working.returncode == 0
    assert unfinished(place) == []
    assert (place / "run.json").read_bytes() == b"new"


def test_what_another_has_laid_there_is_not_followed(place):
    (place / "mine").write_text("mine")
    (place / ".a.mnist_exp-unfinished").symlink_to(place / "mine")
    os.mkfifo(place / ".b.mnist_exp-unfinished")
    (place / ".c.mnist_exp-unfinished").mkdir()
    atomic_write(place / "run.json", b"new")
    assert (place / "mine").read_text() == "mine"


def test_a_name_may_be_as_long_as_names_can_be(place):
    path = place / ("x" * 255)
    atomic_write(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_file_has_the_mode_that_new_files_have(place):
    before = os.umask(0o027)
    try:
        atomic_write(place / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "file").stat().st_mode) == 0o640


def test_an_error_names_the_file_and_leaves_it_as_it_was(place, monkeypatch):
    (place / "file").write_bytes(b"old")
    (place / "folder").mkdir()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            atomic_write(place / "file", b"new")
    assert caught.value.filename == str(place / "file")
    with pytest.raises(IsADirectoryError) as caught:
        atomic_write(place / "folder", b"new")
    assert caught.value.filename == str(place / "folder")
    assert (place / "file").read_bytes() == b"old"
    assert unfinished(place) == []


def test_files_that_belong_together_are_never_of_two_writings(place, monkeypatch):
    """Cut off after the first of them is in its place."""
    pair = [place / "images", place / "labels"]
    write_together(dict.fromkeys(pair, b"old"))
    monkeypatch.setattr("mnist_exp.files.sync_folder", lambda folder: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        write_together(dict.fromkeys(pair, b"new"))
    assert {path.read_bytes() for path in pair if path.exists()} == {b"new"}
    assert not pair[1].exists()
