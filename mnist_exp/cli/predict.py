"""``predict RUN [RUN ...] --input PATH --output FILE``: what a trained network, or several together, say of images."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from mnist_exp.errors import UserError, WrongValue, require
from mnist_exp.named import check_files, picture_kind

if TYPE_CHECKING:
    from mnist_exp.inference.load import Model

_UNSURE = 0.8
_EXAMPLES = """\
examples:
  python -m mnist_exp predict outputs/runs/NAME --input digit.png --output -
  python -m mnist_exp predict outputs/runs/NAME --input scans --output answers.csv --show answers.png
  python -m mnist_exp predict outputs/runs/A outputs/runs/B --input test.csv --output submission.csv --tta 5
"""


def predict(arguments: list[str]) -> None:
    """Carry out the command."""
    options = command_parser().parse_args(arguments)
    _check(options)
    from mnist_exp.console import console, say, shown
    from mnist_exp.files import write_output
    from mnist_exp.inference import predict as work
    from mnist_exp.inference.inputs import open_input
    from mnist_exp.inference.load import load_model

    screen, begun = console(stderr="-" in _files(options).values()), time.perf_counter()
    model = load_model(*options.runs, checkpoint=options.checkpoint)
    _check_tta(model, options.tta)
    for line in model.assumed:
        say(screen, line, "yellow")
    found = open_input(options.input, work.framing(model, options.invert), options.array)
    if found.left_out:
        say(screen, f"left out {found.left_out}", "yellow")
    batches = found.batches
    if found.kind != "pictures":
        batches = work.as_arrays(batches, options.invert, lambda line: say(screen, line, "yellow"))
    seen = work.Seen(model.classes)
    answers = seen.watch(work.answers(model, batches, options.tta, options.unsure))
    written = (work.as_submission if found.kind == "kaggle" else work.as_csv)(answers, model.classes)
    if options.output == "-" and sys.stdout is not None and sys.stdout.isatty():
        written = (shown(part.decode(), keep="\n").encode() for part in written)
    write_output(options.output, written)
    if found.kind == "kaggle" and seen.count != work.KAGGLES:
        line = f"these are {seen.count:,} digits, and Kaggle's test.csv has {work.KAGGLES:,}: it takes no other number"
        say(screen, line, "yellow")
    if options.show is not None:
        write_output(options.show, seen.picture(picture_kind("show", options.show)))
    unsure = f"{seen.unsure:,} unsure (confidence below {options.unsure:g}), {seen.blank:,} blank"
    say(screen, f"images   {seen.count:,}: {unsure}, in {time.perf_counter() - begun:.1f} s")
    for name in _files(options).values():
        if name != "-":
            say(screen, f"written  {name}")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
    text = (
        "What a trained network says of images. Several runs are an ensemble: their probabilities are averaged. Pictures "
        "of any size are brought to what the network was trained on; Kaggle's test.csv gives its submission."
    )
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp predict",
        description=text,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder of a run, such as outputs/runs/NAME")
    kinds = "a picture, a folder of them, idx (also .gz), npz or Kaggle's test.csv; - for standard input"
    add("--input", required=True, metavar="PATH", help=kinds)
    add("--output", required=True, metavar="FILE", help="CSV; - for standard output")
    add("--array", metavar="NAME", help="of an npz with several, such as x_test")
    add("--tta", type=int, default=1, metavar="N", help="average over N fixed shifts of each image (default: 1, plain)")
    add("--checkpoint", default="best", metavar="KIND", help="best (default), last, swa, or the file of one")
    invert = (
        "yes: dark ink on light paper, no: light on dark, auto (default): found out for pictures, data.invert of the "
    )
    invert += "run for pictures of networks of data=image_folder, no for arrays"
    add("--invert", choices=("yes", "no", "auto"), default="auto", help=invert)
    unsure = f'note "unsure" where the confidence is below P (default: {_UNSURE:g})'
    add("--unsure", type=float, default=_UNSURE, metavar="P", help=unsure)
    add("--show", metavar="FILE", help="write what the network saw, and its answers, as PNG, PDF or SVG")
    return parser


def _files(options: argparse.Namespace) -> dict[str, str]:
    return {option: name for option in ("output", "show") if (name := getattr(options, option)) is not None}


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    require(0 <= options.unsure <= 1, "--unsure", options.unsure, "a probability, 0 to 1")
    require(options.tta >= 1, "--tta", options.tta, "at least 1")
    check_files(_files(options))
    if options.show is not None:
        picture_kind("show", options.show)
    for option, name in _files(options).items():
        if name != "-" and os.path.realpath(name) == os.path.realpath(options.input):
            raise UserError(f"--{option} {name} is the input; name another file")


def _check_tta(model: Model, tta_runs: int) -> None:
    for member in model.members:
        try:
            member.with_tta(tta_runs)
        except WrongValue as error:
            raise UserError(f"--tta {tta_runs}: {error}") from error
