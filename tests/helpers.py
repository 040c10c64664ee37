"""What tests share: small runs, and what they leave behind."""

import csv
import json
import logging
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import mnist_exp
from mnist_exp.cli import main
from mnist_exp.data.formats import IDX, read_sample

PACKAGE = Path(mnist_exp.__file__).parent
ROOT = PACKAGE.parent
OFFLINE = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
# a run of a second: few images, few weights
SMALL = ["debug=tiny", "data.train_limit=128"]
# a run with epochs of about a second, to be stopped in the middle of one
SLOW = [
    *("data=sample", "model.blocks=1", "model.channels=[8,16]", "model.ghost_batch_size=8", "data.batch_size=16"),
    *("data.train_limit=2000", "schedule.initial_epochs=3", "augment.mix.prob=0.5", "evaluate.tta_runs=2"),
]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run_command(*arguments: str) -> int:
    """Run a command line in this process; return its exit status."""
    try:
        status = main.report(lambda: main.dispatch(list(arguments)))
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    root = logging.getLogger()  # handlers of this run, whose files are of this test
    for handler in [h for h in root.handlers if h.__class__.__module__ in ("mnist_exp.console", "logging")]:
        root.removeHandler(handler)
        handler.close()
    return status


def only_run(place: Path) -> Path:
    """Return the one run below outputs."""
    (run,) = (place / "outputs" / "runs").iterdir()
    return run


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def rows(run: Path) -> list[dict]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def start(place: Path, *arguments: str) -> subprocess.Popen:
    """Start ``mnist_exp`` in the background, which writes a checkpoint each epoch, however short."""
    eager = "from mnist_exp.training import loop; loop.EVERY = 0; from mnist_exp.cli.main import main; main()"
    words = [sys.executable, "-c", eager, *arguments]
    return subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def wait_for_epochs(run: Path, epochs: int) -> None:
    history = run / "history.csv"
    wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > epochs)


def assert_same_result(one: Path, other: Path) -> None:
    """Weights of every checkpoint, history and metrics are the same to the last bit; only times may differ."""
    states = [torch.load(run / "checkpoints" / "last.pth", weights_only=True) for run in (one, other)]
    for key in ("model", "average"):
        assert all(torch.equal(states[0][key][name], states[1][key][name]) for name in states[0][key])
    names = [sorted(p.name for p in (run / "checkpoints").glob("*epoch*")) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        weights = [torch.load(run / "checkpoints" / name, weights_only=True)["model"] for run in (one, other)]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    timeless = [
        [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in rows(x)] for x in (one, other)
    ]
    assert timeless[0] == timeless[1]
    metrics = [{k: v for k, v in info(run)["metrics"].items() if k != "images_per_s"} for run in (one, other)]
    assert metrics[0] == metrics[1]
    probs = [np.load(run / "results" / "predictions.npz")["probs"] for run in (one, other)]
    assert np.array_equal(*probs)


def idx(array: np.ndarray) -> bytes:
    """Return uint8 of any shape in MNIST's own format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_digits(root: Path, train: int, test: int) -> None:
    """Write so many of the bundled digits below ``root`` as torchvision keeps MNIST."""
    images, labels = read_sample()
    order = np.random.default_rng(0).permutation(len(labels))[: train + test]
    images, labels = images[order], labels[order].astype(np.uint8)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in zip(IDX, (images[:train], labels[:train], images[train:], labels[train:]), strict=True):
        (raw / name).write_bytes(idx(part))


def lay(folder: Path, classes: list[str], count: int, size: tuple[int, int] = (28, 28), kind: str = "png") -> None:
    """Put ``count`` pictures of each class, a bright bar at a place of its own, into ``folder``/<class>."""
    draws = np.random.default_rng(len(str(folder)))
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 80, (28, 28), dtype=np.uint8)
            width = 28 // len(classes)
            pixels[:, width * label : width * (label + 1)] = 255
            Image.fromarray(pixels).resize(size).save(folder / name / f"{number}.{kind}")
