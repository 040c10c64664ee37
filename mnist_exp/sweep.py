"""Searches that finish, whatever happens to them: an Optuna study behind Hydra's Optuna sweeper.

The study (study.db in its folder, or a PostgreSQL shared by several machines) and the trials' folders are all the
state there is. A call of the same command looks at both and does what is left: it takes over results that a killed
sweeper never heard of, continues interrupted trials from their checkpoints, and asks for new ones.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, read_write

from mnist_exp.compare import best_trial, report_study, storage_url
from mnist_exp.errors import RunFailed, UserError, require
from mnist_exp.progress import clock
from mnist_exp.run_folder import RunFolder

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
METRICS = ("val_acc", "val_loss", "val_acc_tta", "val_acc_swa", "val_ensemble_acc")
# fixed overrides that may differ between calls of one search: where it runs, not what it computes
_MOVABLE = ("paths.", "data.root", "trainer.device", "trainer.threads", "logger", "tags", "hydra")
_ATTEMPTS = 3  # starts of one trial whose worker dies every time
_BEAT = 20.0  # seconds between signs of life of a sweeper
_SILENT = 120.0  # seconds after which a sweeper on another machine counts as dead


class StudySweeper(Sweeper):
    """Hydra's Optuna sweeper, with its configuration, made to be resumed, pruned and watched.

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
        self.sampler_config = sampler
        self.direction = getattr(direction, "name", direction)
        self.storage = storage
        self.study_name = study_name
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.max_failure_rate = max_failure_rate
        self.custom_search_space = custom_search_space
        self.params: Any = params or {}
        self.me = f"{socket.gethostname()} {os.getpid()} {_birth(os.getpid())}"
        self.job_number = 0

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep what Hydra gives, and build the launcher that jobs will be started with."""
        self.config: DictConfig = config
        self.hydra_context: Any = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.folder = Path(config.hydra.sweep.dir).absolute()

    def sweep(self, arguments: list[str]) -> None:
        """Do what is left of the search, then report on all of it."""
        self._check()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        given = [f"{key}={value}" for key, value in self.params.items()] + arguments
        space, fixed, deleted = create_params_from_overrides(given)
        self.space = {name: dist for name, dist in space.items() if name not in fixed}
        if not self.space and not self.custom_search_space:
            raise UserError(
                "nothing to search over: give at least one key a range, as in 'optimizer.lr=interval(0.001,0.1)'"
            )
        self.fixed = [f"{key}={value}" for key, value in fixed.items()] + deleted
        self._check_composition()
        self.study = self._open_study(optuna)
        stop_beating = self._beat()
        self.started, self.done_here = time.monotonic(), 0
        log.info("study    %s in %s", self.study.study_name, self.folder)
        try:
            while self._step():
                pass
        except KeyboardInterrupt:
            log.warning("Interrupted. The same command goes on with the search.")
            raise
        finally:
            stop_beating.set()
        self._report()

    # ------------------------------------------------------------------------------------------------- preparing

    def _check(self) -> None:
        """Refuse what cannot work, before anything is written or trained."""
        metric = self.config.optimized_metric
        require(self.n_trials >= 1, "hydra.sweeper.n_trials", self.n_trials, "at least 1")
        require(self.n_jobs >= 1, "hydra.sweeper.n_jobs", self.n_jobs, "at least 1")
        why = ", ".join(METRICS) + " (a search never looks at the test set)"
        require(metric in METRICS, "optimized_metric", metric, f"one of {why}")
        wanted = "minimize" if metric.endswith("loss") else "maximize"
        require(self.direction == wanted, "hydra.sweeper.direction", self.direction, f"{wanted} for {metric}")
        require(self.config.data.val_size > 0, "data.val_size", self.config.data.val_size, "above 0 to search")
        named = self.study_name is not None and re.fullmatch(r"[\w.-]+", self.study_name) is not None
        require(
            named, "hydra.sweeper.study_name", self.study_name, "letters, digits, '_', '-' and '.': it names a folder"
        )
        from hydra.utils import instantiate

        try:
            instantiate(self.config.pruner)
        except Exception as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"pruner cannot be built: {reason}. Choices: pruner=median, halving or none") from error

    def _check_composition(self) -> None:
        """Compose one job, so that a key that does not exist is told before the first trial."""
        some = {name: getattr(dist, "low", None) or dist.to_external_repr(0) for name, dist in self.space.items()}
        self.hydra_context.config_loader.load_sweep_config(self.config, self._overrides(0, some))

    def _open_study(self, optuna: Any) -> optuna.Study:
        """Create or load the study, under a lock, and see that it is the search that is asked for."""
        from filelock import FileLock
        from optuna.distributions import distribution_to_json
        from sqlalchemy.exc import SQLAlchemyError

        self.folder.mkdir(parents=True, exist_ok=True)
        url = storage_url(self.storage, self.folder)
        described = {name: json.loads(distribution_to_json(dist)) for name, dist in sorted(self.space.items())}
        settings = sorted(o for o in self.fixed if not o.lstrip("+~").startswith(_MOVABLE))
        search = {"space": described, "settings": settings, "metric": self.config.optimized_metric}
        with FileLock(self.folder / ".study.lock"):
            try:
                study: optuna.Study = optuna.create_study(
                    study_name=self.study_name, storage=url, direction=self.direction, load_if_exists=True
                )
                known = study.user_attrs.get("search")
                if known is None:
                    study.set_user_attr("search", search)
                    study.set_user_attr("folder", str(self.folder))
                    if not isinstance(self._sampler(0), optuna.samplers.GridSampler):
                        study.enqueue_trial(self._baseline())
            except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError, ValueError) as error:
                hidden = re.sub(r"//[^@/]*@", "//***@", url)
                reason = str(error.__cause__ or error).strip().splitlines()[0]
                needs = (
                    " (PostgreSQL needs: pip install 'mnist_exp[postgres]')" if isinstance(error, ImportError) else ""
                )
                raise UserError(f"hydra.sweeper.storage={hidden} cannot be used: {reason}{needs}") from error
        for key in ("space", "settings", "metric"):
            if known is not None and known[key] != search[key]:
                raise UserError(
                    f"the study {self.study_name} has another search {key}:\n  there {json.dumps(known[key])}\n"
                    f"  here  {json.dumps(search[key])}\nFor another search type hydra.sweeper.study_name=NEW_NAME"
                )
        study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
        return study

    def _baseline(self) -> dict[str, Any]:
        """Return the first point: the original's values, and the config's own for every other key, where in range."""
        values = {}
        for name, distribution in self.space.items():
            value = self.config.search.baseline.get(name, OmegaConf.select(self.config, name))
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if inside:
                values[name] = value
            else:
                log.warning("%s=%s of the baseline is outside its range, so the first trial draws it", name, value)
        return values

    def _sampler(self, existing: int) -> Any:
        """Build the sampler; a seeded one starts elsewhere in each call, or it would propose its first points again."""
        from hydra.utils import instantiate

        config = self.sampler_config.copy()
        if config.get("seed") is not None:
            with read_write(config):
                # several sweepers may share a database, where equal seeds would mean equal points
                config.seed = None if self.storage else config.seed + existing
        sampler = instantiate(
            config, _execution_whitelist_=("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
        )
        if isinstance(sampler, functools.partial):  # the grid sampler wants to know the grid
            from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl

            grid = {name: OptunaSweeperImpl._to_grid_sampler_choices(dist) for name, dist in self.space.items()}
            self.n_trials = min(self.n_trials, functools.reduce(lambda n, v: n * len(v), grid.values(), 1))
            sampler = sampler(grid)
        return sampler

    # --------------------------------------------------------------------------------------------------- running

    def _step(self) -> bool:
        """Start as many trials as there are jobs, continued ones first, and settle them; return whether more is left."""
        from optuna.trial import TrialState

        trials = [t for t in self.study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
        batch: list[tuple[int, dict[str, Any]]] = []
        busy = 0
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                folder = self.folder / f"trial-{trial.number}"
                if self._alive(trial.user_attrs.get("owner")) or _locked(folder):
                    busy += 1
                elif not self._settle_from_disk(trial.number) and len(batch) < self.n_jobs:
                    batch.append(self._take(trial.number, trial._trial_id, dict(trial.params)))
        finished = sum(
            t.state.is_finished() for t in self.study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs
        )
        failed = sum(t.state is TrialState.FAIL for t in trials if "duplicate_of" not in t.user_attrs)
        if failed and failed / max(finished, 1) > self.max_failure_rate:
            return False
        while len(batch) < self.n_jobs and finished + busy + len(batch) < self.n_trials:
            asked = self._ask()
            if asked is None:
                break
            batch.append(asked)
        if not batch:
            if busy:
                time.sleep(1)  # another process is at the last trials
            return busy > 0
        overrides = [self._overrides(number, params) for number, params in batch]
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=self.job_number)
        except Exception as error:  # a dying worker takes the whole batch down: what is on disk decides
            log.warning("a worker died (%s: %s); going on from what is on disk", type(error).__name__, error)
            returns = []
        self.job_number += len(batch)
        for position, (number, params) in enumerate(batch):
            self._settle(number, params, returns[position] if position < len(returns) else None)
        return True

    def _ask(self) -> tuple[int, dict[str, Any]] | None:
        """Return (number, parameters) of a new trial, a point that no trial has had; None if there is none left."""
        from hydra.utils import instantiate
        from optuna.trial import TrialState

        for _ in range(100):
            trial = self.study.ask()
            trial.set_user_attr("owner", self.me)
            for name, distribution in self.space.items():
                trial._suggest(name, distribution)
            if self.custom_search_space:
                instantiate({"_target_": self.custom_search_space, "_partial_": True})(self.config, trial)
            others = self.study.get_trials(deepcopy=False)
            same = [t.number for t in others if t.params == trial.params and t.number < trial.number]
            if not same:
                return self._take(trial.number, trial._trial_id, dict(trial.params))
            trial.set_user_attr("duplicate_of", same[0])
            self._close(trial.number, state=TrialState.FAIL)
        log.warning("the sampler proposes only points that have been tried: the search ends here")
        return None

    def _take(self, number: int, trial_id: int, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        storage = self.study._storage
        attempts = storage.get_trial(trial_id).user_attrs.get("attempts", 0)
        storage.set_trial_user_attr(trial_id, "owner", self.me)
        storage.set_trial_user_attr(trial_id, "attempts", attempts + 1)
        return number, params

    def _overrides(self, number: int, params: dict[str, Any]) -> list[str]:
        """Return a job's command line. Paths are absolute, since a worker may stand elsewhere."""
        places = {
            "paths.outputs": Path(self.config.paths.outputs).absolute(),
            "data.root": Path(self.config.data.root).expanduser().absolute(),
        }
        lines = [f"{key}={value}" for key, value in params.items()] + self.fixed
        named = {line.partition("=")[0] for line in lines}
        lines = [line for line in lines if line.partition("=")[0] not in places]
        lines += [f"{key}='{value}'" for key, value in places.items()]
        if self.n_jobs > 1 and "trainer.threads" not in named:
            lines.append(f"trainer.threads={max(1, len(os.sched_getaffinity(0)) // self.n_jobs)}")
        return [*lines, f"search.trial={number}"]

    def _settle(self, number: int, params: dict[str, Any], job: Any) -> None:
        """Tell the study how a job ended: by what it returned or, where nothing came back, by what is on disk."""
        from hydra.core.utils import JobStatus

        if job is not None and job.status is JobStatus.COMPLETED:
            self._tell(number, **job._return_value)
        elif job is not None:
            self._tell(number, "failed", error=f"{type(job._return_value).__name__}: {job._return_value}")
        elif not self._settle_from_disk(number):
            attempts = self.study.get_trials(deepcopy=False)[number].user_attrs.get("attempts", 1)
            if attempts >= _ATTEMPTS:
                self._tell(number, "failed", error=f"its worker died {attempts} times")
            # else it stays as it is, to be continued by the next step

    def _settle_from_disk(self, number: int) -> bool:
        """Settle a trial whose run has ended without the study hearing of it; return whether it has."""
        try:
            info = RunFolder.open(self.folder / f"trial-{number}").info
        except UserError:
            return False
        if info["status"] not in ("finished", "pruned", "failed"):
            return False
        metrics = info["metrics"]
        value, loss = metrics.get(self.config.optimized_metric), metrics.get("val_loss")
        self._tell(number, info["status"], value=value, val_loss=loss, error=info["error"])
        return True

    def _tell(
        self,
        number: int,
        status: str,
        value: float | None = None,
        val_loss: float | None = None,
        error: str | None = None,
    ) -> None:
        """Record the end of a trial and print its line."""
        from optuna.trial import TrialState

        trial = self.study.get_trials(deepcopy=False)[number]
        for key, found in (("val_loss", val_loss), ("error", error)):
            if found is not None:
                self.study._storage.set_trial_user_attr(trial._trial_id, key, found)
        if status == "finished" and value is not None:
            self._close(number, values=value)
        else:
            pruned = status == "pruned" and bool(trial.intermediate_values)
            self._close(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        self.done_here += 1
        trials = self.study.get_trials(deepcopy=False)
        left = max(0, self.n_trials - sum(t.state.is_finished() for t in trials if "duplicate_of" not in t.user_attrs))
        best = best_trial(self.study)
        metric = self.config.optimized_metric
        score = f"{metric} {value:.4f}" if status == "finished" and value is not None else status
        log.info(
            "trial %-3d %s  %s%s  left %d, %s",
            number,
            "  ".join(f"{key.rpartition('.')[2]} {_short(found)}" for key, found in trial.params.items()),
            score,
            "" if best is None else f"  best {best.value:.4f} (trial {best.number})",
            left,
            clock(left * (time.monotonic() - self.started) / self.done_here),
        )
        if error is not None and status == "failed":
            log.warning("  %s (%s)", error.splitlines()[0], self.folder / f"trial-{number}" / "train.log")

    def _close(self, number: int, **outcome: Any) -> None:
        try:
            self.study.tell(number, **outcome)
        except RuntimeError as error:  # how the grid sampler says that its grid is done; the trial has been recorded
            if "Study.stop" not in str(error):
                raise

    def _report(self) -> None:
        best = best_trial(self.study)
        trials = self.study.get_trials(deepcopy=False)
        if best is None:
            errors = [t.user_attrs.get("error", "pruned") for t in trials if "duplicate_of" not in t.user_attrs]
            raise RunFailed(
                f"no trial of {self.study.study_name} has finished; the first ended with: {errors[0] if errors else '-'}"
            )
        report_study(self.folder)

    # ------------------------------------------------------------------------------------------------ signs of life

    def _beat(self) -> threading.Event:
        """Leave a sign of life in the study from time to time, until the returned event is set."""
        stop = threading.Event()

        def work() -> None:
            while True:
                try:
                    self.study.set_user_attr(f"alive {self.me}", time.time())
                except Exception as error:
                    log.debug("no sign of life left: %s", error)
                if stop.wait(_BEAT):
                    return

        if self.storage:  # only there can another machine wonder
            threading.Thread(target=work, daemon=True).start()
        return stop

    def _alive(self, owner: str | None) -> bool:
        """Whether the sweeper that owns a running trial still works on it."""
        if owner is None or owner == self.me:
            return False
        host, pid, birth = owner.split(" ")
        if host == socket.gethostname():
            return _birth(int(pid)) == birth
        return time.time() - float(self.study.user_attrs.get(f"alive {owner}", 0)) < _SILENT


class TrialLink:
    """A job's line to its own trial: reports each epoch, and says whether the pruner would stop it."""

    def __init__(self, storage: str, study_name: str, number: int, metric: str, pruner: Any):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.key = "val_loss" if metric == "val_loss" else "val_acc"
        study = optuna.load_study(study_name=study_name, storage=_storage(storage), pruner=pruner)
        self.trial = optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
        self.reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    def hopeless(self, row: dict[str, Any]) -> bool:
        """Report a row of the history; return whether the trial should stop."""
        if row["epoch"] not in self.reported:
            self.trial.report(row[self.key], row["epoch"])
        return bool(self.trial.should_prune())


@functools.lru_cache(maxsize=1)
def _storage(url: str) -> Any:
    from optuna.storages import get_storage

    return get_storage(url)


def _locked(folder: Path) -> bool:
    """Whether some process is writing the run in ``folder``: a worker can outlive its sweeper."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _birth(pid: int) -> str | None:
    """Return when process ``pid`` was started, so that a number used again is not mistaken for it."""
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
