"""Searches that finish, whatever happens to them: an Optuna study behind Hydra's Optuna sweeper.

The study (study.db in its folder, or a PostgreSQL shared by several machines) and the trials' folders are all the
state there is. A call of the same command looks at both and does what is left: it takes over results that a killed
sweeper never heard of, continues interrupted trials from their checkpoints, and asks for new ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
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
# overrides that may differ between calls of one search: where it runs, not what it computes
_MOVABLE = ("paths.", "data.root", "trainer.device", "trainer.threads", "logger", "tags", "hydra", "search.trial")
_ATTEMPTS = 3  # starts of one trial whose worker dies every time, the last of them alone
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
        self.asked = -1  # trials in the study after our last question to the sampler
        self.beats: dict[str, tuple[Any, float]] = {}  # last sign of life of other sweepers, and since when we know it

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
        try:
            space, fixed, deleted = create_params_from_overrides(given)
        except (ValueError, AssertionError, NotImplementedError) as error:
            reason = str(error) or "only interval, range, choice and single values can be searched"
            raise UserError(f"the search space cannot be read: {reason}. Given: {', '.join(given)}") from error
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
        ok = self.storage is None or self.storage.startswith("postgresql")
        allowed = "null (study.db in the study's folder) or postgresql+psycopg://USER@HOST/DATABASE"
        require(ok, "hydra.sweeper.storage", without_password(str(self.storage)), allowed)
        require(self.n_jobs >= 1, "hydra.sweeper.n_jobs", self.n_jobs, "at least 1")
        why = ", ".join(METRICS) + " (a search never looks at the test set)"
        require(metric in METRICS, "optimized_metric", metric, f"one of {why}")
        averaged = metric != "val_acc_swa" or OmegaConf.select(self.config, "schedule.swa_start") is not None
        require(averaged, "schedule.swa_start", None, "a number for optimized_metric=val_acc_swa")
        wanted = "minimize" if metric.endswith("loss") else "maximize"
        require(self.direction == wanted, "hydra.sweeper.direction", self.direction, f"{wanted} for {metric}")
        held = self.config.data.val_size
        require(isinstance(held, int) and held > 0, "data.val_size", held, "a whole number above 0 to search")
        rate = self.max_failure_rate
        require(0 <= rate <= 1, "hydra.sweeper.max_failure_rate", rate, "between 0 and 1")
        named = self.study_name is not None and re.fullmatch(r"\w[\w.-]*", self.study_name) is not None
        require(
            named, "hydra.sweeper.study_name", self.study_name, "letters, digits, '_', '-' and '.': it names a folder"
        )
        from hydra.utils import instantiate
        from optuna.pruners import BasePruner

        try:
            pruner = instantiate(self.config.pruner)
        except Exception as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"pruner cannot be built: {reason}. Choices: pruner=median, halving or none") from error
        require(isinstance(pruner, BasePruner), "pruner", pruner, "one of Optuna's: pruner=median, halving or none")

    def _check_composition(self) -> None:
        """Compose a job for each choice of each group, so that what cannot be is told before the first trial."""
        some = {name: getattr(dist, "low", None) or dist.to_external_repr(0) for name, dist in self.space.items()}
        groups = {
            name: dist.choices for name, dist in self.space.items() if "." not in name and hasattr(dist, "choices")
        }
        for changed in [{}, *({name: choice} for name, choices in groups.items() for choice in choices[1:])]:
            self._compose(0, some | changed)

    def _compose(self, number: int, params: dict[str, Any]) -> None:
        self.hydra_context.config_loader.load_sweep_config(self.config, self._overrides(number, params))

    def _open_study(self, optuna: Any) -> optuna.Study:
        """Create or load the study, under a lock, and see that it is the search that is asked for."""
        from optuna.distributions import distribution_to_json
        from sqlalchemy.exc import SQLAlchemyError

        self.folder.mkdir(parents=True, exist_ok=True)
        url = storage_url(self.storage, self.folder)
        described = {name: json.loads(distribution_to_json(dist)) for name, dist in sorted(self.space.items())}
        settings = sorted(recipe(self.fixed))
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
                if "id" not in study.user_attrs:
                    study.set_user_attr("id", uuid.uuid4().hex)
                self._claim_folder(study.user_attrs["id"])
                if known is None:
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

    def _claim_folder(self, study: str) -> None:
        """Refuse a folder with trials of another study: their results would be taken for this one's."""
        mark = self.folder / ".study"
        if any(self.folder.glob("trial-*/run.json")) and not (mark.exists() and mark.read_text() == study):
            raise UserError(
                f"{self.folder} holds trials of another study, or of one that is gone. "
                "Type hydra.sweeper.study_name=NEW_NAME, or move that folder away"
            )
        mark.write_text(study)

    @contextlib.contextmanager
    def _locked_study(self) -> Iterator[None]:
        """Hold a lock that the study's sweepers take turns with: what we do to it is several writes at a time.

        On PostgreSQL an advisory lock, which other machines see and which ends with its holder's connection.
        """
        if self.storage is not None:
            import sqlalchemy

            engine = sqlalchemy.create_engine(self.storage, poolclass=sqlalchemy.NullPool)
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
            last = trial.user_attrs.get("attempts", 0) >= _ATTEMPTS - 1
            if len(batch) < (1 if last else self.n_jobs) and (taken := self._take_over(trial)) is not None:
                batch.append(taken)
                if last:  # alone, so that it dies by its own doing only
                    break
        else:
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
            began = any((self.folder / f"trial-{number}" / "run.json").exists() for number, _ in batch)
            if not began and self._fail_what_cannot_be_composed(batch):
                return True
            if not began and not self.done_here:
                raise UserError(f"no trial could be started: {type(error).__name__}: {error}") from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("a worker died (%s); going on from what is on disk", reason)
            returns = []
        self.job_number += len(batch)
        for position, (number, params) in enumerate(batch):
            self._settle(number, params, returns[position] if position < len(returns) else None)
        return True

    def _fail_what_cannot_be_composed(self, batch: list[tuple[int, dict[str, Any]]]) -> bool:
        """Settle the trials whose values do not go together in any config; return whether there were any."""
        found = False
        for number, params in batch:
            try:
                self._compose(number, params)
            except Exception as error:
                found = True
                self._tell(number, "failed", error=f"{type(error).__name__}: {error}")
        return found

    def _trials(self) -> list[Any]:
        """Return the study's trials, without points that had been proposed before and were not run."""
        return [t for t in self.study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]

    def _ask(self) -> tuple[int, dict[str, Any]] | None:
        """Return (number, parameters) of a new trial, a point that no trial has had; None if there is nothing to do."""
        import optuna
        from optuna.trial import TrialState

        for attempt in range(100):
            with self._locked_study():
                started = sum(t.state is not TrialState.WAITING for t in self._trials())
                if started >= self.n_trials:
                    return None
                there = len(self.study.get_trials(deepcopy=False))
                if self.asked not in (-1, there):  # another sweeper is at work, with the same seed
                    self.study.sampler = self._sampler(there)
                given = self.study.sampler
                if attempt >= 10:  # it has converged on what has been tried: what is left instead
                    finite = all(hasattr(d, "choices") or getattr(d, "step", None) for d in self.space.values())
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                        rest = optuna.samplers.BruteForceSampler() if finite else optuna.samplers.RandomSampler()
                    self.study.sampler = rest
                trial = self.study.ask()
                trial.set_user_attr("owner", self.me)
                trial.set_user_attr("attempts", 1)
                params = self._complete(trial)
                self.study.sampler = given
                self.asked = len(self.study.get_trials(deepcopy=False))
                if not self._close_duplicate(trial, params):
                    return trial.number, params
        log.warning("the sampler proposes only points that have been tried: the search ends here")
        self.n_trials = started
        return None

    def _close_duplicate(self, trial: Any, params: dict[str, Any]) -> bool:
        """End a trial with the point of an earlier one before it is run; return whether it is one."""
        from optuna.trial import TrialState

        others = self.study.get_trials(deepcopy=False)
        same = [t.number for t in others if t.params == params and t.number < trial.number]
        if same:
            trial.set_user_attr("duplicate_of", same[0])
            self._close(trial.number, state=TrialState.FAIL)
        return bool(same)

    def _complete(self, trial: Any) -> dict[str, Any]:
        """Draw the parameters that ``trial`` has not yet got; return all."""
        from hydra.utils import instantiate

        for name, distribution in self.space.items():
            trial._suggest(name, distribution)
        if self.custom_search_space:
            instantiate({"_target_": self.custom_search_space, "_partial_": True})(self.config, trial)
        return dict(trial.params)

    def _take_over(self, frozen: Any) -> tuple[int, dict[str, Any]] | None:
        """Start a trial again whose process is gone; return (number, parameters), None if there is nothing to start.

        It counts as an attempt only if its worker died under this sweeper without having finished another epoch: to be
        interrupted, or to lose its sweeper, is not the trial's fault.
        """
        import optuna

        with self._locked_study():
            now = self.study.get_trials(deepcopy=False)[frozen.number]
            owner = now.user_attrs.get("owner")
            if now.state.is_finished() or owner != frozen.user_attrs.get("owner"):
                return None
            progress = self._progress(frozen.number)
            died_again = owner == self.me and progress == now.user_attrs.get("progress", -1)
            attempts = now.user_attrs.get("attempts", 0) + 1 if died_again else 1
            if attempts <= _ATTEMPTS:
                trial = optuna.Trial(self.study, frozen._trial_id)
                for key, value in (("owner", self.me), ("attempts", attempts), ("progress", progress)):
                    trial.set_user_attr(key, value)
                params = self._complete(trial)
                begun = (self.folder / f"trial-{frozen.number}" / "run.json").exists()
                return None if not begun and self._close_duplicate(trial, params) else (frozen.number, params)
        self._tell(frozen.number, "failed", error=f"its worker died {_ATTEMPTS} times")
        return None

    def _progress(self, number: int) -> int:
        """Return the epochs that a trial has finished, -1 where it has not begun."""
        try:
            return int(RunFolder.open(self.folder / f"trial-{number}").info.get("epoch", 0))
        except UserError:
            return -1

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
        """Record the end of a trial, unless another sweeper has done so, and print its line."""
        with self._locked_study():
            if not self.study.get_trials(deepcopy=False)[number].state.is_finished():
                self._record(number, status, value, val_loss, error, dataset)

    def _record(
        self,
        number: int,
        status: str,
        value: float | None,
        val_loss: float | None,
        error: str | None,
        dataset: dict[str, Any] | None,
    ) -> None:
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
        if owner is None:  # its sweeper died before it had told who it was: it does so under the lock
            return False
        host, pid, birth = owner.split(" ")
        if host == socket.gethostname():
            return _birth(int(pid)) == birth
        if self.storage is None:
            return False
        beat, now = self.study.user_attrs.get(f"alive {owner}"), time.monotonic()
        if owner not in self.beats or self.beats[owner][0] != beat:
            self.beats[owner] = beat, now
        return now - self.beats[owner][1] < _SILENT  # by our own clock: others may go differently


class TrialLink:
    """A job's line to its own trial: reports each epoch, and says whether the pruner would stop it."""

    def __init__(self, storage: str, study_name: str, number: int, metric: str, pruner: Any):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.key = "val_loss" if metric == "val_loss" else "val_acc"
        study = optuna.load_study(study_name=study_name, storage=_storage(storage), pruner=pruner)
        self.finished = optuna.exceptions.UpdateFinishedTrialError
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
        except self.finished:  # another machine has taken it over, and ended it
            return True
        except Exception as error:  # the study may be out of reach for a while; training can go on without
            log.warning("the study cannot be reached to report this epoch: %s", error)
            return False


def recipe(overrides: Iterable[str]) -> set[str]:
    """Return the overrides that say what is computed, not where."""
    return {o for o in overrides if not o.lstrip("+~").startswith(_MOVABLE)}


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
