"""What tests of faults share: the smallest run and search, and what a search has found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from helpers import rows

RUN = [
    *("debug=tiny", "data.train_limit=64", "data.batch_size=32", "data.val_size=50", "data.test_size=50"),
    *("model.channels=[2,4,4]", "evaluate.tta_runs=1", "hydra.run.dir=run"),
]
SEARCH = [
    *("--multirun", "hparams_search=quick", "hydra.sweeper.n_trials=2", "data.train_limit=64", "data.batch_size=32"),
    *("data.val_size=50", "model.channels=[2,4,4]", "evaluate.tta_runs=1", "pruner=none"),
    *("schedule.initial_epochs=1", "schedule.extra_epochs=0"),
]


def sweep(place: Path) -> Path:
    return place / "outputs" / "sweeps" / "quick"


def trials(place: Path) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name="quick", storage=f"sqlite:///{sweep(place)}/study.db")
    return [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]


def states(place: Path) -> list[str]:
    return [trial.state.name for trial in trials(place)]


def found(place: Path) -> list[dict]:
    """What a search has found, but for times."""
    return [
        {
            "params": trial.params,
            "state": trial.state.name,
            "value": trial.value,
            "values": trial.intermediate_values,
            "history": [
                {k: v for k, v in row.items() if k not in ("seconds", "images_per_s")}
                for row in rows(sweep(place) / f"trial-{trial.number}")
            ],
        }
        for trial in trials(place)
    ]


def failures(boundaries: Sequence[str], attempt: Callable[[int], None]) -> dict[int, str]:
    """Attempt each boundary, from 1 on; return what went wrong at which."""
    failed = {}
    for at, boundary in enumerate(boundaries, 1):
        try:
            attempt(at)
        except AssertionError as error:
            failed[at] = f"{boundary}: {error}"
    return failed
