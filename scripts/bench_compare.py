"""How long does comparing 1,000 runs take? Makes the folders with the real writer, then times the command line.

python scripts/bench_compare.py [--runs 1000] [--keep FOLDER]
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from mnist_exp import compose
from mnist_exp.runs.folder import RunFolder


def make(folder: Path, number: int, config: str) -> None:
    """Write one run: 20 epochs, 10,000 test predictions, about 100 of them wrong."""
    draws = np.random.default_rng(number)
    lr = round(float(10 ** draws.uniform(-3, -1)), 6)
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    wrong = np.sort(draws.choice(2_000, 100, replace=False))
    predicted = labels.copy()
    predicted[wrong] = (labels[wrong] + 1) % 10
    test_acc = 100 * float((predicted == labels).mean())
    info = {
        "status": "finished",
        "name": f"run-{number}",
        "prefix": "mnist",
        "seed": number,
        "epoch": 20,
        "epochs": 20,
        "started": (datetime(2026, 1, 1) + timedelta(minutes=number)).isoformat(),
        "seconds": 60.0,
        "overrides": [f"optimizer.lr={lr}", f"seed={number}"],
        "dataset": {
            "name": "mnist",
            "train": 55_000,
            "val": 5_000,
            "test": 10_000,
            "split_seed": 0,
            "md5": "0" * 32,
            "classes": list("0123456789"),
        },
        "metrics": {
            "val_acc": 98.5,
            "val_loss": 0.05,
            "test_acc": test_acc,
            "ensemble_acc": 99.0,
            "images_per_s": 200.0,
        },
    }
    text = config.replace("lr: 0.01", f"lr: {lr}").replace("seed: 42", f"seed: {number}")
    run = RunFolder.create(folder / f"run-{number}", info, {"config.yaml": text})
    for epoch in range(1, 21):
        loss = math.exp(-epoch / 5)
        row = {
            "epoch": epoch,
            "phase": "strong",
            "lr": lr,
            "train_loss": loss,
            "train_acc": 99 - loss,
            "val_loss": loss,
        }
        run.append_history({**row, "val_acc": 98.5 - loss, "seconds": 3.0, "images_per_s": 200.0})
    probs = np.zeros((10_000, 10), np.float16)
    probs[np.arange(10_000), predicted] = 1
    pictures = np.zeros((100, 28, 28), np.uint8)
    np.savez_compressed(run.predictions, probs=probs, predicted=predicted, labels=labels, wrong=wrong, images=pictures)
    run.unlock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--keep", help="make the runs in this folder, and leave them there")
    options = parser.parse_args()
    config = OmegaConf.to_yaml(compose())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        for number in range(options.runs):
            make(folder / "runs", number, config)
        page = folder / "page.html"
        commands = {
            "compare --help": ["--help"],
            "table": [str(folder / "runs")],
            "table, filtered and sorted": [
                str(folder / "runs"),
                "--filter",
                "optimizer.lr < 0.02",
                "--sort",
                "test_acc",
            ],
            "HTML": [str(folder / "runs"), "--html", str(page)],
        }
        for name, arguments in commands.items():
            times = []
            for _ in range(3):
                started = time.perf_counter()
                words = [sys.executable, "-m", "mnist_exp", "compare", *arguments]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                times.append(time.perf_counter() - started)
            print(f"{name:28} {sorted(times)[1]:6.2f} s (median of 3; first {times[0]:.2f} s)", flush=True)
        print(f"{'HTML page':28} {page.stat().st_size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
