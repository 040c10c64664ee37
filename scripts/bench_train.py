"""How much of the bare model's speed does the whole training loop keep?

Both in one process, in turn: the loop as ``train`` runs it (permutation, augmentation, mixing, schedule, progress), and
the bare step (forward, backward, the same optimizer) on one resident batch. Prints images/s of each round, medians and the ratio.

    python scripts/bench_train.py [--rounds 5] [--steps 12] [KEY=VALUE ...]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from mnist_exp import compose
from mnist_exp.data.splits import Split, Splits
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training.checkpoints import Checkpoints
from mnist_exp.training.components import build_components
from mnist_exp.training.loop import Loop
from mnist_exp.training.state import State


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a round; the loop's are one epoch")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    fixed = ["data=sample", "data.batch_size=256", "schedule=cosine", "schedule.extra_epochs=0"]
    config = compose(*fixed, *options.overrides, f"schedule.initial_epochs={options.rounds}")
    parts = build_components(config)
    trainer, batch, device = parts.trainer, config.data.batch_size, parts.trainer.device
    n = options.steps * batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    train = Split(images, labels).to(device)
    parts.splits = Splits("random", None, parts.splits.classes, train, None, parts.splits.test)

    bare = build_components(config)
    resident, targets = torch.randn(batch, 1, 28, 28, device=device), train.labels[:batch]
    optimizer = bare.optimizer
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.precision == "fp16")
    bare.model.train()

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def bare_steps(steps: int) -> float:
        synchronise()
        started = time.perf_counter()
        for _ in range(steps):
            with trainer.autocast():
                loss = F.cross_entropy(bare.model(resident), targets)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        synchronise()
        return steps * batch / (time.perf_counter() - started)

    bare_steps(4)
    results: list[tuple[float, float]] = []

    def on_epoch(row: dict[str, float]) -> None:
        results.append((row["images_per_s"], bare_steps(options.steps)))
        print(f"round {len(results)}: loop {results[-1][0]:8.1f}  bare {results[-1][1]:8.1f} images/s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder), {"status": "running", "prefix": "bench"}, {})
        Loop(parts, State(parts, 0), run, Checkpoints(run, 3, parts.model.state_dict())).fit(on_epoch)
    counted = results[1:] or results  # the first round warms up
    loop, step = (statistics.median(column) for column in zip(*counted, strict=True))
    share = statistics.median(a / b for a, b in counted)
    print(f"median: loop {loop:.1f}, bare {step:.1f} images/s; the loop keeps {100 * share:.1f} % (median of pairs)")


if __name__ == "__main__":
    main()
