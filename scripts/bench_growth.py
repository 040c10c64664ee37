"""How time and memory of one epoch grow with the number of images, the width of the network, and the batch.

Runs ``python -m mnist_exp train`` for each, the small CNN without transforms, on pictures in folders (data=image_folder,
the one form that may hold a million): noise around a bar whose place is its class, 1,000 files under many names. Writes
growth.json after each run, and growth.png, to --output; prints a table with the exponents p of a fitted c * n ** p, and
of the last two points alone. "training" is the time of the epoch, "in all" that of the process, which also reads each
picture, "all cores" what it took of their time, which other work on the machine changes less.

    python scripts/bench_growth.py --output FOLDER [--rounds 1] [images] [width] [batch]
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, run_process
from peers.ours import figures
from PIL import Image

from mnist_exp.files import atomic_write
from mnist_exp.runs.figures import drawn, styled

CHANNELS = (16, 32, 64)
DISTINCT, TEST, CLASSES = 1000, 100, 10
QUESTIONS = {"images": "images", "width": "times the channels", "batch": "images of a batch"}
VALUES = {
    "seconds": "training (s)",
    "wall_seconds": "in all (s)",
    "cpu_seconds": "of all cores (s)",
    "memory_mib": "peak memory (MiB)",
}


def make(folder: Path, images: int) -> None:
    """Put ``images`` training pictures, and a few to test on, into ``folder``: hard links of a few files each."""
    draws = np.random.default_rng(0)
    for part, count in (("train", images), ("test", TEST)):
        for label in range(CLASSES):
            place = folder / part / str(label)
            place.mkdir(parents=True)
            own = range(label, count, CLASSES)
            for number, n in enumerate(own):
                file = place / f"{n}.png"
                if number < DISTINCT // CLASSES:
                    pixels = draws.integers(0, 120, (28, 28), dtype=np.uint8)
                    pixels[:, 2 * label + 4 : 2 * label + 6] = 255
                    Image.fromarray(pixels).save(file)
                else:
                    os.link(place / f"{own[number % (DISTINCT // CLASSES)]}.png", file)


def train(data: Path, overrides: list[str], threads: int | None) -> dict[str, Any]:
    """Train one epoch; return its times and memory. Raises RuntimeError with the words of a run that fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "-m",
            "mnist_exp",
            "train",
            "data=image_folder",
            f"data.root={data}",
            "model=small_cnn",
            "augment=none",
            "data.val_size=0",
        ]
        words += ["schedule=one_cycle", "schedule.initial_epochs=1", "schedule.extra_epochs=0", "hydra.run.dir=run"]
        done = run_process([*words, "optimizer=adamw", "evaluate.tta_runs=1", *overrides], Path(folder), threads)
        if done.status:
            raise RuntimeError(done.printed.read_text(errors="replace"))
        found = figures(Path(folder) / "run", False)
    return {
        "seconds": found["seconds"],
        "wall_seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "memory_mib": done.memory_mib,
        "images_per_s": found["images"] / found["seconds"],
    }


def settings(question: str, options: argparse.Namespace) -> list[tuple[int, int, list[str]]]:
    """Return (value, images, overrides) of each run that answers ``question``."""
    if question == "images":
        return [(images, images, ["data.batch_size=256"]) for images in sorted(options.images)]
    if question == "batch":
        return [(size, options.fixed, [f"data.batch_size={size}"]) for size in sorted(options.batches)]
    channels = {width: ",".join(str(width * channel) for channel in CHANNELS) for width in sorted(options.widths)}
    return [(n, options.fixed, [f"model.channels=[{wide}]", "data.batch_size=256"]) for n, wide in channels.items()]


def medians(rows: list[dict[str, Any]], question: str, key: str) -> dict[int, float]:
    """Return {value: the median of ``key`` over the rounds} of ``question``."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["question"] == question:
            found.setdefault(row["value"], []).append(row[key])
    return {value: statistics.median(numbers) for value, numbers in sorted(found.items())}


def exponents(points: dict[int, float]) -> tuple[float, float]:
    """Return p of the fitted c * n ** p, of all ``points`` and of the last two."""
    x, y = ([math.log(number) for number in numbers] for numbers in (points, points.values()))
    if len(x) < 2:
        return math.nan, math.nan
    return statistics.linear_regression(x, y).slope, (y[-1] - y[-2]) / (x[-1] - x[-2])


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line of each setting, and the exponents below those of a question."""
    lines = []
    for question, what in QUESTIONS.items():
        columns = {key: medians(rows, question, key) for key in [*VALUES, "images_per_s"]}
        if not columns["seconds"]:
            continue
        lines.append(
            f"{what:>20}  {'training':>10}  {'in all':>10}  {'all cores':>10}  {'memory':>10}  {'images/s':>10}"
        )
        for value, speed in columns["images_per_s"].items():
            *times, memory = (columns[key][value] for key in VALUES)
            told = "  ".join(f"{seconds:>8.1f} s" for seconds in times)
            lines.append(f"{value:>20,}  {told}  {memory:>6,.0f} MiB  {speed:>10,.0f}")
        for name, which in (("exponent", 0), ("of the last two", 1)):
            lines.append(f"{name:>20}  " + "  ".join(f"{exponents(columns[key])[which]:>10.2f}" for key in VALUES))
    return "\n".join(lines)


@styled
def picture(rows: list[dict[str, Any]]) -> bytes:
    """Return a picture as PNG: a column a question, times above memory, both scales logarithmic, a line of slope 1."""
    from matplotlib.figure import Figure

    asked = [question for question in QUESTIONS if medians(rows, question, "seconds")]
    figure = Figure(figsize=(4.4 * len(asked), 7), layout="constrained")
    grid = figure.subplots(2, len(asked), squeeze=False)
    colours = dict(zip(VALUES, ("#0072b2", "#009e73", "#e69f00", "#d55e00"), strict=True))
    for column, question in enumerate(asked):
        for axes, keys in (
            (grid[0][column], ["seconds", "wall_seconds", "cpu_seconds"]),
            (grid[1][column], ["memory_mib"]),
        ):
            for key in keys:
                points = medians(rows, question, key)
                told = f"{VALUES[key]}, exponent {exponents(points)[0]:.2f}" if len(points) > 1 else VALUES[key]
                axes.plot(list(points), list(points.values()), marker="o", color=colours[key], label=told)
            axes.set(xscale="log", yscale="log", xlabel=QUESTIONS[question])
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * max((high / low) ** 0.4, 1.5))  # room for the legend
            _slope(axes, medians(rows, question, keys[0]))
            _plain_ticks(axes, list(points))
            axes.legend(frameon=False, loc="upper left", fontsize=9)
    for axes, what in zip(grid[:, 0], ("seconds", "MiB"), strict=True):
        axes.set_ylabel(f"{what} (log scale)")
    return drawn(figure)


def _slope(axes: Any, points: dict[int, float]) -> None:
    """Draw the line of slope 1 through the last of ``points``, as far as the frame goes."""
    (last, value), first = list(points.items())[-1], min(points)
    axes.plot([first, last], [value * first / last, value], color="#aaaaaa", linestyle="--", label="slope 1")


def _plain_ticks(axes: Any, values: list[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 5000 else f"{value:g}")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#eeeeee")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], default=[])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 20_000, 80_000, 320_000, 1_000_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512, 2048])
    parser.add_argument("--fixed", type=int, default=20_000, help="images where the width or the batch varies")
    return parser.parse_intermixed_args()


def main() -> None:
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(1, options.rounds + 1):
            for question in options.questions or QUESTIONS:
                for value, images, overrides in settings(question, options):
                    data = Path(folder) / str(images)
                    if not data.exists():
                        make(data, images)
                    row = {"question": question, "value": value, "images": images, "round": round_}
                    rows.append(row | train(data, overrides, options.threads))
                    found = {"machine": machine(), "command": " ".join(["python", *sys.argv]), "runs": rows}
                    atomic_write(options.output / "growth.json", (json.dumps(found, indent=1) + "\n").encode())
                    last = rows[-1]
                    print(
                        f"round {round_}: {question} {value:>9,}  {last['seconds']:8.1f} s of training  "
                        f"{last['wall_seconds']:8.1f} s in all  {last['memory_mib']:7,.0f} MiB",
                        flush=True,
                    )
    atomic_write(options.output / "growth.png", picture(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
