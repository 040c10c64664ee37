"""How much of the bare model's speed does the whole training loop keep?

Both in one process, in turn: the loop as ``train`` runs it (permutation, augmentation, mixing, schedule, progress,
history, checkpoints), and the bare step (forward, backward, the same optimizer) on one resident batch. Prints images/s of
each round, medians and the ratio.

    python scripts/bench_train.py [--rounds 5] [--steps 12] [KEY=VALUE ...]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from mnist_exp import compose
from mnist_exp.data.splits import Split, Splits
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training.checkpoints import Checkpoints
from mnist_exp.training.components import build_components
from mnist_exp.training.loop import Loop
from mnist_exp.training.state import State


class Pair(NamedTuple):
    """Images/s of the loop and of the bare step, one after the other."""

    loop: float
    bare: float


def measure(overrides: Sequence[str], rounds: int, steps: int) -> list[Pair]:
    """Return a pair for each of ``rounds``, whose epochs have so many ``steps``; the first warms up."""
    fixed = ["data=sample", "data.batch_size=256", "schedule.extra_epochs=0"]
    config = compose(*fixed, *overrides, f"schedule.initial_epochs={rounds}", "schedule.swa_start=null")
    parts = build_components(config)
    trainer, batch, device = parts.trainer, config.data.batch_size, parts.trainer.device
    n = steps * batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    train = Split(images, labels).to(device)
    parts.splits = Splits("random", None, parts.splits.classes, train, None, parts.splits.test)

    bare = build_components(config)
    resident, targets = torch.randn(batch, 1, 28, 28, device=device), train.labels[:batch]
    optimizer, forward = bare.optimizer, bare.forward
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.precision == "fp16")
    forward.train()

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def bare_steps() -> float:
        synchronise()
        started = time.perf_counter()
        for _ in range(steps):
            with trainer.autocast():
                loss = F.cross_entropy(forward(resident), targets)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        synchronise()
        return n / (time.perf_counter() - started)

    bare_steps()
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder), {"status": "running", "prefix": "bench"}, {})
        loop = Loop(parts, State(parts, 0), run, Checkpoints(run, 3, parts.model.state_dict()))
        started = time.perf_counter()

        def on_epoch(row: dict[str, Any]) -> None:
            nonlocal started
            pairs.append(Pair(n / (time.perf_counter() - started), bare_steps()))
            started = time.perf_counter()

        loop.fit(on_epoch)
    return pairs


def medians(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the medians of loop and bare step in images/s, and of the share that the loop keeps, the first left out."""
    counted = pairs[1:] or pairs
    loop, bare = (statistics.median(column) for column in zip(*counted, strict=True))
    return {"loop": loop, "bare": bare, "share": statistics.median(pair.loop / pair.bare for pair in counted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a round; the loop's are one epoch")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    pairs = measure(options.overrides, options.rounds, options.steps)
    for number, pair in enumerate(pairs, 1):
        print(f"round {number}: loop {pair.loop:8.1f}  bare {pair.bare:8.1f} images/s")
    found = medians(pairs)
    share = f"{100 * found['share']:.1f} %"
    print(
        f"median: loop {found['loop']:.1f}, bare {found['bare']:.1f} images/s; the loop keeps {share} (median of pairs)"
    )


if __name__ == "__main__":
    main()
