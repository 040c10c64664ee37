"""Searches that finish, whatever happens to them: an Optuna study behind Hydra's Optuna sweeper.

The study (study.db in its folder, or a PostgreSQL shared by several machines) and the trials' folders are all the
state there is. A call of the same command looks at both and does what is left: it takes over results that a killed
sweeper never heard of, continues interrupted trials from their checkpoints, and asks for new ones.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, read_write

from mnist_exp.errors import RunFailed, RunLockedError, UserError, require
from mnist_exp.progress import clock
from mnist_exp.run_folder import RunFolder, without_password
from mnist_exp.signals import terminate_as_interrupt
from mnist_exp.study import best_trial, report_study, storage_url

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
        from sqlalchemy.exc import SQLAlchemyError

        self.study = self._open_study(optuna)
        stop_beating = self._beat()
        self.started, self.done_here = time.monotonic(), 0
        log.info("study    %s in %s", self.study.study_name, self.folder)
        try:
            with terminate_as_interrupt():
                while self._step():
                    pass
                self._report()
        except KeyboardInterrupt:
            # to stderr itself: where the trial was cut off, logging still goes to its file alone
            sys.stderr.write("Interrupted. The same command goes on with the search.\n")
            raise
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise RunFailed(
                f"the study cannot be reached any more: {reason}. The same command goes on with it"
            ) from error
        except ImportError as error:
            raise UserError(f"the sampler cannot work: {error}") from error
        finally:
            stop_beating.set()

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
        held = self.config.data.val_size
        require(isinstance(held, int) and held > 0, "data.val_size", held, "a whole number above 0 to search")
        rate = self.max_failure_rate
        require(0 <= rate <= 1, "hydra.sweeper.max_failure_rate", rate, "between 0 and 1")
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
        from optuna.distributions import distribution_to_json
        from sqlalchemy.exc import SQLAlchemyError

        self.folder.mkdir(parents=True, exist_ok=True)
        url = storage_url(self.storage, self.folder)
        described = {name: json.loads(distribution_to_json(dist)) for name, dist in sorted(self.space.items())}
        settings = sorted(o for o in self.fixed if not o.lstrip("+~").startswith(_MOVABLE))
        search = {"space": described, "settings": settings, "metric": self.config.optimized_metric}
        try:
            sampler = self._sampler(0)
        except Exception as error:
            raise UserError(f"hydra.sweeper.sampler cannot be built: {str(error).splitlines()[0]}") from error
        try:
            with self._locked_study():
                study: optuna.Study = optuna.create_study(
                    study_name=self.study_name, storage=url, direction=self.direction, load_if_exists=True
                )
                known = study.user_attrs.get("search")
                if known is None:
                    self._refuse_old_trials()
                    if not isinstance(sampler, optuna.samplers.GridSampler):
                        study.enqueue_trial(self._baseline(), skip_if_exists=True)
                    study.set_user_attr("search", search)
        except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError, ValueError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            needs = " (PostgreSQL needs: pip install 'mnist_exp[postgres]')" if isinstance(error, ImportError) else ""
            hidden = without_password(url)
            raise UserError(
                f"hydra.sweeper.storage={hidden} cannot be used: {without_password(reason)}{needs}"
            ) from error
        for key in ("space", "settings", "metric"):
            if known is not None and known[key] != search[key]:
                raise UserError(
                    f"the study {self.study_name} has another search {key}:\n  there {json.dumps(known[key])}\n"
                    f"  here  {json.dumps(search[key])}\nFor another search type hydra.sweeper.study_name=NEW_NAME"
                )
        study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
        return study

    def _refuse_old_trials(self) -> None:
        if any(self.folder.glob("trial-*/run.json")):
            raise UserError(
                f"{self.folder} holds trials of a search whose study is gone. "
                "Type hydra.sweeper.study_name=NEW_NAME, or move that folder away"
            )

    @contextlib.contextmanager
    def _locked_study(self) -> Iterator[None]:
        """Hold a lock that the study's sweepers take turns with: what we do to it is several writes at a time.

        On PostgreSQL an advisory lock, which other machines see and which the server drops when a holder dies.
        """
        if (self.storage or "").startswith("postgresql"):
            import sqlalchemy

            engine = sqlalchemy.create_engine(str(self.storage), poolclass=sqlalchemy.NullPool)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                lock = sqlalchemy.text("select pg_advisory_lock(hashtextextended(:name, 0))")
                connection.execute(lock, {"name": f"mnist_exp {self.study_name}"})
                yield
        else:
            from filelock import FileLock

            with FileLock(self.folder / ".study.lock"):
                yield

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
        # the grid's order is part of what is stored in the study, so there the seed stays
        if config.get("seed") is not None and not str(config.get("_target_")).endswith("GridSampler"):
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

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "duplicate_of" in trial.user_attrs and not self._busy(trial):
                self._close(trial.number, state=TrialState.FAIL)
        trials = self._trials()
        finished = sum(t.state.is_finished() for t in trials)
        failed = sum(t.state is TrialState.FAIL for t in trials)
        if failed and failed / finished > self.max_failure_rate:
            raise RunFailed(
                f"{failed} of {finished} trials have failed, more than hydra.sweeper.max_failure_rate="
                f"{self.max_failure_rate:g} allows; the last: {_last_error(trials)}"
            )
        batch: list[tuple[int, dict[str, Any]]] = []
        for trial in trials:
            if trial.state is not TrialState.RUNNING or self._busy(trial) or self._settle_from_disk(trial.number):
                continue
            if len(batch) < self.n_jobs and (taken := self._take_over(trial)) is not None:
                batch.append(taken)
        while len(batch) < self.n_jobs and (asked := self._ask()) is not None:
            batch.append(asked)
        if not batch:
            running = any(t.state is TrialState.RUNNING for t in self._trials())
            if running:
                time.sleep(1)  # another process is at the last trials
            return running
        overrides = [self._overrides(number, params) for number, params in batch]
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=self.job_number)
        except Exception as error:  # a dying worker takes the whole batch down: what is on disk decides
            if not any((self.folder / f"trial-{number}" / "run.json").exists() for number, _ in batch):
                for number, _ in batch:
                    self._set(number, attempts=0)
                raise UserError(f"no trial could be started: {type(error).__name__}: {error}") from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("a worker died (%s); going on from what is on disk", reason)
            returns = []
        self.job_number += len(batch)
        for position, (number, params) in enumerate(batch):
            self._settle(number, params, returns[position] if position < len(returns) else None)
        return True

    def _trials(self) -> list[Any]:
        """Return the study's trials, without points that had been proposed before and were not run."""
        return [t for t in self.study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]

    def _ask(self) -> tuple[int, dict[str, Any]] | None:
        """Return (number, parameters) of a new trial, a point that no trial has had; None if there is nothing to do."""
        from optuna.trial import TrialState

        for _ in range(100):
            with self._locked_study():
                started = sum(t.state is not TrialState.WAITING for t in self._trials())
                if started >= self.n_trials:
                    return None
                trial = self.study.ask()
                trial.set_user_attr("owner", self.me)
                trial.set_user_attr("attempts", 1)
                params = self._complete(trial)
                others = self.study.get_trials(deepcopy=False)
                same = [t.number for t in others if t.params == params and t.number < trial.number]
                if not same:
                    return trial.number, params
                trial.set_user_attr("duplicate_of", same[0])
                self._close(trial.number, state=TrialState.FAIL)
        log.warning("the sampler proposes only points that have been tried: the search ends here")
        self.n_trials = started
        return None

    def _complete(self, trial: Any) -> dict[str, Any]:
        """Draw the parameters that ``trial`` has not yet got; return all."""
        from hydra.utils import instantiate

        for name, distribution in self.space.items():
            trial._suggest(name, distribution)
        if self.custom_search_space:
            instantiate({"_target_": self.custom_search_space, "_partial_": True})(self.config, trial)
        return dict(trial.params)

    def _take_over(self, frozen: Any) -> tuple[int, dict[str, Any]] | None:
        """Make a dead sweeper's trial ours; return (number, parameters), None if another sweeper was faster."""
        import optuna

        with self._locked_study():
            trial = optuna.Trial(self.study, frozen._trial_id)
            if trial.user_attrs.get("owner") != frozen.user_attrs.get("owner"):
                return None
            trial.set_user_attr("owner", self.me)
            attempts = trial.user_attrs.get("attempts", 0) + 1
            trial.set_user_attr("attempts", attempts)
            if attempts > _ATTEMPTS:
                self._tell(frozen.number, "failed", error=f"its worker died {_ATTEMPTS} times")
                return None
            return frozen.number, self._complete(trial)

    def _set(self, number: int, **attributes: Any) -> None:
        """Set user attributes of a trial, unless it has been finished by another sweeper meanwhile."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            for key, value in attributes.items():
                self.study._storage.set_trial_user_attr(trial._trial_id, key, value)

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

    def _settle(self, number: int, params: dict[str, Any], job: Any) -> None:
        """Tell the study how a job ended: by what it returned or, where nothing came back, by what is on disk."""
        from hydra.core.utils import JobStatus

        if job is not None and job.status is JobStatus.COMPLETED:
            self._tell(number, **job._return_value)
        elif job is not None and not isinstance(job._return_value, RunLockedError):
            self._tell(number, "failed", error=f"{type(job._return_value).__name__}: {job._return_value}")
        elif job is None:
            self._settle_from_disk(number)  # or it stays as it is, to be continued by the next step

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
        self._tell(number, info["status"], value, loss, info["error"], info.get("dataset"))
        return True

    def _tell(
        self,
        number: int,
        status: str,
        value: float | None = None,
        val_loss: float | None = None,
        error: str | None = None,
        dataset: dict[str, Any] | None = None,
    ) -> None:
        """Record the end of a trial and print its line."""
        from optuna.trial import TrialState

        if dataset is not None:
            first = self.study.user_attrs.get("dataset")
            if first is None:
                self.study.set_user_attr("dataset", dataset)
                log.info("data     %s", "{name}: {train:,} train, {val:,} val, MD5 {md5}".format(**dataset))
            elif first["md5"] != dataset["md5"]:
                status, error = (
                    "failed",
                    f"it had other data, {dataset['name']}, than the trials before, {first['name']}",
                )
        self._set(number, **{k: v for k, v in (("val_loss", val_loss), ("error", error)) if v is not None})
        trial = self.study.get_trials(deepcopy=False)[number]
        if status == "finished" and value is not None:
            self._close(number, values=value)
        else:
            pruned = status == "pruned" and bool(trial.intermediate_values)
            self._close(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        self.done_here += 1
        left = max(0, self.n_trials - sum(t.state.is_finished() for t in self._trials()))
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
            self.study.tell(number, skip_if_finished=True, **outcome)
        except RuntimeError as error:  # how the grid sampler says that its grid is done; the trial has been recorded
            if "Study.stop" not in str(error):
                raise

    def _report(self) -> None:
        if best_trial(self.study) is None:
            trials = self._trials()
            raise RunFailed(
                f"no trial of {self.study.study_name} has finished; the last ended with: {_last_error(trials)}"
            )
        report_study(self.folder, self.study)

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

    def _busy(self, trial: Any) -> bool:
        """Whether some process still works on a running trial: the sweeper that owns it, or a worker that outlived it."""
        if _locked(self.folder / f"trial-{trial.number}"):
            return True
        owner = trial.user_attrs.get("owner")
        if owner == self.me:
            return False
        if owner is None:  # being made at this moment, or left behind in that moment
            age = (datetime.datetime.now() - trial.datetime_start).total_seconds()
            return bool(self.storage) and age < _SILENT
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

    def hopeless(self, history: list[dict[str, Any]]) -> bool:
        """Report the rows of the history that have not been; return whether the trial should stop."""
        try:
            for row in history:
                if row["epoch"] not in self.reported:
                    self.trial.report(row[self.key], row["epoch"])
                    self.reported.add(row["epoch"])
            return bool(self.trial.should_prune())
        except Exception as error:  # the study may be out of reach for a while; training can go on without
            log.warning("the study cannot be reached to report this epoch: %s", error)
            return False


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


def _last_error(trials: list[Any]) -> str:
    return next((t.user_attrs["error"] for t in reversed(trials) if "error" in t.user_attrs), "all were pruned")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
