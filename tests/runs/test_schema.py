"""What a run's files may hold: what is written can be read again, and what is read is plain, bounded data."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import SMALL, info

from mnist_exp import load_runs
from mnist_exp.config import recipe
from mnist_exp.errors import UserError
from mnist_exp.reading import load_yaml, read_yaml
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training import results


@pytest.fixture
def run(place) -> RunFolder:
    made = RunFolder.create(place / "run", {"status": "running", "prefix": "x"}, {})
    made.unlock()
    return made


def test_whatever_is_written_can_be_read(run):
    run.update(
        status="failed",
        error="no such file: \udcff",
        metrics={"val_loss": float("nan"), "val_acc": 98.5, "images_per_s": float("inf")},
        named={"x": Path("a"), "y": (1, float("-inf"))},
    )
    text = (run.path / "run.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    again = RunFolder.open(run.path)
    assert again.info == run.info
    assert again.info["error"] == "no such file: \\udcff"
    assert again.info["metrics"] == {"val_loss": None, "val_acc": 98.5, "images_per_s": None}
    assert again.info["named"] == {"x": "a", "y": [1, None]}


@pytest.mark.parametrize("change", [{"prefix": "../x"}, {"status": "done"}, {"overrides": [1]}, {"error": "x" * 2**23}])
def test_what_could_not_be_read_is_not_written(run, change):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"run\.json"):
        run.update(**change)
    assert (run.path / "run.json").read_bytes() == before
    assert run.info["status"] == "running"


@pytest.mark.parametrize("ending", ["finished", "failed", "interrupted"])
def test_every_ending_passes(command, ending, monkeypatch):
    def end(*arguments) -> None:
        raise {"failed": RuntimeError("torn \udcff"), "interrupted": KeyboardInterrupt()}[ending]

    if ending != "finished":
        monkeypatch.setattr("mnist_exp.training.experiment.draw_history", end)
    arguments = [*SMALL, "tags=[1,two]", "task_name=2024", "hydra.run.dir=outputs/run"]
    if ending == "failed":
        with pytest.raises(RuntimeError):
            command(*arguments)
    else:
        assert command(*arguments).status == (0 if ending == "finished" else 130)
    (row,) = load_runs("outputs").to_dict("records")
    assert (row["status"], row["tags"], row["task_name"], row["epochs"]) == (ending, "1 two", 2024, row["planned"])


def test_predictions_are_there_whole_or_not_at_all(command, monkeypatch):
    write = np.savez_compressed

    def half(file, **arrays) -> None:
        write(file, probs=arrays["probs"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results.np, "savez_compressed", half)
        assert command(*SMALL, "hydra.run.dir=run").status == 130
    assert not list(Path("run/results").glob("*predictions*"))
    assert command("train", "resume=run").status == 0
    assert RunFolder.open(Path("run").absolute()).predicted("probs", "predicted", "labels", "wrong", "images")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 2024-01-01", "2024-01-01"),
        ("a: 1e-3", 0.001),
        ("a: 1.0e-05", 1e-5),
        ("a: '1e-3'", "1e-3"),
        ("a: yes", True),
        ("a: ~", None),
        ("a: [1, 2.5, {b: c}]", [1, 2.5, {"b": "c"}]),
        ("a: ${oc.env:HOME}", "${oc.env:HOME}"),
        ("a: '1:30'", "1:30"),
        ("a: " + "9" * 1000, "9" * 1000),
    ],
)
def test_yaml_is_plain_data(place, text, found):
    Path("file.yaml").write_text(text)
    assert load_yaml(Path("file.yaml")) == {"a": found}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!binary aGVsbG8=", "tags"),
        ("a: !!python/name:os.system ''", "tags"),
        ("a: &b c", "anchors"),
        ("- " * 100, "deep"),
        ("[" + "a," * 20_000 + "]", "10,000"),
        ("a: 1\na: 2", "twice"),
        ("? [a]\n: 2", "key"),
        ("a: 99999999999999999999", "64 bits"),
        ("%TAG !a! x\n---\na", "directives"),
        ("a\n---\nb", "document"),
        ("a: [", "line 2"),
        ("a" * 2**21, "larger than 1,048,576 bytes"),
    ],
)
def test_other_yaml_is_refused_in_a_line(place, text, words):
    Path("file.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^file\.yaml cannot be read: .*" + words):
        load_yaml(Path("file.yaml"))
    assert read_yaml(Path("file.yaml")) is None


def test_what_hydra_writes_is_read_as_ever(command):
    assert command(*SMALL, "optimizer.lr=1e-3", "hydra.run.dir=run").status == 0
    for file in Path("run/.hydra").iterdir():
        assert load_yaml(file) == yaml.safe_load(file.read_text())
    assert info(Path("run"))["named"]["optimizer.lr"] == 0.001


@pytest.mark.parametrize("twice", ["${%s}${%s}", ["${%s}", "${%s}"], {"a": "${%s}", "b": "${%s}"}], ids=str)
def test_references_that_multiply_end(twice):
    names = [f"n{number}" for number in range(60)]
    text = json.dumps(twice)
    config = {name: json.loads(text.replace("%s", after)) for name, after in itertools.pairwise(names)}
    started = time.monotonic()
    assert recipe.digest({**config, names[-1]: names[0]}) == recipe.digest({**config, names[-1]: names[0]})
    assert recipe.digest({**config, names[-1]: "${n0}"})
    assert time.monotonic() - started < 3
    assert recipe.followed("${a} ${b.c}", {"a": "${b.c}", "b": {"c": 5}}) == "5 5"
