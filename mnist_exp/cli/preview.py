"""``preview [KEY=VALUE ...]``: a picture of what a run's transforms and mixing do to its digits. Nothing is trained."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp.errors import UserError, require
from mnist_exp.named import check_files, picture_kind

if TYPE_CHECKING:
    from omegaconf import DictConfig

_MOST = 1 << 30  # bytes of a network and its optimizer


def preview(arguments: list[str]) -> None:
    """Carry out the command."""
    options = command_parser().parse_intermixed_args(arguments)
    if options.output is not None:
        check_files({"output": options.output})
        picture_kind("output", options.output)
    config = _composed(options)
    from mnist_exp.config.build import trusting
    from mnist_exp.console import ConsoleHandler, console, say
    from mnist_exp.files import write_output
    from mnist_exp.inference.bounded import TooLarge, bounded
    from mnist_exp.parts.trainer import threads_kept
    from mnist_exp.runs.pictures import plot_examples
    from mnist_exp.training.components import build_components
    from mnist_exp.training.preview import examples, when_used

    name = options.output or str(Path(config.paths.outputs, "preview.png"))
    screen = console(stderr=name == "-")
    handler = ConsoleHandler()
    handler.screen = screen
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    with threads_kept(), trusting():
        try:
            with bounded(_MOST):
                parts = build_components(config, new=True)
        except TooLarge as error:
            raise UserError(f"what is composed has {error}; a preview is of less, such as model=small_cnn") from error
        found, when = examples(parts, config.seed), when_used(parts)
    kind = picture_kind("output", name)
    title = f"{len(found)} images of {parts.splits.name}, seed {config.seed}"
    write_output(name, plot_examples(found, when, parts.splits.classes, title, kind))
    if name != "-":
        say(screen, f"written  {name}")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
    text = "A picture of what a run's strong and light transforms, and its mixing, do to sixteen digits. Nothing is trained."
    example = "example:\n  python -m mnist_exp preview augment.strong.rotation.degrees=30 augment.mix.prob=1 --output strong.png"
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp preview",
        description=text,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    add("--output", metavar="FILE", help="PNG, PDF or SVG, - to print a PNG (default: preview.png in paths.outputs)")
    add("--config-dir", metavar="FOLDER", help="of configs of your own, as for train")
    return parser


def _composed(options: argparse.Namespace) -> DictConfig:
    """Return the config that train would build. Raises UserError with the message that train would give."""
    from hydra.core.plugins import Plugins

    from mnist_exp.cli.train import one_message, request
    from mnist_exp.config.elsewhere import Elsewhere
    from mnist_exp.config.job import checked_config

    Plugins.instance().register(Elsewhere)
    folder = [] if options.config_dir is None else [f"--config-dir={options.config_dir}"]
    overrides = request([*options.overrides, *folder])
    with one_message(options.overrides):
        config = checked_config(*overrides)
    if config.resume is not None:
        raise UserError("resume is not taken: a preview is of a recipe; type the overrides of that run")
    require(config.search is None, "hparams_search", "set", "left out: a preview is of one run, not of a search")
    return config
