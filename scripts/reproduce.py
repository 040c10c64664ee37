"""Run a row of the README's table of results again, and print what was published beside what is found.

    python scripts/reproduce.py NAME [--seeds 6 7] [--data FOLDER] [--output outputs/reproduced] [KEY=VALUE ...]

NAME is a row of .github/ladder.json, which holds the command and every seed of it; --seeds are those to run (default: the
published ones). Of an ensemble, --seeds are those of each kind of its members, which are run first. The same command goes
on where it was cut off: a finished run is not run again. KEY=VALUE are added to the command, such as trainer.threads=1.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from rungs import Row, of_ensemble, of_runs, summary

from mnist_exp.errors import UserError
from mnist_exp.runs.folder import EVALUATION, RunFolder, is_run
from mnist_exp.statistics import compare_groups, wilson

ROOT = Path(__file__).resolve().parents[1]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="that holds the digits (default: as train has it)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/reproduced"), metavar="FOLDER", help="for the runs"
    )
    parser.add_argument("--ladder", type=Path, default=ROOT / ".github" / "ladder.json", metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser.parse_intermixed_args()


def called(*words: str) -> None:
    """Run ``python -m mnist_exp``; what it prints is shown. Raises UserError if it fails."""
    print("$", shlex.join(["python", "-m", "mnist_exp", *words]), flush=True)
    known = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    status = subprocess.run(
        [sys.executable, "-m", "mnist_exp", *words], env={**os.environ, "PYTHONPATH": known}
    ).returncode
    if status:
        raise UserError(f"it ended with {status}; the same command goes on from there")


def trained(name: str, row: Row, seeds: list[int], options: argparse.Namespace) -> list[Path]:
    """Train ``row`` with each of ``seeds``, unless that was done; return the runs."""
    runs = []
    for seed in seeds:
        run = options.output / name / f"seed-{seed}"
        if not is_run(run):
            data = [f"data.root={options.data}", "data.fallback=null"] if options.data else ["data.fallback=null"]
            called("train", *row["overrides"], *options.overrides, f"seed={seed}", *data, f"hydra.run.dir={run}")
        elif not RunFolder.open(run).finished:
            called("train", f"resume={run}")
        runs.append(run)
    return runs


def scored(name: str, row: Row, rows: dict[str, Row], options: argparse.Namespace) -> Row:
    """Train the members of an ensemble, score them together, unless that was done, and return the row of it."""
    place, runs = options.output / name, []
    for kind in dict.fromkeys(member["row"] for member in row["members"]):
        seeds = options.seeds or [member["seed"] for member in row["members"] if member["row"] == kind]
        runs += trained(kind, rows[kind], seeds, options)
    if not (place / EVALUATION).exists():
        shifts = ["--tta", str(row["tta_runs"])]
        called("evaluate", *map(str, runs), "--split", "test", *shifts, "--output", str(place))
    return of_ensemble(place, options.output)


def main() -> None:
    options = parsed()
    rows: dict[str, Row] = json.loads(options.ladder.read_text())
    if options.name not in rows:
        raise UserError(f"NAME is {options.name}; it must be one of {', '.join(rows)}")
    row = rows[options.name]
    if "members" in row:
        found: Row | None = scored(options.name, row, rows, options)
    else:
        seeds = options.seeds or [run["seed"] for run in row["runs"]]
        trained(options.name, row, seeds, options)
        found = of_runs(options.output / options.name)
        if found is not None:
            found["runs"] = [run for run in found["runs"] if run["seed"] in seeds]
    assert found is not None
    tell(options.name, row, found)


def tell(name: str, row: Row, found: Row) -> None:
    """Print the published figures of ``row`` beside those that were ``found``."""
    print(f"\n{name:12} test                        each                                training, machine")
    for who, one in (("published", row), ("found", found)):
        has = summary(one)
        each = ", ".join(f"{value:.2f}" for value in has["each"])
        interval = f"{has['test_acc']:.3f} % ({has['low']:.2f} to {has['high']:.2f})"
        print(
            f"{who:12} {interval:27} {each:35} {has['train_seconds']:.0f} s, {one['device_name']}, {one['precision']}"
        )
    published, again = (summary(one)["each"] for one in (row, found))
    print(f"difference   {statistics.mean(again) - statistics.mean(published):+.3f} points; ", end="")
    if "members" in row:
        low, high = wilson(round(row["accuracy"] / 100 * row["images"]), row["images"])
        inside = low <= found["accuracy"] <= high
        print(f"{'within' if inside else 'outside'} what {row['images']:,} images can tell of the published one")
        return
    by_seed = [{run["seed"]: [run["test_acc"]] for run in one["runs"]} for one in (found, row)]
    test = compare_groups(*by_seed)
    if test.p is None:
        print("too few seeds for a test")
    else:
        print(f"{test.test}, p = {test.p:.2g}: {'they differ' if test.p < 0.05 else 'no difference can be told'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
