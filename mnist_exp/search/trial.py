"""A trial of a search: an ordinary run, that its study hears of each epoch and may end early."""

from __future__ import annotations

import functools
import logging
import math
import traceback
from typing import Any

from omegaconf import OmegaConf

from mnist_exp.config import recipe
from mnist_exp.config.build import build
from mnist_exp.config.job import Job
from mnist_exp.console import without_password
from mnist_exp.errors import RunFailed, TrialPruned, UserError, machine_failure
from mnist_exp.runs.folder import RunFolder, is_run, run_lock
from mnist_exp.runs.record import write_failure
from mnist_exp.search.store import open_storage, storage_url
from mnist_exp.training import experiment

log = logging.getLogger(__name__)


def run_trial(job: Job) -> RunFolder:
    """Carry out, or continue, the trial that ``job`` is; return its run's folder.

    However it ends, its folder holds a run.json that says so (if the disk lets it), since the sweeper may not live to hear
    of it. What the machine does to it is no end: it goes on later.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with run_lock(job.folder):  # a queue may start a trial twice
        begun = RunFolder.open(job.folder) if is_run(job.folder) else None
        if begun is not None:
            asked = recipe.digest(OmegaConf.to_container(job.config)), job.config.seed  # type: ignore[arg-type]
            if (recipe.digest(begun.config()), begun.info.get("seed", job.config.seed)) != asked:
                raise UserError(f"{job.folder} holds a trial of another search; name a new study, or move it away")
            if begun.info["status"] in ("finished", "pruned", "failed"):
                return begun
        try:
            run = experiment.run(job, begun, _link(job))
        except Exception as error:
            log.error("%s", traceback.format_exc())
            if not is_run(job.folder) and machine_failure(error) is None:
                write_failure(job, error)
            raise
        value = run.info["metrics"].get(job.wanted)
        if run.finished and (value is None or not math.isfinite(value)):
            problem = f"the run has no finite {job.wanted} ({value}): its schedule or data cannot give one"
            run.update(status="failed", error=problem)
            raise RunFailed(problem)
        return run


class TrialLink:
    """A job's line to its own trial: called after each epoch, it reports it, and raises TrialPruned to end the run."""

    def __init__(self, job: Job):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.key = "val_loss" if job.wanted == "val_loss" else "val_acc"
        name, number = job.hydra.sweeper.study_name, job.config.search.trial
        storage = _storage(storage_url(job.hydra.sweeper.storage, job.folder.parent))
        study = optuna.load_study(study_name=name, storage=storage, pruner=build(job.config, "pruner"))
        self.finished = optuna.exceptions.UpdateFinishedTrialError
        study_id = storage.get_study_id_from_name(name)
        self.trial = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
        self.reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    def __call__(self, run: RunFolder) -> None:
        if self._hopeless(run.history()) and run.info["epoch"] < run.info["epochs"]:
            raise TrialPruned

    def _hopeless(self, history: list[dict[str, Any]]) -> bool:
        try:
            for row in history:
                if row["epoch"] not in self.reported:
                    self.trial.report(row[self.key], row["epoch"])
                    self.reported.add(row["epoch"])
            return bool(self.trial.should_prune())
        except self.finished:  # another machine has taken it over, and ended it
            return True
        except Exception as error:  # the study may be out of reach for a while; training can go on without
            log.warning("the study cannot be reached to report this epoch: %s", without_password(str(error)))
            return False


def _link(job: Job) -> Any:
    try:
        return TrialLink(job)
    except Exception as error:
        said = without_password(str(error))
        log.warning("this worker cannot reach the study, so the trial cannot be pruned: %s", said)
        return lambda run: None


@functools.lru_cache(maxsize=1)
def _storage(url: str) -> Any:
    return open_storage(url)
