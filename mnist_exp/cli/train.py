"""``train`` and ``--multirun``: Hydra composes the config, and a run or a search is carried out."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.cli.main import explain
from mnist_exp.errors import UserError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mnist_exp.runs.folder import RunFolder


def train(*overrides: str) -> RunFolder:
    """Train as ``python -m mnist_exp train OVERRIDES`` does, and return the run's folder. For notebooks.

    Raises UserError if the request is wrong, RunFailed if the run failed.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if "--multirun" in overrides or "-m" in overrides:
        raise UserError("train() is one run; several are python -m mnist_exp --multirun ...")
    with _loggers_and_environment_kept():
        try:
            runs = train_command(list(overrides), f"train({', '.join(map(repr, overrides))})")
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from error
    if not runs:
        raise UserError(f"nothing was run: {' '.join(overrides)} only prints something")
    return runs[0]


def train_command(arguments: list[str], command: str | None = None) -> list[RunFolder]:
    """Compose the config and run it, or a sweep of it; return the folders of what was run in this process.

    ``command``: how it was said, if not on the command line of this process.
    """
    import hydra
    from hydra.core.plugins import Plugins

    from mnist_exp.config.build import execution_whitelist
    from mnist_exp.config.job import config_folder
    from mnist_exp.search.sweeper import StudySweeper

    # Hydra then raises instead of printing tracebacks, and report() has the last word
    os.environ["HYDRA_FULL_ERROR"] = "1"
    Plugins.instance().register(StudySweeper)
    runs: list[RunFolder] = []
    failures: list[Exception] = []
    task = _task(runs, failures, command)
    entry = hydra.main(config_path=config_folder(), config_name="train", execution_whitelist=execution_whitelist())(
        task
    )
    before, sys.argv = sys.argv, [sys.argv[0], *_resuming(arguments)]
    try:
        entry()
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        nulls = " ".join(a for a in arguments if a.endswith("=null"))
        raise UserError(
            f"{nulls}: this group cannot be null here; name one of its choices, as in pruner=none"
        ) from error
    finally:
        sys.argv = before
    for failure in failures:
        raise failure
    return runs


@contextlib.contextmanager
def _loggers_and_environment_kept() -> Iterator[None]:
    """Give a notebook back what Hydra changes in its process."""
    root = logging.getLogger()
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)


def _task(runs: list[RunFolder], failures: list[Exception], command: str | None) -> Callable[[DictConfig], Any]:
    """Return the function that Hydra calls, here or in a worker, with each composed config."""

    sweeper = os.getpid()

    def task(config: DictConfig) -> Any:
        """Carry out a run; return ``optimized_metric`` (None if the run has none)."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from mnist_exp.signals import end_with

        if os.getpid() != sweeper and "joblib" in HydraConfig.get().launcher._target_:  # jobs of a cluster go on alone
            end_with(sweeper)
        multirun = HydraConfig.get().mode is RunMode.MULTIRUN
        try:
            run = _run(config, multirun, command)
        except Exception as error:
            _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
            if multirun:
                raise
            failures.append(error)  # raised later: through Hydra it would come with lines of Hydra's own
            return None
        runs.append(run)
        return run.info["metrics"].get(config.optimized_metric)

    return task


def _leave_no_empty_folder(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin."""
    log = folder / "train.log"
    if set(folder.iterdir()) <= {log}:
        log.unlink(missing_ok=True)
        folder.rmdir()


def _run(config: DictConfig, multirun: bool, command: str | None) -> RunFolder:
    from mnist_exp.config.job import Job

    job = Job.from_hydra(config, command)
    if job.wanted is None:
        from mnist_exp.training import experiment

        return experiment.run(job)
    from mnist_exp.search.trial import run_trial

    require(multirun, "hparams_search", job.hydra.runtime.choices["hparams_search"], "used with --multirun")
    return run_trial(job)


def _resuming(arguments: list[str]) -> list[str]:
    """Point Hydra to the folder of the run that ``resume=`` names, or give a finished run's overrides to a new one."""
    named = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if not named or named[-1] == "null":
        return arguments
    if not named[-1]:
        raise UserError("resume= is empty; name a run folder, such as resume=outputs/runs/NAME")
    from omegaconf import OmegaConf

    from mnist_exp.runs.folder import RunFolder

    run = RunFolder.open(Path(named[-1].strip("'\"")).expanduser().absolute())
    if not run.finished:
        return [*arguments, f"hydra.run.dir='{run.path}'"]
    if not any(a.startswith("schedule.extra_epochs=") for a in arguments):
        raise UserError(
            f"{run.path} is finished. To train it further, from schedule.resume_lr on, type schedule.extra_epochs=N too"
        )
    return [*OmegaConf.to_object(OmegaConf.load(run.hydra_overrides)), *arguments]  # type: ignore[misc]
