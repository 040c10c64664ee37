"""What tests share: the command line in this process and as a process of its own, on bundled digits, offline."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tests run side by side

import pytest
import torch

from mnist_exp import cli

OFFLINE = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
# a run of a second: few images, few weights
SMALL = ["debug=tiny", "data.train_limit=128"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A folder of data sets that holds nothing but the cache of the bundled digits."""
    from mnist_exp.data import _read_sample

    root = tmp_path_factory.mktemp("data")
    _read_sample(root)
    return root


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, data_root) -> Path:
    """Work in an empty folder, offline, with the user's own settings out of sight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_EXP_DATA", str(data_root))
    monkeypatch.delenv("MNIST_EXP_ALLOW", raising=False)
    for key, value in OFFLINE.items():
        monkeypatch.setenv(key, value)
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def command(capsys) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        try:
            status = cli.report(lambda: cli.dispatch(list(arguments)))
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        root = logging.getLogger()  # handlers of this run, whose files are of this test
        for handler in [h for h in root.handlers if h.__class__.__module__ in ("mnist_exp.progress", "logging")]:
            root.removeHandler(handler)
            handler.close()
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def shell(place) -> Callable[..., Outcome]:
    """Run ``python -m mnist_exp`` as a process of its own."""

    def call(*arguments: str, **options) -> Outcome:
        words = [sys.executable, "-m", "mnist_exp", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd=place, timeout=240, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


def only_run(place: Path) -> Path:
    """Return the one run below outputs."""
    (run,) = (place / "outputs" / "runs").iterdir()
    return run


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())
