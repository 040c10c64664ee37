"""What compare says of differences, on run folders made for the question."""

import functools
import json
import shutil
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats

from mnist_exp import compose, load_runs
from mnist_exp.config.ours import config_folder
from mnist_exp.runs.folder import RunFolder


@functools.cache
def composed(overrides: tuple[str, ...]) -> str:
    return OmegaConf.to_yaml(compose("data=sample", *overrides))


@functools.cache
def chosen(overrides: tuple[str, ...]) -> dict:
    with hydra.initialize_config_dir(config_folder()):
        found = hydra.compose("train", ["data=sample", *overrides], return_hydra_config=True)
    return {"hydra": {"runtime": {"choices": OmegaConf.to_container(found.hydra.runtime.choices)}}}


def make(
    name: str,
    seed: int,
    test_acc: float,
    *overrides: str,
    tta: float | None = None,
    swa: float | None = None,
    place: str = "runs",
    parent: str | None = None,
    precision: str | None = None,
) -> None:
    """Write a finished run of 1,000 test images without training one."""
    config = composed(overrides).replace("seed: 42", f"seed: {seed}")
    info = {
        "status": "finished",
        "prefix": "x",
        "warm_start": parent,
        "seed": seed,
        "overrides": ["data=sample", *overrides, f"seed={seed}"],
        "epoch": 1,
        "epochs": 1,
        "started": f"2026-01-01T00:00:{seed:02}",
        "dataset": {"name": "sample", "train": 9, "val": 9, "test": 1000, "md5": "0", "split_seed": 0},
        "metrics": {"val_acc": test_acc, "test_acc": test_acc, "test_acc_tta": tta, "images_per_s": 1.0},
    }
    info |= {"precision": precision} if precision else {}
    if swa is not None:
        info["metrics"]["test_acc_swa"] = swa
    files = {"config.yaml": config, "hydra.yaml": OmegaConf.to_yaml(chosen(overrides))}
    RunFolder.create(Path(place, name).absolute(), info, files).unlock()


def asked(command, *arguments: str) -> tuple[list[dict], str]:
    """Return the rows of the answer, and what was printed."""
    done = command("compare", "runs", *arguments, "--csv", "answer.csv")
    assert done.status == 0, done.err
    return pd.read_csv("answer.csv").to_dict("records"), done.out


def test_a_seed_that_was_run_often_counts_once_in_all_figures(command, place):
    gains = {1: 0.02, 2: 0.025, 3: 0.03}
    base = {1: 99.0, 2: 99.2, 3: 99.3}
    for seed, accuracy in base.items():
        make(f"a{seed}", seed, accuracy)
        make(f"b{seed}", seed, accuracy + gains[seed], "optimizer.lr=0.03")
    for again in "xyz":
        make(f"b1{again}", 1, base[1] + gains[1], "optimizer.lr=0.03")
    (row,), out = asked(command, "--baseline", "a1", "--group-by", "optimizer.lr")
    assert "against the group of a1 (optimizer.lr=0.01), over seeds; about the recipe" in out
    assert list(row)[:4] == ["optimizer.lr", "difference", "verdict", "p_holm"]
    expected = stats.ttest_1samp(list(gains.values()), 0)
    assert (row["n"], row["n_baseline"], row["test"]) == (3, 3, "paired t")
    assert row["difference"] == pytest.approx(0.025)
    assert row["test_acc_mean"] - row["baseline_mean"] == pytest.approx(0.025)
    assert row["p"] == row["p_holm"] == pytest.approx(expected.pvalue)
    assert row["verdict"] == "better"
    _, many = asked(command, "--group-by")[0]
    assert (many["n"], many["runs"], many["seeds"]) == (3, 6, "1,2,3")
    assert many["test_acc_mean"] == pytest.approx(np.mean([base[s] + gains[s] for s in base]))
    assert "test_acc_best" not in many


def test_the_interval_of_a_mean_stays_within_what_an_accuracy_can_be(command, place):
    make("a", 1, 99.0)
    (row,), _ = asked(command, "--group-by")
    assert row["test_acc_low"] != row["test_acc_low"], "one seed tells nothing of others"
    make("b", 2, 99.9)
    (row,), _ = asked(command, "--group-by")
    low, _ = stats.t.interval(0.95, 1, 99.45, stats.sem([99.0, 99.9]))
    assert (row["test_acc_low"], row["test_acc_high"]) == (pytest.approx(low), 100)


def test_gain_and_p_of_a_group_are_of_the_same_runs(command, place):
    for name, seed, gain in (("a", 1, 0.05), ("b", 1, -0.15), ("c", 2, 0.02), ("d", 3, 0.03)):
        make(name, seed, 99.0, tta=99.0 + gain)
    (row,), _ = asked(command, "--group-by")
    means = [-0.05, 0.02, 0.03]
    assert row["tta_gain"] == pytest.approx(np.mean(means), abs=1e-9)
    assert row["tta_p"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_groups_that_hide_another_difference_get_no_verdict(command, place):
    for seed in range(1, 6):
        make(f"a{seed}", seed, 98.0 + seed / 100, "augment=light")
        make(f"b{seed}", seed, 99.0 + seed / 90, "augment=strong_light", "model=small_cnn")
    (row,), out = asked(command, "--baseline", "a1", "--group-by", "augment")
    assert row["verdict"] == "cannot tell"
    assert row["p"] != row["p"]
    assert "model._target_" in row["test"]
    assert "no verdict" in out
    make("c1", 1, 98.5, "augment=light", "model=small_cnn")
    rows, out = asked(command, "--group-by", "augment")
    assert "model" in next(row["varies"] for row in rows if row["augment"] == "light")
    assert "its mean is of different recipes" in out


def test_another_score_is_compared_the_first_that_a_run_has(command, place):
    for seed in (1, 2, 3):
        make(f"swa{seed}", seed, 98.0, swa=99.0 + seed / 10)
        make(f"none{seed}", seed, 98.5 + seed / 9, "schedule=cosine")
    ask = ("--baseline", "swa1", "--group-by", "schedule")
    (row,), _ = asked(command, *ask, "--score", "test_acc_swa,test_acc")
    assert row["difference"] == pytest.approx(np.mean([98.5 + s / 9 - 99 - s / 10 for s in (1, 2, 3)]))
    assert (row["score"], row["baseline_score"], row["verdict"]) == ("test_acc", "test_acc_swa", "worse")
    assert row["baseline_mean"] == pytest.approx(99.2)
    (row,), _ = asked(command, *ask)
    assert "score" not in row
    assert (row["test_acc_mean"], row["baseline_mean"]) == pytest.approx((98.5 + 2 / 9, 98.0))
    (row,), _ = asked(command, *ask, "--score", "test_acc_swa")
    assert (row["n"], row["verdict"]) == (0, "cannot tell")
    for wrong, words in (
        (("--score", "val_loss", *ask), "--score is val_loss"),
        (("--score", "val_acc"), "--group-by"),
    ):
        done = command("compare", "runs", *wrong)
        assert done.status == 2
        assert words in done.err


def test_groups_that_hide_another_order_of_transforms_get_no_verdict(command, place):
    crop = "+augment.strong.crop={_target_:mnist_exp.parts.augment.RandomCrop,padding:4}"
    for seed in (1, 2, 3):
        make(f"a{seed}", seed, 98.0 + seed / 100)
        make(f"b{seed}", seed, 99.0 + seed / 90, "optimizer.lr=0.03", "~augment.strong.crop", crop)
    (row,), _ = asked(command, "--baseline", "a1", "--group-by", "optimizer.lr")
    assert row["verdict"] == "cannot tell"
    assert "augment.strong.(order)" in row["test"]


def test_groups_with_the_same_other_values_are_matched_on_them(command, place):
    differences = []
    for seed in (1, 2, 3):
        for model, accuracy in (("small_cnn", 98.0), ("wide_small_resnet", 99.0)):
            gain = 0.02 + seed / 100 + (model == "small_cnn") / 200
            make(f"a-{model}-{seed}", seed, accuracy, f"model={model}")
            make(f"b-{model}-{seed}", seed, accuracy + gain, f"model={model}", "augment.mix.prob=0")
            differences.append(gain)
    (row,), _ = asked(command, "--baseline", "a-small_cnn-1", "--group-by", "augment.mix.prob")
    assert (row["n"], row["test"], row["verdict"]) == (6, "paired t", "better")
    assert row["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_a_choice_that_sets_many_keys_is_compared_as_it_is(command, place):
    for seed in (1, 2, 3):
        make(f"a{seed}", seed, 98.0)
        make(f"b{seed}", seed, 99.0 + seed / 50, "experiment=fast")
    (row,), _ = asked(command, "--baseline", "a1", "--group-by", "experiment")
    assert (row["test"], row["verdict"]) == ("paired t", "better")


def test_what_does_not_vary_is_tested_by_permutations_and_says_so(command, place):
    for seed in range(1, 6):
        make(f"a{seed}", seed, 98.0 + seed / 100)
        make(f"b{seed}", seed, 98.1 + seed / 100, "optimizer.lr=0.03")
        make(f"c{seed}", seed + 10, 97.0, "optimizer.lr=0.05")
        make(f"d{seed}", seed, 97.2, "optimizer.lr=0.07")
    rows, _ = asked(command, "--baseline", "a1", "--group-by", "optimizer.lr")
    same = next(row for row in rows if row["optimizer.lr"] == 0.03)
    assert same["test"] == "sign flips (same difference in all)"
    assert same["p"] == pytest.approx(2 * 0.5**5)
    assert same["verdict"] == "cannot tell"
    (row,) = (
        r for r in asked(command, "--baseline", "c1", "--group-by", "optimizer.lr")[0] if r["optimizer.lr"] == 0.07
    )
    assert row["test"] == "permutation (no variance)"
    assert row["p"] == pytest.approx(2 / 252)


def test_p_values_are_adjusted_for_their_number(command, place):
    draws = np.random.default_rng(0)
    for group in range(6):
        for seed in range(1, 5):
            make(f"g{group}-{seed}", seed, 99 + float(draws.normal(0, 0.05)), f"optimizer.k={group + 1}")
    rows, _ = asked(command, "--baseline", "g0-1", "--group-by", "optimizer.k")
    p = sorted(row["p"] for row in rows)
    held = np.minimum(1, np.maximum.accumulate(np.array(p) * np.arange(len(p), 0, -1)))
    assert sorted(row["p_holm"] for row in rows) == pytest.approx(held)


def test_a_run_is_known_by_its_real_path(command, place):
    make("a1", 1, 99.0)
    make("a2", 2, 99.0)
    Path("link").symlink_to("runs")
    assert len(load_runs("runs", "runs/a1", "link", Path("runs").absolute())) == 2
    assert len(load_runs(["runs/a1", Path("runs/a2")])) == len(load_runs(["runs/a1"], "runs")) == 2
    done = command("compare", "runs", "link", "runs/../runs/a1", "--group-by", "--csv", "answer.csv")
    assert done.status == 0, done.err
    assert pd.read_csv("answer.csv")["n"].tolist() == [2]


def test_names_are_the_shortest_paths_that_tell_runs_apart(command, place):
    for study in ("one", "two"):
        for trial in (0, 1):
            make(f"trial-{trial}", trial, 99.0 + trial / 10, place=f"runs/{study}")
    make("trial-1", 5, 98.0, place="runs/deep/one")
    make("alone", 7, 98.0)
    frame = load_runs("runs")
    names = ["one/trial-0", "runs/one/trial-1", "two/trial-0", "two/trial-1", "deep/one/trial-1", "alone"]
    assert sorted(frame["name"]) == sorted(names)
    assert set(load_runs("runs/one")["name"]) == {"trial-0", "trial-1"}
    (path,) = frame.loc[frame["name"] == "deep/one/trial-1", "path"]
    assert path.endswith("runs/deep/one/trial-1")
    done = command("compare", "runs", "--baseline", "trial-0")
    assert done.status == 2
    assert "one/trial-0, two/trial-0" in done.err
    done = command("compare", "runs", "--html", "page.html", "--plot", "curves.png")
    assert done.status == 0, done.err
    assert all(f'"{name}"' in Path("page.html").read_text() for name in names)


def test_runs_of_several_time_zones_are_in_the_order_of_time(command, place):
    for name, moment in (
        ("first", "2026-10-25T02:50:00+02:00"),
        ("second", "2026-10-25T02:10:00+01:00"),
        ("unknown", ""),
    ):
        make(name, 1, 99.0)
        file = Path("runs", name, "run.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"started": moment}))
    assert load_runs("runs")["name"].tolist() == ["unknown", "first", "second"]
    rows, _ = asked(command, "--last", "1")
    assert [row["name"] for row in rows] == ["second"]


def test_runs_that_do_not_tell_their_seed_are_grouped(command, place):
    make("a", 1, 99.0)
    file = Path("runs/a/run.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": None}))
    (row,), _ = asked(command, "--group-by")
    assert (row["n"], row["test_acc_mean"]) == (0, 99.0)


def test_whole_numbers_are_printed_whole(command, place):
    make("a1", 1, 99.0, "data.val_size=1000", "data.train_limit=2000")
    make("a2", 1, 99.0)
    done = command("compare", "runs")
    assert "1000" in done.out
    assert "e+03" not in done.out


def test_files_may_be_written_to_new_folders(command, place):
    make("a1", 1, 99.0)
    files = {f"--{kind}": f"new/{kind}/file" for kind in ("csv", "json", "html", "plot")}
    files["--plot"] += ".png"
    done = command("compare", "runs", *(word for option in files.items() for word in option))
    assert done.status == 0, done.err
    assert all(Path(file).stat().st_size for file in files.values())
    done = command("compare", "runs", "--csv", "new/csv/file/no/x.csv")
    assert done.status == 2
    assert "new/csv/file" in done.err
    assert "Traceback" not in done.err


def test_weights_to_start_from_are_told_apart_by_their_whole_path(command, place):
    for seed in (1, 2, 3):
        make(f"a{seed}", seed, 99.0 + seed / 10, "optimizer.lr=0.1", parent="/one/trial-0")
        make(f"b{seed}", seed, 99.5 + seed / 11, "optimizer.lr=0.2", parent="/two/trial-0")
    (row,), _ = asked(command, "--baseline", "a1", "--group-by", "optimizer.lr")
    assert row["test"] == "none: warm_start varies"
    assert row["verdict"] == "cannot tell"
    assert {"one/trial-0", "two/trial-0"} == set(load_runs("runs")["warm_start"])


def test_what_was_typed_beside_an_experiment_is_not_hidden_by_it(command, place):
    for seed in (1, 2, 3):
        make(f"plain{seed}", seed, 98.0 + seed / 10, "optimizer=adamw")
        make(f"fast{seed}", seed, 99.0 + seed / 11, "experiment=fast", "optimizer.lr=0.2")
    (row,), _ = asked(command, "--baseline", "plain1", "--group-by", "experiment")
    assert row["test"] == "none: optimizer.lr varies"
    assert row["verdict"] == "cannot tell"


def test_a_choice_typed_beside_an_experiment_is_not_hidden_by_it(command, place):
    for seed in (1, 2, 3):
        make(f"small{seed}", seed, 98.0 + seed / 10, "experiment=fast", "model=small_cnn")
        make(f"accurate{seed}", seed, 99.0 + seed / 11, "experiment=accurate")
    (row,), out = asked(command, "--baseline", "small1", "--group-by", "experiment")
    assert (row["test"], row["verdict"]) == ("none: model varies", "cannot tell")
    assert "no verdict" in out


@pytest.mark.parametrize(("key", "values"), [("optimizer.lr", ("0.02", "0.03")), ("experiment", ("fast", "accurate"))])
def test_what_stands_in_for_missing_data_is_no_difference_of_the_same_data(command, place, key, values):
    for seed in (1, 2, 3):
        make(f"a{seed}", seed, 98.0 + seed / 10, f"{key}={values[0]}", "data.fallback=null")
        make(f"b{seed}", seed, 99.0 + seed / 11, f"{key}={values[1]}")
    (row,), _ = asked(command, "--baseline", "a1", "--group-by", key)
    assert (row["test"], row["verdict"]) == ("paired t", "better")


def test_other_seeds_are_no_other_difference(command, place):
    for seed in (1, 2, 3, 4, 5):
        make(f"accurate{seed}", seed, 99.0 + seed / 11, "experiment=accurate")
    for seed in (1, 2, 3):
        make(f"fast{seed}", seed, 98.0 + seed / 10, "experiment=fast")
    (row,), _ = asked(command, "--baseline", "fast1", "--group-by", "experiment")
    assert (row["n"], row["n_baseline"], row["test"], row["verdict"]) == (5, 3, "Welch's t", "better")
    (row, _), _ = asked(command, "--group-by", "experiment")
    assert row["varies"] != row["varies"], "nothing does"


@pytest.mark.parametrize("baseline", ["with1", "without1"])
def test_a_part_that_was_left_out_is_no_other_difference(command, place, baseline):
    for seed in (1, 2, 3):
        make(f"with{seed}", seed, 98.0 + seed / 10)
        make(f"without{seed}", seed, 99.0 + seed / 11, "~augment.strong.erasing")
    (row,), _ = asked(command, "--baseline", baseline, "--group-by", "augment.strong.erasing")
    assert row["test"] == "paired t"
    assert row["verdict"] == ("better" if baseline == "with1" else "worse")


def test_devices_that_computed_in_another_precision_are_told_apart(command, place):
    for seed in (1, 2, 3):
        make(f"cpu{seed}", seed, 98.0 + seed / 10, "trainer.device=cpu", precision="bf16")
        make(f"cuda{seed}", seed, 99.0 + seed / 11, "trainer.device=cuda", precision="fp32")
    (row,), _ = asked(command, "--baseline", "cpu1", "--group-by", "trainer.device")
    assert row["test"] == "none: trainer.precision varies"


@pytest.mark.parametrize(("group", "key"), [("optimizer", "optimizer.lr"), ("model", "model.ghost_batch_size")])
def test_what_varies_below_a_choice_is_told_and_matched(command, place, group, key):
    choices, values = {
        "optimizer": (("sgd", "adamw"), (0.001, 0.1)),
        "model": (("small_cnn", "wide_small_resnet"), (16, 32)),
    }[group]
    gains = {}
    for seed in (1, 2, 3):
        for value, score in zip(values, (97.0, 99.4), strict=True):
            gains[seed, value] = 0.1 + seed / 100 + value / 1000
            for choice, gain in zip(choices, (0.0, gains[seed, value]), strict=True):
                make(f"{choice}-{value}-{seed}", seed, score + gain, f"{group}={choice}", f"{key}={value}")
    rows, out = asked(command, "--group-by", group)
    assert [row["varies"] for row in rows] == [key, key]
    assert f"{key} varies inside this group" in out
    first = f"{choices[0]}-{values[0]}-1"
    (row,), _ = asked(command, "--baseline", first, "--group-by", group)
    assert (row["n"], row["test"], row["verdict"]) == (6, "paired t", "better")
    assert row["p"] == pytest.approx(stats.ttest_1samp(list(gains.values()), 0).pvalue)
    ask = ["--filter", f"{group} == '{choices[0]}' or {key} == {values[0]}", "--baseline", first, "--group-by", group]
    (row,), _ = asked(command, *ask)
    assert (row["test"], row["verdict"]) == (f"none: {key} varies", "cannot tell"), "one has values the other lacks"


def test_runs_without_a_config_repeat_nothing(command, place):
    for seed in (1, 2):
        make(f"small{seed}", seed, 98.0 + seed / 10, "model=small_cnn", "optimizer.lr=0.02")
        make(f"wide{seed}", seed, 99.0 + seed / 11, "model=wide_small_resnet", "optimizer.lr=0.03")
    for name in ("small1", "wide2"):
        shutil.rmtree(f"runs/{name}/.hydra")
        info = json.loads(Path("runs", name, "run.json").read_text())
        Path("runs", name, "run.json").write_text(json.dumps(info | {"recipe": None}))
    rows, out = asked(command, "--group-by")
    assert [row["n"] for row in rows] == [1, 1, 1, 1]
    assert "small1 stands alone: it has no config" in out
    (row,), _ = asked(command, "--baseline", "small1", "--group-by", "optimizer.lr")
    assert (row["test"], row["verdict"]) == ("none: recipe varies", "cannot tell")
    make("small3", 2, 97.0, "model=small_cnn", "optimizer.lr=0.02", "optimizer.k=7")
    rows, _ = asked(command, "--group-by", "optimizer.lr")
    assert [(row["n"], row["varies"]) for row in rows] == [(3, "recipe"), (2, "recipe")], "each recipe by itself"


def test_what_other_runs_have_typed_hides_nothing(command, place):
    for seed in (1, 2, 3):
        make(f"plain{seed}", seed, 98.0 + seed / 10, "optimizer=adamw")
        make(f"fast{seed}", seed, 99.0 + seed / 11, "experiment=fast")
    make("other", 1, 99.0, "optimizer.lr=0.5", "model.blocks=1")
    chosen = ["--filter", "name != 'other'", "--baseline", "plain1", "--group-by", "experiment"]
    (row,), _ = asked(command, *chosen)
    assert row["verdict"] == "better"


def test_a_group_of_different_recipes_has_no_p_values(command, place):
    for seed in (1, 2, 3):
        make(f"a{seed}", seed, 99.0, "model=small_cnn", tta=99.1 + seed / 100)
        make(f"b{seed}", seed, 99.0, "model=small_cnn", "optimizer.lr=0.03", tta=99.1 + seed / 100)
    (row,), _ = asked(command, "--group-by", "model")
    assert row["varies"] == "optimizer.lr"
    assert row["tta_gain"] == pytest.approx(0.12)
    assert np.isnan(row["tta_p"])
    assert all(row["tta_p"] < 0.05 for row in asked(command, "--group-by", "optimizer.lr")[0])


def test_columns_with_null_among_numbers_can_be_sorted_and_filtered(command, place):
    for seed, start in enumerate(("0.5", "null", "0.9"), start=1):
        make(f"a{seed}", seed, 99.0, f"schedule.swa_start={start}")
    done = command("compare", "runs", "--sort", "schedule.swa_start", "--csv", "sorted.csv")
    assert done.status == 0, done.err
    assert pd.read_csv("sorted.csv", keep_default_na=False)["schedule.swa_start"].tolist() == ["0.9", "0.5", "null"]
    done = command("compare", "runs", "--filter", "schedule.swa_start < 0.7", "--csv", "few.csv")
    assert done.status == 0, done.err
    assert pd.read_csv("few.csv")["name"].tolist() == ["a1"]
    for query, names in (("schedule.swa_start == 'null'", ["a2"]), ("schedule.swa_start != 'null'", ["a1", "a3"])):
        assert command("compare", "runs", "--filter", query, "--csv", "some.csv").status == 0
        assert pd.read_csv("some.csv")["name"].tolist() == names
    done = command("compare", "runs", "--baseline", "a1", "--group-by", "nothing")
    assert done.status == 2
    assert "--group-by: there is no column 'nothing'" in done.err
