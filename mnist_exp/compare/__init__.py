"""Runs side by side. For notebooks:

from mnist_exp.compare import against, against_group, group, load_runs
runs = load_runs("outputs")                    # a pandas DataFrame, a row a run; columns in load_runs' docstring
group(runs, ["optimizer.lr"])                  # means over seeds
against_group(runs, "NAME", ["optimizer.lr"])  # differences to the group of a run, and whether they may be believed
"""

from mnist_exp.compare.judge import against, against_group, group
from mnist_exp.compare.table import load_runs

__all__ = ["against", "against_group", "group", "load_runs"]
