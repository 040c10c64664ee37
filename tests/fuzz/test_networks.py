"""Whatever a trained network is asked, and whatever its folder holds: one message at most, and nothing half written."""

from pathlib import Path

import asked
import child
import pytest
import strategies
import torch
from exploring import cases, check
from helpers import run_command
from hypothesis import strategies as st

from mnist_exp import load_export
from mnist_exp.cli import main

pytest.importorskip("safetensors")
_INPUTS = asked.inputs()
_PREDICT = ["predict", "good", "--output", "answers.csv", "--show", "seen.png", "--input"]
_EXPORT = ["export", "bad", "--output", "out", "--format"]


@pytest.fixture(scope="session", autouse=True)
def exported(room) -> Path:
    """An exported folder; made in this process, which so has all imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        for kind in ("safetensors", "torchscript"):
            assert run_command("export", "good", "--format", kind, "--output", kind) == 0
        (room / "digit.png").write_bytes(_INPUTS["digit.png"])
        assert run_command("predict", "good", "--input", "digit.png", "--output", "a.csv", "--show", "a.png") == 0
        assert run_command("evaluate", "good", "--output", "evaluated") == 0
        assert run_command("preview", "data=sample", "--output", "preview.png") == 0
    return room


def whole(ended: child.Ended, work: Path, *written: str) -> None:
    """The property: also, what was asked for is there, or not begun, and nothing else was said."""
    check(ended, (0, 1, 2))
    said = f"\n{ended.out[-1500:]}\n{ended.err[-3000:]}"
    assert not list(work.glob(".*unfinished")), said
    assert [(work / name).exists() for name in written] == [ended.status == 0] * len(written), said
    assert ended.err.startswith("error: ") == bool(ended.status), said
    assert "Warning" not in ended.err, said
    assert "\x1b" not in ended.out + ended.err, said


def lay_inputs(work: Path) -> None:
    for name, found in _INPUTS.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(found)


@cases(8, 1500, name=st.sampled_from(sorted({Path(name).parts[0] for name in _INPUTS})), done=strategies.damages())
def test_any_damage_to_what_is_predicted(lay, name, done):
    work = lay("good")
    lay_inputs(work)
    strategies.damage(work / name, done)
    whole(child.run([*_PREDICT, name], work), work, "answers.csv", "seen.png")


@cases(5, 1500, content=asked.content())
def test_any_bytes_that_are_predicted(lay, content):
    work = lay("good")
    (work / "any").write_bytes(content)
    whole(child.run([*_PREDICT, "any"], work), work, "answers.csv", "seen.png")


@cases(6, 1500, done=strategies.damages())
def test_any_damage_to_a_run_that_predicts(lay, done):
    work = lay("good", "bad")
    strategies.damage(work / "bad", done)
    lay_inputs(work)
    words = ["predict", "good", "bad", "--input", "digits.npz", "--output", "answers.csv"]
    whole(child.run(words, work), work, "answers.csv")


@cases(4, 700, done=strategies.damages(), kind=st.sampled_from(["safetensors", "torchscript"]))
def test_any_damage_to_a_run_that_is_exported(lay, done, kind):
    work = lay("bad")
    strategies.damage(work / "bad", done)
    whole(child.run([*_EXPORT, kind], work), work, "out")


@cases(2, 400, done=strategies.damages(), split=st.sampled_from(["val", "test"]))
def test_any_damage_to_a_run_that_is_evaluated(lay, done, split):
    work = lay("bad")
    strategies.damage(work / "bad", done)
    whole(child.run(["evaluate", "bad", "--output", "out", "--split", split], work), work, "out")


@cases(10, 1500, done=strategies.damages())
def test_any_damage_to_an_exported_folder(lay, done):
    def call() -> None:
        answer = load_export("safetensors")(torch.zeros(2, 28, 28, dtype=torch.uint8))
        assert answer.shape[0] == 2

    work = lay("safetensors")
    strategies.damage(work / "safetensors", done)
    whole(child.run([], work, lambda: main.report(call)), work)


@cases(8, 1500, words=asked.asked())
def test_any_option_of_a_command_that_asks_a_network(lay, words):
    from mnist_exp.inference.draw import Server

    def call(*words: str) -> int:
        Server.serve_forever = lambda self: None
        return run_command(*words)

    work = lay("good", "other", "bad", "sweep", "FOLDER")
    lay_inputs(work)
    ended = child.run(words, work, call)
    check(ended)
    assert "\x1b" not in ended.err, ended.err
