"""What tests of searches share: small searches, and their trials."""

from pathlib import Path

import optuna

TINY = [
    *("--multirun", "hparams_search=quick", "data.train_limit=64", "data.batch_size=32", "evaluate.tta_runs=1"),
    *("schedule.initial_epochs=2", "schedule.extra_epochs=0", "pruner=none"),
]
# the five searched keys held still, so that a test can search over others
STILL = [
    *("augment.mix.prob=0.1", "augment.mix.mixup_alpha=0.1", "augment.mix.cutmix_beta=0.4"),
    *("optimizer.lr=0.01", "optimizer.weight_decay=1e-5"),
]
BASELINE = {
    "augment.mix.prob": 0.102,
    "augment.mix.mixup_alpha": 0.091,
    "augment.mix.cutmix_beta": 0.35,
    "optimizer.lr": 0.01,
    "optimizer.weight_decay": 1.8e-5,
}


def trials(place: Path, name: str = "quick") -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{place}/outputs/sweeps/{name}/study.db"
    found = optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)
    return [t for t in found if "duplicate_of" not in t.user_attrs]


def states(place: Path) -> list[str]:
    return [t.state.name for t in trials(place)]
