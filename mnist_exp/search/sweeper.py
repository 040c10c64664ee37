"""Hydra's face of a search: Hydra's Optuna sweeper, with its configuration, made to finish whatever happens to it.

A call of the same command looks at the study and does what is left: it takes over results that a killed sweeper never
heard of, continues interrupted trials from their checkpoints, and asks for new ones.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from mnist_exp.config.build import build
from mnist_exp.config.elsewhere import refuse_endless
from mnist_exp.config.job import check_config
from mnist_exp.config.own_parts import without_keys_of_others
from mnist_exp.config.request import quoted
from mnist_exp.console import without_password
from mnist_exp.errors import MachineFailed, RunFailed, RunLockedError, UserError, machine_failure, require
from mnist_exp.files import expanded
from mnist_exp.runs.folder import VAL_METRICS, is_run, refuse_links
from mnist_exp.search.report import report_study
from mnist_exp.search.space import read_space
from mnist_exp.search.store import Search, best_trial, open_study
from mnist_exp.search.study import Point, Study
from mnist_exp.signals import terminate_as_interrupt

log = logging.getLogger(__name__)


class StudySweeper(Sweeper):
    """Makes the trials of a study, as many as are left, and reports on all of it.

    ``n_trials`` counts all trials of the study, from whatever call. ``max_failure_rate`` (1: never) stops the search
    when a larger share of its trials has failed. The other parameters are hydra-optuna-sweeper's.
    """

    def __init__(
        self,
        sampler: Any,
        direction: Any,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        custom_search_space: str | None,
        params: DictConfig | None,
    ):
        self.sampler = sampler
        self.direction = getattr(direction, "name", direction)
        self.storage = storage
        self.study_name = study_name
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.max_failure_rate = max_failure_rate
        self.custom_search_space = custom_search_space
        self.params: Any = params or {}
        self.job_number = 0

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep what Hydra gives, and build the launcher that jobs will be started with."""
        refuse_endless(OmegaConf.to_container(config), "the composed config")  # type: ignore[arg-type]
        self.config: DictConfig = config
        self.hydra_context: Any = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.folder = Path(config.hydra.sweep.dir).absolute()

    def sweep(self, arguments: list[str]) -> None:
        """Do what is left of the search, then report on all of it. Raises MachineFailed if the machine does not let it."""
        try:
            self._sweep(arguments)
        except Exception as error:
            problem = machine_failure(error)
            if problem is None:
                raise
            raise MachineFailed(problem, "Put that right; the same command goes on with the search") from error

    def _sweep(self, arguments: list[str]) -> None:
        _check(self)
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = read_space(self.params, arguments, self.custom_search_space)
        self.space = space
        for point in space.some_points():  # what cannot be composed is told before the first trial
            check_config(self._compose(0, point))
        search = Search(
            str(self.study_name),
            self.folder,
            self.storage,
            *(self.config.optimized_metric, self.direction, self.n_trials),
            space,
            self.sampler,
            self.config,
            self._plain,
        )
        self.study = Study(search, *open_study(search))
        log.info("study    %s in %s", search.name, self.folder)
        try:
            with terminate_as_interrupt(), self.study.locks.present(self.study.me):
                while self._step():
                    pass
                self._report()
        except KeyboardInterrupt:
            # to stderr itself: where the trial was cut off, logging still goes to its file alone
            sys.stderr.write("Interrupted. The same command goes on with the search.\n")
            raise
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = without_password(str(error.__cause__ or error)).strip().splitlines()[0]
            raise RunFailed(
                f"the study cannot be reached any more: {reason}. The same command goes on with it"
            ) from error
        except ImportError as error:
            raise UserError(f"the sampler cannot work: {error}") from error

    def _step(self) -> bool:
        """Start as many trials as there are jobs, and settle them; return whether more is left."""
        self._check_failures()
        self.study.locks.stay_present()
        batch = self.study.next_batch(self.n_jobs)
        if batch:
            self._launch(batch)
            for number, _ in batch:
                self.study.settle(number)  # or it stays as it is, to be continued by the next step
            return True
        running = bool(self.study.running())
        if running:
            time.sleep(1)  # another process is at the last trials
        return running

    def _check_failures(self) -> None:
        trials = self.study.trials()
        finished = sum(t.state.is_finished() for t in trials)
        failed = sum(t.state.name == "FAIL" for t in trials)
        if failed and failed / finished > self.max_failure_rate:
            raise RunFailed(
                f"{failed} of {finished} trials have failed, more than hydra.sweeper.max_failure_rate="
                f"{self.max_failure_rate:g} allows; the last: {self.study.last_error()}"
            )

    def _launch(self, batch: list[Point]) -> None:
        """Run the trials. How each ended is in its folder."""
        refuse_links(self.folder, *(self.study.folder(number).name for number, _ in batch))
        overrides = [self._overrides(number, params) for number, params in batch]
        try:
            jobs = self.launcher.launch(overrides, initial_job_idx=self.job_number)
        except Exception as error:  # a dying worker takes the whole batch down: what is on disk decides
            if machine_failure(error) is not None:
                raise
            began = any(is_run(self.study.folder(number)) for number, _ in batch)
            if not began and self._fail_what_cannot_be_composed(batch):
                return
            if not began and not self.study.done_here:
                raise UserError(f"no trial could be started: {type(error).__name__}: {error}") from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("a worker died (%s); going on from what is on disk", reason)
            jobs = []
        self.job_number += len(batch)
        for (number, _), job in zip(batch, jobs, strict=False):
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # Hydra's own line about it
                    job.return_value  # noqa: B018  # raises what the job has raised
            except RunLockedError:  # somebody else runs it
                continue
            except Exception as error:
                if machine_failure(error) is not None:  # it is as it was cut off, and goes on later
                    raise
                if not self.study.settle(number):  # it could not even say so in its folder
                    self.study.tell(number, {"status": "failed", "error": f"{type(error).__name__}: {error}"})

    def _fail_what_cannot_be_composed(self, batch: list[Point]) -> bool:
        """Settle the trials whose values do not go together in any config; return whether there were any."""
        found = False
        for number, params in batch:
            try:
                self._compose(number, params)
            except Exception as error:
                found = True
                self.study.tell(number, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        return found

    def _compose(self, number: int, params: dict[str, Any]) -> DictConfig:
        """Return the config of a trial, Hydra's part left out."""
        lines = self._overrides(number, params)
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, lines)
        masked = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
        return without_keys_of_others(masked, lines)

    def _plain(self, params: dict[str, Any]) -> dict[str, Any]:
        return OmegaConf.to_container(self._compose(0, params))  # type: ignore[return-value]

    def _overrides(self, number: int, params: dict[str, Any]) -> list[str]:
        """Return a job's command line. Paths are absolute, since a worker may stand elsewhere."""
        places = {
            "paths.outputs": Path(self.config.paths.outputs).absolute(),
            "data.root": expanded(self.config.data.root).absolute(),
        }
        if not self.space.custom and (others := params.keys() - self.space.dimensions.keys()):
            raise UserError(f"trial {number} of the study has {', '.join(others)}, which this search does not draw")
        lines = [f"{key}={value}" for key, value in params.items()] + self.space.fixed
        named = {line.partition("=")[0] for line in lines}
        lines = [line for line in lines if line.partition("=")[0] not in places]
        lines += [f"{key}={quoted(value)}" for key, value in places.items()]
        if "trainer.threads" not in named and (threads := self._threads_of_a_job()) is not None:
            lines.append(f"trainer.threads={threads}")
        return [*lines, f"search.trial={number}"]

    def _threads_of_a_job(self) -> int | None:
        """Return how many CPU threads a job may take beside others: its share, or what its launcher reserves for it."""
        launcher = self.config.hydra.launcher
        if "joblib" in launcher._target_ and self.n_jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return max(1, cores // self.n_jobs)
        if "ray" in launcher._target_:
            return max(1, int(launcher.ray.remote.num_cpus))
        return launcher.get("cpus_per_task")

    def _report(self) -> None:
        study = self.study.study
        if best_trial(study) is None:
            raise RunFailed(
                f"no trial of {study.study_name} has finished; the last ended with: {self.study.last_error()}"
            )
        report_study(self.folder, study, self.config.paths.get("figures") or ["png"])


def _check(sweeper: StudySweeper) -> None:
    """Refuse what cannot work, before anything is written or trained."""
    metric = sweeper.config.optimized_metric
    require(sweeper.n_trials >= 1, "hydra.sweeper.n_trials", sweeper.n_trials, "at least 1")
    ok = sweeper.storage is None or str(sweeper.storage).startswith("postgresql")
    allowed = "null (study.db in the study's folder) or postgresql+psycopg://USER@HOST/DATABASE"
    require(ok, "hydra.sweeper.storage", without_password(str(sweeper.storage)), allowed)
    require(sweeper.n_jobs >= 1, "hydra.sweeper.n_jobs", sweeper.n_jobs, "at least 1")
    why = ", ".join(VAL_METRICS) + " (a search never looks at the test set)"
    require(metric in VAL_METRICS, "optimized_metric", metric, f"one of {why}")
    averaged = metric != "val_acc_swa" or OmegaConf.select(sweeper.config, "schedule.swa_start") is not None
    require(averaged, "schedule.swa_start", None, "a number for optimized_metric=val_acc_swa")
    wanted = "minimize" if metric.endswith("loss") else "maximize"
    require(sweeper.direction == wanted, "hydra.sweeper.direction", sweeper.direction, f"{wanted} for {metric}")
    held = sweeper.config.data.val_size
    require(isinstance(held, int) and held > 0, "data.val_size", held, "a whole number above 0 to search")
    rate = sweeper.max_failure_rate
    require(0 <= rate <= 1, "hydra.sweeper.max_failure_rate", rate, "between 0 and 1")
    named = sweeper.study_name is not None and re.fullmatch(r"\w[\w.-]*", sweeper.study_name) is not None
    require(
        named, "hydra.sweeper.study_name", sweeper.study_name, "letters, digits, '_', '-' and '.': it names a folder"
    )
    from optuna.pruners import BasePruner

    try:
        pruner = build(sweeper.config, "pruner")
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"pruner cannot be built: {reason}. Choices: pruner=median, halving or none") from error
    require(isinstance(pruner, BasePruner), "pruner", pruner, "one of Optuna's: pruner=median, halving or none")
