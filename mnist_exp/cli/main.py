"""The command line. Finds the command, hands the rest to Hydra, and turns every mistake into one clear message.

Imports are heavy (torch takes seconds), so they happen inside the functions that need them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_exp.errors import RunFailed, UserError, machine_failure
from mnist_exp.garbage import collect_rarely, end_without

USAGE = """\
mnist_exp: compose a training run from small named parts, train it, and believe the answer.

  python -m mnist_exp [train] [KEY=VALUE ...]           train; results in outputs/runs/<time>
  python -m mnist_exp train resume=RUN_FOLDER           go on where a run stopped
  python -m mnist_exp --multirun hparams_search=optuna   search; again: finish what is left
  python -m mnist_exp compare [FOLDER ...]              runs side by side (--help: groups, significance, HTML)
  python -m mnist_exp compare outputs/sweeps/STUDY      table, plots and best parameters of a search
  python -m mnist_exp export RUN --format FORMAT --output FOLDER   ONNX, TorchScript, PT2 or safetensors, and a model card
  python -m mnist_exp evaluate RUN [RUN ...]            score a run again, or the ensemble of several
  python -m mnist_exp predict RUN --input PATH --output FILE   what a run says of pictures, idx, npz, Kaggle's test.csv
  python -m mnist_exp preview [KEY=VALUE ...]           a picture of what the augmentation does
  python -m mnist_exp draw RUN [RUN ...]                draw a digit, see what a trained network says of it
  python -m mnist_exp explain [GROUP|KEY ...]           what may be typed, what it means, which values it takes
  python -m mnist_exp data status                       which data sets are there
  python -m mnist_exp data import PATH [--name NAME]    verify and install a data set from files
  python -m mnist_exp train --help                      config groups and the whole default config
  eval "$(mnist-exp --shell-completion install=bash)"   complete commands, groups, choices, keys and values (or zsh, fish)
  python -m mnist_exp --cfg job [KEY=VALUE ...]         print the composed config, run nothing

Examples:
  python -m mnist_exp train experiment=fast
  python -m mnist_exp train model.ghost_batch_size=64 augment.mix.prob=0 seed=1
  python -m mnist_exp export outputs/runs/NAME --format onnx --output served
  python -m mnist_exp predict outputs/runs/NAME --input scans --output answers.csv --show answers.png
  python -m mnist_exp preview augment.mix.prob=1 --output mixed.png
  python -m mnist_exp draw outputs/runs/NAME
"""
# the function that carries out a command, in the module of its name
COMMANDS = {
    "train": "train_command",
    "compare": "compare",
    "evaluate": "evaluate",
    "predict": "predict",
    "export": "export",
    "draw": "draw",
    "preview": "preview",
    "explain": "explain",
    "data": "data",
}


def main() -> None:
    """Run the command in sys.argv and exit: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted."""
    if str(Path.cwd()) not in map(os.path.abspath, sys.path):  # parts of one's own lie there; last, to hide no other
        sys.path.append(str(Path.cwd()))
    collect_rarely()
    status = report(lambda: dispatch(sys.argv[1:]))
    try:
        sys.stdout.flush()
    except OSError:  # it has been told
        from mnist_exp.console import lose_output

        lose_output()
    end_without()
    sys.exit(status)


def report(function: Callable[[], Any]) -> int:
    """Call ``function`` and return the exit status, having told on stderr what went wrong."""
    try:
        function()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        return _tell(str(error), 2)
    except RunFailed as error:
        return _tell(str(error), 1)
    except BrokenPipeError:
        return 1  # nobody reads on
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):
            from mnist_exp.config.job import plain_message

            return _tell(plain_message(error), 2)
        if (problem := machine_failure(error)) is not None:
            return _tell(problem, 1)
        if isinstance(error, OSError) and error.filename is not None:
            return _tell(f"{error.filename}: {error.strerror}", 1)
        full = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # as torch says it of a CPU
        if full or type(error).__name__ == "OutOfMemoryError":
            return _tell(f"{error}\nThe memory is full; try a smaller data.batch_size or model", 1)
        raise  # a mistake of ours: the traceback is the message
    return 0


def dispatch(arguments: list[str]) -> None:
    """Find the command in ``arguments`` (default: train) and carry it out."""
    if any(a.partition("=")[0] in ("-sc", "--shell-completion") for a in arguments):
        from mnist_exp.cli.completion import complete

        complete(arguments, COMMANDS)
        return
    first = next((a for a in arguments if not a.startswith("-")), "")
    command = "train"
    # the first bare word is the command, unless it is an override or the value of an option before it
    if arguments and arguments[0] == first and re.fullmatch(r"[\w-]+", first):
        command, arguments = first, arguments[1:]
        if command not in COMMANDS:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"unknown command {command!r}{hint} Commands: {', '.join(COMMANDS)}")
    elif arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    getattr(importlib.import_module(f"mnist_exp.cli.{command}"), COMMANDS[command])(arguments)


def _tell(message: str, status: int) -> int:
    from mnist_exp.console import shown, without_password

    print(f"error: {shown(without_password(message), keep=chr(10))}", file=sys.stderr)
    return status
