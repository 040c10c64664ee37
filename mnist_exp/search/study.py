"""A study as several sweepers share it: asked for new trials, made to take over cut-off ones, and told how they ended.

The study (study.db in its folder, or a PostgreSQL shared by several machines) and the trials' folders are all the state
there is. How a trial ended is read from its folder.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.config import recipe
from mnist_exp.console import clock
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder, is_locked, is_run
from mnist_exp.search.locks import Locks
from mnist_exp.search.space import build_sampler
from mnist_exp.search.store import Search, best_trial

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
Point = tuple[int, dict[str, Any]]  # a trial's number and parameters
_ATTEMPTS = 3  # starts of one trial whose worker dies every time, the last of them alone


class Study:
    """The study of ``search``, worked at by this sweeper and perhaps by others."""

    def __init__(self, search: Search, study: optuna.Study, storage: Any, locks: Locks):
        self.search = search
        self.study = study
        self.storage = storage
        self.locks = locks
        self.me = uuid.uuid4().hex
        self.n_trials = search.n_trials
        self.asked = -1  # trials in the study after our last question to the sampler
        self.started, self.done_here = time.monotonic(), 0
        self._take_sampler()

    # ------------------------------------------------------------------------------------------------ what there is

    def all_trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def trials(self) -> list[Any]:
        """Return the study's trials, without points that had been proposed before and were not run."""
        return [t for t in self.all_trials() if "duplicate_of" not in t.user_attrs]

    def running(self) -> list[Any]:
        return [t for t in self.trials() if t.state.name == "RUNNING"]

    def folder(self, number: int) -> Path:
        return self.search.folder / f"trial-{number}"

    def last_error(self) -> str:
        """Return what the last failed trial failed with."""
        found = (t.user_attrs["error"] for t in reversed(self.trials()) if "error" in t.user_attrs)
        return next(found, "all were pruned")

    def busy(self, trial: Any) -> bool:
        """Whether some process still works on a running trial: the sweeper that owns it, or a worker that outlived it."""
        if is_locked(self.folder(trial.number)):
            return True
        owner = trial.user_attrs.get("owner")
        # a sweeper tells its name under the lock, before anything else: without one it has died
        return owner not in (None, self.me) and self.locks.at_work(owner)

    # ----------------------------------------------------------------------------------------------------- starting

    def next_batch(self, size: int) -> list[Point]:
        """Return up to ``size`` trials to start, those that were cut off first; [] if there is none to start now."""
        self._close_duplicates()
        batch: list[Point] = []
        for trial in self.running():
            if self.busy(trial) or self.settle(trial.number):
                continue
            last = trial.user_attrs.get("attempts", 0) >= _ATTEMPTS - 1
            if len(batch) < (1 if last else size) and (taken := self._take_over(trial)) is not None:
                batch.append(taken)
                if last:  # alone, so that it dies by its own doing only
                    return batch
        while len(batch) < size and (asked := self.ask()) is not None:
            batch.append(asked)
        return batch

    def ask(self) -> Point | None:
        """Return a new trial, a point that no trial has had; None if there is nothing to do."""
        for attempt in range(100):
            with self.locks.turn():
                begun = sum(t.state.name != "WAITING" for t in self.trials())
                if begun >= self.n_trials:
                    return None
                if self.asked not in (-1, len(self.all_trials())):  # another sweeper is at work, with the same seed
                    self._take_sampler()
                with self._widened(attempt >= 10):
                    trial = self.study.ask()
                    trial.set_user_attr("owner", self.me)
                    trial.set_user_attr("attempts", 1)
                    params = self.search.space.draw(trial, self.search.config)
                self.asked = len(self.all_trials())
                if not self._close_duplicate(trial, params):
                    return trial.number, params
        log.warning("the sampler proposes only points that have been tried: the search ends here")
        self.n_trials = begun
        return None

    @contextlib.contextmanager
    def _widened(self, wide: bool) -> Iterator[None]:
        """Let another sampler propose what is left, where ours has converged on what has been tried."""
        import optuna

        given = self.study.sampler
        if wide:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                every, any_ = optuna.samplers.BruteForceSampler, optuna.samplers.RandomSampler
                self.study.sampler = every() if self.search.space.finite else any_()
        yield
        self.study.sampler = given

    def _take_sampler(self) -> None:
        existing, shared = len(self.all_trials()), self.search.storage is not None
        self.study.sampler, points = build_sampler(self.search.sampler, self.search.space, existing, shared)
        self.n_trials = self.n_trials if points is None else min(self.n_trials, points)

    def _take_over(self, frozen: Any) -> Point | None:
        """Start a trial again whose process is gone; return it, None if there is nothing to start.

        It counts as an attempt only if its worker died under this sweeper without having finished another epoch: to be
        interrupted, or to lose its sweeper, is not the trial's fault.
        """
        import optuna

        number = frozen.number
        with self.locks.turn():
            now = self.all_trials()[number]
            owner = now.user_attrs.get("owner")
            if now.state.is_finished() or owner != frozen.user_attrs.get("owner"):
                return None
            progress = self._progress(number)
            died_again = owner == self.me and progress == now.user_attrs.get("progress", -1)
            attempts = now.user_attrs.get("attempts", 0) + 1 if died_again else 1
            if attempts <= _ATTEMPTS:
                trial = optuna.Trial(self.study, self._id(number))
                for key, value in (("owner", self.me), ("attempts", attempts), ("progress", progress)):
                    trial.set_user_attr(key, value)
                params = self.search.space.draw(trial, self.search.config)
                begun = is_run(self.folder(number))
                return None if not begun and self._close_duplicate(trial, params) else (number, params)
        self.tell(number, {"status": "failed", "error": f"its worker died {_ATTEMPTS} times"})
        return None

    def _progress(self, number: int) -> int:
        """Return the epochs that a trial has finished, -1 where it has not begun."""
        try:
            return int(RunFolder.open(self.folder(number)).info.get("epoch", 0))
        except UserError:
            return -1

    def _close_duplicate(self, trial: Any, params: dict[str, Any]) -> bool:
        """End a trial with the point of an earlier one before it is run; return whether it is one."""
        same = [t.number for t in self.all_trials() if t.params == params and t.number < trial.number]
        if same:
            trial.set_user_attr("duplicate_of", same[0])
            self._close(trial.number)
        return bool(same)

    def _close_duplicates(self) -> None:
        """End what a sweeper that died had found to be a duplicate, and not yet ended."""
        for trial in self.all_trials():
            if trial.state.name == "RUNNING" and "duplicate_of" in trial.user_attrs and not self.busy(trial):
                self._close(trial.number)

    # ------------------------------------------------------------------------------------------------------- ending

    def settle(self, number: int) -> bool:
        """Tell the study how a trial has ended, if it has; return whether it has."""
        try:
            info = RunFolder.open(self.folder(number)).info
        except UserError:
            return False
        ended = info["status"] in ("finished", "pruned", "failed")
        if ended:
            self.tell(number, _foreign(self, number, info) or info)
        return ended

    def tell(self, number: int, info: dict[str, Any]) -> None:
        """Record the end of a trial, as its run.json has it, unless another sweeper has done so; print its line."""
        status, error = info["status"], info.get("error")
        metrics, dataset = info.get("metrics", {}), info.get("dataset")
        value = metrics.get(self.search.metric)
        with self.locks.turn():
            trial = self.all_trials()[number]
            if trial.state.is_finished():
                return
            if dataset is not None and (other := _other_data(self.study, dataset)):
                status, error = "failed", other
            for key, found in (("val_loss", metrics.get("val_loss")), ("error", error)):
                if found is not None:
                    self.storage.set_trial_user_attr(self._id(number), key, found)
            complete = status == "finished" and value is not None
            pruned = status == "pruned" and bool(self.all_trials()[number].intermediate_values)
            self._close(number, "COMPLETE" if complete else "PRUNED" if pruned else "FAIL", value if complete else None)
        self.done_here += 1
        _print(self, trial, f"{self.search.metric} {value:.4f}" if complete else status)
        if error is not None and status == "failed":
            log.warning("  %s (%s)", error.splitlines()[0], self.folder(number) / "train.log")

    def _close(self, number: int, state: str = "FAIL", value: float | None = None) -> None:
        from optuna.trial import TrialState

        try:
            self.study.tell(number, value, TrialState[state], skip_if_finished=True)
        except RuntimeError as error:  # how the grid sampler says that its grid is done; the trial has been recorded
            if "Study.stop" not in str(error):
                raise

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return int(self.storage.get_trial_id_from_study_id_trial_number(study, number))


def _print(study: Study, trial: Any, score: str) -> None:
    """Print the line of a trial that has ended: its point, its score, the best so far, what is left."""
    left = max(0, study.n_trials - sum(t.state.is_finished() for t in study.trials()))
    best = best_trial(study.study)
    log.info(
        "trial %-3d %s  %s%s  left %d, %s",
        trial.number,
        "  ".join(f"{key.rpartition('.')[2]} {_short(found)}" for key, found in trial.params.items()),
        score,
        "" if best is None else f"  best {best.value:.4f} (trial {best.number})",
        left,
        clock(left * (time.monotonic() - study.started) / study.done_here),
    )


def _foreign(study: Study, number: int, info: dict[str, Any]) -> dict[str, Any] | None:
    """Return what to tell in place of a run.json that is not this trial's; None if it is."""
    params = study.all_trials()[number].params
    if recipe.overrides(f"{key}={value}" for key, value in params.items()) <= recipe.overrides(
        info.get("overrides", [])
    ):
        return None
    return {"status": "failed", "error": f"{study.folder(number)} holds a trial of another search"}


def _other_data(study: optuna.Study, dataset: dict[str, Any]) -> str | None:
    """Return what is wrong if a trial had other data than those before it."""
    first = study.user_attrs.get("dataset")
    if first is None:
        study.set_user_attr("dataset", dataset)
        shown = {**dataset, "md5": dataset["md5"] or "unknown"}
        log.info("data     %s", "{name}: {train:,} train, {val:,} val, MD5 {md5}".format(**shown))
        if dataset["md5"] is None:
            log.warning(
                "it cannot be known whether all trials have the same data: they change when they are read again"
            )
        return None
    if first["md5"] == dataset["md5"]:
        return None
    return f"it had other data, {dataset['name']}, than the trials before, {first['name']}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
