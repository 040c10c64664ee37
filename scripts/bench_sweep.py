"""What a search costs: the framework's share of a trial, what a second worker brings, what pruning saves.

Runs real searches (hparams_search=quick: the small CNN on the bundled digits) in a folder of their own and reads their
studies. Each comparison is of searches run one after another in the same call.

    python scripts/bench_sweep.py [overhead] [workers] [pruning]
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import torch

from mnist_exp import compose
from mnist_exp.runs.folder import RunFolder
from mnist_exp.search.read import load_study
from mnist_exp.search.store import best_trial
from mnist_exp.training.checkpoints import Checkpoints
from mnist_exp.training.components import build_components
from mnist_exp.training.loop import Loop
from mnist_exp.training.state import State


def search(folder: Path, name: str, *overrides: str) -> tuple[optuna.Study, float]:
    """Run a search; return its study and its wall time in seconds."""
    words = [
        sys.executable,
        "-m",
        "mnist_exp",
        "--multirun",
        "hparams_search=quick",
        f"hydra.sweeper.study_name={name}",
    ]
    started = time.perf_counter()
    subprocess.run([*words, f"paths.outputs={folder}", *overrides], check=True, stdout=subprocess.DEVNULL)
    return load_study(folder / "sweeps" / name), time.perf_counter() - started


def overhead(folder: Path) -> None:
    """Time a trial of a search beside building and training the same run without it."""
    still = ["augment.mix.prob=0.1", "augment.mix.mixup_alpha=0.1", "augment.mix.cutmix_beta=0.4", "optimizer.lr=0.01"]
    study, _ = search(folder, "overhead", "hydra.sweeper.n_trials=9", "pruner=none", *still)
    ends = [t.datetime_complete.timestamp() for t in study.get_trials() if t.datetime_complete is not None]
    trials = [b - a for a, b in itertools.pairwise(ends)]
    direct = []
    config = compose("hparams_search=quick", *still)
    for number in range(len(trials) + 1):
        started = time.perf_counter()
        parts = build_components(config)
        with tempfile.TemporaryDirectory() as place:
            run = RunFolder.create(Path(place), {"status": "running", "prefix": "direct"}, {})
            Loop(parts, State(parts, number), run, Checkpoints(run, 3, parts.model.state_dict())).fit()
        direct.append(time.perf_counter() - started)
    a, b = statistics.median(trials), statistics.median(direct[1:])
    print(
        f"overhead: a trial of a search takes {a:.2f} s, the trainer called directly {b:.2f} s: {a - b:.2f} s more (medians)"
    )


def workers(folder: Path) -> None:
    """Time the same search with one process, with two, and with two that are given four trials at a time."""
    joblib = ["hydra/launcher=joblib"]
    searches: dict[str, list[str]] = {
        "one": [],
        "two": joblib,
        "two, four at a time": [*joblib, "hydra.sweeper.n_jobs=4"],
    }
    rates = {}
    for name, extra in searches.items():
        study, _ = search(
            folder, name.replace(", ", "_").replace(" ", "_"), "hydra.sweeper.n_trials=18", "pruner=none", *extra
        )
        ends = sorted(t.datetime_complete.timestamp() for t in study.get_trials() if t.datetime_complete is not None)
        # without the first four trials, in which processes start and import
        rates[name] = 3600 * (len(ends) - 4) / (ends[-1] - ends[3])
        ratio = rates[name] / rates["one"]
        print(f"workers: {name:20} {rates[name]:5.0f} trials an hour, {ratio:.2f} x", flush=True)


def pruning(folder: Path) -> None:
    """Compare searches of 20 trials with and without pruning: epochs trained, best value."""
    for pruner in ("none", "median", "halving"):
        study, seconds = search(folder, pruner, "hydra.sweeper.n_trials=20", f"pruner={pruner}")
        trials = study.get_trials()
        epochs = sum(len(t.intermediate_values) for t in trials)
        pruned = sum(t.state is optuna.trial.TrialState.PRUNED for t in trials)
        best = best_trial(study)
        print(
            f"pruning: {pruner:8} {epochs:4} epochs, {pruned:2} of 20 pruned, best {best.value:.2f} %, {seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = {"overhead": overhead, "workers": workers, "pruning": pruning}
    parser.add_argument("questions", nargs="*", choices=[*questions, []], default=[])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for question in options.questions or questions:
            questions[question](Path(folder))


if __name__ == "__main__":
    main()
