"""What comes after the last epoch: scores on validation and, this once, on test; predictions, pictures, a summary."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mnist_exp.console import clock
from mnist_exp.data.splits import LoaderSplit, Split
from mnist_exp.errors import RunFailed, UserError
from mnist_exp.files import atomic_write
from mnist_exp.parts.evaluate import PLAIN, accuracy, nll
from mnist_exp.runs import pictures
from mnist_exp.runs.figures import write_figure
from mnist_exp.runs.folder import CONFUSION, MISTAKES, PREDICTIONS, RunFolder
from mnist_exp.runs.schema import plain
from mnist_exp.statistics import wilson
from mnist_exp.training.checkpoints import Checkpoints, save
from mnist_exp.training.components import Components
from mnist_exp.training.state import State

log = logging.getLogger(__name__)
Scored = dict[str, tuple[Tensor, Tensor]]


def draw_history(parts: Components, run: RunFolder, kinds: Sequence[str]) -> None:
    """Write the history as JSON and as pictures of the ``kinds``, such as png and pdf."""
    rows, schedule = run.history(), parts.schedule
    atomic_write(run.result("history.json"), (json.dumps(plain(rows), indent=1) + "\n").encode())
    swa_epoch = schedule.swa_epoch if schedule.swa_epoch <= schedule.total else None
    title = f"{parts.splits.name}, seed {run.info['seed']}"
    write_figure(pictures.loss_figure(rows, swa_epoch, title), run.result("train_loss.png"), kinds)
    write_figure(pictures.curves_figure(rows, swa_epoch, title), run.result("acc.png"), kinds)


def score(
    parts: Components, state: State, run: RunFolder, checkpoints: Checkpoints, kinds: Sequence[str]
) -> dict[str, float]:
    """Score the best checkpoint, the weight average and the ensemble; return the metrics, test's predictions on disk.

    The weights of ``parts.model`` are the best ones, or the last ones, afterwards.
    """
    splits, test = parts.splits, parts.splits.test if parts.evaluator.test else None
    log.info("Evaluating%s ...", "" if test is None else ": test is scored once, now")
    scored: dict[str, Scored] = {"val": {}, "test": {}}

    def add(name: str, module: nn.Module, shifts: Sequence[tuple[int, int]] = PLAIN) -> None:
        for key, split in (("val", splits.val), ("test", test)):
            if split is not None:
                if split is test and not scored["test"]:  # before, so that what is cut off counts too
                    run.update(test_scored=run.test_scored + 1)
                probs = parts.evaluator.probabilities(module, split, parts.trainer.autocast(), shifts)
                scored[key][name] = probs

    # without validation nothing was selected: the weights of the last epoch are the result
    for rank, entry in enumerate(checkpoints.best or [{}]):
        if entry:
            parts.model.load_state_dict(_best_weights(checkpoints, entry["epoch"]))
        add(f"member{rank}", parts.forward)
        if rank == 0:
            add("tta", parts.forward, parts.evaluator.shifts)
    if state.average is not None and any("swa" in row["phase"] for row in run.history()):
        average, last = state.average.module, run.history()[-1]["epoch"]
        parts.evaluator.recompute_bn(average, splits.train, parts.trainer.autocast())
        add("swa", average)
        save(run.swa_checkpoint(last), {"epoch": last, "model": average.state_dict()})
    if test is not None:
        probs, labels = (found.numpy() for found in scored["test"]["member0"])
        write_predictions(
            run.results, Told(pictures_of(test), probs, labels, splits.classes), f"{splits.name} test", kinds
        )
    metrics = dict(run.info["metrics"])
    for split, found in scored.items():
        metrics |= _metrics(split, found, len(checkpoints.best))
    return metrics


def _best_weights(checkpoints: Checkpoints, epoch: int) -> dict[str, Any]:
    try:
        return checkpoints.load_best(epoch)
    except UserError as error:
        again = f"delete it and type resume={checkpoints.run.path}"
        raise RunFailed(f"{error}. To have the run scored without epoch {epoch}, {again}") from error


def summarise(parts: Components, checkpoints: Checkpoints, metrics: dict[str, Any], seconds: float, place: Any) -> None:
    """Print how the run went."""
    splits = parts.splits
    names = {"": "plain", "_tta": f"TTA x {parts.evaluator.tta_runs}", "_swa": "SWA"}

    def line(split: str, ensemble: str) -> str:
        keys = {f"{split}_acc{key}": label for key, label in names.items()}
        keys[ensemble] = f"top-{len(checkpoints.best)} ensemble"
        return "  ".join(f"{label} {metrics[key]:.2f} %" for key, label in keys.items() if key in metrics)

    first = checkpoints.first
    which = "last epoch; nothing was selected" if first is None else f"best epoch {first['epoch']}"
    if splits.val is not None:
        log.info("val      %s  (%s, chosen on this)", line("val", "val_ensemble_acc"), which)
    if parts.evaluator.test and splits.test is not None:
        total = len(splits.test)
        low, high = wilson(round(metrics["test_acc"] * total / 100), total)
        log.info("test     %s  (plain, 95 %% interval: %.2f to %.2f %%)", line("test", "ensemble_acc"), low, high)
    speed, device = metrics["images_per_s"], parts.trainer.device_name
    log.info("time     %s at %.0f images/s on %s", clock(seconds), speed, device)
    log.info("results  %s", place)
    data = splits.describe() | {"md5": splits.md5 or "unknown"}
    log.info("data     {name}: {train:,} train, {val:,} val, {test:,} test, MD5 {md5}".format(**data))


def _metrics(split: str, scored: Scored, members: int) -> dict[str, float]:
    """Return the metrics of one split, whose keys begin with its name; ``members`` of the ensemble."""
    if not scored:
        return {}
    plain, labels = scored["member0"]
    metrics = {f"{split}_acc": accuracy(plain, labels), f"{split}_loss": nll(plain, labels)}
    for extra in ("tta", "swa"):
        if extra in scored:
            metrics[f"{split}_acc_{extra}"] = accuracy(scored[extra][0], labels)
    if members:
        together = torch.stack([scored[f"member{rank}"][0] for rank in range(members)]).mean(0)
        metrics["ensemble_acc" if split == "test" else "val_ensemble_acc"] = accuracy(together, labels)
    return metrics


class Told(NamedTuple):
    """What was said of images: uint8 [N, 28, 28], probabilities float32 [N, C], labels int64 [N], names of the classes."""

    images: np.ndarray
    probs: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]


def write_predictions(folder: Path, told: Told, of: str, kinds: Sequence[str]) -> None:
    """Write what was ``told`` ``of`` some images, and pictures, of the ``kinds``, of what was wrong, to ``folder``."""
    images, probs, labels, classes = told
    predicted = probs.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    content = io.BytesIO()
    np.savez_compressed(
        content, probs=probs.astype(np.float16), predicted=predicted, labels=labels, wrong=wrong, images=images[wrong]
    )
    atomic_write(folder / PREDICTIONS, content.getvalue())
    title = f"{len(wrong):,} of {len(labels):,} {of} images wrong"
    write_figure(pictures.confusion_figure(predicted, labels, classes, title), folder / CONFUSION, kinds)
    write_figure(pictures.mistakes_figure(images, probs, labels, classes, title), folder / MISTAKES, kinds)


def pictures_of(split: Split | LoaderSplit) -> np.ndarray:
    """Return the images as uint8 [N, 28, 28], to be looked at."""
    if isinstance(split, Split):
        return split.images.cpu().numpy()
    images = np.concatenate([images[:, 0].cpu().numpy() for images, _ in split.batches(512)])
    low, high = images.min(), images.max()
    return ((images - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
