"""From a composed config to a finished run: builds every component, trains, evaluates, and leaves the run folder.

The only place that builds what is trained; a search builds its own sampler and pruner.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import errno
import inspect
import json
import logging
import math
import platform
import pydoc
import random
import re
import shlex
import subprocess
import sys
import time
import traceback
import types
import typing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mnist_exp import plots
from mnist_exp.checkpoint import Checkpoints, load, save
from mnist_exp.data import LoaderSplit, Split, Splits
from mnist_exp.errors import RunFailed, TrialPruned, UserError, require
from mnist_exp.evaluate import PLAIN, Evaluator, accuracy, nll
from mnist_exp.progress import clock
from mnist_exp.run_folder import RunFolder, refuse_existing, run_lock, without_password
from mnist_exp.schedule import Schedule
from mnist_exp.signals import terminate_as_interrupt
from mnist_exp.statistics import wilson
from mnist_exp.study import storage_url
from mnist_exp.sweep import TrialLink, recipe
from mnist_exp.trainer import Trainer
from mnist_exp.whitelist import execution_whitelist

log = logging.getLogger(__name__)
PACKAGES = ("mnist_exp", "torch", "torchvision", "hydra-core", "omegaconf", "optuna", "numpy")
# what a resumed run may change: where it runs, not what it computes
RESUMABLE = ("resume", "tags", "data.root", "trainer.device", "trainer.max_steps", "logger", "paths")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass
class Components:
    """Everything a run is made of, built from its config."""

    splits: Splits
    batch_size: int
    model: nn.Module
    augment: Any
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    trainer: Trainer
    evaluator: Evaluator
    loggers: list[Any]


def run(config: DictConfig) -> Any:
    """Carry out the run that ``config`` describes, in Hydra's output folder.

    Return ``optimized_metric`` (None if the run has none); a trial of a search, what its sweeper needs to know.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if config.search is not None:
        require(
            hydra.mode is RunMode.MULTIRUN,
            "hparams_search",
            hydra.runtime.choices["hparams_search"],
            "used with --multirun",
        )
        return _run_trial(config, folder)
    parent: RunFolder | None = None
    if config.resume is not None:
        parent = RunFolder.open(Path(config.resume).expanduser().absolute())
        if parent.info["status"] != "finished":
            begun = parent.info.get("warm_start")  # an interrupted warm restart is still one
            first = None if begun is None else RunFolder.open(Path(begun))
            return _Run(_saved_config(parent, config), parent, resumed=True, warm_start=first).carry_out()
    # a mistake in the config is told before anything is written
    refuse_existing(folder)
    _check(config)
    return _Run(config, folder, warm_start=parent).carry_out()


def _run_trial(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Carry out, or continue, a trial of a search; return what the sweeper tells its study.

    However it ends, its folder holds a run.json that says so, since the sweeper may not live to hear of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):  # a queue may start a trial twice
        return _run_locked_trial(config, folder)


def _run_locked_trial(config: DictConfig, folder: Path) -> dict[str, Any]:
    begun = RunFolder.open(folder) if (folder / "run.json").exists() else None
    if begun is not None:
        if recipe(begun.info["overrides"]) != recipe(HydraConfig.get().overrides.task):
            raise UserError(f"{folder} holds a trial of another search; name a new study, or move the folder away")
        if begun.info["status"] in ("finished", "pruned"):
            metrics = begun.info["metrics"]
            value = metrics.get(config.optimized_metric) if begun.info["status"] == "finished" else None
            outcome = {"value": value, "val_loss": metrics.get("val_loss"), "dataset": begun.info["dataset"]}
            return {"status": begun.info["status"], **outcome}
        if begun.info["status"] == "failed":
            raise RunFailed(begun.info["error"])
    try:
        _check(config)
        trial = _Run(config, folder if begun is None else begun, resumed=begun is not None)
        value = trial.carry_out(_trial_link(config))
        info = trial.folder.info
        if info["status"] == "finished" and (value is None or not math.isfinite(value)):
            metric = config.optimized_metric
            problem = f"the run has no finite {metric} ({value}): its schedule or data cannot give one"
            trial.folder.update(status="failed", error=problem)
            raise RunFailed(problem)
        loss = info["metrics"].get("val_loss")
        return {"status": info["status"], "value": value, "val_loss": loss, "dataset": info["dataset"]}
    except Exception as error:
        log.error("%s", traceback.format_exc())
        if not (folder / "run.json").exists():
            facts = {
                "status": "failed",
                "error": f"{type(error).__name__}: {error}",
                "metrics": {},
                "prefix": "",
                "name": folder.name,
            }
            RunFolder.create(
                folder, {**facts, "overrides": list(HydraConfig.get().overrides.task)}, _hydra_files(config)
            ).unlock()
        raise


def _trial_link(config: DictConfig) -> TrialLink | None:
    hydra = HydraConfig.get()
    url = storage_url(hydra.sweeper.storage, Path(hydra.sweep.dir))
    try:
        return TrialLink(
            url, hydra.sweeper.study_name, config.search.trial, config.optimized_metric, instantiate(config.pruner)
        )
    except Exception as error:
        log.warning("this worker cannot reach the study, so the trial cannot be pruned: %s", error)
        return None


def _check(config: DictConfig) -> None:
    """Raise UserError for what no component would notice."""
    check_types(config)
    ok = isinstance(config.seed, int) and 0 <= config.seed < 2**32
    require(ok, "seed", config.seed, "a whole number between 0 and 4294967295")
    require(isinstance(config.tags, ListConfig), "tags", config.tags, "a list, such as [baseline]")
    ok = isinstance(config.save_prefix, str) and re.fullmatch(r"[\w.-]+", config.save_prefix) is not None
    require(ok, "save_prefix", config.save_prefix, "letters, digits, '_', '-' and '.': it begins file names")


def _hydra_files(config: DictConfig) -> dict[str, str]:
    hydra_config = OmegaConf.masked_copy(HydraConfig.instance().cfg, ["hydra"])  # type: ignore[arg-type]
    return {
        "config.yaml": OmegaConf.to_yaml(config),
        "hydra.yaml": without_password(OmegaConf.to_yaml(hydra_config)),
        "overrides.yaml": OmegaConf.to_yaml(HydraConfig.get().overrides.task),
    }


def build(config: DictConfig, warm_restart: bool = False) -> Components:
    """Build the components of ``config`` on their device, the random weights from its seed."""
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    trainer = _instantiate(config, "trainer")
    augment = _instantiate(config, "augment")
    schedule = _instantiate(config, "schedule")
    evaluator = _instantiate(config, "evaluate")
    model = _instantiate(config, "model").to(trainer.device)
    if warm_restart:
        schedule = schedule.restarted()
        config = OmegaConf.merge(config, {"optimizer": {"lr": schedule.resume_lr}})  # type: ignore[assignment]
    optimizer = _instantiate(config, "optimizer")
    try:
        optimizer = optimizer(model.parameters())
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer cannot be built: {error}") from error
    loggers = [] if config.logger is None else list(_instantiate(config, "logger").values())
    splits = _instantiate(config, "data").load()
    classes = int(torch.cat([splits.train.labels, splits.test.labels]).max()) + 1
    allowed = f"at least {classes}, the classes of {splits.name}"
    require(config.model.num_classes >= classes, "model.num_classes", config.model.num_classes, allowed)
    splits = splits.to(trainer.device)
    return Components(splits, config.data.batch_size, model, augment, optimizer, schedule, trainer, evaluator, loggers)


class _Run:
    """One run, from its folder's making to its end, whichever end that is."""

    def __init__(
        self,
        config: DictConfig,
        folder: RunFolder | Path,
        resumed: bool = False,
        warm_start: RunFolder | None = None,
    ):
        self.config = config
        self.resumed = resumed
        self.warm_start = warm_start
        self.clock = time.monotonic()
        self.seconds_before = 0.0
        with terminate_as_interrupt():
            self.parts = build(config, warm_restart=warm_start is not None)
        last = folder.checkpoints / "last.pth" if isinstance(folder, RunFolder) else None
        if warm_start is not None and not (last is not None and last.exists()):
            state = Checkpoints(warm_start, 1).load_last()
            require(state is not None, "resume", str(warm_start.path), "a run with a readable checkpoint")
            _load_weights(self.parts.model, state["model"], warm_start.path)  # type: ignore[index]
        splits, trainer = self.parts.splits, self.parts.trainer
        self.planned = trainer.epochs(self.parts.schedule, math.ceil(len(splits.train) / self.parts.batch_size))
        facts = {
            "status": "running",
            "device": str(trainer.device),
            "device_name": _device_name(trainer.device),
            "precision": trainer.precision,
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
            "git_sha": _git_sha(),
            "error": None,
            "traceback": None,
        }
        if isinstance(folder, RunFolder):
            self.folder = folder
            if "dataset" not in folder.info:
                raise UserError(f"{folder.path} never began to train ({folder.info['error']}); start it anew")
            before = folder.info["dataset"]["md5"]
            require(splits.md5 == before, "data", splits.md5, f"the same as in the run that is resumed, MD5 {before}")
            folder.lock()
            self.seconds_before = float(folder.info.get("seconds") or 0)
            folder.update(**facts, resumed=folder.info.get("resumed", 0) + 1)
        else:
            hydra = HydraConfig.get()
            info = {
                **facts,
                "command": _command(config),
                "name": folder.name,
                "task_name": config.task_name,
                "tags": list(config.tags),
                "prefix": config.save_prefix,
                "overrides": list(hydra.overrides.task),
                "seed": config.seed,
                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "seconds": 0.0,
                "dataset": {**splits.describe(), "split_seed": config.data.split_seed},
                "parameters": sum(p.numel() for p in self.parts.model.parameters()),
                "epochs": self.planned,
                "epoch": 0,
                "metrics": {},
                "best_epoch": None,
                "resumed": 0,
                "warm_start": None if warm_start is None else str(warm_start.path),
            }
            self.folder = RunFolder.create(folder, info, _hydra_files(config))
        self.checkpoints = Checkpoints(self.folder, self.parts.evaluator.top_k)

    def carry_out(self, link: TrialLink | None = None) -> float | None:
        """Train and evaluate; leave a status in run.json however it ends. Return ``optimized_metric`` if it has one."""
        self.link = link
        try:
            with terminate_as_interrupt():
                log.info("run      %s", self.folder.path)
                if self.warm_start is not None:
                    log.info("warm restart from the weights of %s", self.warm_start.path)
                parameters = _flat(self.config)
                for logger in self.parts.loggers:
                    logger.start(self.folder.path, parameters)
                metrics = self._train_and_evaluate()
                self._end("finished", metrics=metrics, best_epoch=self._best_epoch())
        except TrialPruned:
            self._end("pruned", best_epoch=self._best_epoch())
            log.info("pruned: other trials did better")
            return None
        except (KeyboardInterrupt, SystemExit):  # SystemExit: a cluster has put the job back into its queue
            self._end("interrupted", error="interrupted")
            log.warning("Interrupted. Go on with: python -m mnist_exp train resume=%s", self.folder.path)
            raise
        except OSError as error:
            self._end("failed", error=f"{type(error).__name__}: {error}")
            if error.errno in DISK_FULL:
                message = (
                    f"the disk is full: {error.filename or self.folder.path} could not be written ({error.strerror})."
                )
                raise RunFailed(f"{message} Free some space, then type resume={self.folder.path}") from error
            raise
        except BaseException as error:
            if type(error).__name__ == "UncompletedJobError":  # submitit's signal: the job's time is over
                self._end("interrupted", error=str(error))
                raise KeyboardInterrupt from error
            self._end("failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            raise
        return metrics.get(self.config.optimized_metric)

    def _train_and_evaluate(self) -> dict[str, Any]:
        parts = self.parts
        resumed = self.checkpoints.load_last(parts.model.state_dict()) if self.resumed else None
        if self.resumed:
            log.info("resuming in epoch %d", 1 if resumed is None else resumed["epoch"])
        average = parts.trainer.fit(
            parts.model,
            parts.splits,
            parts.batch_size,
            parts.augment,
            parts.optimizer,
            parts.schedule,
            parts.evaluator,
            self.checkpoints,
            self.folder,
            self.config.seed,
            self._on_epoch,
            resumed,
        )
        self._pictures_of_history()
        if self.config.search is not None and self.config.optimized_metric in ("val_acc", "val_loss"):
            best = self.checkpoints.best[0]  # a trial of a search: all it is judged by has been measured
            return {**self.folder.info["metrics"], "val_acc": best["val_acc"], "val_loss": best["val_loss"]}
        log.info("Evaluating%s ...", ": test is scored once, now" if parts.evaluator.test else "")
        metrics = self._evaluate(average)
        for logger in parts.loggers:
            logger.log({k: v for k, v in metrics.items() if isinstance(v, float)})
        self._summary(metrics)
        return metrics

    def _on_epoch(self, row: dict[str, Any]) -> None:
        best = self.checkpoints.best[0] if self.checkpoints.best else None
        history = self.folder.history()
        metrics = {"images_per_s": round(float(np.median([r["images_per_s"] for r in history])), 1)}
        if best is not None:
            metrics |= {"val_acc": best["val_acc"], "val_loss": best["val_loss"]}
        seconds = self.seconds_before + time.monotonic() - self.clock
        self.folder.update(
            epoch=row["epoch"], seconds=round(seconds, 1), metrics=metrics, best_epoch=self._best_epoch()
        )
        for logger in self.parts.loggers:
            logger.log({k: v for k, v in row.items() if isinstance(v, float)}, row["epoch"])
        if self.link is not None and self.link.hopeless(history) and row["epoch"] < self.planned:
            raise TrialPruned

    def _best_epoch(self) -> int | None:
        return self.checkpoints.best[0]["epoch"] if self.checkpoints.best else None

    def _evaluate(self, average: AveragedModel | None) -> dict[str, Any]:
        """Score the best checkpoint, the weight average and the ensemble; on validation, and on test this once."""
        parts, best = self.parts, self.checkpoints.best
        splits, evaluator, model = parts.splits, parts.evaluator, parts.model
        metrics = dict(self.folder.info["metrics"])
        scored: dict[str, dict[str, Any]] = {"val": {}, "test": {}}

        def score(name: str, module: nn.Module, shifts: Any = PLAIN) -> None:
            for split_name, split in (("val", splits.val), ("test", splits.test if evaluator.test else None)):
                if split is not None:
                    scored[split_name][name] = evaluator.probabilities(module, split, parts.trainer.autocast(), shifts)

        for rank, entry in enumerate(best):
            model.load_state_dict(load(self.folder.checkpoint(entry["epoch"]))["model"])
            score(f"member{rank}", model)
            if rank == 0:
                score("tta", model, evaluator.shifts)
        if not best:  # no validation, so nothing was selected: the weights of the last epoch are the result
            score("member0", model)
            score("tta", model, evaluator.shifts)
        if average is not None and any("swa" in row["phase"] for row in self.folder.history()):
            evaluator.recompute_bn(average.module, splits.train, parts.trainer.autocast())
            score("swa", average.module)
            last = self.folder.history()[-1]["epoch"]
            save(self.folder.swa_checkpoint(last), {"epoch": last, "model": average.module.state_dict()})
        for split_name, found in scored.items():
            if not found:
                continue
            plain, labels = found["member0"]
            metrics[f"{split_name}_acc"] = accuracy(plain, labels)
            metrics[f"{split_name}_loss"] = nll(plain, labels)
            metrics[f"{split_name}_acc_tta"] = accuracy(found["tta"][0], labels)
            if "swa" in found:
                metrics[f"{split_name}_acc_swa"] = accuracy(found["swa"][0], labels)
            if best:
                members = torch.stack([found[f"member{rank}"][0] for rank in range(len(best))])
                key = "ensemble_acc" if split_name == "test" else "val_ensemble_acc"
                metrics[key] = accuracy(members.mean(0), labels)
        if scored["test"]:
            self._write_predictions(*scored["test"]["member0"])
        return metrics

    def _write_predictions(self, probs: torch.Tensor, labels: torch.Tensor) -> None:
        predicted, confidence = probs.argmax(1).numpy(), probs.amax(1).numpy()
        truth = labels.numpy()
        test, results = self.parts.splits.test, self.folder.path / "results"
        pictures = _pictures(test)
        wrong_ones = np.flatnonzero(predicted != truth)
        np.savez_compressed(
            self.folder.predictions,
            probs=probs.half().numpy(),
            predicted=predicted,
            labels=truth,
            wrong=wrong_ones,
            images=pictures[wrong_ones],
        )
        wrong, total = int((predicted != truth).sum()), len(truth)
        title = f"{wrong:,} of {total:,} {self.parts.splits.name} test images wrong"
        plots.plot_confusion(predicted, truth, probs.shape[1], results / "confusion.png", title)
        plots.plot_mistakes(pictures, predicted, truth, confidence, results / "mistakes.png", title)

    def _pictures_of_history(self) -> None:
        rows = self.folder.history()
        self.folder.result("history.json").write_text(json.dumps(rows, indent=1) + "\n")
        schedule = self.parts.schedule
        swa_epoch = schedule.swa_epoch if schedule.swa_epoch <= schedule.total else None
        title = f"{self.parts.splits.name}, seed {self.config.seed}"
        plots.plot_loss(rows, swa_epoch, self.folder.result("train_loss.png"), title)
        plots.plot_curves(rows, swa_epoch, self.folder.result("acc.png"), title)

    def _summary(self, metrics: dict[str, Any]) -> None:
        splits, seconds = self.parts.splits, self.seconds_before + time.monotonic() - self.clock
        names = {"": "plain", "_tta": f"TTA x {self.parts.evaluator.tta_runs}", "_swa": "SWA"}

        def line(split: str, ensemble: str) -> str:
            found = [
                f"{label} {metrics[f'{split}_acc{key}']:.2f} %"
                for key, label in names.items()
                if f"{split}_acc{key}" in metrics
            ]
            if ensemble in metrics:
                found.append(f"top-{len(self.checkpoints.best)} ensemble {metrics[ensemble]:.2f} %")
            return "  ".join(found)

        which = f"best epoch {self._best_epoch()}" if self.checkpoints.best else "last epoch; nothing was selected"
        if splits.val is not None:
            log.info("val      %s  (%s, chosen on this)", line("val", "val_ensemble_acc"), which)
        if self.parts.evaluator.test:
            total = len(splits.test)
            low, high = wilson(round(metrics["test_acc"] * total / 100), total)
            log.info("test     %s  (plain, 95 %% interval: %.2f to %.2f %%)", line("test", "ensemble_acc"), low, high)
        log.info(
            "time     %s at %.0f images/s on %s",
            clock(seconds),
            metrics["images_per_s"],
            _device_name(self.parts.trainer.device),
        )
        log.info("results  %s", self.folder.path)
        data = splits.describe()
        log.info("data     {name}: {train:,} train, {val:,} val, {test:,} test, MD5 {md5}".format(**data))

    def _end(self, status: str, **changes: Any) -> None:
        seconds = self.seconds_before + time.monotonic() - self.clock
        try:
            self.folder.update(status=status, seconds=round(seconds, 1), **changes)
        except OSError as error:
            log.warning("could not write the status %s to %s: %s", status, self.folder.path, error)
        self.folder.unlock()
        for logger in self.parts.loggers:
            try:
                logger.finish(status)
            except Exception as error:
                log.debug("logger did not finish: %s", error)


# ------------------------------------------------------------------------------------------------------ configs


def check_types(config: DictConfig, prefix: str = "") -> None:
    """Compare every value below a ``_target_`` with the type its constructor declares; raise UserError naming the key."""
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            check_types(node, f"{prefix}{key}.")
    hints = _type_hints(config.get("_target_"))
    if isinstance(config.get("base"), DictConfig):  # the options of an optimizer inside another one
        hints = _type_hints(config.base.get("_target_")) | hints
    for key in config:
        if str(key) not in hints:
            continue
        value = config[key]
        if isinstance(value, ListConfig):
            value = list(value)
        if isinstance(value, DictConfig) or _fits(value, hints[str(key)]):
            continue
        raise UserError(
            f"{prefix}{key} is {value!r}, of type {type(value).__name__}; it must be {_describe(hints[str(key)])}"
        )


def _type_hints(target: Any) -> dict[str, Any]:
    """Return the annotations of a target's parameters; none where it is not imported yet, or they do not resolve."""
    if not isinstance(target, str) or target.partition(".")[0] not in sys.modules:
        return {}
    try:
        found = pydoc.locate(target)
        return typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # instantiate will say what is wrong with it
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is collections.abc.Sequence or origin in (list, tuple):
        return isinstance(value, list) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if inspect.isclass(hint) else True


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(arg) for arg in args if arg is not torch.Tensor))
    if origin is not None and args:
        return f"a list, each {_describe(args[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, str(hint))


def _instantiate(config: DictConfig, group: str) -> Any:
    if config[group] is None:
        raise UserError(f"{group} is null; type {group}=CHOICE with one of the files in conf/{group}")
    try:
        return instantiate(config[group], _convert_="all", _execution_whitelist_=execution_whitelist())
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{group} cannot be built: {error}") from error


def _saved_config(parent: RunFolder, config: DictConfig) -> DictConfig:
    """Return the config of an unfinished run with this command's overrides, of which only some make sense."""
    saved = OmegaConf.load(parent.hydra_config)
    for override in HydraConfig.get().overrides.task:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith("resume"):
            continue
        if not any(key == allowed or key.startswith(allowed + ".") for allowed in RESUMABLE):
            raise UserError(
                f"{key} cannot change while {parent.path} is resumed: it would be another run. "
                f"Leave it out, or start anew. What may change: {', '.join(RESUMABLE[1:])}"
            )
        OmegaConf.update(saved, key, OmegaConf.select(config, key), force_add=True)
    return typing.cast(DictConfig, saved)


def _load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights of {path} do not fit this model: {str(error).splitlines()[-1].strip()}"
        ) from error


def _flat(config: DictConfig, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, DictConfig):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, ListConfig) else value
    return flat


# ------------------------------------------------------------------------------------------------- about this machine


def _pictures(split: Split | LoaderSplit) -> np.ndarray:
    """Return the images as uint8 [N, 28, 28], to be looked at."""
    if isinstance(split, Split):
        return split.images.cpu().numpy()
    images = np.concatenate([images[:, 0].cpu().numpy() for images, _ in split.batches(512)])
    low, high = images.min(), images.max()
    return ((images - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _command(config: DictConfig) -> str:
    """Return what was typed; a trial may run in a worker, whose own command line says nothing."""
    if config.search is not None:
        return f"trial {config.search.trial} of the search {HydraConfig.get().sweeper.study_name}"
    return without_password(shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _git_sha() -> str | None:
    """Return the commit of the checkout this package runs from, "+" if changed since; None if it is installed."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(here)]
        sha = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if changed.stdout else "")
