"""A run, from top to bottom: build its components, open its record, fit, score, write the results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config.job import Job
from mnist_exp.config.recipe import flatten
from mnist_exp.errors import UserError, require
from mnist_exp.parts.trainer import Trainer, threads_kept
from mnist_exp.reading import load_yaml
from mnist_exp.runs.folder import RunFolder, refuse_existing
from mnist_exp.runs.record import begin, every_ending
from mnist_exp.signals import terminate_as_interrupt
from mnist_exp.training.checkpoints import Checkpoints
from mnist_exp.training.components import Components, build_components, load_weights
from mnist_exp.training.loop import Loop
from mnist_exp.training.results import draw_history, score, summarise
from mnist_exp.training.state import STREAMS, State

log = logging.getLogger(__name__)


@threads_kept()
def run(
    job: Job, begun: RunFolder | None = None, on_epoch: Callable[[RunFolder], None] = lambda run: None
) -> RunFolder:
    """Carry out ``job``; return the run's folder, whose run.json says how it ended, whichever way.

    ``begun``: the job's own folder where it was cut off before. ``on_epoch`` may raise TrialPruned to end the run early.
    Raises UserError before anything is written if the request is wrong, RunFailed or KeyboardInterrupt afterwards.
    """
    job, begun, parent = _origin(job, begun)
    with terminate_as_interrupt():
        parts = _parts(job, begun, parent)
        if parent is not None and begun is None:
            _start_from(parent, parts)
        # a run that was begun before goes on by the rule of its time
        by = {"streams": STREAMS, "epochs_before": _epochs_of(parent)} if begun is None else begun.info
        state = State(parts, job.config.seed, by.get("streams", 0), by.get("epochs_before", 0))
        checkpoints = None if begun is None else _go_on(state, parts, begun)
        if begun is not None and parent is not None and state.total_steps == 0:
            _start_from(parent, parts)
    facts = parts.facts() | {"streams": STREAMS, "epochs_before": state.epochs_before}
    facts["warm_start"] = None if parent is None else str(parent)
    facts["dataset"]["split_seed"] = job.config.data.split_seed
    if parent is not None and begun is None:
        _refuse_seen(parent, facts["dataset"])
    record = begin(job, begun, parts.loggers, facts)
    folder, checkpoints = record.folder, checkpoints or _checkpoints(record.folder, parts)

    def after_epoch(row: dict[str, Any]) -> None:
        record.epoch(row, checkpoints.first)
        on_epoch(folder)

    with every_ending(record), terminate_as_interrupt():
        log.info("run      %s", folder.path)
        if parent is not None:
            log.info("warm restart from the weights of %s", parent)
        kinds = job.config.paths.get("figures") or ["png"]  # older runs say nothing of it
        for logger in parts.loggers:
            logger.start(folder.path, flatten(job.values()))
        done = [row for row in folder.history() if row["epoch"] < state.epoch]
        if done or state.epoch == 1:
            record.stand_at(done[-1] if done else None, checkpoints.first)
        if done:  # a study may not have heard of it either
            on_epoch(folder)
        Loop(parts, state, folder, checkpoints).fit(after_epoch)
        draw_history(parts, folder, kinds)
        metrics = folder.info["metrics"]
        if job.wanted is None or job.wanted not in metrics:
            metrics = score(parts, state, folder, checkpoints, kinds)
            summarise(parts, checkpoints, metrics, record.seconds, folder.path)
        record.finish(metrics)
    return folder


def _origin(job: Job, begun: RunFolder | None) -> tuple[Job, RunFolder | None, Path | None]:
    """Return (the job, its own folder if it was begun before, the finished run whose weights it began with)."""
    parent = None
    if begun is None and job.resume is not None:
        named = RunFolder.open(job.resume)
        if named.finished:
            parent = named.path
        else:
            job, begun = job.going_on(load_yaml(named.hydra_config), named.hydra_config), named
    if begun is None:  # a mistake, or a damage, is told before anything is written
        refuse_existing(job.folder)
        job.check()
    else:
        begun.history()
        if begun.info.get("warm_start") is not None:
            parent = Path(begun.info["warm_start"])
    return job, begun, parent


def _parts(job: Job, begun: RunFolder | None, parent: Path | None) -> Components:
    """Build the components; an error of the config of a run folder names its file."""
    config = job.config if begun is None else _as_begun(job.config, begun)
    try:
        return build_components(config, parent is not None, begun is None, job.reads_only)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if begun is None or job.resume is None:
            raise
        raise UserError(f"{begun.hydra_config}, as it goes on: {error}") from error


def _as_begun(config: DictConfig, begun: RunFolder) -> DictConfig:
    """Return ``config``, with what its trainer would choose by this machine as it was when the run began."""
    if config.trainer.get("_target_") != f"{Trainer.__module__}.{Trainer.__name__}":
        return config
    usual = {"memory_format": begun.info.get("memory_format") or "contiguous"}  # an older version knew no other
    if begun.info.get("precision") in ("fp32", "bf16"):  # any device can compute in them
        usual["precision"] = begun.info["precision"]
    chosen = {key: value for key, value in usual.items() if config.trainer.get(key, "auto") == "auto"}
    with open_dict(changed := config.copy()):
        changed.trainer.update(chosen)
    return changed


def _start_from(parent: Path, parts: Components) -> None:
    """Load the last weights of the run in ``parent``."""
    saved = _checkpoints(RunFolder.open(parent), parts).load_last()
    require(saved is not None, "resume", str(parent), "a run with a readable checkpoint")
    try:
        load_weights(parts.model, saved["model"], parent)  # type: ignore[index]
    except UserError as error:
        file = parent / ".hydra" / "config.yaml"
        raise UserError(f"{error}. Its preset may have changed since: type model=... as it is in {file}") from error


def _refuse_seen(parent: Path, dataset: dict[str, Any]) -> None:
    """Raise UserError if images that ``parent`` was trained on would be held out now, and so seem to be told well."""
    before = RunFolder.open(parent).dataset
    if before.get("md5") is None or before["md5"] != dataset["md5"]:
        return
    held = ("test", *(("val", "split_seed") if dataset["val"] else ()))
    seen = {key: before.get(key, 0) for key in held}  # older versions say less
    if differ := [key for key in held if seen[key] != dataset[key]]:
        told = ", ".join(f"{key} {seen[key]:,}, now {dataset[key]:,}" for key in differ)
        raise UserError(
            f"data: {parent} was trained on other images of the same data ({told}), so what is held out now it may have "
            "seen. Leave data as it was, or type data.val_size=0, which holds nothing out"
        )


def _epochs_of(parent: Path | None) -> int:
    """Return how many epochs the weights of ``parent`` have been trained; random numbers go on after those."""
    if parent is None:
        return 0
    info = RunFolder.open(parent).info
    return int(info.get("epoch", 0)) + int(info.get("epochs_before", 0))


def _checkpoints(run: RunFolder, parts: Components) -> Checkpoints:
    return Checkpoints(run, parts.evaluator.top_k, parts.model.state_dict())


def _go_on(state: State, parts: Components, begun: RunFolder) -> Checkpoints:
    """Go on from the newest checkpoint of ``begun`` that can be; return its checkpoints.

    Raises UserError if the run is to end before where it stands.
    """
    checkpoints, most = _checkpoints(begun, parts), parts.trainer.max_steps
    saved = checkpoints.load_last(state)
    if saved is None:
        log.info("there is no checkpoint to go on from, so starting from the first epoch")
    else:
        log.info("resuming in epoch %d", saved["epoch"])
        state.load_state_dict(saved)
        past = most is not None and (state.total_steps > most or (state.total_steps == most and state.step > 0))
        require(not past, "trainer.max_steps", most, f"above {state.total_steps}, the steps taken before, or null")
        limit = (begun.config().get("trainer") or {}).get("max_steps")
        cut = limit == state.total_steps < (state.epoch - 1) * parts.steps and state.step == 0 and most != limit
        require(not cut, "trainer.max_steps", most, f"{limit}, at which its last epoch has ended before its time")
    return checkpoints
