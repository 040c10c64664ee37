"""What ``bench_peers.py`` tells of its runs: a line each, one table, and one picture."""

import statistics
from collections.abc import Callable
from typing import Any

TARGETS = (99.0, 99.5)
REFERENCES = ("one_epoch", "original_fp32")
Row = dict[str, Any]


def line(row: Row) -> str:
    """Return what is told as soon as a run has ended."""
    if row["status"] != "ok":
        return f"{row['competitor']:14} {row['status']}: {row['reason']}"
    score = f"{row['epochs'][-1]['test_acc']:.2f} %" if row["epochs"] else "not scored"
    return (
        f"{row['competitor']:14} {row['images_per_s']:9,.0f} images/s  {row['seconds']:7.1f} s of training  {score}  "
        f"{row['wall_seconds']:7.1f} s in all  {row['memory_mib']:6,.0f} MiB"
    )


def reached(row: Row, target: float) -> float | None:
    """Return the seconds of training after which a run was first seen to have ``target`` percent; None: it was not."""
    return next((epoch["seconds"] for epoch in row["epochs"] if epoch["test_acc"] >= target), None)


def names(found: Row) -> list[str]:
    """Return the competitors that ran, in the order of the first round."""
    return list(dict.fromkeys(row["competitor"] for row in found["runs"] if row["status"] == "ok"))


def of(found: Row, name: str) -> list[Row]:
    return [row for row in found["runs"] if row["competitor"] == name and row["status"] == "ok"]


def share(found: Row, name: str) -> float | None:
    """Return the median speed in floating-point operations, as a share of this machine's matrix products in percent."""
    runs, operations = of(found, name), found["operations"].get(name)
    if operations is None or not found["matmul"]:
        return None
    rate = statistics.median(measured[runs[0]["precision"]] for measured in found["matmul"])
    return 100 * operations * statistics.median(row["images_per_s"] for row in runs) / rate


def ratios(found: Row, name: str, reference: str, value: Callable[[Row], float]) -> list[float]:
    """Return ``value`` of a competitor over that of the ``reference`` in each round of each call that has both."""
    others = {_when(row): value(row) for row in of(found, reference)}
    return [value(row) / others[_when(row)] for row in of(found, name) if _when(row) in others]


def _when(row: Row) -> tuple[int | None, int]:
    """Return what is equal for runs that are neighbours in time: the call of ``bench_peers.py``, and its round."""
    return row.get("call"), row["round"]


def spread(values: list[float], form: str = ".3g") -> str:
    """Return the median and, in brackets, the least and the most."""
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def time_to(runs: list[Row], target: float) -> str:
    """Return the mean time to ``target`` where every run reached it, else how many did."""
    times = [reached(row, target) for row in runs]
    there = [time for time in times if time is not None]
    if not any(row["epochs"] for row in runs):
        return "-"
    return f"{statistics.mean(there):.1f} s" if len(there) == len(runs) else f"{len(there)} of {len(runs)}"


def table(found: Row) -> str:
    """Return the table of all competitors, and why those are left out that did not run."""
    heads = [
        "competitor",
        "precision",
        "images/s",
        "train s",
        "to 99.0 %",
        "to 99.5 %",
        "test %",
        "wall s",
        "MiB",
        "of matmul",
    ]
    heads += [f"images/s, x {reference}" for reference in REFERENCES] + [f"train s, x {REFERENCES[0]}"]
    lines = [heads]
    for name in names(found):
        runs = of(found, name)
        scores = [row["epochs"][-1]["test_acc"] for row in runs if row["epochs"]]
        part = share(found, name)
        lines.append(
            [
                name,
                runs[0]["precision"],
                spread([row["images_per_s"] for row in runs], ",.0f"),
                f"{statistics.median(row['seconds'] for row in runs):.1f}",
                *(time_to(runs, target) for target in TARGETS),
                f"{statistics.mean(scores):.2f}" if scores else "-",
                f"{statistics.median(row['wall_seconds'] for row in runs):.1f}",
                f"{max(row['memory_mib'] for row in runs):,.0f}",
                "-" if part is None else f"{part:.1f} %",
                *(spread(ratios(found, name, other, lambda row: row["images_per_s"])) for other in REFERENCES),
                spread(ratios(found, name, REFERENCES[0], lambda row: row["seconds"])) if scores else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(f"{cell:{'<' if not n else '>'}{w}}" for n, (cell, w) in enumerate(zip(x, widths, strict=True)))
        for x in lines
    )
    missing = {row["competitor"]: row for row in found["runs"] if row["status"] != "ok"}
    told = [f"{name}: {row['status']}, {row['reason']}" for name, row in missing.items()]
    return "\n".join([text, *told, _machine(found)])


def threads(found: Row) -> str:
    number = found["matmul"][0]["threads"]
    return f"{number} thread{'s' if number > 1 else ''}"


def _machine(found: Row) -> str:
    rates = {kind: [measured[kind] / 1e9 for measured in found["matmul"]] for kind in ("fp32", "bf16")}
    rounds = len({row["round"] for row in found["runs"]})
    return f"{found['machine']['cpu']}, {threads(found)}, rounds: {rounds}; matrix products: " + ", ".join(
        f"{kind} {spread(values, ',.0f')} GFLOP/s" for kind, values in rates.items()
    )
