"""The configs that come with the program: where they are, and what a copy of one may say."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from mnist_exp.errors import UserError
from mnist_exp.reading import load_yaml


def config_folder() -> str:
    """Return the folder of the YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").exists():
            return str(folder)
    raise UserError(
        f"the config files are missing: neither {package / 'conf'} nor {package.parent / 'conf'} holds train.yaml"
    )


def without_our_search(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the values of ``hydra`` that are as the search of conf/ has them."""
    return _changed(tree, _our_search())


@functools.cache
def _our_search() -> dict[str, Any]:
    return {"hydra": load_yaml(Path(config_folder(), "hparams_search", "optuna.yaml"))["hydra"]}


def _changed(tree: Any, ours: Any) -> Any:
    if not (isinstance(tree, dict) and isinstance(ours, dict)):
        return tree
    return {key: _changed(value, ours.get(key)) for key, value in tree.items() if key not in ours or value != ours[key]}
