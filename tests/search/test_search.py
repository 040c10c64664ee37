"""Searches through the command line: finished, killed, failed, pruned."""

import json
import signal
import sqlite3
import subprocess
import sys

import optuna
import pytest
import yaml
from helpers import info, wait_until
from small import BASELINE, STILL, TINY, states, trials

from mnist_exp.search.store import best_trial


def test_a_search_starts_from_the_original_and_leaves_what_one_needs(command, place):
    done = command(*TINY, "hydra.sweeper.n_trials=3")
    assert done.status == 0, done.err
    first, *others = trials(place)
    assert first.params == BASELINE
    assert states(place) == ["COMPLETE"] * 3
    assert all(t.params != BASELINE for t in others)
    sweep = place / "outputs" / "sweeps" / "quick"
    for trial in (first, *others):
        run = sweep / f"trial-{trial.number}"
        about = info(run)
        assert about["status"] == "finished"
        assert trial.value == about["metrics"]["val_acc"]
        assert trial.user_attrs["val_loss"] == about["metrics"]["val_loss"]
        assert list(trial.intermediate_values) == [1, 2]
        assert not [key for key in about["metrics"] if "test" in key or key == "ensemble_acc"], "test was looked at"
        assert not (run / "results" / "predictions.npz").exists()
        config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == trial.params["optimizer.lr"]
    lines = [line for line in done.out.splitlines() if line.startswith("trial ")]
    assert len(lines) == 3
    assert "lr 0.01" in lines[0]
    assert "left 0" in lines[2]
    assert "epoch 1/2" not in done.out
    for name in ("history", "importance", "slices", "parallel"):
        assert (sweep / "results" / f"{name}.png").stat().st_size > 5000
    again = command("compare", str(sweep))
    assert again.status == 0
    assert "quick: 3 trials" in again.out

    best = best_trial(optuna.load_study(study_name="quick", storage=f"sqlite:///{sweep}/study.db"))
    retrained = command("train", "--config-dir", str(sweep / "conf"), "experiment=best", "hydra.run.dir=best")
    assert retrained.status == 0, retrained.err
    about = info(place / "best")
    assert about["metrics"]["val_acc"] == pytest.approx(best.value), "the best parameters do not give the best trial"
    assert "test_acc" in about["metrics"]
    seeds = command(
        "--multirun", "--config-dir", str(sweep / "conf"), "experiment=best", "seed=1,2", "hydra.sweep.dir=seeds"
    )
    assert seeds.status == 0, seeds.err
    assert {info(run)["seed"] for run in (place / "seeds").glob("trial-*")} == {1, 2}
    compared = command("compare", "seeds")
    assert compared.status == 0, compared.err
    assert "2 runs: 2 finished" in compared.out


def test_repeating_the_command_does_what_is_left_and_no_point_twice(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    storage = f"sqlite:///{place}/outputs/sweeps/quick/study.db"
    study = optuna.load_study(study_name="quick", storage=storage)
    known = study.user_attrs["search"]
    # an older version took how it is compiled for a part of the recipe, and did not know how labels are smoothed
    older = {**known["recipe"], "trainer.compile": False}
    del older["augment.label_smoothing"]
    study.set_user_attr("search", {**known, "recipe": older})
    before = [(t.params, t.value, t.datetime_complete) for t in trials(place)]
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    assert [(t.params, t.value, t.datetime_complete) for t in trials(place)] == before
    assert command(*TINY, "hydra.sweeper.n_trials=5").status == 0
    after = trials(place)
    assert [(t.params, t.value, t.datetime_complete) for t in after[:2]] == before
    assert [t.number for t in after] == list(range(5))
    points = [tuple(sorted(t.params.items())) for t in after]
    assert len(set(points)) == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_search_that_is_killed_twice_completes(place, number):
    arguments = [
        *TINY,
        "hydra.sweeper.n_trials=4",
        "schedule.initial_epochs=3",
        "data.train_limit=1500",
        "data.batch_size=4",
    ]
    words = [sys.executable, "-m", "mnist_exp", *arguments]
    sweep = place / "outputs" / "sweeps" / "quick"
    for trial in (0, 2):
        process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        history = sweep / f"trial-{trial}" / "history.csv"
        wait_until(lambda h=history: h.exists() and len(h.read_text().splitlines()) >= 2)
        process.send_signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert states(place)[trial] == "RUNNING"
        if number == signal.SIGINT:
            assert "The same command goes on with the search" in process.stderr.read().decode()
    params = trials(place)[2].params
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert states(place) == ["COMPLETE"] * 4
    assert trials(place)[2].params == params
    assert [info(sweep / f"trial-{n}")["resumed"] for n in range(4)] == [1, 0, 1, 0]
    assert list(trials(place)[0].intermediate_values) == [1, 2, 3]
    assert len({tuple(t.params.values()) for t in trials(place)}) == 4


def test_results_that_a_killed_sweeper_never_heard_of_are_taken_over(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    path = place / "outputs" / "sweeps" / "quick" / "study.db"
    with sqlite3.connect(path) as base:  # as if it had died between the end of trial 1 and telling of it
        base.execute("update trials set state='RUNNING', datetime_complete=null where number=1")
        base.execute("delete from trial_values where trial_id=(select trial_id from trials where number=1)")
        base.execute(
            "update trial_user_attributes set value_json='\"nowhere 1 1\"' where key='owner' and value_json like '%'"
        )
    value = info(path.parent / "trial-1")["metrics"]["val_acc"]
    written = (path.parent / "trial-1" / "history.csv").stat().st_mtime_ns
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    assert states(place) == ["COMPLETE"] * 2
    assert trials(place)[1].value == value
    assert (path.parent / "trial-1" / "history.csv").stat().st_mtime_ns == written


def test_a_failure_costs_one_trial_and_keeps_its_traceback(command, place):
    grid = [*STILL, "hydra/sweeper/sampler=grid", "data.batch_size=choice(32,0,64)"]
    done = command(*[a for a in TINY if "batch_size" not in a], *grid, "hydra.sweeper.n_trials=9")
    assert done.status == 0, done.err
    assert sorted(states(place)) == ["COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = (t for t in trials(place) if t.state.name == "FAIL")
    run = place / "outputs" / "sweeps" / "quick" / f"trial-{failed.number}"
    assert info(run)["status"] == "failed"
    assert "data.batch_size is 0" in info(run)["error"]
    assert "Traceback" in (run / "train.log").read_text()
    assert "data.batch_size is 0" in done.out


def test_a_loss_that_is_not_finite_is_a_failed_trial(command, place):
    more = [*STILL[:3], STILL[4], "optimizer=sgd", "optimizer.lr=choice(0.01,1e30)", "hydra/sweeper/sampler=grid"]
    assert command(*TINY, *more).status == 0
    (failed,) = (t for t in trials(place) if t.state.name == "FAIL")
    assert failed.params == {"optimizer.lr": 1e30}
    assert "not finite" in failed.user_attrs["error"]


def test_when_all_trials_fail_one_message_says_why(command, place):
    grid = [*STILL, "hydra/sweeper/sampler=grid", "data.batch_size=choice(0,-1)"]
    done = command(*[a for a in TINY if "batch_size" not in a], *grid)
    assert done.status == 1
    assert "no trial of quick has finished" in done.err
    assert "data.batch_size" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("pruner", ["median", "halving", "none"])
def test_hopeless_trials_are_pruned(command, place, pruner):
    space = [
        *STILL[:3],
        STILL[4],
        "optimizer=adamw",
        "optimizer.lr=choice(0.01,1e-9,2e-9)",
        "hydra/sweeper/sampler=grid",
    ]
    more = ["schedule.initial_epochs=6", "data.train_limit=500", f"pruner={pruner}"]
    if pruner == "median":
        more += ["pruner.n_startup_trials=1", "pruner.n_warmup_steps=0"]
    assert (
        command(*[a for a in TINY if a != "pruner=none"], *space, *more, "++search.baseline={optimizer.lr:0.01}").status
        == 0
    )
    good, *hopeless = sorted(trials(place), key=lambda t: -t.params["optimizer.lr"])
    assert good.state.name == "COMPLETE"
    epochs = [len(t.intermediate_values) for t in hopeless]
    runs = [place / "outputs" / "sweeps" / "quick" / f"trial-{t.number}" for t in hopeless]
    if pruner == "none":
        assert epochs == [6, 6]
        return
    assert [t.state.name for t in hopeless] == ["PRUNED", "PRUNED"]
    assert max(epochs) < 6
    assert [info(run)["status"] for run in runs] == ["pruned"] * 2
    assert [info(run)["epoch"] for run in runs] == epochs


def test_equal_scores_are_told_apart_by_the_loss():
    study = optuna.create_study(direction="maximize")
    for value, loss in ((98.0, 0.3), (99.0, 0.2), (99.0, 0.1), (99.0, 0.15)):
        trial = study.ask()
        trial.set_user_attr("val_loss", loss)
        study.tell(trial, value)
    assert best_trial(study).number == 2


def test_the_search_takes_other_experiments_metrics_and_dimensions(command, place):
    more = ["experiment=fast", "data=sample", "optimized_metric=val_loss", "hydra.sweeper.direction=minimize"]
    sizes = ["model.ghost_batch_size=choice(8,16)", "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name=other"]
    arguments = [TINY[0], more[0], "hparams_search=random", *more[1:], *sizes, *TINY[2:5], "trainer.max_steps=2"]
    done = command(*arguments)
    assert done.status == 0, done.err
    first, second = trials(place, "other")
    assert set(first.params) == {*BASELINE, "model.ghost_batch_size"} == set(second.params)
    config = yaml.safe_load((place / "outputs/sweeps/other/trial-1/.hydra/config.yaml").read_text())
    assert config["model"]["ghost_batch_size"] == second.params["model.ghost_batch_size"]
    assert config["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert first.value == info(place / "outputs/sweeps/other/trial-0")["metrics"]["val_loss"]


def test_the_baseline_has_the_configured_choice_of_a_group(command, place):
    done = command(*TINY, *STILL, "schedule=choice(cosine_swa,cosine)", "hydra.sweeper.n_trials=1")
    assert done.status == 0, done.err
    assert "of the baseline is outside" not in done.out + done.err
    (trial,) = trials(place)
    assert trial.params == {"schedule": "cosine_swa"}


def test_the_baseline_may_be_a_whole_number_in_a_range_of_any(command, place):
    done = command(*TINY, *STILL, "augment.strong.rotation.degrees=interval(2,10)", "hydra.sweeper.n_trials=1")
    assert done.status == 0, done.err
    (trial,) = trials(place)
    assert trial.state.name == "COMPLETE", done.out
    assert trial.params == {"augment.strong.rotation.degrees": 8}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials is 0", "at least 1"]),
        (["hydra.sweeper.n_trials=-3"], ["hydra.sweeper.n_trials is -3"]),
        (["hydra.sweeper.n_jobs=0"], ["hydra.sweeper.n_jobs is 0"]),
        (["optimized_metric=test_acc"], ["optimized_metric is test_acc", "val_acc", "never looks at the test set"]),
        (["optimized_metric=val_acc_swa", "schedule=cosine"], ["schedule.swa_start", "val_acc_swa"]),
        (["optimized_metric=vall_acc"], ["optimized_metric is vall_acc"]),
        (["optimized_metric=val_loss"], ["hydra.sweeper.direction", "minimize"]),
        (["pruner=medain"], ["pruner/medain", "median", "halving"]),
        (["pruner._target_=optuna.pruners.Nothing"], ["pruner", "Nothing"]),
        (["pruner=median", "pruner.n_startup_trials=-1"], ["pruner cannot be built"]),
        (
            ["hydra.sweeper.storage=postgresql+psycopg://me:secret@127.0.0.1:1/x"],
            ["me@127.0.0.1:1", "hydra.sweeper.storage"],
        ),
        (["hydra.sweeper.storage='postgresql+psycopg://me:secret/{x}@127.0.0.1:1/x'"], ["me@127.0.0.1:1"]),
        (["hydra.sweeper.storage='postgresql+psycopg://127.0.0.1:1/x?user=me&password=secret'"], ["127.0.0.1:1"]),
        (["hydra.sweeper.storage=postgresql://me:secret/{x}@127.0.0.1/x"], ["me@127.0.0.1/x"]),
        (["hydra.sweeper.storage=5"], ["hydra.sweeper.storage is 5", "postgresql+psycopg"]),
        (["hydra.sweeper.storage=nonsense"], ["hydra.sweeper.storage is nonsense", "postgresql+psycopg"]),
        (["hydra.sweeper.study_name=.."], ["hydra.sweeper.study_name is .."]),
        (["pruner=null"], ["pruner=null", "none"]),
        (["optimizer.lr=tag(log,interval(0,0.1))"], ["search space", "optimizer.lr"]),
        (["optimizer.lr=interval(0.1,0.01)"], ["search space"]),
        (["optimizer.lr=glob(*)"], ["optimizer.lr"]),
        (["optimizer=choice(lookahead_sgd,adamw)", "optimizer.momentum=interval(0.8,0.9)"], ["optimizer.momentum"]),
        (["hydra.sweeper.study_name=a/b"], ["hydra.sweeper.study_name"]),
        (["data.val_size=0"], ["data.val_size is 0"]),
        (["data.val_size=null"], ["data.val_size is None"]),
        (["hydra.sweeper.max_failure_rate=2"], ["hydra.sweeper.max_failure_rate is 2"]),
        (["hydra/sweeper/sampler=grid"], ["hydra.sweeper.sampler", "discrete"]),
        (["optimizer.lrr=interval(0,1)"], ["optimizer.lrr"]),
    ],
)
def test_mistakes_are_told_before_any_training(command, place, arguments, words):
    kept = TINY if not arguments[0].startswith("pruner=") else TINY[:-1]
    done = command(*kept, *arguments)
    assert done.status == 2, done.err
    for word in words:
        assert word in done.err
    assert "secret" not in done.err
    assert "Traceback" not in done.err
    assert not list(place.glob("outputs/sweeps/*/trial-*"))


def test_a_search_without_multirun_is_refused(command, place):
    done = command("train", "hparams_search=quick")
    assert done.status == 2
    assert "--multirun" in done.err


def test_another_search_does_not_get_into_a_study(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    for change in ("optimizer.lr=interval(0.1,0.5)", "optimizer.momentum=0.5"):
        done = command(*TINY, "hydra.sweeper.n_trials=2", change)
        assert done.status == 2
        assert "hydra.sweeper.study_name=NEW_NAME" in done.err
    assert len(trials(place)) == 1
    assert command(*TINY, "hydra.sweeper.n_trials=2", "trainer.device=cpu").status == 0


def test_trials_of_a_study_that_is_gone_are_not_taken_for_new_ones(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    (place / "outputs" / "sweeps" / "quick" / "study.db").unlink()
    done = command(*TINY, "hydra.sweeper.n_trials=1")
    assert done.status == 2
    assert "another study, or of one that is gone" in done.err


def test_the_run_of_another_search_is_not_taken_for_a_trials(command, place):
    sweep = place / "outputs" / "sweeps" / "quick"
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    before = (sweep / "study.db").read_bytes()
    assert command(*TINY, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=5").status == 0
    (sweep / "study.db").write_bytes(before)
    run = info(sweep / "trial-1")
    done = command(*TINY, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=77")
    assert done.status == 0, done.err
    assert states(place) == ["COMPLETE", "FAIL"]
    assert "holds a trial of another search" in trials(place)[1].user_attrs["error"]
    assert info(sweep / "trial-1") == run


def test_a_trial_that_cannot_even_begin_fails_once_and_says_why(command, place):
    (place / "outputs" / "sweeps" / "quick" / "trial-0" / ".lock").mkdir(parents=True)
    done = command(*TINY, "hydra.sweeper.n_trials=2")
    assert done.status == 0, done.err
    assert states(place) == ["FAIL", "COMPLETE"]
    assert ".lock" in trials(place)[0].user_attrs["error"]
    assert trials(place)[0].user_attrs["attempts"] == 1


@pytest.mark.slow
def test_a_trial_cut_off_while_it_was_drawn_is_completed(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    study = optuna.load_study(study_name="quick", storage=f"sqlite:///{place}/outputs/sweeps/quick/study.db")
    study.ask().suggest_float("augment.mix.prob", 0.0, 1.0)  # and the sweeper dies
    duplicate = study.ask()
    duplicate.set_user_attr("duplicate_of", 0)
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    assert states(place) == ["COMPLETE"] * 2
    assert set(trials(place)[1].params) == set(BASELINE)
    assert all(t.state.is_finished() for t in study.get_trials())


@pytest.mark.slow
def test_a_trial_that_lost_its_sweeper_often_is_not_blamed_for_it(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    study = optuna.load_study(study_name="quick", storage=f"sqlite:///{place}/outputs/sweeps/quick/study.db")
    cut_off = study.ask()
    for key, value in (("owner", "nowhere 1 1"), ("attempts", 3), ("progress", -1)):
        cut_off.set_user_attr(key, value)
    assert command(*TINY, "hydra.sweeper.n_trials=2").status == 0
    assert states(place) == ["COMPLETE"] * 2


def test_too_many_failures_end_the_search(command, place):
    grid = [
        *STILL,
        "hydra/sweeper/sampler=grid",
        "data.batch_size=choice(0,-1,32)",
        "hydra.sweeper.max_failure_rate=0.4",
    ]
    done = command(*[a for a in TINY if "batch_size" not in a], *grid)
    assert done.status == 1
    assert "max_failure_rate=0.4" in done.err


def test_a_launcher_that_cannot_start_costs_no_trial(command, place):
    done = command(*TINY, "model=choice(small_cnn,typo)", "hydra.sweeper.study_name=odd", "hydra.sweeper.n_trials=4")
    assert done.status == 2
    assert "typo" in done.err
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_what_a_search_deleted_stays_away_from_its_best(command, place):
    extra = ["~augment.strong.erasing", "evaluate.tta_shift=1", "trainer.precision=fp32"]
    assert command(*TINY, *extra, "hydra.sweeper.n_trials=1").status == 0
    folder = place / "outputs" / "sweeps" / "quick" / "conf"
    assert command("--config-dir", str(folder), "experiment=best", "hydra.run.dir=best").status == 0
    config = yaml.safe_load((place / "best" / ".hydra" / "config.yaml").read_text())
    assert "erasing" not in config["augment"]["strong"]
    assert config["evaluate"]["tta_shift"] == 1
    assert config["trainer"]["precision"] == "fp32"


@pytest.mark.slow
def test_a_study_goes_on_with_its_seed_and_its_trials_whole(command, place):
    assert command(*TINY, "hydra.sweeper.n_trials=1").status == 0
    done = command(*TINY, "hydra.sweeper.n_trials=2", "seed=7")
    assert done.status == 2
    assert "there seed=42" in done.err
    assert states(place) == ["COMPLETE"]
    trial = place / "outputs" / "sweeps" / "quick" / "trial-0"
    (trial / "run.json").write_text(json.dumps({**info(trial), "status": "interrupted"}))
    done = command("train", f"resume={trial}", "trainer.max_steps=1")
    assert done.status == 2
    assert "is a trial of a search" in done.err
