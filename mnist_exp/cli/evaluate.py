"""``evaluate RUN [RUN ...]``: score a finished run again, or the ensemble of several."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import UserError, WrongValue, require
from mnist_exp.named import PICTURES

if TYPE_CHECKING:
    from mnist_exp.inference.evaluate import Evaluation

_EXAMPLES = """\
examples:
  python -m mnist_exp evaluate outputs/runs/NAME                        on what it held out for validation
  python -m mnist_exp evaluate outputs/runs/NAME --split test --tta 5   on test: counted in the run, shown by compare
  python -m mnist_exp evaluate outputs/sweeps/STUDY --top 5             the ensemble of the five best by validation
"""


def evaluate(arguments: list[str]) -> None:
    """Carry out the command."""
    options = command_parser().parse_args(arguments)
    require(1 <= options.tta <= 10_000, "--tta", options.tta, "at least 1 (the picture as it is)")
    require(options.top is None or options.top >= 1, "--top", options.top, "at least 1")
    output = _output(options.output)
    runs = chosen(options.runs, options.top)
    from mnist_exp.inference.evaluate import evaluate as score
    from mnist_exp.inference.load import load_model

    started = time.monotonic()
    model = load_model(*runs, checkpoint=options.checkpoint)
    try:
        found = score(model, options.split, options.tta, options.data)
    except WrongValue as error:
        raise UserError(f"--tta {options.tta}: {error}") from error
    _tell(found, options.tta, options.checkpoint == "best")
    asked = {"tta_runs": options.tta, "checkpoint": options.checkpoint}
    _write(found, output, {**asked, "seconds": round(time.monotonic() - started, 1)}, arguments)
    print(f"written  {output}")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
    text = "Score finished runs again: one network, or the ensemble of several, image by image."
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp evaluate", description=text, epilog=_EXAMPLES, formatter_class=kind
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder of a run, or one that holds runs, such as a sweep's")
    add("--split", choices=("val", "test"), default="val", help="what is scored (default: val)")
    add(
        "--tta",
        type=int,
        default=1,
        metavar="N",
        help="the mean over N fixed shifts of each image (default: 1, as it is)",
    )
    add("--checkpoint", default="best", metavar="WHICH", help="best by validation (default), last, swa, or a file")
    add("--top", type=int, metavar="K", help="only the K best runs by validation accuracy")
    add("--output", metavar="FOLDER", help="for predictions and pictures (default: outputs/evaluations/TIME)")
    add("--data", metavar="FOLDER", help="where the data set lies (default: as the run has it)")
    return parser


def chosen(names: list[str], top: int | None) -> list[str]:
    """Return the folders of runs that ``names`` are, or hold; only the ``top`` best by validation of those."""
    from mnist_exp.runs.folder import is_run

    if top is None and all(is_run(Path(name)) for name in names):
        return names
    from mnist_exp.compare.table import load_runs
    from mnist_exp.named import is_folder

    for name in names:
        require(is_folder(name), "RUN", name, "the folder of a run, or one that holds runs")
    runs = load_runs(*names)
    named = {os.path.realpath(name) for name in names if is_run(Path(name))}
    done = runs[(runs["status"] == "finished") | runs["path"].isin(named)] if len(runs) else runs
    if not len(done):
        raise UserError(f"there is no finished run in {', '.join(names)}")
    if len(done) < len(runs):
        print("left out, as they have not finished:", ", ".join(runs["name"].drop(done.index)), file=sys.stderr)
    if top is None:
        return [str(path) for path in done["path"]]
    ranked = done[done["val_acc"].notna()].sort_values(["val_acc", "val_loss"], ascending=[False, True], kind="stable")
    allowed = f"at most {len(ranked)}, the finished runs there that were validated"
    require(top <= len(ranked), "--top", top, allowed)
    return [str(path) for path in ranked["path"][:top]]


def _output(name: str | None) -> Path:
    """Return the folder to write to. Raises UserError if it cannot be one."""
    from mnist_exp.files import expanded
    from mnist_exp.named import check_writable, is_folder
    from mnist_exp.runs.folder import is_run

    if name is None:
        return Path("outputs", "evaluations", f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    folder = expanded(name)
    real = Path(os.path.realpath(folder))
    fine = bool(name) and (is_folder(str(real)) or not os.path.lexists(real))
    fine = fine and not any(is_run(path) for path in (real, *real.parents))
    require(fine, "--output", name or repr(name), "a folder, and none of a run")
    check_writable("output", str(real))
    return folder


def _tell(found: Evaluation, tta_runs: int, best_ones: bool) -> None:
    """Print what was found."""
    import pandas as pd

    from mnist_exp.console import console, say
    from mnist_exp.fitted import Fitted

    screen, scores, several = console(), found.scores(), len(found.members) > 1
    classes = pd.DataFrame(found.of_classes())
    screen.print(Fitted(classes, list(classes.columns), f"{found.data} {found.split}, class by class"))
    if several:
        columns = ["name", *(["val_acc"] if best_ones else []), "accuracy", "low", "high", "loss", "calibration_error"]
        screen.print()
        screen.print(Fitted(pd.DataFrame(found.of_members()), columns, f"{len(found.members)} members"))
        gain = found.gain()
        say(screen, f"agreement   {found.agreement():.2f} % of the images are told the same by all")
        only = f"{gain['only_ensemble']} images right by it alone, {gain['only_member']} by that alone"
        best = ", the best by validation" if gain["validated"] else ""
        gained = f"{gain['difference']:+.2f} points over {gain['over']}{best}"
        say(screen, f"gain        {gained}: {only}, McNemar's exact p {gain['p']:.2g}")
    shifts = f", TTA x {tta_runs}" if tta_runs > 1 else ""
    who = (
        f"ensemble of {len(found.members)}"
        if several
        else f"{found.members[0].name}, {found.members[0].checkpoint.name}"
    )
    say(screen, f"{found.split:<9}{scores['accuracy']:.2f} % (95 % interval {scores['low']:.2f} to {scores['high']:.2f})  "
        f"{scores['wrong']:,} of {scores['images']:,} wrong  loss {scores['loss']:.4f}  "
        f"calibration error {scores['calibration_error']:.2f} points  ({who}{shifts})")  # fmt: skip
    if found.split == "val":
        say(screen, "         runs and checkpoints were chosen on these images: what counts is test")
    for member, name in zip(found.members, found.names(), strict=True) if found.split == "test" else ():
        times = member.run.test_scored
        say(screen, f"         the test set has been scored {times} time{'s' * (times > 1)} for {name}")


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the kinds of pictures that a run's ``config``, which may be anybody's, asks for."""
    paths = config.get("paths")
    asked = paths.get("figures") if isinstance(paths, dict) else None
    kinds = [kind for kind in PICTURES if kind in asked] if isinstance(asked, list) else []
    return kinds or ["png"]


def _write(found: Evaluation, output: Path, asked: dict[str, Any], arguments: list[str]) -> None:
    """Write predictions, pictures, and evaluation.json, which says what they are of."""
    from mnist_exp.files import atomic_write
    from mnist_exp.runs import pictures
    from mnist_exp.runs.figures import write_figure
    from mnist_exp.runs.folder import CALIBRATION, CONFUSION, EVALUATION, MISTAKES
    from mnist_exp.runs.schema import plain
    from mnist_exp.training.results import Told, write_predictions

    output.mkdir(parents=True, exist_ok=True)
    probs = found.together
    kinds = _kinds(found.members[0].run.config())
    (output / EVALUATION).unlink(missing_ok=True)  # of another evaluation, whose pictures are written over
    for name in (CONFUSION, MISTAKES, CALIBRATION):
        for kind in set(PICTURES) - set(kinds):
            (output / name).with_suffix(f".{kind}").unlink(missing_ok=True)
    told = Told(found.images, probs, found.labels, found.classes)
    write_predictions(output, told, f"{found.data} {found.split}", kinds)
    title = f"{found.data} {found.split}, {len(found.labels):,} images"
    write_figure(pictures.reliability_figure(probs, found.labels, title), output / CALIBRATION, kinds)
    about: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "mnist_exp", "evaluate", *arguments]),
        "split": found.split,
        **asked,
        "data": found.members[0].run.dataset,
        "members": [
            {"run": str(member.run.path.absolute()), "checkpoint": member.checkpoint.name, **row}
            for member, row in zip(found.members, found.of_members(), strict=True)
        ],
        "scores": found.scores(),
        "classes": found.of_classes(),
    }
    if len(found.members) > 1:
        about |= {"agreement": found.agreement(), "gain": found.gain()}
    atomic_write(output / EVALUATION, (json.dumps(plain(about), indent=1) + "\n").encode())
