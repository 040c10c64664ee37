"""``compare [FOLDER ...]``: runs side by side, their differences and whether they may be believed; a search's report."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

# what a table shows unless --columns says otherwise; overrides that differ come after the name
SHOWN = (
    "status",
    "epochs",
    "val_acc",
    "test_acc",
    "test_95",
    "ensemble_acc",
    "images_per_s",
    "duration",
    "dataset",
    "seed",
)
Tell = Callable[[str], None]


def compare(arguments: list[str]) -> None:
    """Carry out the command."""
    options = _parser().parse_args(arguments)
    if options.watch is not None and options.watch <= 0:
        raise UserError(f"--watch is {options.watch}; it must be a number of seconds above 0")
    if options.last is not None and options.last < 1:
        raise UserError(f"--last is {options.last}; it must be at least 1")
    alone = not any(value is not None for name, value in vars(options).items() if name != "folders")
    if len(options.folders) == 1 and alone:
        from mnist_exp.search.store import is_study

        if is_study(Path(options.folders[0])):
            from mnist_exp.search.report import report_study

            return report_study(Path(options.folders[0]))
    from mnist_exp.console import console

    screen, told = console(), set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            screen.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    if options.watch is not None:
        _watch(options, screen, tell)
    runs = _chosen(options, tell)
    title, answer = _answer(runs, options, tell)
    screen.print(_overview(runs, options))
    if answer is not None:
        from mnist_exp.console import table

        screen.print()
        screen.print(table(answer, list(answer.columns), title) if len(answer) else "nothing to compare with")
    _write(runs, title, answer, options, tell)
    for file in filter(None, (options.csv, options.json, options.html, options.plot)):
        screen.print(f"written  {file}", highlight=False, soft_wrap=True)
    return None


def _parser() -> argparse.ArgumentParser:
    text = "Runs side by side, read from their folders: what differs, what it did, and whether it may be believed."
    parser = argparse.ArgumentParser(prog="python -m mnist_exp compare", description=text)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="of runs, at any depth (default: outputs); one search: its report")
    add("--filter", metavar="QUERY", help="a pandas query, such as 'val_acc > 99.5 and optimizer.lr < 0.02'")
    add("--sort", metavar="COLUMN", help="best first")
    add("--last", type=int, metavar="N", help="only the N newest")
    add("--columns", type=_commas, metavar="A,B", help="instead of the usual ones")
    add(
        "--group-by",
        type=_commas,
        nargs="?",
        const=[],
        metavar="KEY,KEY",
        help="n, mean and std over the seeds of each group",
    )
    add("--baseline", metavar="RUN", help="difference of each other run to this one, and its significance")
    for kind in ("csv", "json", "html"):
        add(f"--{kind}", metavar="FILE", help=f"write {kind.upper()}")
    add("--plot", metavar="FILE", help="write the learning curves over each other, as PNG")
    add("--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="refresh while runs go on, until Ctrl-C")
    return parser


def _commas(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _loaded(options: argparse.Namespace, tell: Tell) -> tuple[int, pd.DataFrame]:
    """Return how many runs there are, and those that are asked for."""
    from mnist_exp.compare.table import load_runs, select

    asked = re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", options.filter or "")
    asked += [options.sort] if options.sort else []
    runs = load_runs(*options.folders, keys=[*asked, *(options.columns or ()), *(options.group_by or ())], tell=tell)
    return len(runs), select(runs, options.filter, options.sort, options.last) if len(runs) else runs


def _chosen(options: argparse.Namespace, tell: Tell) -> pd.DataFrame:
    """Return the runs that are asked for. Raises UserError if there are none."""
    found, runs = _loaded(options, tell)
    if runs.empty and found:
        raise UserError(f"none of the {found} runs matches --filter {options.filter!r}")
    if runs.empty:
        where = ", ".join(map(str, options.folders or ["outputs"]))
        raise UserError(f"there is no run below {where}; make one: python -m mnist_exp train experiment=fast")
    return runs


def _columns(runs: pd.DataFrame, options: argparse.Namespace) -> list[str]:
    from mnist_exp.compare.table import differing, need

    shown = options.columns or ["name", *differing(runs), *SHOWN]
    for column in shown:
        need(runs, column, "--columns")
    return list(shown)


def _overview(runs: pd.DataFrame, options: argparse.Namespace) -> Any:
    from mnist_exp.console import table

    counts = ", ".join(f"{n} {status}" for status, n in runs["status"].value_counts().items())
    return table(runs, _columns(runs, options), f"{len(runs)} runs: {counts}")


def _watch(options: argparse.Namespace, screen: Console, tell: Tell) -> None:
    """Show the table again and again, until Ctrl-C."""
    from rich.live import Live

    with Live(console=screen, auto_refresh=False) as live:
        while True:
            _, runs = _loaded(options, tell)
            shown = _overview(runs, options) if len(runs) else "no runs yet"
            if screen.is_terminal:
                live.update(shown, refresh=True)
            else:
                screen.print(shown)
            time.sleep(options.watch)


def _answer(runs: pd.DataFrame, options: argparse.Namespace, tell: Tell) -> tuple[str, pd.DataFrame | None]:
    """Return the title and the table that answer --group-by and --baseline; None without a question."""
    if options.baseline is None and options.group_by is None:
        return "", None
    from mnist_exp.compare import judge

    if options.baseline is None:
        keys = options.group_by
        title = f"by {', '.join(keys)}" if keys else "repetitions: the same config and data, other seeds"
        return title, judge.group(runs, keys or None, tell)
    name = judge.described(runs, judge.one(runs, options.baseline), options.group_by)
    if options.group_by is None:
        title = f"against {name}: plain test accuracy on the same images, McNemar's exact test; about these weights"
        return title, judge.against(runs, options.baseline, tell)
    title = f"mean test accuracy against the group of {name}, over seeds; about the recipe"
    return title, judge.against_group(runs, options.baseline, options.group_by, tell)


def _write(
    runs: pd.DataFrame, title: str, answer: pd.DataFrame | None, options: argparse.Namespace, tell: Tell
) -> None:
    """Write the files that are asked for; CSV and JSON hold the answer, if there is a question, the page both."""
    for file in filter(None, (options.csv, options.json, options.html, options.plot)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    result = runs if answer is None else answer
    if options.csv:
        result.to_csv(options.csv, index=False)
    if options.json:
        result.to_json(options.json, orient="records", indent=1)
    if options.html:
        from mnist_exp.compare.page import write_html
        from mnist_exp.console import cell

        shown = [c for c in _columns(runs, options) if any(cell(c, v) for v in runs[c])]
        write_html(runs, shown, Path(options.html), title, answer, tell)
    if options.plot:
        from mnist_exp.compare.table import histories
        from mnist_exp.runs.pictures import plot_runs

        rows = histories(runs, tell)
        plot_runs({run["name"]: rows[run["path"]] for _, run in runs.iterrows()}, Path(options.plot))
