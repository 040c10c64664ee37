"""The command line in this process and as a process of its own, on bundled digits, offline."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tests run side by side

import pytest
import torch
from helpers import OFFLINE, Outcome, run_command


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """An empty folder of data sets."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, data_root) -> Path:
    """Work in an empty folder, offline, with the user's own settings out of sight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_EXP_DATA", str(data_root))
    monkeypatch.delenv("MNIST_EXP_ALLOW", raising=False)
    monkeypatch.setattr("mnist_exp.training.loop.EVERY", 0)  # a checkpoint each epoch, however short
    for key, value in OFFLINE.items():
        monkeypatch.setenv(key, value)
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def command(capsys) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        return Outcome(run_command(*arguments), *capsys.readouterr())

    return call


@pytest.fixture
def shell(place) -> Callable[..., Outcome]:
    """Run ``python -m mnist_exp`` as a process of its own."""

    def call(*arguments: str, **options) -> Outcome:
        words = [sys.executable, "-m", "mnist_exp", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd=place, timeout=240, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def browser():
    """Chromium, started for this test."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install 'mnist_exp[browser]'")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here (Debian's package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
