"""Run a row of the README's table of results again, and print what was published beside what is found.

    python scripts/reproduce.py NAME [KEY=VALUE ...] [--seeds 6,7] [--data FOLDER] [--output outputs/reproduced]

NAME is a row of .github/ladder.json, which holds the command and every seed of it; --seeds are those to run (default: the
published ones). Of an ensemble, --seeds are those of each kind of its members, which are run first. The same command goes
on where it was cut off: a finished run is not run again. KEY=VALUE are added to the command, such as trainer.threads=1.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from rungs import Row, of_ensemble, of_runs, read_json, summary

from mnist_exp.config.recipe import below
from mnist_exp.config.request import quoted
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import EVALUATION, RunFolder, is_run
from mnist_exp.statistics import compare_groups

ROOT = Path(__file__).resolve().parents[1]
_DATA = ("data.root", "data.fallback")  # the data themselves are compared


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=_seeds, metavar="SEED,SEED")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="that holds the digits (default: as train has it)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/reproduced"), metavar="FOLDER", help="for the runs"
    )
    parser.add_argument("--ladder", type=Path, default=ROOT / ".github" / "ladder.json", metavar="FILE")
    options = parser.parse_intermixed_args()
    if any(word.partition("=")[0].lstrip("+~") == "seed" for word in options.overrides):
        parser.error("seed is no KEY=VALUE here: type --seeds 6,7")
    if options.data and not options.data.is_dir():
        parser.error(f"--data: {options.data} is no folder")
    return options


def _seeds(text: str) -> list[int]:
    seeds = text.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds) or len({*map(int, seeds)}) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different whole numbers, such as 6,7")
    return [int(seed) for seed in seeds]


def called(*words: str) -> None:
    """Run ``python -m mnist_exp``; what it prints is shown. Ctrl-C reaches it, too: it writes a checkpoint and ends."""
    print("$", shlex.join(["python", "-m", "mnist_exp", *words]), flush=True)
    known = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen([sys.executable, "-m", "mnist_exp", *words], env={**os.environ, "PYTHONPATH": known})
    status = None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
    if status:
        raise SystemExit(status)


def trained(name: str, row: Row, seeds: list[int], options: argparse.Namespace) -> list[Path]:
    """Train ``row`` with each of ``seeds``, unless that was done; return the runs."""
    runs = []
    for seed in seeds:
        run = options.output / name / f"seed-{seed}"
        words = [*row["overrides"], *options.overrides, f"seed={seed}", "data.fallback=null"]
        words += [f"data.root={quoted(options.data.resolve())}"] if options.data else []
        if not is_run(run):
            called("train", *words, f"hydra.run.dir={quoted(run)}")
        else:
            found = RunFolder.open(run)
            there, asked = (
                sorted(word for word in one if not below(word.partition("=")[0], (*_DATA, "hydra")))
                for one in (found.info["overrides"], words)
            )
            if there != asked:
                raise UserError(f"{run} was run with {' '.join(there)}; for others name a new folder: --output FOLDER")
            if not found.finished:
                called("train", f"resume={quoted(run)}")
        runs.append(run)
    return runs


def scored(name: str, row: Row, rows: dict[str, Row], options: argparse.Namespace) -> Row:
    """Train the members of an ensemble, score them together, unless that was done, and return the row of it."""
    runs, place = [], options.output / name
    for kind in dict.fromkeys(member["row"] for member in row["members"]):
        if "runs" not in rows.get(kind, {}):
            raise UserError(f"{options.ladder} has no row {kind}, whose runs are members of {name}")
        seeds = options.seeds or [member["seed"] for member in row["members"] if member["row"] == kind]
        runs += trained(kind, rows[kind], seeds, options)
    file = place / EVALUATION
    if file.exists():
        members = [Path(member["run"]).resolve() for member in read_json(file).get("members", [])]
        if members != [run.resolve() for run in runs]:
            raise UserError(f"{file} is of other runs; move it away, or name a new folder: --output FOLDER")
    else:
        asked = ["--split", "test", "--tta", str(row["tta_runs"]), "--output", str(place)]
        called("evaluate", *map(str, runs), *asked)
    return of_ensemble(place, options.output)


def main() -> None:
    options = parsed()
    rows: dict[str, Row] = read_json(options.ladder)
    if options.name not in rows:
        raise UserError(f"NAME is {options.name}; it must be a row of {options.ladder}: {', '.join(rows) or 'none'}")
    row = rows[options.name]
    if "members" in row:
        found = scored(options.name, row, rows, options)
    else:
        seeds = options.seeds or [run["seed"] for run in row["runs"]]
        runs = [RunFolder.open(run) for run in trained(options.name, row, seeds, options)]
        found = of_runs(runs, options.output / options.name)
    tell(row, found)


def tell(row: Row, found: Row) -> None:
    """Print the published figures of ``row`` beside those that were ``found``, and whether they differ."""
    print()
    for who, one in (("published", row), ("found", found)):
        has = summary(one)
        each = ", ".join(f"{value:.2f}" for value in has["each"])
        print(
            f"{who:10} test {has['test_acc']:.3f} % (95 % interval {has['low']:.2f} to {has['high']:.2f})  each {each}"
        )
        if has["tta"] is not None and "members" not in one:
            print(f"{'':10} with TTA {has['tta']:.3f} %")
        print(f"{'':10} {has['train_seconds']:.0f} s of training on {one['device_name']}, {one['precision']}")
    if "members" in row:
        difference, of = summary(found)["test_acc"] - summary(row)["test_acc"], ""
    else:
        again, published = beside(found, row)
        difference = statistics.mean(again.values()) - statistics.mean(published.values())
        of = f" (seeds {', '.join(map(str, again))} against {', '.join(map(str, published))})"
    print(f"difference {difference:+.3f} points{of}: {verdict(row, found)}")


def beside(found: Row, row: Row) -> tuple[dict[int, float], dict[int, float]]:
    """Return the test accuracy of each seed that was ``found``, and of each published one it is to be held against.

    Seeds that were not published before are held against all of those that were, and stand alone where there are any;
    a repetition of published ones against these same seeds.
    """
    again, published = ({run["seed"]: run["test_acc"] for run in one["runs"]} for one in (found, row))
    others = {seed: accuracy for seed, accuracy in again.items() if seed not in published}
    return (others, published) if others else (again, {seed: published[seed] for seed in again})


def verdict(row: Row, found: Row) -> str:
    """Return whether what was ``found`` differs from what was published."""
    published, again = (one | {"recipe": _recipes(one)} for one in (row, found))
    changed = "recipe, so a preset has changed, or KEY=VALUE change it"
    for key, what in (("recipe", changed), ("dataset", "data"), ("tta_runs", "number of shifts")):
        if published.get(key) != again.get(key):
            return f"no verdict, as it is another {what}"
    if "members" in row:
        inside = row["low"] <= found["accuracy"] <= row["high"]
        told = f"{'within' if inside else 'outside'} what {row['images']:,} images can tell of the published one"
        sizes = [len(one["members"]) for one in (found, row)]
        return told if sizes[0] == sizes[1] else f"{told}, though of {sizes[0]} members instead of {sizes[1]}"
    scores = beside(found, row)
    if scores[0] == scores[1]:
        return "the same seeds have the same accuracies"
    test = compare_groups(*({seed: [accuracy] for seed, accuracy in one.items()} for one in scores))
    if test.p is None:
        return "too few seeds for a test"
    return f"{test.test}, p = {test.p:.2g}: {'they differ' if test.p < 0.05 else 'no difference can be told'}"


def _recipes(row: Row) -> set[str]:
    """Return the recipe of a row, or those of an ensemble's members."""
    return {one["recipe"] for one in row.get("members", [row])}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
