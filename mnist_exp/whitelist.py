"""What a config may build. A person at the keyboard can allow more; a config file cannot."""

from __future__ import annotations

import os

ALLOW = "MNIST_EXP_ALLOW"
_PATTERNS = (
    "mnist_exp.*",
    "hydra_plugins.*",
    "torch.optim.*",
    "torch.nn.*",
    "torchvision.*",
    "optuna.pruners.*",
    "logging.*",
)


def execution_whitelist() -> list[str]:
    """Return the targets that Hydra's ``instantiate`` may call, with those that $MNIST_EXP_ALLOW adds, by comma."""
    return [*_PATTERNS, *filter(None, os.environ.get(ALLOW, "").split(","))]
