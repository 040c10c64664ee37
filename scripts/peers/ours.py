"""This package's own competitors, each run as a user would, and their figures read from the folder of the run."""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_exp.config.request import quoted

BATCH = 256  # of what is limited
# what is not wanted where only throughput is measured
_LIMITED = [f"data.batch_size={BATCH}", "data.val_size=0", "evaluate.test=false", "evaluate.tta_runs=1"]


@dataclass(frozen=True)
class Own:
    """The overrides of a competitor. ``limited``: as of a ``Peer``."""

    overrides: tuple[str, ...]
    limited: bool = False


OURS = {
    "sprint": Own(("experiment=sprint",)),
    "sprint_fp32": Own(("experiment=sprint", "trainer.precision=fp32")),
    "fast": Own(("experiment=fast",)),
    "default": Own((), limited=True),
    "default_fp32": Own(("trainer.precision=fp32",), limited=True),
}


def missing(name: str) -> str | None:
    """Return why a competitor cannot run: its experiment is not there."""
    from mnist_exp.config.ours import config_folder

    for override in OURS[name].overrides:
        key, _, choice = override.partition("=")
        if key == "experiment" and not Path(config_folder(), key, f"{choice}.yaml").exists():
            return f"there is no conf/experiment/{choice}.yaml"
    return None


def words(name: str, data: Path, seed: int, images: int, extra: list[str]) -> list[str]:
    """Return the words of ``python -m mnist_exp`` that train the competitor ``name`` in the folder ``run``."""
    fixed = [f"seed={seed}", f"data.root={quoted(data)}", "data.fallback=null", "hydra.run.dir=run"]
    if OURS[name].limited:
        fixed += [f"trainer.max_steps={max(images // BATCH, 1)}", *_LIMITED]
    return ["-m", "mnist_exp", "train", *OURS[name].overrides, *fixed, *extra]


def figures(run: Path, limited: bool) -> dict[str, Any]:
    """Return what ``run.train`` of the peers does, of a run's folder.

    The seconds are those of its epochs without the scores on validation, as the peers' are. The test set was scored at
    the end: so its accuracy comes after the whole training.
    """
    info = json.loads((run / "run.json").read_text())
    with (run / "history.csv").open() as file:
        rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    images, left = [], sys.maxsize
    if limited:
        steps = next(x for x in reversed(info["overrides"]) if x.startswith("trainer.max_steps=")).partition("=")[2]
        left = BATCH * int(steps)
    for _ in rates:
        images.append(min(info["dataset"]["train"], left))
        left -= images[-1]
    seconds = sum(count / rate for count, rate in zip(images, rates, strict=True))
    epochs = []
    if "test_acc" in info["metrics"]:
        epochs = [{"epoch": len(rates), "seconds": seconds, "test_acc": info["metrics"]["test_acc"]}]
    return {"precision": info["precision"], "images": sum(images), "seconds": seconds, "epochs": epochs}
