"""What run.json says while a run goes on, and in every ending of it."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist_exp.config.job import Job
from mnist_exp.errors import MachineFailed, RunLockedError, TrialPruned, UserError, machine_failure, require
from mnist_exp.runs.folder import RunFolder, run_lock

log = logging.getLogger(__name__)
PACKAGES = ("mnist_exp", "torch", "torchvision", "hydra-core", "omegaconf", "optuna", "numpy")
_HOW = ("device", "device_name", "precision", "memory_format")  # it may go on in another way
_TOLD = 50_000  # letters of an error or a traceback that are kept


class Record:
    """The record of a run that goes on: ``folder``'s run.json, and ``loggers`` beside it.

    ``clock``: when the run was asked for, by time.monotonic; what it took before it was cut off is added.
    """

    def __init__(self, folder: RunFolder, loggers: Sequence[Any], clock: float):
        self.folder = folder
        self.loggers = loggers
        self.clock = clock
        self.seconds_before = float(folder.info.get("seconds") or 0)
        self.results: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """What the run has taken, with all its parts before it was cut off."""
        return self.seconds_before + time.monotonic() - self.clock

    def epoch(self, row: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write down an epoch, and log it: its ``row`` of the history, and which epoch is the ``best`` so far."""
        self._write(row, best)
        for logger in self.loggers:
            logger.log({k: v for k, v in row.items() if isinstance(v, float)}, row["epoch"])

    def _write(self, row: dict[str, Any], best: dict[str, Any] | None) -> None:
        speeds = [r["images_per_s"] for r in self.folder.history() if r["epoch"] <= row["epoch"]]
        metrics = {"images_per_s": round(statistics.median(speeds), 1)}
        if best is not None:
            metrics |= {key: best[key] for key in ("val_acc", "val_loss")}
        self.folder.update(
            epoch=row["epoch"],
            seconds=round(self.seconds, 1),
            metrics=metrics,
            best_epoch=None if best is None else best["epoch"],
        )

    def stand_at(self, row: dict[str, Any] | None, best: dict[str, Any] | None) -> None:
        """Write down where a run that goes on stands, if run.json says anything else: after which epoch; None: the start."""
        there = (0 if row is None else row["epoch"], None if best is None else best["epoch"])
        said = (self.folder.info.get("epoch", 0), self.folder.info.get("best_epoch"))
        if said == there:
            return
        if row is None:
            self.folder.update(epoch=0, metrics={}, best_epoch=None)
        elif row["epoch"] > said[0]:  # cut off between the checkpoint and run.json
            self.epoch(row, best)
        else:
            self._write(row, best)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Take down the final ``metrics``, to be written with the status."""
        self.results = {"metrics": metrics}
        for logger in self.loggers:
            logger.log({k: v for k, v in metrics.items() if isinstance(v, float)})

    def end(self, status: str, **changes: Any) -> None:
        """Write the status that the run ends with, and let others write its folder.

        Raises OSError if it is one to stay, and cannot be written.
        """
        try:
            self.folder.update(status=status, seconds=round(self.seconds, 1), **changes)
        except OSError as error:
            if status in ("finished", "pruned"):
                raise
            log.warning("could not write the status %s to %s: %s", status, self.folder.path, error)
        self.folder.unlock()
        for logger in self.loggers:
            try:
                logger.finish(status)
            except Exception as error:
                log.debug("logger did not finish: %s", error)


def begin(job: Job, begun: RunFolder | None, loggers: Sequence[Any], facts: dict[str, Any]) -> Record:
    """Return the record of ``job``: of a new folder, or of the one that was ``begun``, which goes on.

    ``facts``: what training knows of the run: device, data, sizes. Raises UserError if it is not the run that was begun.
    """
    now = {
        "status": "running",
        **{key: facts[key] for key in _HOW if key in facts},
        "versions": {"python": platform.python_version(), **{p: installed(p) for p in PACKAGES}},
        "git_sha": _git_sha(),
        "error": None,
        "traceback": None,
    }
    if begun is None:
        return Record(RunFolder.create(job.folder, now | _identity(job) | facts, job.files()), loggers, job.clock)
    if begun.info.get("dataset") is None:
        raise UserError(f"{begun.path} never began to train ({begun.info.get('error')}); start it anew")
    now["git_sha"] = _joined(begun.info.get("git_sha"), now["git_sha"])
    before, md5 = begun.dataset["md5"], facts["dataset"]["md5"]
    if before is None:
        log.warning("it cannot be known whether %s began on the same data", begun.path)
    else:
        require(md5 == before, "data", md5, f"the same as in the run that is resumed, MD5 {before}")
    with run_lock(begun.path):
        if str(RunFolder.open(begun.path).info) != str(begun.info):  # as text: NaN is not equal to itself
            raise RunLockedError(
                f"{begun.path} has just been written by another process; wait for it, or stop it first"
            )
        begun.info |= now
        begun.go_on(job.files()["config.yaml"], job.changes)
        lacking = {key: value for key, value in _identity(job).items() if key not in begun.info}
        begun.update(**lacking, **now, epochs=facts["epochs"], resumed=begun.info.get("resumed", 0) + 1)
        begun.lock()
    return Record(begun, loggers, job.clock)


@contextlib.contextmanager
def every_ending(record: Record) -> Iterator[None]:
    """Leave a status in run.json however the block ends; a run that is pruned ends the block quietly.

    What the machine does to a run interrupts it; only what it does itself makes it fail. Raises MachineFailed for that.
    """
    folder = record.folder
    try:
        try:
            yield
            record.end("finished", **record.results)
        except TrialPruned:
            record.end("pruned")
            log.info("pruned: other trials did better")
    except (KeyboardInterrupt, SystemExit):  # SystemExit: a cluster has put the job back into its queue
        record.end("interrupted", error="interrupted")
        log.warning("Interrupted. Go on with: python -m mnist_exp train resume=%s", folder.path)
        raise
    except BaseException as error:
        if type(error).__name__ == "UncompletedJobError":  # submitit's signal: the job's time is over
            record.end("interrupted", error=str(error))
            raise KeyboardInterrupt from error
        if (problem := machine_failure(error)) is not None:
            record.end("interrupted", error=problem)
            raise MachineFailed(problem, f"Put that right, then type resume={folder.path}") from error
        record.end("failed", error=_told(error), traceback=traceback.format_exc()[-_TOLD:])
        raise


def write_failure(job: Job, error: Exception) -> None:
    """Leave a folder that says why ``job`` could not even begin, for those who will look for it there."""
    failed = {"status": "failed", "error": _told(error), "prefix": ""}
    info = {**failed, "name": job.folder.name, "overrides": job.overrides}
    RunFolder.create(job.folder, info, job.files()).unlock()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_TOLD]


def _identity(job: Job) -> dict[str, Any]:
    config = job.config
    return {
        "command": job.command,
        "name": job.folder.name,
        "task_name": config.task_name,
        "tags": [str(tag) for tag in config.tags],
        "prefix": config.save_prefix,
        "overrides": job.overrides,
        "seed": config.seed,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "epoch": 0,
        "metrics": {},
        "best_epoch": None,
        "resumed": 0,
    }


def installed(package: str) -> str | None:
    """Return the version of ``package``; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _joined(before: str | None, now: str | None) -> str | None:
    """Return the commits of a run that goes on, the newest last; of very many, the newest."""
    if before is None or now is None:
        return now or before
    return ", ".join([*(sha for sha in before.split(", ") if sha != now), now])[-800:]


@functools.cache
def _git_sha() -> str | None:
    """Return the commit of the checkout this package runs from, "+" if changed since; None if it is installed.

    It is looked up once in a process, which imports the package once.
    """
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    git = ["git", "-C", str(package), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    # variables of git's own could name programs to run, or another repository
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True, "env": clean}
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "."], **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if changed else "")
