"""What a search tells at its end: how its trials are, whether they are enough, and where its ranges were too narrow."""

import json
import math
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml
from helpers import ROOT, info
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from small import BASELINE, STILL, TINY

from mnist_exp.runs.folder import run_lock
from mnist_exp.search.pictures import Pictures, plot_study
from mnist_exp.search.report import near_edges
from mnist_exp.search.space import read_space
from mnist_exp.search.store import best_trial

SWEEP = Path("outputs/sweeps/quick")
RATE, SHARE = FloatDistribution(0.001, 1.0, log=True), FloatDistribution(0.0, 1.0)
FIVE = {
    "augment.mix.prob": SHARE,
    "augment.mix.mixup_alpha": FloatDistribution(0.01, 4.0, log=True),
    "augment.mix.cutmix_beta": FloatDistribution(0.01, 4.0, log=True),
    "optimizer.lr": RATE,
    "optimizer.weight_decay": FloatDistribution(1e-7, 1e-2, log=True),
}
EIGHT = FIVE | {
    "model": CategoricalDistribution(["small_cnn", "wide_small_resnet"]),
    "augment.strong.crop.padding": IntDistribution(0, 8),
    "augment.light.crop.padding": IntDistribution(0, 4),
}


def study_of(distributions: dict, finished: int, pruned: int = 0, metric: str = "val_acc") -> optuna.Study:
    """Return a study whose pruned trials come first."""
    study = optuna.create_study(direction="minimize" if metric == "val_loss" else "maximize", study_name="made")
    study.set_user_attr("search", {"metric": metric})
    sampler = optuna.samplers.RandomSampler(seed=0)
    for number in range(pruned + finished):
        trial = optuna.create_study(sampler=sampler).ask(distributions)
        lost = 1 + math.log(trial.number + number + 2)
        value = lost / 10 if metric == "val_loss" else 100 - lost
        study.add_trial(
            create_trial(
                params=trial.params,
                distributions=distributions,
                value=value if number >= pruned else None,
                state=TrialState.COMPLETE if number >= pruned else TrialState.PRUNED,
                intermediate_values={1: 10.0, 2: 20.0 + number},
            )
        )
    return study


def pictures(study: optuna.Study) -> dict:
    made = Pictures(study, best_trial(study))
    return {name: getattr(made, name)() for name in ("history", "importance", "slices", "parallel")}


@pytest.mark.parametrize(("distributions", "metric"), [(FIVE, "val_acc"), (EIGHT, "val_loss")], ids=["five", "eight"])
def test_all_names_can_be_read_in_all_pictures(distributions, metric):
    names = {name.rpartition(".")[2] for name in distributions}
    if distributions is EIGHT:
        names = names - {"padding"} | {"augment.strong.crop.padding", "augment.light.crop.padding"}
    figures = pictures(study_of(distributions, finished=12, pruned=4, metric=metric))
    shown = {
        "importance": figures["importance"].axes[0].get_yticklabels(),
        "slices": [axes.xaxis.label for axes in figures["slices"].axes],
        "parallel": figures["parallel"].axes[0].get_xticklabels(),
    }
    for name, texts in shown.items():
        figure = figures[name]
        FigureCanvasAgg(figure).draw()
        texts = [text for text in texts if text.get_text()]
        assert {text.get_text().replace("\n", "") for text in texts} == names, name
        boxes = [text.get_window_extent() for text in texts]
        page = figure.bbox
        assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes), name
        assert not [1 for n, one in enumerate(boxes) for other in boxes[:n] if one.overlaps(other)], name


def test_pruned_trials_are_shown_at_their_last_value():
    axes = pictures(study_of(FIVE, finished=3, pruned=2))["slices"].axes[0]
    drawn = {spots.get_label(): spots.get_offsets()[:, 1].tolist() for spots in axes.collections}
    assert drawn["pruned, at its last epoch"] == [20.0, 21.0]
    assert len(drawn["finished"]) == 3


@pytest.mark.parametrize(("finished", "words"), [(1, "only 1 finished trial:"), (9, "only 9 finished"), (10, "")])
def test_pictures_of_few_trials_say_so(finished, words):
    for name, figure in pictures(study_of(FIVE, finished)).items() if finished > 1 else ():
        assert ("too few to tell" in figure.get_suptitle()) == bool(words), name
        assert words in figure.get_suptitle()
    made = study_of(FIVE, finished)
    assert words in Pictures(made, best_trial(made)).history().get_suptitle()


@pytest.mark.parametrize("metric", ["val_acc", "val_loss", "val_acc_tta"])
def test_trials_that_are_all_the_same_can_be_drawn(tmp_path, metric):
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("search", {"metric": metric})
    for _ in range(2):
        study.add_trial(create_trial(value=100.0, params={"optimizer.lr": 0.1}, distributions={"optimizer.lr": RATE}))
    drawn = plot_study(study, best_trial(study), tmp_path / "results")
    assert [path.stem for path in drawn] == ["history", "slices", "parallel"], "what is important cannot be told"


@pytest.mark.parametrize(
    ("distribution", "value", "wider"),
    [
        (RATE, 0.8, "tag(log,interval(0.001,10.0))"),
        (RATE, 0.0013, "tag(log,interval(0.0001,1.0))"),
        (RATE, 0.69, None),  # 5 % of its logarithm are 0.71 to 1
        (SHARE, 1.0, None),
        (SHARE, 0.0, None),
        (FloatDistribution(0.001, 1.0), 0.99, None),
        (FloatDistribution(0.9, 0.99, log=True), 0.989, "tag(log,interval(0.9,9.9))"),
        (FloatDistribution(0.0, 0.5), 0.49, "interval(0.0,0.75)"),
        (FloatDistribution(0.0, 0.9), 0.89, "interval(0.0,1.0)"),
        (FloatDistribution(0.5, 4.5), 0.6, "interval(0.0,4.5)"),
        (FloatDistribution(0.1, 0.5, step=0.1), 0.5, "range(0.1,0.8,0.1)"),
        (IntDistribution(2, 8), 8, "int(interval(2,11))"),
        (IntDistribution(2, 8), 7, None),
        (IntDistribution(1, 8), 1, None),  # nothing is below
        (IntDistribution(-4, 4), -4, "int(interval(-8,4))"),
        (IntDistribution(0, 1_000_000, step=100_000), 1_000_000, "range(0,1600000,100000)"),
        (IntDistribution(16, 64, step=16), 64, "range(16,112,16)"),
        (IntDistribution(8, 64, log=True), 8, "int(tag(log,interval(1,64)))"),
        (CategoricalDistribution([16, 32]), 32, None),
        (FloatDistribution(0.5, 0.5), 0.5, None),
    ],
)
def test_a_best_value_at_an_end_of_its_range_is_told_of(distribution, value, wider):
    lines = list(near_edges(create_trial(value=1.0, params={"a.key": value}, distributions={"a.key": distribution})))
    if wider is None:
        assert lines == []
        return
    (line,) = lines
    assert f"the best a.key, {value:g}, lies at an end of its range, {distribution.low:g} to" in line
    assert line.endswith(f"type hydra.sweeper.study_name=NEW_NAME 'a.key={wider}'")
    found = read_space({}, [f"a.key={wider}"], None).dimensions["a.key"]
    assert type(found) is type(distribution)
    assert (found.log, found.step) == (distribution.log, distribution.step)
    assert found.low < distribution.low or found.high > distribution.high
    assert found.low <= distribution.low
    assert found.high >= distribution.high - 1e-9


def test_the_default_ranges_hold_the_originals_values():
    params = yaml.safe_load((ROOT / "conf" / "hparams_search" / "optuna.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]
    space = read_space(params, [], None)
    trial = create_trial(value=1.0, params=BASELINE, distributions=space.dimensions)
    assert len(space.dimensions) == 5
    assert list(near_edges(trial)) == []


def test_the_terminal_says_too_few_and_at_an_end(command, place):
    more = [*STILL[:3], STILL[4], "optimizer.lr=tag(log,interval(0.0099,0.5))", "hydra.sweeper.n_trials=1"]
    done = command(*TINY, *more)
    assert done.status == 0, done.err
    assert "only 1 finished trial: too few to tell" in done.out
    assert "the best optimizer.lr, 0.01, lies at an end of its range, 0.0099 to 0.5" in done.out


def test_a_trial_that_nobody_works_on_is_interrupted(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=3").status == 0
    with sqlite3.connect(SWEEP / "study.db") as base:
        base.execute("update trials set state='RUNNING', datetime_complete=null where number > 0")

    def told(*statuses: str) -> list[str]:
        for number, status in enumerate(statuses, start=1):
            about = info(SWEEP / f"trial-{number}")
            (SWEEP / f"trial-{number}" / "run.json").write_text(json.dumps(about | {"status": status}))
        done = command("compare", str(SWEEP))
        assert done.status == 0, done.err
        return [line.split()[1] for line in done.out.splitlines() if line.startswith(("trial-1 ", "trial-2 "))]

    assert told("interrupted", "running") == ["interrupted", "interrupted"], "the second was killed"
    with run_lock(SWEEP / "trial-2"):
        assert told("finished", "running") == ["finished", "running"], "the study has not heard of the first yet"


def test_the_time_that_a_trial_lay_still_is_not_counted(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    run = SWEEP / "trial-0" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "seconds": 777.0}))
    assert " 777" in command("compare", str(SWEEP)).out


def test_what_trains_the_best_names_another_place_of_data_than_the_usual_one(command, place, monkeypatch):
    monkeypatch.delenv("MNIST_EXP_DATA")
    monkeypatch.setenv("HOME", str(place))
    assert "experiment=best\n" in command(*TINY, "hydra.sweeper.n_trials=1").out
    done = command(*TINY, "hydra.sweeper.n_trials=1", "hydra.sweeper.study_name=there", "data.root=there")
    assert f"experiment=best data.root={place / 'there'}\n" in done.out
