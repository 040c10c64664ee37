"""The README's table and picture of results, made from run folders, and a row of it run again."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_command
from omegaconf import OmegaConf
from PIL import Image

from mnist_exp import compose
from mnist_exp.errors import UserError

SCRIPTS = ROOT / "scripts"
README = "before\n<!-- ladder: begin -->\nold\n<!-- ladder: end -->\nafter\n"
SMALL = ["data=sample", "data.train_limit=400", "model=small_cnn", "model.channels=[4,8,8]", "schedule.extra_epochs=0"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def test_the_readmes_table_is_that_of_its_json():
    from ladder import placed, table

    readme = (ROOT / "README.md").read_text()
    assert placed(table(json.loads((ROOT / ".github/ladder.json").read_text())), readme) == readme


def test_what_a_row_names_still_composes_to_its_recipe():
    from rungs import recipe_of_config

    rows = json.loads((ROOT / ".github/ladder.json").read_text())
    for name, row in rows.items():
        if "runs" in row:
            found = OmegaConf.to_container(compose(*row["overrides"]))
            assert recipe_of_config(found) == row["recipe"], f"{name} is another recipe now: run it again"
        for member in row.get("members", ()):
            assert member["recipe"] == rows[member["row"]]["recipe"], f"{name} has members of another recipe"


def test_rows_are_summed_up_over_their_seeds():
    from ladder import table
    from rungs import summary

    runs = [
        {"seed": s, "test_acc": a, "test_acc_tta": a + 0.1, "val_acc": 99.0, "test_scored": 2}
        | {"train_seconds": t, "seconds": 130.0}
        for s, a, t in ((1, 99.4, 50), (2, 99.6, 51), (3, 99.5, 900))
    ]
    row = {"overrides": ["experiment=fast"], "dataset": {"test": 10_000}, "runs": runs}
    row |= {"device_name": "CPU", "precision": "bf16"}
    found = summary(row)
    assert found["test_acc"] == pytest.approx(99.5)
    assert found["train_seconds"] == 51
    assert (found["low"], found["high"]) == pytest.approx((99.34, 99.62), abs=0.01), "what 10,000 images can tell"
    members = [{"row": "fast", "seed": s, "train_seconds": 50.0, "seconds": 130.0} for s in (1, 2)]
    both = {"members": members, "tta_runs": 5, "scoring_seconds": 40.0, "wrong": 20, "accuracy": 99.8}
    both |= {"low": 99.7, "high": 99.9, "device_name": "CPU", "precision": "bf16"}
    fast, ensemble = table({"fast": row, "ensemble": both}).splitlines()[2:]
    command = "`train experiment=fast` | 99.50 % (99.34 to 99.62) | 1: 99.40, 2: 99.60, 3: 99.50 (test scored 2 times)"
    assert f"{command} | 99.60 % | 99.00 % | 51 s | 2 min | CPU, bf16 |" in fast
    assert (
        "the runs of `fast` 1, 2 | 99.80 % (99.70 to 99.90), with TTA | 20 wrong | 99.80 % | - | 2 min | 5 min | CPU, bf16 |"
        in ensemble
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_root) -> Path:
    """A real run of two epochs, of 400 digits."""
    place = tmp_path_factory.mktemp("ladder") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        assert run_command("train", *SMALL, f"hydra.run.dir={place}") == 0
    return place


@pytest.fixture
def rung(trained, place):
    """Return a function that lays a run into a row: the real one, but for its seed and what else is to be changed."""

    def lay(row: str, seed: int, rates: tuple[float, ...] = (100.0, 200.0), **changes) -> Path:
        run = shutil.copytree(trained, place / "rungs" / row / f"seed-{seed}")
        info = json.loads((run / "run.json").read_text())
        for key, value in changes.items():
            (info["metrics"] if key in info["metrics"] else info)[key] = value
        (run / "run.json").write_text(json.dumps(info | {"seed": seed}))
        head, *lines, _ = (run / "history.csv").read_text().split("\n")
        lines = [f"{line.rpartition(',')[0]},{rate}" for line, rate in zip(lines, rates, strict=True)]
        (run / "history.csv").write_text("\n".join([head, *lines, ""]))
        return run

    return lay


@pytest.fixture
def called(monkeypatch):
    """Return a function that calls the main of a script with words, in this process."""

    def call(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *words])
        __import__(name).main()

    return call


def test_a_row_is_read_from_its_runs(rung):
    from rungs import measured

    rung("one", 2, test_acc=91.5, test_scored=2, resumed=1)
    rung("one", 1, test_acc=90.0, val_acc=88.0, rates=(400.0, 400.0))
    first, second = measured(Path("rungs"))["one"]["runs"]
    assert (first["seed"], first["test_acc"], first["val_acc"], first["train_seconds"]) == (1, 90.0, 88.0, 2.0)
    assert (second["seed"], second["test_acc"], second["train_seconds"]) == (2, 91.5, 6.0), "400 / 100 + 400 / 200"
    assert (second["test_scored"], second["resumed"]) == (2, 1)
    assert (first["test_scored"], first["resumed"]) == (1, 0)


def test_a_row_is_of_one_recipe_one_machine_and_a_run_for_each_seed(rung):
    from rungs import measured

    rung("one", 1)
    shutil.copytree("rungs/one/seed-1", "rungs/one/again")
    with pytest.raises(UserError, match="rungs/one holds several runs of one seed"):
        measured(Path("rungs"))
    shutil.rmtree("rungs/one/again")
    for changes, problem in (
        ({"device_name": "another CPU"}, "several machines"),
        (
            {
                "precision": "bf16"
                if json.loads(Path("rungs/one/seed-1/run.json").read_text())["precision"] == "fp32"
                else "fp32"
            },
            "several precisions",
        ),
        ({"test_acc": None}, "has no test accuracy"),
    ):
        run = rung("one", 2, **changes)
        with pytest.raises(UserError, match=problem):
            measured(Path("rungs"))
        shutil.rmtree(run)
    run = rung("one", 2)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"dataset": info["dataset"] | {"split_seed": 5}}))
    with pytest.raises(UserError, match="several data"):
        measured(Path("rungs"))
    shutil.rmtree(run)
    shutil.rmtree(rung("one", 2, warm_start="outputs/runs/another"))
    run = rung("two", 1, warm_start="outputs/runs/another")
    with pytest.raises(UserError, match="rungs/two/seed-1 trained outputs/runs/another further, so it is no part"):
        measured(Path("rungs"))
    shutil.rmtree("rungs/two")
    run = rung("one", 2)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("k: 5", "k: 6"))
    with pytest.raises(UserError, match="several recipes"):
        measured(Path("rungs"))


def test_what_no_row_can_be_made_of_is_told(rung, capsys):
    from rungs import measured

    rung("one", 1)
    rung("one", 2, status="interrupted")
    rung("none", 1, status="failed")
    assert [len(row["runs"]) for row in measured(Path("rungs")).values()] == [1]
    told = capsys.readouterr().err
    assert "rungs/one/seed-2 is left out: it is interrupted" in told
    assert "rungs/none/seed-1 is left out: it is failed" in told
    history = rung("bad", 1, rates=(0.0, 200.0)) / "history.csv"
    with pytest.raises(UserError, match="does not tell images_per_s of each epoch"):
        measured(Path("rungs"))
    history.unlink()
    with pytest.raises(UserError, match="does not tell images_per_s of each epoch"):
        measured(Path("rungs"))
    history.write_text("wrong\n1\n")
    with pytest.raises(UserError, match="its first line does not name its columns"):
        measured(Path("rungs"))


def ensemble(*runs: str, **changes) -> None:
    """Lay what ``evaluate`` wrote of ``runs``."""
    scores = {"accuracy": 99.0, "low": 98.1, "high": 99.5, "loss": 0.1, "calibration_error": 1.0, "wrong": 10}
    members = [{"run": str(Path(run).resolve()), "accuracy": 98.5} for run in runs]
    found = {"split": "test", "checkpoint": "best", "tta_runs": 3, "seconds": 5.0, "members": members}
    found |= {"data": {"name": "sample", "test": 1000}, "scores": scores | {"images": 1000}}
    folder = Path("rungs/both")
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(found | changes))


def test_an_ensemble_is_read_from_its_evaluation(rung, place):
    from rungs import measured, summary

    rung("one", 1, seconds=20.0)
    rung("one", 2, seconds=30.0)
    ensemble("rungs/one/seed-1", "rungs/one/seed-2")
    rows = measured(Path("rungs"))
    both = rows["both"]
    assert [(m["row"], m["seed"], m["train_seconds"]) for m in both["members"]] == [("one", 1, 6.0), ("one", 2, 6.0)]
    assert {m["recipe"] for m in both["members"]} == {rows["one"]["recipe"]}
    found = summary(both)
    assert (found["test_acc"], found["tta"], found["train_seconds"], found["seconds"]) == (99.0, 99.0, 12.0, 55.0)
    for changes, problem in (
        ({"split": "val"}, "best checkpoints on test"),
        ({"checkpoint": "last"}, "best checkpoints on test"),
        ({"scores": {}}, "none of this version"),
        ({"members": 5}, "none of this version"),
    ):
        ensemble("rungs/one/seed-1", "rungs/one/seed-2", **changes)
        with pytest.raises(UserError, match=problem):
            measured(Path("rungs"))
    info = json.loads(Path("rungs/one/seed-1/run.json").read_text())
    rung("other", 1, device_name="another CPU")
    ensemble("rungs/one/seed-1", "rungs/other/seed-1")
    with pytest.raises(UserError, match="rungs/both is of runs of several machines"):
        measured(Path("rungs"))
    Path("rungs/other/seed-1/run.json").write_text(json.dumps(info | {"versions": info["versions"] | {"torch": "1"}}))
    with pytest.raises(UserError, match="rungs/both is of runs of several versions of torch"):
        measured(Path("rungs"))
    shutil.rmtree("rungs/other")
    shutil.move("rungs/one", "elsewhere")
    ensemble("elsewhere/seed-1", "elsewhere/seed-2")
    with pytest.raises(UserError, match="does not lie in rungs"):
        measured(Path("rungs"))
    Path("rungs/both/evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json cannot be read"):
        measured(Path("rungs"))


def test_rows_that_were_measured_before_stay(rung, called):
    Path("README.md").write_text(README)
    rung("one", 1, test_acc=90.0)
    called("ladder", "rungs", "--output", "out")
    shutil.rmtree("rungs/one")
    rung("two", 1, test_acc=91.0)
    called("ladder", "rungs", "--output", "out")
    assert list(json.loads(Path("out/ladder.json").read_text())) == ["one", "two"]
    text = Path("README.md").read_text()
    assert "| one | `train data=sample" in text
    assert "1: 90.00" in text
    assert "1: 91.00" in text
    rung("one", 1, test_acc=92.0)
    called("ladder", "rungs", "--output", "out")
    assert "1: 92.00" in Path("README.md").read_text()
    assert "1: 90.00" not in Path("README.md").read_text()


def test_files_that_cannot_be_taken_are_named_and_nothing_is_written(rung, called):
    Path("README.md").write_text(README)
    rung("one", 1)
    Path("file").write_text("{")
    Path("out").mkdir()
    for words, problem in (
        (["--output", "file"], "--output: file cannot be a folder"),
        (["--output", "out", "--peers", "none.json"], "none.json cannot be read"),
        (["--output", "out", "--peers", "file"], "file cannot be read"),
        (["--output", "out", "--readme", "rungs"], "rungs cannot be read"),
        (["--output", "out", "--readme", "file"], "each of <!-- ladder: begin -->"),
    ):
        with pytest.raises(UserError, match=problem):
            called("ladder", "rungs", *words)
    Path("out/ladder.json").write_text("[]")
    with pytest.raises(UserError, match=r"out/ladder\.json cannot be read: it holds no object"):
        called("ladder", "rungs", "--output", "out")
    assert [path.name for path in Path("out").iterdir()] == ["ladder.json"]
    assert Path("README.md").read_text() == README


def published(*scores: float, first: int = 1, **changes) -> dict:
    runs = [
        {"seed": seed, "test_acc": score, "test_acc_tta": score + 0.1, "val_acc": None, "train_seconds": 30.0}
        | {"seconds": 40.0}
        for seed, score in enumerate(scores, first)
    ]
    row = {"overrides": ["experiment=fast"], "recipe": "abc", "dataset": {"test": 10_000}, "runs": runs}
    return row | {"device_name": "CPU", "precision": "bf16"} | changes


def test_a_verdict_is_of_the_same_recipe_and_data_alone(capsys):
    from reproduce import tell, verdict

    row = published(99.50, 99.52, 99.51, 99.53)
    assert "no difference can be told" in verdict(row, published(99.51, 99.53, 99.50, 99.52, first=5))
    assert "they differ" in verdict(row, published(99.1, 99.14, 99.11, 99.12, first=5))
    assert verdict(row, published(99.1)) == "too few seeds for a test"
    assert "another recipe" in verdict(row, published(99.5, 99.5, recipe="other"))
    assert "another data" in verdict(row, published(99.5, 99.5, dataset={"test": 1000}))
    tell(row, published(99.1, 99.2, first=5))
    told = capsys.readouterr().out
    assert "published  test 99.515 %" in told
    assert "with TTA 99.250 %" in told
    assert "difference -0.365 points" in told


def test_seeds_that_were_published_are_no_new_ones(capsys):
    from reproduce import beside, tell, verdict

    row = published(99.50, 99.54, 99.51)
    assert beside(published(99.50, 99.54), row) == ({1: 99.50, 2: 99.54}, {1: 99.50, 2: 99.54}), "the same alone"
    assert verdict(row, published(99.50, 99.54)) == "the same seeds have the same accuracies"
    assert verdict(row, published(99.51, 99.56, 99.52)).startswith("paired t")
    assert beside(published(99.51, 99.40, 99.60, first=3), row)[0] == {4: 99.40, 5: 99.60}, "3 is on both sides"
    tell(row, published(99.50, 99.54))
    assert "difference +0.000 points (seeds 1, 2 against 1, 2): the same" in capsys.readouterr().out


def test_the_verdict_on_an_ensemble_asks_for_the_same_members():
    from reproduce import verdict

    def both(accuracy: float, recipes: str, **changes) -> dict:
        row = {"members": [{"recipe": recipe} for recipe in recipes], "tta_runs": 9, "dataset": {"test": 10_000}}
        return row | {"accuracy": accuracy, "low": 99.6, "high": 99.8, "images": 10_000} | changes

    row = both(99.7, "aab")
    assert verdict(row, both(99.79, "aab")) == "within what 10,000 images can tell of the published one"
    assert verdict(row, both(99.81, "aab")) == "outside what 10,000 images can tell of the published one"
    assert verdict(row, both(99.7, "ab")).endswith("though of 2 members instead of 3")
    assert "another recipe" in verdict(row, both(99.7, "aac"))
    assert "another data" in verdict(row, both(99.7, "aab", dataset={"test": 1000}))
    assert "another number of shifts" in verdict(row, both(99.7, "aab", tta_runs=1))


def test_what_cannot_be_reproduced_is_told_in_a_line(called, place, capsys):
    Path("ladder.json").write_text(json.dumps({"both": {"members": [{"row": "gone", "seed": 1}], "tta_runs": 1}}))
    Path("bad.json").write_text("{")
    for words, problem in (
        (["both", "--ladder", "none.json"], "none.json cannot be read"),
        (["both", "--ladder", "bad.json"], "bad.json cannot be read"),
        (["other", "--ladder", "ladder.json"], r"NAME is other; it must be a row of ladder\.json: both"),
        (["both", "--ladder", "ladder.json"], r"ladder\.json has no row gone, whose runs are members of both"),
    ):
        with pytest.raises(UserError, match=problem):
            called("reproduce", *words)
    for words, told in (
        (["both", "seed=9"], "seed is no KEY=VALUE here: type --seeds 6,7"),
        (["both", "--data", "nowhere"], "--data: nowhere is no folder"),
    ):
        with pytest.raises(SystemExit):
            called("reproduce", *words)
        assert told in capsys.readouterr().err
    for seeds in ("a", "", "1.5", "6,-7", "6,6"):
        with pytest.raises(SystemExit):
            called("reproduce", "both", "--seeds", seeds)
        assert (
            f"argument --seeds: '{seeds}' is no list of different whole numbers, such as 6,7" in capsys.readouterr().err
        )


def test_the_chart_has_means_intervals_seeds_and_claims():
    from error_axes import error
    from ladder import CLAIMS, _rows
    from matplotlib.figure import Figure
    from rungs import summary

    assert [error(accuracy) for accuracy in (99.0, 99.75, 100.0)] == pytest.approx([1.0, 0.25, 0.01])
    assert [accuracy for _, accuracy in CLAIMS] == [99.78, 99.87, 99.91]
    row, axes = published(99.4, 99.6), Figure().subplots()
    (x, y, text, _) = _rows(axes, {"fast": row})[0]
    assert (x, y, text) == (30.0, pytest.approx(0.5), "fast  99.50 %")
    found, (bar,) = summary(row), axes.containers
    ends = bar.lines[2][0].get_segments()[0][:, 1]
    assert sorted(ends) == pytest.approx([100 - found["high"], 100 - found["low"]])
    seeds, tta = axes.collections[-2:]
    assert sorted(seeds.get_offsets()[:, 1]) == pytest.approx([0.4, 0.6])
    assert tta.get_offsets().tolist() == [[30.0, pytest.approx(0.4)]]


@pytest.mark.parametrize("ys", [(0.5,), (0.5, 0.5, 0.51, 0.9), (0.001, 0.002, 0.97), tuple(n / 40 for n in range(40))])
def test_names_in_the_chart_keep_their_distance_and_are_near_what_they_name(ys):
    from error_axes import label
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label(axes, [(0.5, y, f"{n}", "black") for n, y in enumerate(ys)])
    heights = [text.xyann[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [f"{n}" for n in range(len(ys))]
    assert 0.03 - 1e-9 <= min(heights) <= max(heights) <= 0.97 + 1e-9
    gap = min(0.055, 0.94 / max(len(ys) - 1, 1))
    assert all(after - before >= gap - 1e-9 for before, after in itertools.pairwise(heights))
    if ys == (0.5, 0.5, 0.51, 0.9):
        assert sum(heights[:3]) / 3 == pytest.approx(sum(ys[:3]) / 3), "a crowd stays where it was, on average"
        assert heights[3] == pytest.approx(0.9), "and who stands alone stays"


def test_the_ablations_take_away_one_idea_each(command):
    folder = ROOT / "scripts" / "ablation"

    def flat(value, key: str = "") -> dict:
        if not isinstance(value, dict):
            return {key: value}
        return {k: v for name, below in value.items() for k, v in flat(below, f"{key}.{name}".strip(".")).items()}

    def composed(name: str) -> dict:
        shown = command("train", "--cfg", "job", "--config-dir", str(folder), f"experiment={name}").out
        return flat(OmegaConf.to_container(OmegaConf.create(shown)))

    ideas = composed("ideas")
    expected = {
        "mixing": ["augment.mix.prob"],
        "ghosts": ["model.ghost_batch_size"],
        "lookahead": [f"optimizer.{key}" for key in ("_target_", "base", "k", "alpha")],
        "swa": ["schedule.swa_start"],
        "strong": ["augment.strong.crop.padding", "augment.strong.rotation.degrees"],
        "erasing": ["augment.strong.erasing"],
    }
    assert {path.stem for path in folder.glob("experiment/*.yaml")} == {
        "ideas",
        *(f"without_{name}" for name in expected),
    }
    for name, keys in expected.items():
        without = composed(f"without_{name}")
        differ = {key for key in ideas | without if ideas.get(key) != without.get(key)}
        assert differ, name
        assert all(any(f"{key}.".startswith(f"{known}.") for known in keys) for key in differ), (name, differ)


@pytest.mark.timeout(300)
@pytest.mark.slow  # it trains, and trains again
def test_the_ladder_is_made_from_run_folders_and_a_row_is_run_again(place, command):
    for seed in (1, 2):
        command("train", *SMALL, f"seed={seed}", f"hydra.run.dir=rungs/small/seed-{seed}")
    runs = [f"rungs/small/seed-{seed}" for seed in (1, 2)]
    command("evaluate", *runs, "--split", "test", "--tta", "2", "--output", "rungs/ensemble")
    Path("README.md").write_text(README)
    made = script("ladder", "rungs", "--output", "out", "--peers", str(ROOT / ".github/peers.json"))
    assert made.returncode == 0, made.stderr
    rows = json.loads(Path("out/ladder.json").read_text())
    assert list(rows) == ["ensemble", "small"]
    assert rows["small"]["overrides"] == SMALL
    assert [run["seed"] for run in rows["small"]["runs"]] == [1, 2]
    assert [member["row"] for member in rows["ensemble"]["members"]] == ["small", "small"]
    text = Path("README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| small | `train data=sample" in text
    assert "times)" not in text, "both were scored by themselves, and for the ensemble"
    for picture in ("ladder.png", "hard_digits.png"):
        Image.open(Path("out", picture)).verify()

    again = ["--output", "again", "--ladder", "out/ladder.json"]
    done = script("reproduce", "ensemble", *again)
    assert done.returncode == 0, done.stderr
    scores = [
        json.loads(Path(f, "evaluation.json").read_text())["scores"] for f in ("rungs/ensemble", "again/ensemble")
    ]
    assert scores[0] == scores[1], "the same seeds on the same machine"
    assert "within what 1,000 images can tell" in done.stdout
    done = script("reproduce", "small", *again, "--seeds", "1,2")
    assert "$" not in done.stdout, "finished runs are not run again"
    assert "difference +0.000 points" in done.stdout

    # what is there already is never taken for something else
    done = script("reproduce", "ensemble", *again, "--seeds", "1")
    assert "again/ensemble/evaluation.json is of other runs" in done.stderr
    done = script("reproduce", "small", "optimizer.lr=0.5", *again)
    assert "name a new folder: --output" in done.stderr
    done = script("reproduce", "small", "optimizer.lr=0.5", "--seeds", "3", *again)
    assert "no verdict, as it is another recipe" in done.stdout
    shutil.copytree("again/small/seed-3", "rungs/small/seed-3")
    assert "rungs/small is of runs of several recipes" in script("ladder", "rungs", "--output", "out").stderr
    assert "it must be a row of out/ladder.json: ensemble, small" in script("reproduce", "none", *again).stderr
