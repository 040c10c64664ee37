"""What a GPU makes of it: the training loop beside the bare step and beside a loop of PIL pictures, and one whole run.

    python scripts/bench_gpu.py --data FOLDER --output FOLDER [--rounds 5] [--steps 200] [--images 25600] [--whole]

--data holds the digits as torchvision keeps them, FOLDER/MNIST/raw. Each round measures, in turn, for the small CNN
(model=small_cnn) and the wide network (the default composition): the loop and the bare step in images/s, plain and
through torch.compile; and the original's loop, the wide network with plain batch norm under bf16 autocast on pictures of
four DataLoader processes, as long as a GPU waits for them. --whole then times `train experiment=obscure_full`, its 250
epochs and scores, and copies its history, metrics and pictures. --output gets gpu.json, written after each measurement.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_train import measure, medians
from measure import machine, run_process
from peers.competitors import original, original_network
from torch.nn import functional as F

from mnist_exp.config.request import quoted
from mnist_exp.files import atomic_write
from mnist_exp.runs.folder import is_run

LOOPS = {
    f"{network}, compile={compiling}": [*overrides, f"trainer.compile={compiling}"]
    for network, overrides in (("small", ["model=small_cnn", "augment=light", "optimizer=adamw"]), ("wide", []))
    for compiling in ("off", "on")
}
KEPT = ("run.json", "history.csv", "results/*.png", "results/*.json")  # of the whole run


def of_pictures(data: Path, images: int, device: torch.device) -> float:
    """Return the images/s of the original's loop on ``device``, of the second of two epochs of so many ``images``."""
    network = original_network().to(device)
    training = original(network, data, images)
    network.train()
    for _ in range(2):
        started, trained = time.perf_counter(), 0
        for batch, labels in training.batches():
            trained += len(labels)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(network(batch.to(device)), labels.to(device))
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
        seconds = time.perf_counter() - started if float(loss.detach()) else 0.0  # reading it waits for the device
    return trained / seconds


def whole(data: Path, output: Path, overrides: list[str]) -> dict[str, Any]:
    """Train ``experiment=obscure_full`` as a user would; return its wall time, memory and metrics."""
    place = output / "whole"
    place.mkdir(exist_ok=True)
    words = ["-m", "mnist_exp", "train", "experiment=obscure_full", f"data.root={quoted(data)}", "data.fallback=null"]
    words += [*overrides, "hydra.run.dir=run"]
    done = run_process(words, place)
    command = " ".join(["python", *words])
    if done.status:
        return {"command": command, "failed": done.failure()}
    about = json.loads((place / "run" / "run.json").read_text())
    for pattern in KEPT:
        for file in (place / "run").glob(pattern):
            shutil.copy(file, output)
    shutil.rmtree(place)
    facts = {key: about[key] for key in ("device_name", "precision", "memory_format", "seconds", "metrics")}
    return {"command": command, "wall_seconds": done.seconds, "memory_mib": done.memory_mib, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of an epoch of the loop, of 256 images each")
    parser.add_argument("--images", type=int, default=25_600, help="of an epoch of the original's loop")
    parser.add_argument("--whole", action="store_true", help="time experiment=obscure_full, too")
    parser.add_argument("--device", default="cuda", help="cpu: to try this script out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu tries the script out", file=sys.stderr)
        raise SystemExit(2)
    begun = options.output / "whole" / "run"
    if options.whole and is_run(begun):
        print(f"{begun} is of an earlier call: `train resume={begun}` goes on with it; or delete it", file=sys.stderr)
        raise SystemExit(2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine() | {"gpu": name}, "command": " ".join(["python", *sys.argv])}
    found |= {"loops": {key: [] for key in LOOPS}, "original": []}

    def write() -> None:
        atomic_write(options.output / "gpu.json", (json.dumps(found, indent=1) + "\n").encode())

    fixed = [*options.overrides, f"trainer.device={options.device}"]
    for round_ in range(1, options.rounds + 1):
        for key, overrides in LOOPS.items():
            measured = medians(measure([*overrides, *fixed], 4, options.steps))
            found["loops"][key].append(measured)
            write()
            loop, bare, share = measured["loop"], measured["bare"], 100 * measured["share"]
            print(
                f"round {round_}: {key:20s} loop {loop:12,.0f}  bare {bare:12,.0f} images/s  {share:5.1f} %", flush=True
            )
        found["original"].append(of_pictures(options.data, options.images, device))
        write()
        print(f"round {round_}: {'original':20s} loop {found['original'][-1]:12,.0f}", flush=True)
    best = found["loops"]["wide, compile=on"]
    ratios = [ours["loop"] / theirs for ours, theirs in zip(best, found["original"], strict=True)]
    print(
        f"wide, compile=on: {statistics.median(ratios):.1f} x the original's loop ({min(ratios):.1f} to {max(ratios):.1f})"
    )
    if options.whole:
        found["whole"] = whole(options.data.resolve(), options.output, fixed)
        write()
        print(json.dumps(found["whole"], indent=1))
        if "failed" in found["whole"]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
