"""A network of digits, trained on what Kaggle would give: 4,000 digits of the bundled ones; the other 1,000 are new to it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import run_command

from mnist_exp.data.formats import COLUMNS, PIXELS
from mnist_exp.data.sets import Data


class Digits(NamedTuple):
    images: np.ndarray
    labels: np.ndarray


def write_csv(file: Path, columns: list[str], rows: np.ndarray) -> None:
    np.savetxt(file, rows, "%d", ",", header=",".join(columns), comments="")


@pytest.fixture(scope="session")
def held_out() -> Digits:
    """Digits that ``digits_run`` has never seen."""
    test = Data("sample", "", 0).load().test
    return Digits(test.images.numpy(), test.labels.numpy())


@pytest.fixture(scope="session")
def kaggle(tmp_path_factory, held_out) -> Path:
    """Kaggle's train.csv and test.csv."""
    place, train = tmp_path_factory.mktemp("kaggle"), Data("sample", "", 0).load().train
    write_csv(place / "train.csv", COLUMNS, np.column_stack([train.labels, train.images.reshape(-1, 784)]))
    write_csv(place / "test.csv", PIXELS, held_out.images.reshape(-1, 784))
    return place


@pytest.fixture(scope="session")
def digits_run(kaggle) -> Path:
    """A run on all of train.csv, as the README has it."""
    run, root = kaggle / "run", f"data.root={kaggle / 'data'}"
    assert run_command("data", "import", str(kaggle / "train.csv"), root) == 0
    # in the precision that every CPU has, so that it is the same network everywhere
    options = ["data.test_size=0", "data.val_size=200", "data.batch_size=64", "trainer.precision=fp32"]
    assert run_command("train", "experiment=fast", "data=kaggle", root, *options, f"hydra.run.dir={run}") == 0
    return run
