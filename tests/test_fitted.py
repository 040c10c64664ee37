"""Tables at any width: no word of them is cut, and what is not shown is named."""

import re

import pandas as pd
import pytest
from rich.console import Console

from mnist_exp.fitted import Fitted

RUNS = pd.DataFrame(
    {
        "name": [f"2026-11-28_09-59-54-94117{i}" for i in range(3)],
        "optimizer.lr": [0.01, 0.0123, 0.05],
        "augment.mix.prob": [0.1, 0.25, None],
        "model.ghost_batch_size": [32, 64, 128],
        "seed": [1, 2, 3],
        "val_acc": [99.01, 99.12, 98.5],
        "test_acc": [99.1, 99.2, float("nan")],
        "test_95": ["98.89 - 99.27", "99.00 - 99.35", ""],
        "status": ["finished", "finished", "failed"],
        "duration": ["0:01:02", "0:01:03", "0:00:01"],
    }
)
APART = ["optimizer.lr", "augment.mix.prob", "model.ghost_batch_size", "seed"]


def printed(width: int, rows: pd.DataFrame = RUNS, **options) -> str:
    screen = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    screen.print(Fitted(rows, list(rows.columns), "runs", **options))
    return screen.export_text()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 1000])
def test_name_and_scores_are_whole_at_any_width(width):
    text = printed(width, stacked=APART, how="--csv - shows them")
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "\u2026" not in text
    header = lines[1].split()
    assert {"name", "val_acc", "test_acc", "test_95"} <= set(header)
    assert {"99.01", "99.12", "98.50", "99.10", "99.20"} <= set(text.split())
    assert text.count(" - ") == 2 + text.count("--csv - shows")
    start = lines[1].index(header[1])
    names = "".join(line[:start].strip() for line in lines[2:] if not line.startswith("not shown"))
    assert names == "".join(RUNS["name"])
    left = re.search(r"not shown: ([^(]*) \(--csv", " ".join(text.split()))
    missing = set(RUNS.columns) - set(header) - (set(APART) if "differs" in header else set())
    assert missing == (set(left[1].split(", ")) if left else set())
    assert (width < 1000) == bool(left or "differs" in header)


def test_what_differs_is_one_cell_where_it_would_push_scores_out():
    text = printed(100, stacked=APART)
    cells = " ".join(text.split())
    assert "lr=0.01 prob=0.1" in cells
    assert "seed=3" in cells
    assert "prob= " not in cells, "what is not known is left out"
    assert printed(1000, stacked=APART).splitlines()[1].split()[1:5] == APART


def test_keys_that_end_alike_keep_their_whole_names():
    rows = RUNS.rename(columns={"augment.mix.prob": "schedule.lr", "seed": "augment.seed"})
    text = printed(90, rows, stacked=["optimizer.lr", "schedule.lr", "model.ghost_batch_size", "augment.seed"])
    assert "optimizer.lr=0.0123" in "".join(text.split())
    assert " seed=1" in text


def test_verdicts_have_a_colour():
    rows = pd.DataFrame({"optimizer.lr": [0.1, 0.2, 0.3], "verdict": ["better", "worse", "cannot tell"]})
    screen = Console(width=80, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: PTH123, SIM115
    screen.print(Fitted(rows, list(rows.columns), "answer"))
    text = screen.export_text(styles=True)
    assert "\x1b[1;32mbetter" in text
    assert "\x1b[1;31mworse" in text
    assert "\x1b[33mcannot tell" in text
