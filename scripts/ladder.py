"""The table of results and the first picture of the README, from the folders of runs.

    python scripts/ladder.py FOLDER [--peers peers.json] [--output .github] [--readme README.md]

FOLDER holds a folder for each row of the table, called as the row will be: finished runs of one recipe, a seed each, or
what ``evaluate RUN RUN ... --output`` wrote of an ensemble of runs in FOLDER. Rows measured before stay in
ladder.json of --output until FOLDER has them again. --output gets ladder.json, with every run, ladder.png, and of the row
"ensemble" hard_digits.png, its mistakes; the README gets the table, between its two marks. ``reproduce.py`` runs any row again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from error_axes import Named, error, frame, label
from rungs import ORDER, Row, measured, ordered, read_json, summary

from mnist_exp.errors import UserError
from mnist_exp.files import atomic_write
from mnist_exp.reading import MIB, read_text
from mnist_exp.runs.figures import drawn, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("<!-- ladder: begin -->\n", "<!-- ladder: end -->")
# said elsewhere, not measured here, of the epochs that were best on test: by the original's script, and by
# https://arxiv.org/abs/2008.10400
CLAIMS = (
    ("ObsCure MNIST", 99.78),
    ("An et al. 2020, three CNNs, up to", 99.87),
    ("An et al. 2020, an ensemble of those, up to", 99.91),
)
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#7f3c8d", "#444444", "#56b4e9", "#8a6d00")
_CLAIMED = "#b03030"
_TIMES = {
    2: "2 s",
    5: "5 s",
    10: "10 s",
    30: "30 s",
    60: "1 min",
    300: "5 min",
    600: "10 min",
    1800: "30 min",
    3600: "1 h",
    7200: "2 h",
    14400: "4 h",
}
_PEERS = {
    "example": "PyTorch's example",
    "dense": "linear layers",
    "one_epoch": "small CNN, Adam",
    "keras": "Keras' convnet",
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--peers", type=Path, metavar="FILE", help="default: peers.json of --output, if it is there")
    parser.add_argument("--output", type=Path, default=Path(".github"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE")
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise UserError(f"FOLDER is {options.folder}; it must be a folder that holds one for each row")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error_:
        raise UserError(f"--output: {options.output} cannot be a folder ({error_.strerror})") from error_
    return options


def took(seconds: float) -> str:
    """Return a duration as a person says it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def command(row: Row) -> str:
    """Return what was typed for a row, but for places and the seed."""
    if "members" in row:
        groups: dict[str, list[str]] = {member["row"]: [] for member in row["members"]}
        for member in row["members"]:
            groups[member["row"]].append(str(member["seed"]))
        of = ", ".join(f"`{of}` {', '.join(seeds)}" for of, seeds in groups.items())
        return f"`evaluate RUN RUN ... --split test --tta {row['tta_runs']}`, the runs of {of}"
    return f"`train {' '.join(row['overrides'])}`"


def table(rows: dict[str, Row]) -> str:
    """Return the README's table of ``rows``, as Markdown."""
    heads = [
        "Name",
        "Command",
        "Test (95 % interval)",
        "Each seed",
        "TTA",
        "Validation",
        "Training",
        "In all",
        "Machine",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in ordered(rows):
        row, found = rows[name], summary(rows[name])
        cells = [
            f"**{name}**" if name in ORDER else name,
            command(row),
            f"{found['test_acc']:.2f} % ({found['low']:.2f} to {found['high']:.2f}){with_tta(row)}",
            f"{row['wrong']} wrong" if "members" in row else ", ".join(told(name, run, rows) for run in row["runs"]),
            *("-" if found[key] is None else f"{found[key]:.2f} %" for key in ("tta", "val")),
            *(took(found[key]) for key in ("train_seconds", "seconds")),
            f"{row['device_name']}, {row['precision']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_tta(row: Row) -> str:
    """Return what an ensemble's accuracy is of, where that is not of the images as they are."""
    return ", with TTA" if "members" in row and row["tta_runs"] > 1 else ""


def told(name: str, run: Row, rows: dict[str, Row]) -> str:
    """Return a seed and its accuracy, and how often test was scored where that is more often than the rows say."""
    ensembles = sum(
        (member["row"], member["seed"]) == (name, run["seed"])
        for row in rows.values()
        for member in row.get("members", ())
    )
    extra = f" (test scored {run['test_scored']} times)" if run["test_scored"] > 1 + ensembles else ""
    return f"{run['seed']}: {run['test_acc']:.2f}{extra}"


def placed(text: str, readme: str) -> str:
    """Return ``readme`` with ``text`` between its two marks."""
    if not all(readme.count(mark) == 1 for mark in MARKS):
        raise UserError(f"the README must have each of {MARKS[0].strip()} and {MARKS[1]} once")
    before, _, rest = readme.partition(MARKS[0])
    return f"{before}{MARKS[0]}{text}{MARKS[1]}{rest.partition(MARKS[1])[2]}"


@styled
def picture(rows: dict[str, Row], peers: Row | None) -> bytes:
    """Return the chart as PNG: the mean of each row with its interval, the peers' epochs, and what others claim."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    axes = figure.subplots()
    ends = _rows(axes, rows) + (_peers(axes, peers) if peers else [])
    frame(axes, (99.0, 99.5), (0.06, 1.6))
    first, last = axes.get_xlim()
    times = {seconds: text for seconds, text in _TIMES.items() if first < seconds < last}
    axes.set_xticks(list(times), list(times.values()))
    axes.set_xticks([], minor=True)
    names_at = label(axes, ends)
    for text, accuracy in CLAIMS:
        axes.axhline(error(accuracy), 0, names_at, color=_CLAIMED, linewidth=1, linestyle=":", zorder=0)
        _small(axes, f"{text}: {accuracy} %", error(accuracy))
    _small(axes, "claims, not measured here, epochs chosen on test:", 100 - 99.935)
    axes.set_xlabel(
        "time of training (log scale); bar: what 10,000 images can tell, small dot: a seed, triangle: mean with TTA"
    )
    machines = sorted({row["device_name"] for row in rows.values()})
    axes.set_title("\n".join(["MNIST test accuracy against training time", *machines]))
    return drawn(figure)


def _small(axes: "Axes", text: str, y: float) -> None:
    """Write of a claim, at the left."""
    across = axes.get_yaxis_transform()
    axes.annotate(text, (0.01, y), (0, 2), across, "offset points", fontsize=8, color=_CLAIMED)


def _rows(axes: "Axes", rows: dict[str, Row]) -> list[Named]:
    """Draw ``rows``; return their names' places. A bar is what 10,000 images can tell, dots are seeds."""
    ends = []
    for number, name in enumerate(ordered(rows)):
        found = summary(rows[name])
        colour = _COLOURS[number % len(_COLOURS)]
        x, y = found["train_seconds"], error(found["test_acc"])
        ends_of_bar = [[y - error(found["high"])], [error(found["low"]) - y]]
        axes.errorbar([x], [y], ends_of_bar, marker="o", color=colour, capsize=3, markersize=7)
        if len(found["each"]) > 1:
            beside = [1.09 * x] * len(found["each"])
            axes.scatter(beside, [error(each) for each in found["each"]], s=12, color=colour, alpha=0.5, linewidths=0)
        ends.append((x, y, f"{name}  {found['test_acc']:.2f} %", colour))
        if found["tta"] is not None:
            axes.scatter([x], [error(found["tta"])], marker="^", s=40, facecolors="none", edgecolors=colour)
    return ends


def _peers(axes: "Axes", peers: Row) -> list[Named]:
    """Draw the others of ``bench_peers.py``, a line over the means of their epochs; return their names' places."""
    from peers.ours import OURS
    from peers.report import names, of

    ends = []
    for name in names(peers):
        runs = [row for row in of(peers, name) if row["epochs"]]
        if name in OURS or not runs:
            continue
        means = [
            (statistics.mean(e["seconds"] for e in epochs), error(statistics.mean(e["test_acc"] for e in epochs)))
            for epochs in zip(*(row["epochs"] for row in runs), strict=True)
        ]
        axes.plot(*zip(*means, strict=True), color="#999999", marker=".", linewidth=1)
        accuracy = statistics.mean(row["epochs"][-1]["test_acc"] for row in runs)
        length = f"{len(means)} epoch{'s' if len(means) > 1 else ''}"
        ends.append((*means[-1], f"{_PEERS.get(name, name)}, {length}  {accuracy:.2f} %", "#777777"))
    return ends


def main() -> None:
    options = parsed()
    file, peers_file = options.output / "ladder.json", options.peers or options.output / "peers.json"
    rows = (read_json(file) if file.exists() else {}) | measured(options.folder)
    if not rows:
        raise UserError(f"{options.folder} holds no finished run")
    peers = read_json(peers_file) if options.peers or peers_file.exists() else None
    text = table(rows)
    readme = placed(text, read_text(options.readme, MIB))
    atomic_write(options.output / "ladder.png", picture(rows, peers))
    atomic_write(file, (json.dumps({name: rows[name] for name in ordered(rows)}, indent=1) + "\n").encode())
    hard = options.folder / "ensemble" / "mistakes.png"
    if hard.exists():
        atomic_write(options.output / "hard_digits.png", hard.read_bytes())
    atomic_write(options.readme, readme.encode())
    print(text, end="")


if __name__ == "__main__":
    try:
        main()
    except UserError as error_:
        print(error_, file=sys.stderr)
        raise SystemExit(2) from error_
