"""The command line. Finds the command, hands the rest to Hydra, and turns every mistake into one clear message.

Imports are heavy (torch takes seconds), so they happen inside the functions that need them.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import RunFailed, UserError
from mnist_exp.whitelist import ALLOW, execution_whitelist

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
mnist_exp: compose a training run from small named parts, train it, and believe the answer.

  python -m mnist_exp [train] [KEY=VALUE ...]           train; results in outputs/runs/<time>
  python -m mnist_exp train resume=RUN_FOLDER           go on where a run stopped
  python -m mnist_exp --multirun hparams_search=optuna   search; again: finish what is left
  python -m mnist_exp compare [FOLDER ...]              runs side by side (--help: groups, significance, HTML)
  python -m mnist_exp compare outputs/sweeps/STUDY      table, plots and best parameters of a search
  python -m mnist_exp data status                       which data sets are there
  python -m mnist_exp data import PATH [--name NAME]    verify and install a data set from files
  python -m mnist_exp train --help                      config groups and the whole default config
  python -m mnist_exp --cfg job [KEY=VALUE ...]         print the composed config, run nothing

Examples:
  python -m mnist_exp train experiment=fast
  python -m mnist_exp train model.ghost_batch_size=64 augment.mix.prob=0 seed=1
"""
COMMANDS = ("train", "compare", "data")


def config_folder() -> str:
    """Return the folder of the YAML files: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").exists():
            return str(folder)
    raise UserError(
        f"the config files are missing: neither {here / 'conf'} nor {here.parent / 'conf'} holds train.yaml"
    )


def main() -> None:
    """Run the command in sys.argv and exit: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted."""
    sys.exit(report(lambda: dispatch(sys.argv[1:])))


def report(function: Callable[[], Any]) -> int:
    """Call ``function`` and return the exit status, having told on stderr what went wrong."""
    try:
        function()
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        return _tell(str(error), 2)
    except RunFailed as error:
        return _tell(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):
            return _tell(_explain(error), 2)
        if isinstance(error, OSError) and error.filename is not None:
            where = "outputs go below paths.outputs=FOLDER or hydra.run.dir=FOLDER"
            return _tell(f"{error.filename}: {error.strerror}; {where}", 1)
        if type(error).__name__ == "OutOfMemoryError":
            return _tell(f"{error}\nThe device's memory is full; try a smaller data.batch_size", 1)
        raise  # a mistake of ours: the traceback is the message
    return 0


def dispatch(arguments: list[str]) -> None:
    """Find the command in ``arguments`` (default: train) and carry it out."""
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
    {"train": train, "compare": compare, "data": data}[command](arguments)


def train(arguments: list[str]) -> None:
    """Compose the config with Hydra and run it, or a sweep of it."""
    import hydra

    # Hydra then raises instead of printing tracebacks, and report() has the last word
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failures: list[Exception] = []

    def task(config: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from mnist_exp.experiment import run

        try:
            return run(config)
        except Exception as error:
            folder = Path(HydraConfig.get().runtime.output_dir)
            if not any(folder.iterdir()):
                folder.rmdir()
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            failures.append(error)  # raised below: through Hydra it would come with lines of Hydra's own
            return None

    from hydra.core.plugins import Plugins

    from mnist_exp.sweep import StudySweeper

    Plugins.instance().register(StudySweeper)
    entry = hydra.main(config_path=config_folder(), config_name="train", execution_whitelist=execution_whitelist())(
        task
    )
    command, sys.argv = sys.argv, [sys.argv[0], *_resume(arguments)]
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
        sys.argv = command
    for failure in failures:
        raise failure


def _resume(arguments: list[str]) -> list[str]:
    """Point Hydra to the folder of the run that ``resume=`` names, or give a finished run's overrides to a new one."""
    named = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if not named or named[-1] == "null":
        return arguments
    if not named[-1]:
        raise UserError("resume= is empty; name a run folder, such as resume=outputs/runs/NAME")
    from omegaconf import OmegaConf

    from mnist_exp.run_folder import RunFolder

    run = RunFolder.open(Path(named[-1].strip("'\"")).expanduser().absolute())
    if run.info["status"] != "finished":
        return [*arguments, f"hydra.run.dir='{run.path}'"]
    if not any(a.startswith("schedule.extra_epochs=") for a in arguments):
        raise UserError(
            f"{run.path} is finished. To train it further, from schedule.resume_lr on, type schedule.extra_epochs=N too"
        )
    return [*OmegaConf.to_object(OmegaConf.load(run.hydra_overrides)), *arguments]  # type: ignore[misc]


def compare(arguments: list[str]) -> None:
    """Carry out ``compare [FOLDER ...]``: a search's trials, or runs side by side."""
    import argparse

    text = "Runs side by side, read from their folders: what differs, what it did, and whether it may be believed."
    parser = argparse.ArgumentParser(prog="python -m mnist_exp compare", description=text)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="of runs, at any depth (default: outputs); one search: its report")
    add("--filter", metavar="QUERY", help="a pandas query, such as 'val_acc > 99.5 and optimizer.lr < 0.02'")
    add("--sort", metavar="COLUMN", help="best first")
    add("--last", type=int, metavar="N", help="only the N newest")
    add("--columns", type=_commas, metavar="A,B", help="instead of the usual ones")
    add("--group-by", type=_commas, nargs="?", const=[], metavar="KEY,KEY", help="n, mean, std, best of each group")
    add("--baseline", metavar="RUN", help="difference of each other run to this one, and its significance")
    for kind in ("csv", "json", "html"):
        add(f"--{kind}", metavar="FILE", help=f"write {kind.upper()}")
    add("--plot", metavar="FILE", help="write the learning curves over each other, as PNG")
    add("--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="refresh while runs go on, until Ctrl-C")
    options = vars(parser.parse_args(arguments))
    if options["watch"] is not None and options["watch"] <= 0:
        raise UserError(f"--watch is {options['watch']}; it must be a number of seconds above 0")
    if options["last"] is not None and options["last"] < 1:
        raise UserError(f"--last is {options['last']}; it must be at least 1")
    from mnist_exp import compare as runs
    from mnist_exp import study

    folders = options.pop("folders")
    if len(folders) == 1 and study.is_study(Path(folders[0])) and not any(v is not None for v in options.values()):
        study.report_study(Path(folders[0]))
    else:
        runs.compare(folders, **options)


def _commas(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def data(arguments: list[str]) -> None:
    """Carry out ``data status`` or ``data import PATH``, with ``data.root=`` as for training."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m mnist_exp data", description="See, verify and install data sets.")
    commands = parser.add_subparsers(dest="action", required=True)
    root_help = "folder of the data sets, as in training"
    names = {
        "status": "which data sets are there, and whether they are whole",
        "import": "verify and install from files",
    }
    for action, text in names.items():
        sub = commands.add_parser(action, help=text, description=text)
        if action == "import":
            sub.add_argument("path", help="folder, .gz, .tgz, .zip, .npz (Keras) or train.csv (Kaggle)")
            sub.add_argument("--name", help="which data set it is (default: mnist; kaggle for a .csv)")
        sub.add_argument("override", nargs="*", metavar="data.root=FOLDER", help=root_help)
    options = parser.parse_args(arguments)
    wrong = [o for o in options.override if not o.startswith("data.root=")]
    if wrong:
        raise UserError(f"{wrong[0]} has no meaning here; only data.root=FOLDER has")

    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_folder()):
        root = Path(compose("train", overrides=options.override).data.root).expanduser().absolute()
    from mnist_exp import data as datasets

    if options.action == "status":
        for name, text in datasets.status(root):
            print(f"{name:14} {text}")
    else:
        print(datasets.install(Path(options.path).expanduser(), root, options.name))


# --------------------------------------------------------------------------------------------------------- messages


def _tell(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _explain(error: Exception) -> str:
    """Return Hydra's message without its search path, and how to build what the whitelist refuses."""
    text = str(error).partition("Config search path")[0]
    message = "\n".join(line for line in text.splitlines() if line.strip())
    cause = error.__cause__
    if cause is not None and str(cause) and str(cause).splitlines()[0] not in message:
        message += "\n" + str(cause).splitlines()[0]
    if "whitelist" in message:
        return f"{message}\nTo allow code of your own, name its package: {ALLOW}='my_package.*' python -m mnist_exp ..."
    return message
