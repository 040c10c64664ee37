"""``export RUN --format onnx --output FOLDER``: a trained network as a file to serve, with a model card to publish it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded, refuse_filled
from mnist_exp.inference.formats import FORMATS
from mnist_exp.named import check_writable


def export(arguments: list[str]) -> None:
    """Carry out the command."""
    options = command_parser().parse_args(arguments)
    run, output = expanded(options.run), expanded(options.output)
    _check(options, run, output)
    from mnist_exp.console import console, say
    from mnist_exp.inference.export import BATCHES, export_run

    made = export_run(run, options.format, output, options.tta, options.checkpoint)
    screen, file = console(), output / FORMATS[options.format].file
    tta = f", TTA x {made.tta_runs}" if made.tta_runs > 1 else ""
    say(screen, f"exported {file}  ({made.size:,} bytes, of {made.member.checkpoint.name}{tta})")
    sizes = ", ".join(map(str, BATCHES))
    say(
        screen,
        f"checked  same labels as the run for batches of {sizes} digits, probabilities within {made.difference:.1g}",
    )
    say(screen, f"card     {output / 'README.md'}")
    if made.member.assumed:
        say(screen, made.member.assumed, "yellow")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp export",
        description="The network of a run as a file to serve: uint8 images [N, 28, 28] in, probabilities [N, classes] out. "
        "Beside it a model card as Hugging Face has it.",
        epilog="example: python -m mnist_exp export outputs/runs/NAME --format onnx --output served",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, such as outputs/runs/NAME")
    add("--format", required=True, choices=FORMATS, help="what is written")
    add("--output", required=True, metavar="FOLDER", help="a new or empty folder")
    add(
        "--tta",
        type=int,
        default=1,
        metavar="N",
        help="average over N fixed shifts, inside the file (default: 1, none)",
    )
    add(
        "--checkpoint",
        default="best",
        metavar="KIND",
        help="best by validation (default), last, swa, or the file of one",
    )
    return parser


def _check(options: argparse.Namespace, run: Path, output: Path) -> None:
    """Refuse what cannot be, before anything heavy is imported."""
    require(options.tta >= 1, "--tta", options.tta, "at least 1, the number of fixed shifts")
    require(options.output != "", "--output", "''", "a new or empty folder")
    if not os.path.isdir(run):  # noqa: PTH112  # of pathlib raises for names that are too long
        kind = "is no folder" if os.path.lexists(run) else "does not exist"
        raise UserError(
            f"{options.run or repr(options.run)} {kind}; name the folder of a run, such as outputs/runs/NAME"
        )
    check_writable("output", str(output))
    refuse_filled(output)
