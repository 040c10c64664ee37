"""``train`` and ``--multirun``: Hydra composes the config, and a run or a search is carried out."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import RunFailed, UserError, machine_failure, require
from mnist_exp.files import expanded

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mnist_exp.runs.folder import RunFolder

_HYDRAS = {"hydra", "omegaconf", "logging", "argparse", "importlib"}  # packages: its own, and what it configures


def train(*overrides: str) -> RunFolder:
    """Train as ``python -m mnist_exp train OVERRIDES`` does, and return the run's folder. For notebooks.

    Raises UserError if the request is wrong, RunFailed if the run failed.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if {"--multirun", "-m"} & {*overrides} or any(line.startswith("seeds=") for line in overrides):
        raise UserError("train() is one run; several are python -m mnist_exp --multirun ...")
    with _loggers_and_environment_kept():
        try:
            runs = train_command(list(overrides), f"train({', '.join(map(repr, overrides))})")
        except (HydraException, OmegaConfBaseException) as error:
            from mnist_exp.config.job import plain_message

            raise UserError(plain_message(error)) from error
    if not runs:
        raise UserError(f"nothing was run: {' '.join(overrides)} only prints something")
    return runs[0]


def train_command(arguments: list[str], command: str | None = None) -> list[RunFolder]:
    """Compose the config and run it, or a sweep of it; return the folders of what was run in this process.

    ``command``: how it was said, if not on the command line of this process.
    """
    import hydra
    from hydra.core.plugins import Plugins

    from mnist_exp.config.build import allowed
    from mnist_exp.config.elsewhere import Elsewhere
    from mnist_exp.config.ours import config_folder

    # Hydra then raises instead of printing tracebacks, and report() has the last word
    os.environ["HYDRA_FULL_ERROR"] = "1"
    words = request(arguments)
    Plugins.instance().register(Elsewhere)
    if any(word.lstrip("+").startswith(("--multirun", "hydra.mode=", "hydra=")) for word in words):
        from mnist_exp.compare.multirun import RunsSweeper
        from mnist_exp.search.sweeper import StudySweeper

        Plugins.instance().register(StudySweeper)
        Plugins.instance().register(RunsSweeper)
        if not any(word.startswith(("hparams_search=", "hydra/sweeper=", "hydra.sweeper._target_=")) for word in words):
            words.append(f"hydra.sweeper._target_={RunsSweeper.__module__}.{RunsSweeper.__qualname__}")
    runs: list[RunFolder] = []
    failures: list[Exception] = []
    task = _task(runs, failures, command)
    entry = hydra.main(config_path=config_folder(), config_name="train", execution_whitelist=allowed())(task)
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        with one_message(arguments):
            entry()
    except SystemExit as end:  # Hydra has told what it could not print
        raise SystemExit(2 if end.code == 1 else end.code) from end
    except OSError as error:
        raise _with_the_way_out(error) from None
    finally:
        sys.argv = before
    for failure in failures:
        raise _with_the_way_out(failure) if isinstance(failure, OSError) else failure
    return runs


@contextlib.contextmanager
def one_message(arguments: list[str]) -> Iterator[None]:
    """Raise as a UserError what Hydra finds wrong with ``arguments``."""
    try:
        yield
    except Exception as error:
        if "Config group override" in str(error):
            nulls = " ".join(a for a in arguments if a.endswith("=null"))
            message = f"{nulls}: this group cannot be null here; name one of its choices, as in pruner=none"
            raise UserError(message) from error
        if _is_hydras(error):
            from mnist_exp.config.job import plain_message

            raise UserError(plain_message(error)) from error
        raise


def _with_the_way_out(error: OSError) -> Exception:
    """Return an error that says what to type where a run cannot be written; as it is where no file is named."""
    if error.filename is None:
        return error
    problem = machine_failure(error) or f"{error.filename}: {error.strerror}"
    return RunFailed(f"{problem}; outputs go below paths.outputs=FOLDER or hydra.run.dir=FOLDER")


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

        from mnist_exp.garbage import collect_rarely, keep_what_is_there
        from mnist_exp.signals import end_with

        # jobs of a cluster go on alone
        worker = os.getpid() != sweeper and "joblib" in HydraConfig.get().launcher._target_
        if worker:
            end_with(sweeper)
            collect_rarely()
        multirun = HydraConfig.get().mode is RunMode.MULTIRUN
        try:
            run = _run(config, multirun, command)
        except Exception as error:
            _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
            if multirun:
                raise
            failures.append(error)  # raised later: through Hydra it would come with lines of Hydra's own
            return None
        if worker:
            keep_what_is_there()  # joblib searches all for garbage after each job, which takes a third of a second
        runs.append(run)
        return run.info["metrics"].get(config.optimized_metric)

    return task


def _leave_no_empty_folder(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin."""
    log = folder / "train.log"
    with contextlib.suppress(OSError):  # the error that is told is why it did not begin
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


def request(arguments: list[str]) -> list[str]:
    """Return the command line for Hydra, options first. Raises UserError for what Hydra would misunderstand."""
    from hydra._internal.utils import get_args

    from mnist_exp.config.elsewhere import Elsewhere, refuse_names_of_ours
    from mnist_exp.config.request import check_typed, quoted

    options = vars(get_args(arguments))
    overrides = options.pop("overrides")
    if options.pop("experimental_rerun") is not None:
        raise UserError("--experimental-rerun is not taken: to go on with a run type resume=RUN_FOLDER")
    for name in ("config_name", "config_path"):
        if options.pop(name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is not taken: what is composed begins with conf/train.yaml; configs of "
                "your own lie in a folder, as FOLDER/experiment/NAME.yaml: --config-dir FOLDER experiment=NAME"
            )
    overrides, seeds = _seeds(overrides, options)
    check_typed(overrides)
    overrides = _resuming(overrides) + seeds
    if (folder := options.pop("config_dir")) is not None:
        folder = expanded(folder).absolute()
        require(folder.is_dir(), "--config-dir", folder, "a folder")
        refuse_names_of_ours(folder)
        overrides.append(f"hydra.searchpath=[{quoted(f'{Elsewhere.scheme()}://{folder}')}]")
    if options["resolve"]:  # by Hydra, with nothing of ours in between
        _refuse_endless(overrides)
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value not in (None, False)}
    return [*(flag if value is True else f"{flag}={value}" for flag, value in flags.items()), *overrides]


def _seeds(overrides: list[str], options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return ``overrides`` without ``seeds=N``, and the sweep that it stands for: seeds 1 to N, as with --multirun."""
    asked = [line.partition("=")[2] for line in overrides if line.startswith("seeds=")]
    if not asked:
        return overrides, []
    others = [line for line in overrides if not line.startswith("seeds=")]
    number = asked[-1]
    fine = re.fullmatch(r"[1-9]\d{0,5}", number) is not None
    require(
        fine, "seeds", number or "empty", "how many: seeds=5 runs seeds 1 to 5; for others type --multirun seed=7,8"
    )
    clash = next((line for line in others if line.startswith(("seed=", "resume=", "hparams_search="))), None)
    if clash is not None:
        raise UserError(f"seeds={number} and {clash} do not go together; leave one out")
    options["multirun"] = True
    return others, [f"seed=range(1,{int(number) + 1})"]


def _refuse_endless(overrides: list[str]) -> None:
    from omegaconf import OmegaConf

    from mnist_exp.config.elsewhere import refuse_endless
    from mnist_exp.config.job import compose

    try:
        config = compose(*overrides)
    except UserError:  # Hydra will say it, or compose a sweep
        return
    refuse_endless(OmegaConf.to_container(config), "the composed config")  # type: ignore[arg-type]


def _is_hydras(error: Exception) -> bool:
    """Whether Hydra, or what it configures, has refused the request in its own code, before any of ours was called."""
    names, trace = [], error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    called = set(itertools.dropwhile(lambda name: name == "mnist_exp", names))
    return not isinstance(error, OSError) and bool(called) and called <= _HYDRAS


def _resuming(overrides: list[str]) -> list[str]:
    """Point Hydra to the folder of the run that ``resume=`` names, or give a finished run's overrides to a new one."""
    named = [re.fullmatch(r"\+{0,2}resume=(.*)", line, re.S) for line in overrides]
    path = next((_path(found[1]) for found in reversed(named) if found), None)
    if path is None:
        return overrides
    from mnist_exp.config.request import kept, quoted
    from mnist_exp.reading import load_yaml
    from mnist_exp.runs.folder import RunFolder, refuse_links

    run = RunFolder.open(path)
    if "${" in str(run.path):
        raise UserError(f"{run.path} cannot be named to Hydra: rename it, without ${{")
    refuse_links(run.path, "train.log", "tensorboard")  # which Hydra and a logger open
    overrides = [line for line, found in zip(overrides, named, strict=True) if not found]
    resume = f"resume={quoted(run.path)}"
    if not run.finished:
        return [*overrides, resume, f"hydra.run.dir={quoted(run.path)}"]
    if not any(line.startswith("schedule.extra_epochs=") for line in overrides):
        raise UserError(
            f"{run.path} is finished. To train it further, from schedule.resume_lr on, type schedule.extra_epochs=N too"
        )
    return [*kept(load_yaml(run.hydra_overrides), run.hydra_overrides), *overrides, resume]


def _path(text: str) -> Path | None:
    """Return the folder that ``resume=TEXT`` names, None for null: as it is if there is such a folder, or in quotes."""
    if text == "null":
        return None
    if not text:
        raise UserError("resume= is empty; name a run folder, such as resume=outputs/runs/NAME")
    if not os.path.lexists(text) and re.fullmatch(r"(['\"]).*\1", text, re.S):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        text = str(OverridesParser.create().parse_override(f"resume={text}").value())
    return (Path(text) if os.path.lexists(text) else expanded(text)).absolute()
