"""Training speed, and time to 99.0 and 99.5 % on MNIST's test set, of usual ways to train beside this package's.

Each competitor runs in a process of its own, one after another, in rounds with a seed each: ratios are of runs that are
neighbours in time: in one round of one call. Peers are scored after every epoch while their clock stands still, which favours them: a run of ours
scores the test set once, at its end, and all of its training counts. Loading and transforms count, scoring does not, nor
does ours on validation; ours hold 5,000 of the 60,000 images out for that. Ours choose their precision themselves (bf16
where the CPU has units for it), but for those called fp32; of the peers only original_bf16 has bf16.

    python scripts/bench_peers.py [KEY=VALUE ...] --data FOLDER --output FOLDER [--rounds 5] [--only NAME ...]

--data holds the digits as torchvision keeps them, FOLDER/MNIST/raw. --output gets peers.json, written after each run,
and peers.png; the same command goes on where it was cut off. KEY=VALUE are for runs of this package.

    example        PyTorch's example: two convolutions, DataLoader in its own process (as it ships on CPUs), Adadelta,
                   14 epochs
    dense          what Hydra templates ship: linear layers with batch norm, DataLoader, Adam, 10 epochs
    one_epoch      nearly 99 % in one epoch: the data one tensor, batches of 256 in order, one cycle of Adam
    original_fp32  the wide network with plain batch norm on PIL pictures, DataLoader with four workers, SGD
    original_bf16  the same under bf16 autocast; of both --images images: throughput alone, as training takes hours
    keras          Keras' convnet, 15 epochs, left out where it is not installed (pip install keras tensorflow-cpu)
    sprint, sprint_fp32, fast   experiment=sprint, experiment=fast
    default, default_fp32   the default composition, --images images
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import machine, run_process
from peers import picture, report
from peers.convnet import backend
from peers.ours import OURS, figures, missing, words

from mnist_exp.files import atomic_write

LIMITED = ("original_fp32", "original_bf16", "default", "default_fp32")
NAMES = ("example", "dense", "one_epoch", "original_fp32", "original_bf16", "keras", *OURS)


def refuse(message: str) -> SystemExit:
    print(message, file=sys.stderr)
    return SystemExit(2)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--epochs", type=int, help="at most (default: as many as each ships with)")
    parser.add_argument("--images", type=int, default=4096, help="of those that are measured by throughput alone")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    for name in ("rounds", "epochs", "images", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise refuse(f"--{name} is {value}; it must be at least 1")
    wrong = [word for word in options.overrides if "=" not in word]
    if wrong:
        raise refuse(f"{wrong[0]} is no KEY=VALUE; names of competitors follow --only")
    if not (options.data / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        raise refuse(
            f"--data: {options.data}/MNIST/raw holds no digits; `python -m mnist_exp data import` puts them there"
        )
    options.data = options.data.resolve()
    return options


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return what must be the same for runs to be compared; the number of rounds, and who takes part, may grow."""
    kept = {key: getattr(options, key) for key in ("epochs", "images", "threads", "overrides")}
    return kept | {"data": str(options.data), "keras": backend()}


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """Return what an earlier call has measured in the folder of the output, or the start of it all."""
    here = {"machine": machine(), "options": conditions(options)}
    file = options.output / "peers.json"
    if not file.exists():
        options.output.mkdir(parents=True, exist_ok=True)
        return here | {"commands": [], "operations": {}, "matmul": [], "runs": []}
    found: dict[str, Any] = json.loads(file.read_text())
    for key, value in here.items():
        if found[key] != value:
            raise refuse(f"{file} was measured with another {key}: {found[key]}, not {value}; name another --output")
    return found


def reason_to_skip(name: str) -> str | None:
    if name == "keras":
        return (
            None if backend() else "keras is not installed, or none of its backends: pip install keras tensorflow-cpu"
        )
    return missing(name) if name in OURS else None


def asked_of(arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON that ``python -m peers.rates`` prints."""
    with tempfile.TemporaryDirectory() as place:
        done = run_process(["-m", "peers.rates", *arguments], Path(place), options.threads)
        if done.status:
            raise RuntimeError(done.printed.read_text())
        return done.json()


def run(name: str, call: int, round_: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run a competitor; return its row of peers.json."""
    row: dict[str, Any] = {"competitor": name, "call": call, "round": round_, "seed": round_, "status": "skipped"}
    reason = reason_to_skip(name)
    if reason is not None:
        return row | {"reason": reason}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if name in OURS:
            arguments = words(name, options.data, round_, options.images, options.overrides)
        else:
            arguments = ["-m", "peers.run", name, "--data", str(options.data), "--seed", str(round_)]
            arguments += ["--images", str(options.images)]
            arguments += ["--epochs", str(options.epochs)] if options.epochs else []
        done = run_process(arguments, place, options.threads)
        row |= {
            "command": " ".join(["python", *arguments]),
            "wall_seconds": done.seconds,
            "memory_mib": done.memory_mib,
        }
        if done.status:
            return row | {"status": "failed", "reason": done.failure()}
        found = figures(place / "run", OURS[name].limited) if name in OURS else done.json()
    row |= {"status": "ok", "images_per_s": found["images"] / found["seconds"], **found}
    if name in LIMITED:
        row["no_accuracy"] = "throughput alone was measured: training takes hours"
    return row


def measure(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Run what is not in ``found`` yet, round by round, each beginning with another competitor, and write it all."""

    def write() -> None:
        atomic_write(options.output / "peers.json", (json.dumps(found, indent=1) + "\n").encode())

    def rate() -> None:
        found["matmul"].append(asked_of(["matmul"], options))
        write()

    found["commands"].append(" ".join(["python", *sys.argv]))
    there = [name for name in options.only if reason_to_skip(name) is None and name not in found["operations"]]
    if there:
        found["operations"] |= asked_of([*there, *options.overrides], options)
    found["runs"] = [row for row in found["runs"] if row["status"] == "ok"]
    done = {(row["competitor"], row["round"]) for row in found["runs"]}
    for round_ in range(1, options.rounds + 1):
        first = (round_ - 1) % len(options.only)
        left = [x for x in options.only[first:] + options.only[:first] if (x, round_) not in done]
        for name in left:
            if name == left[0]:
                rate()
            row = run(name, len(found["commands"]), round_, options)
            found["runs"].append(row)
            write()
            print(f"round {round_}: {report.line(row)}", flush=True)
    rate()  # after the last round, too


def main() -> None:
    options = parsed()
    found = begun(options)
    measure(found, options)
    atomic_write(options.output / "peers.png", picture.picture(found))
    print(report.table(found))
    if any(row["status"] == "failed" for row in found["runs"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
