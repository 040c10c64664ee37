"""``compare [FOLDER ...]``: runs side by side, their differences and whether they may be believed; a search's report."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import UserError, require
from mnist_exp.named import check_files, is_folder, picture_kind

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

_KINDS = ("csv", "json", "html", "plot")  # of files, each an option
_DAY = 86_400  # seconds
_AROUND = 6  # lines of a terminal around the rows of a table
Tell = Callable[[str], None]


def compare(arguments: list[str]) -> None:
    """Carry out the command."""
    options = command_parser().parse_args(arguments)
    _check(options)
    if _of_a_search(options):
        return
    from mnist_exp.compare.overview import overview, tell_answer, usual
    from mnist_exp.console import console, say
    from mnist_exp.files import write_output

    # where a file goes to standard output, nothing else does
    screen, told = console(stderr="-" in _files(options).values()), set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            say(screen, line, "yellow")

    if options.watch is not None:
        _watch(options, screen, tell)
    if options.serve is not None:
        _serve(options, screen, tell)
        return
    runs = _chosen(options, tell)
    title, answer = _answer(runs, options, tell)
    if answer is None:
        screen.print(overview(runs, options.columns))
    else:
        tell_answer(screen, title, answer, [*(options.group_by or ()), *usual(runs)])
    contents = _contents(runs, title, answer, options, tell)
    for kind, name in _files(options).items():
        write_output(name, contents[kind])
        if name != "-":
            say(screen, f"written  {name}")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's line."""
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
    add(
        "--score",
        type=_commas,
        metavar="A,B",
        help="what --baseline --group-by compares (default: test_acc); of several the first that all of a group have, such as "
        "test_acc_swa,test_acc",
    )
    for kind in ("csv", "json", "html"):
        add(f"--{kind}", metavar="FILE", help=f"write {kind.upper()}")
    add("--plot", metavar="FILE", help="write the learning curves over each other, as PNG, PDF or SVG")
    add("--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="refresh while runs go on, until Ctrl-C")
    add("--serve", type=int, nargs="?", const=0, metavar="PORT", help="serve the page on this machine, until Ctrl-C")
    add("--storage", metavar="URL", help="of a search whose study is in PostgreSQL; no database is opened else")
    return parser


def _commas(text: str) -> list[str]:
    parts = [part for part in text.split(",") if part]
    if not parts:
        raise argparse.ArgumentTypeError(f"{text!r} names none")
    return parts


def _files(options: argparse.Namespace) -> dict[str, str]:
    """Return {kind: name} of the files that are asked for; "-" is standard output."""
    return {kind: name for kind in _KINDS if (name := getattr(options, kind)) is not None}


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    require(options.last is None or options.last >= 1, "--last", options.last, "at least 1")
    seconds = options.watch
    require(seconds is None or 0 < seconds <= _DAY, "--watch", seconds, f"a number of seconds above 0, at most {_DAY}")
    for folder in options.folders:
        if not is_folder(folder):
            kind = "is no folder" if os.path.lexists(folder) else "does not exist"
            raise UserError(f"{folder or repr(folder)} {kind}; name a folder of runs, such as outputs/runs")
    files = _files(options)
    check_files(files)
    if "plot" in files:
        picture_kind("plot", files["plot"])
    asked = _asked(options)
    if options.score is not None:
        from mnist_exp.compare.judge import SCORES

        for name in options.score:
            require(name in SCORES, "--score", name, f"of {', '.join(SCORES)}")
        if not asked >= {"baseline", "group_by"}:
            raise UserError("--score is for groups of runs: type --baseline RUN --group-by, too")
    if options.watch is not None and asked & {*_KINDS, "baseline", "group_by"}:
        raise UserError("--watch shows a table of runs until Ctrl-C; it writes no file and answers no question")
    require(options.serve in (None, *range(65_536)), "--serve", options.serve, "a port, between 1 and 65535")
    if options.serve is not None and asked & {*_KINDS, "watch"}:
        raise UserError("--serve shows a page until Ctrl-C; it writes no file, and --watch is for a terminal")
    if options.storage is not None and (len(options.folders) != 1 or asked != {"storage"}):
        raise UserError("--storage is for the report of one search: compare outputs/sweeps/STUDY --storage URL")


def _asked(options: argparse.Namespace) -> set[str]:
    """Return the names of the options that were typed."""
    return {name for name, value in vars(options).items() if value is not None and name != "folders"}


def _of_a_search(options: argparse.Namespace) -> bool:
    """Report on a search, if that is what is asked for; return whether it is."""
    if len(options.folders) != 1 or _asked(options) - {"storage"}:
        return False
    from mnist_exp.search.read import is_study, load_study

    folder = Path(options.folders[0])
    if options.storage is None and not is_study(folder):
        return False
    from mnist_exp.search.report import report_study

    report_study(folder, load_study(folder, options.storage))
    return True


def _loaded(options: argparse.Namespace, tell: Tell) -> tuple[int, pd.DataFrame]:
    """Return how many runs there are, and those that are asked for."""
    from mnist_exp.compare.table import DOTTED, load_runs, need, select

    asked = DOTTED.findall(options.filter or "")
    asked += [options.sort] if options.sort else []
    runs = load_runs(*options.folders, keys=[*asked, *(options.columns or ()), *(options.group_by or ())], tell=tell)
    for column in (options.columns or ()) if len(runs) else ():
        need(runs, column, "--columns")
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


def _watch(options: argparse.Namespace, screen: Console, tell: Tell) -> None:
    """Show the table again and again, until Ctrl-C."""
    from rich.live import Live

    from mnist_exp.compare.overview import overview

    with Live(console=screen, auto_refresh=False) as live:
        while True:
            _, runs = _loaded(options, tell)
            room = max(screen.height - _AROUND, 1) if screen.is_terminal else None
            shown = overview(runs, options.columns, room, options.sort) if len(runs) else "no runs yet"
            if screen.is_terminal:
                live.update(shown, refresh=True)
            else:
                screen.print(shown)
            time.sleep(options.watch)


def _serve(options: argparse.Namespace, screen: Console, tell: Tell) -> None:
    """Serve the page of the runs, as they are whenever it is asked for, until Ctrl-C."""
    from mnist_exp.compare.serve import PORT, Server
    from mnist_exp.console import say
    from mnist_exp.local_server import bound
    from mnist_exp.signals import terminate_as_interrupt

    def page(version: str) -> bytes:
        runs = _chosen(options, tell)
        return _page(runs, *_answer(runs, options, tell), options, tell, version)

    with terminate_as_interrupt(), bound(Server, "--serve", options.serve or None, PORT) as server:
        server.folders, server.make = options.folders or ["outputs"], page
        server.page()  # what is wrong is told here, not there
        say(screen, f"page     {server.url}   (only from this machine; it follows the runs; Ctrl-C ends it)")
        server.serve_forever()


def _page(
    runs: pd.DataFrame, title: str, answer: pd.DataFrame | None, options: argparse.Namespace, tell: Tell, live: str = ""
) -> bytes:
    """Return the page about ``runs`` and the ``answer`` under its ``title``; ``live``: the version that is served."""
    from mnist_exp.compare.overview import usual
    from mnist_exp.compare.page import Extras, html_page
    from mnist_exp.console import cell

    columns = [c for c in options.columns or usual(runs) if any(cell(c, v) for v in runs[c])]
    return html_page(runs, columns, tell, Extras(title, answer, _search(options, tell), live))


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
    score = options.score or ["test_acc"]
    what = "test accuracy" if options.score is None else " or ".join(score)
    title = f"mean {what} against the group of {name}, over seeds; about the recipe"
    return title, judge.against_group(runs, options.baseline, options.group_by, tell, score)


def _contents(
    runs: pd.DataFrame, title: str, answer: pd.DataFrame | None, options: argparse.Namespace, tell: Tell
) -> dict[str, bytes]:
    """Return {kind: content} of the files that are asked for; CSV and JSON hold the answer, if any, the page both."""
    result, contents = (runs if answer is None else answer).map(_utf8).rename(columns=_utf8), {}
    if options.csv is not None:
        contents["csv"] = result.to_csv(index=False).encode()
    if options.json is not None:
        contents["json"] = result.to_json(orient="records", indent=1).encode()
    if options.html is not None:
        contents["html"] = _page(runs, title, answer, options, tell)
    if options.plot is not None:
        from mnist_exp.compare.table import histories
        from mnist_exp.runs.figures import drawn
        from mnist_exp.runs.pictures import runs_figure

        rows = histories(runs, tell)
        named = {run["name"]: rows[run["path"]] for _, run in runs.iterrows()}
        contents["plot"] = drawn(runs_figure(named), picture_kind("plot", options.plot))
    return contents


def _search(options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Return Optuna's plots of the search, if one alone is asked about."""
    from mnist_exp.search.read import is_study, load_study

    folder = Path(options.folders[0]) if len(options.folders) == 1 else None
    if folder is None or not is_study(folder):
        return {}
    from mnist_exp.search.page import optuna_plots

    try:
        return optuna_plots(load_study(folder, None), tell)
    except UserError as error:  # its runs are there all the same
        tell(f"no plots of the search: {error}")
        return {}


def _utf8(value: Any) -> Any:
    """Return text that can be written: the name of a folder may be any bytes."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
