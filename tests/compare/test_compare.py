"""Comparing runs through the command line, from real runs and from folders of anything."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import SMALL, info

from mnist_exp.compare import load_runs
from mnist_exp.statistics import mcnemar


def test_the_table_shows_every_run_and_what_differs(command, runs):
    done = command("compare")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("6 runs: 5 finished, 1 failed")
    header = lines[1].split()
    assert header[:1] == ["name"]
    for column in ("optimizer.lr", "data.split_seed", "status", "val_acc", "test_acc", "test_95", "seed"):
        assert column in header
    assert "data.train_limit" not in header, "all runs have it"
    row = next(line for line in lines if line.startswith("b2"))
    about = info(runs / "b2")
    assert "0.03" in row
    assert f"{about['metrics']['test_acc']:.2f}" in row
    assert re.search(r"\d+\.\d\d - \d+\.\d\d", row)


def test_a_narrow_terminal_cuts_no_name_and_no_score(command, runs, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = command("compare").out
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert "\u2026" not in plain
        header = plain.splitlines()[1].split()
        assert {"name", "val_acc", "test_acc", "test_95"} <= set(header)
        assert ("--csv - shows them" in " ".join(plain.split())) == (width < 200)


def test_a_question_is_answered_and_nothing_else_is_shown(command, runs):
    for question in (["--group-by"], ["--baseline", "a1"], ["--baseline", "a1", "--group-by"]):
        done = command("compare", *question)
        assert done.status == 0, done.err
        assert "6 runs" not in done.out
        assert "test_95" not in done.out
        assert ("cannot tell: equal recipes" in done.out) == ("  cannot tell" in done.out)


def test_how_runs_were_computed_is_shown_where_it_differs(command, runs):
    about = info(runs / "a2")
    header = command("compare").out.splitlines()[1].split()
    assert not {"trainer.precision", "memory_format"} & set(header)
    other = "fp32" if about["precision"] == "bf16" else "bf16"
    about |= {"precision": other, "memory_format": "contiguous", "recipe": None}
    (runs / "a2" / "run.json").write_text(json.dumps(about))
    lines = command("compare").out.splitlines()
    assert {"trainer.precision", "memory_format"} <= set(lines[1].split())
    row = next(line for line in lines if line.startswith("a2")).split()
    assert {other, "contiguous"} <= set(row)
    done = command("compare", "--group-by", "optimizer.lr")
    assert "trainer.precision varies inside this group" in done.out + done.err
    recipes = load_runs(runs).set_index("name")["recipe"]
    assert recipes["a1"] != recipes["a2"], "no repetitions"


def test_runs_can_be_filtered_sorted_counted_and_written(command, runs, place):
    arguments = [
        "--filter",
        "status == 'finished' and optimizer.lr > 0.02",
        "--sort",
        "val_acc",
        "--columns",
        "name,val_acc",
    ]
    done = command("compare", "outputs", *arguments, "--csv", "runs.csv", "--json", "runs.json")
    assert done.status == 0, done.err
    written = pd.read_csv("runs.csv")
    assert set(written["name"]) == {"b1", "b2"}
    assert written["val_acc"].is_monotonic_decreasing
    assert written["optimizer.lr"].tolist() == [0.03, 0.03]
    assert [row["name"] for row in json.loads(Path("runs.json").read_text())] == written["name"].tolist()
    assert done.out.splitlines()[1].split() == ["name", "val_acc"]
    assert "2 runs" in command("compare", "--last", "2").out


def test_a_key_left_at_its_default_has_its_default(command, runs):
    assert command("compare", "--filter", "optimizer.lr < 0.02", "--csv", "low.csv").status == 0
    low = pd.read_csv("low.csv").set_index("name")
    assert set(low.index) == {"a1", "a2", "split"}
    assert low["optimizer.lr"].tolist() == [0.01] * 3
    arguments = [
        "--filter",
        "model.num_classes == 10",
        "--sort",
        "optimizer.momentum",
        "--columns",
        "name,optimizer,optimizer.k",
    ]
    done = command("compare", *arguments)
    assert done.status == 0, done.err
    assert re.search(r"broken +sgd", done.out)
    assert re.search(r"a1 +lookahead_sgd +5", done.out)


def test_columns_hold_what_was_composed_not_what_was_typed(command, runs, place):
    (place / "conf" / "experiment").mkdir(parents=True)
    (place / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer:\n  lr: 0.05\n")
    arguments = ["experiment=mine", "augment.mix.prob=0.1", "augment.mix.prob=0.2", "~augment.strong.erasing"]
    arguments += ["schedule.swa_lr=${optimizer.lr}", "+augment.strong.blur=1", "~augment.strong.blur"]
    arguments += ["+optimizer.nesterov=true", "model.channels=[4,8,16]", "hydra.run.dir=outputs/mine"]
    assert command("train", "--config-dir", "conf", *SMALL, *arguments).status == 0
    about = info(runs / "mine")
    for older in (False, True):
        if older:  # it wrote no such thing
            (runs / "mine" / "run.json").write_text(json.dumps({k: v for k, v in about.items() if k != "named"}))
        frame = load_runs(runs).set_index("name")
        assert not [column for column in frame.columns if column[0] in "+~"]
        mine, other = frame.loc["mine"], frame.loc["a1"]
        assert (mine["optimizer.lr"], other["optimizer.lr"]) == (0.05, 0.01)
        assert mine["experiment"] == "mine"
        assert (mine["augment.mix.prob"], other["augment.mix.prob"]) == (0.2, 0.102)
        assert mine["schedule.swa_lr"] == 0.05
        assert mine["optimizer.nesterov"] is True
        assert (mine["model.channels"], other["model.channels"]) == ("[4, 8, 16]", "[16, 32, 64]")
        assert mine["augment.strong.erasing"] == "deleted"
        assert mine["augment.strong.blur"] == "deleted"
        assert pd.isna(other["augment.strong.erasing"])


def test_a_run_trained_further_shows_its_own_values_and_parent(command, runs):
    arguments = [f"resume={runs / 'a1'}", "schedule.extra_epochs=1", f"hydra.run.dir={runs / 'further'}"]
    assert command("train", *arguments).status == 0
    frame = load_runs(runs).set_index("name")
    assert frame.at["further", "schedule.extra_epochs"] == 1
    assert frame.at["a1", "schedule.extra_epochs"] == 2
    assert frame.at["further", "warm_start"] == "a1"
    assert frame.at["further", "recipe"] != frame.at["a1", "recipe"]


def test_repetitions_are_grouped_by_themselves(command, runs):
    done = command("compare", "--group-by", "--csv", "groups.csv")
    assert done.status == 0, done.err
    groups = pd.read_csv("groups.csv")
    assert sorted(groups["n"]) == [1, 2, 2]
    scores = [info(runs / name)["metrics"]["test_acc"] for name in ("b1", "b2")]
    (row,) = groups[(groups["optimizer.lr"] == 0.03)].to_dict("records")
    assert row["test_acc_mean"] == pytest.approx(np.mean(scores))
    assert row["test_acc_std"] == pytest.approx(np.std(scores, ddof=1))
    assert row["seeds"] == "1,2"
    done = command("compare", "--group-by", "optimizer.lr,data.split_seed", "--csv", "groups.csv")
    assert sorted(pd.read_csv("groups.csv")["n"]) == [1, 2, 2]
    done = command("compare", "--group-by", "optimizer.lr", "--csv", "groups.csv")
    assert sorted(pd.read_csv("groups.csv")["n"]) == [1, 2, 2], "another split is not averaged with"


def test_a_baseline_is_compared_image_by_image(command, runs):
    done = command("compare", "--baseline", "a1", "--csv", "against.csv")
    assert done.status == 0, done.err
    table = pd.read_csv("against.csv").set_index("name")
    assert set(table.index) == {"a2", "b1", "b2"}
    assert "not compared: split has other data or another split than a1" in done.out
    assert "about these weights" in done.out
    right = {}
    for name in ("a1", "b1"):
        saved = np.load(runs / name / "results" / "predictions.npz")
        right[name] = saved["predicted"] == saved["labels"]
    only_b, only_a = int((right["b1"] & ~right["a1"]).sum()), int((right["a1"] & ~right["b1"]).sum())
    row = table.loc["b1"]
    assert (row["only_this"], row["only_baseline"]) == (only_b, only_a)
    assert row["p"] == pytest.approx(mcnemar(only_b, only_a))
    assert row["difference"] == pytest.approx(100 * (right["b1"].mean() - right["a1"].mean()))
    assert row["verdict"] == ("cannot tell" if row["p"] >= 0.05 else "better" if only_b > only_a else "worse")


def test_groups_of_seeds_are_tested_and_the_test_is_named(command, runs):
    done = command("compare", "--baseline", "a1", "--group-by", "--csv", "groups.csv")
    assert done.status == 0, done.err
    (row,) = pd.read_csv("groups.csv").to_dict("records")
    assert row["test"] == "paired t"
    assert row["n"] == 2
    gain = np.mean(
        [info(runs / f"b{n}")["metrics"]["test_acc"] - info(runs / f"a{n}")["metrics"]["test_acc"] for n in (1, 2)]
    )
    assert row["difference"] == pytest.approx(gain)
    assert "not compared: 1 runs such as split" in done.out


def test_anything_else_in_the_folder_is_skipped_with_one_line(command, runs):
    (runs / "a1" / "run.json").write_text('{"status": "finis')
    (runs / "a2" / "run.json").write_text("[1, 2]")
    newer = info(runs / "b1")
    (runs / "b1" / "run.json").write_text(json.dumps({**newer, "format": 99}))
    del newer["metrics"]
    (runs / "split" / "run.json").write_text(json.dumps(newer))
    (runs / "notes").mkdir()
    (runs / "notes" / "text.txt").write_text("hello")
    done = command("compare")
    assert done.status == 0, done.err
    skipped = [line for line in done.out.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 4
    assert "newer mnist_exp" in done.out
    assert done.out.count("\nb2") == 1
    (runs / "b2" / "results" / "predictions.npz").write_bytes(b"torn")
    done = command("compare", "--baseline", "b2")
    assert done.status == 2
    assert "predictions.npz" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sort", "vall_acc"], ["vall_acc", "val_acc"]),
        (["--columns", "name,nothing"], ["nothing", "Columns:"]),
        (["--filter", "val_acc >"], ["--filter", "Columns:"]),
        (["--filter", "nothing > 3"], ["nothing", "Columns:"]),
        (["--group-by", "nothing"], ["nothing", "Columns:"]),
        (["--baseline", "nobody"], ["nobody", "a1"]),
        (["--baseline", ""], ["--baseline", "0 of the runs"]),
        (["--baseline", "loop"], ["loop", "0 of the runs"]),
        (["--last", "0"], ["--last is 0", "at least 1"]),
        (["--watch", "-1"], ["--watch is -1"]),
        (["--watch", "0"], ["--watch is 0"]),
        (["--watch", "nan"], ["--watch is nan", "a number of seconds above 0"]),
        (["--watch", "inf"], ["--watch is inf"]),
        (["--watch", "--csv", "x.csv"], ["--watch", "writes no file"]),
        (["--watch", "--group-by"], ["--watch", "answers no question"]),
        (["--columns", ","], ["--columns", "names none"]),
        (["--columns", ""], ["--columns", "names none"]),
        (["--group-by", ","], ["--group-by", "names none"]),
        (["--filter", ""], ["--filter", "Columns:"]),
        (["--filter", "seed"], ["--filter", "no condition", "Columns:"]),
        (["--filter", "x = 3"], ["--filter", "no condition", "Columns:"]),
        (["--filter", "seed.__class__"], ["--filter", "Columns:"]),
        (["--html", "outputs"], ["--html is the folder outputs", "a file"]),
        (["--html", "new/"], ["--html is new/", "a file"]),
        (["--csv", ""], ["--csv is ''", "a file"]),
        (["--csv", "one", "--json", "./one"], ["--csv one, --json ./one are one file"]),
        (["--csv", "-", "--html", "-"], ["--csv -, --html - are one file"]),
        (["--plot", "curves.html"], ["--plot is curves.html", "png, pdf, svg"]),
        (["--plot", "curves"], ["--plot is curves", "png, pdf, svg"]),
        (["outputs", "--storage", "postgresql://x", "--sort", "seed"], ["--storage", "one search"]),
        (["outputs", "--storage", "sqlite:///x"], ["--storage is sqlite:///x", "postgresql+psycopg://"]),
        (["outputs/a1/run.json"], ["outputs/a1/run.json is no folder"]),
        ([""], ["'' does not exist"]),
        (["y" * 300], ["does not exist"]),
        (["--filter", "val_acc > 1000"], ["none of the 6 runs matches"]),
        (["nowhere"], ["nowhere does not exist"]),
    ],
)
def test_mistakes_name_the_way_out(command, made, place, arguments, words):
    (place / "outputs").symlink_to(made)  # nothing is written
    (place / "loop").symlink_to("loop")
    done = command("compare", *arguments)
    assert done.status == 2
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not done.out
    assert {path.name for path in place.iterdir()} == {"outputs", "loop"}


def test_what_is_asked_for_twice_or_beyond_is_what_there_is(command, runs):
    once = command("compare", "outputs", "--columns", "name").out
    assert command("compare", "outputs", "./outputs", "outputs/a1", "--columns", "name").out == once
    assert command("compare", "--last", "9" * 30, "--columns", "name").out == once
    assert command("compare", "--sort", "status").out.splitlines()[2].split()[0] == "broken"


def test_no_runs_say_how_to_make_one(command, place):
    (place / "outputs").mkdir()
    done = command("compare")
    assert done.status == 2
    assert "experiment=fast" in done.err


def test_the_python_api_gives_a_data_frame(runs):
    frame = load_runs(runs)
    assert len(frame) == 6
    assert frame.loc[frame["name"] == "b1", "optimizer.lr"].item() == 0.03
    recipes = frame.set_index("name")["recipe"]
    assert recipes["a1"] == recipes["a2"] != recipes["b1"]
    documented = set(re.findall(r"[a-z_0-9]+", load_runs.__doc__ or ""))
    assert {c for c in frame.columns if "." not in c} - documented <= {"debug", "optimizer", "schedule"}


def test_comparing_imports_no_torch(runs):
    program = "import sys\nfrom mnist_exp.cli.main import dispatch\ndispatch(['compare', '--baseline', 'a1', '--html', 'x.html'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_plot_is_a_picture(command, runs):
    assert command("compare", "--plot", "curves.png").status == 0
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


def test_watching_refreshes_until_interrupted(runs, place):
    words = [sys.executable, "-u", "-m", "mnist_exp", "compare", "--watch", "0.2"]
    # what a shell starts in the background ignores SIGINT, and so would this process
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("6 runs")
        if seen == 2:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_the_table_of_todays_runs_reads_no_config(command, place, monkeypatch):
    assert command(*SMALL, "optimizer.lr=0.02").status == 0
    read = []
    monkeypatch.setattr("mnist_exp.runs.composed.read_yaml", lambda file: read.append(file))
    (lr,) = load_runs("outputs")["optimizer.lr"]
    assert (lr, read) == (0.02, [])
