"""``data status`` and ``data import PATH``: which data sets are there, and installing one from files."""

from __future__ import annotations

import argparse

from mnist_exp.errors import UserError
from mnist_exp.files import expanded


def data(arguments: list[str]) -> None:
    """Carry out the command, with ``data.root=`` as for training."""
    options, behind = command_parser().parse_known_args(
        arguments
    )  # argparse takes overrides behind an option for unknown
    overrides = [*options.override, *behind]
    wrong = [override for override in overrides if not override.startswith("data.root=")]
    if wrong:
        raise UserError(f"{wrong[0]} has no meaning here; only data.root=FOLDER has")
    from mnist_exp.config.job import compose

    root = expanded(compose(*overrides).data.root).absolute()
    from mnist_exp.data.install import install, status

    if options.action == "status":
        for name, text in status(root):
            print(f"{name:14} {text}")
    else:
        print(install(expanded(options.path), root, options.name))


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
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
    return parser
