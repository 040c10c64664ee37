"""Runs side by side. For notebooks:

from mnist_exp.compare import load_runs
runs = load_runs("outputs")          # a pandas DataFrame, a row a run; columns in load_runs' docstring
"""

from mnist_exp.compare.table import load_runs

__all__ = ["load_runs"]
