"""Parts of one's own: named on the command line, without what the part before took."""

import sys
from pathlib import Path

import pytest
from helpers import SMALL, only_run

from mnist_exp.parts import interfaces
from mnist_exp.parts.models import SmallCNN
from mnist_exp.parts.schedule import Cosine
from mnist_exp.reading import load_yaml

PARTS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=8, outputs=10):
        super().__init__(nn.Conv2d(1, width, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(144 * width, outputs))

class Any(Net):
    def __init__(self, width=8, **others):
        assert set(others) == {"channels", "ghost_batch_size", "num_classes"}, others
        super().__init__(width)

class NoLogits(nn.Flatten):
    def __init__(self):
        super().__init__(0)
        self.weight = nn.Parameter(torch.zeros(1))
"""


@pytest.fixture(autouse=True)
def own(place, monkeypatch):
    (place / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("MNIST_EXP_ALLOW", "own_parts.*")


def test_another_model_needs_no_keys_of_the_one_before(command, place):
    done = command("train", *SMALL, "model._target_=own_parts.Net", "+model.width=4")
    assert done.status == 0, done.err
    assert "model: own_parts.Net does not take channels, ghost_batch_size, num_classes" in done.out
    run = only_run(place)
    assert load_yaml(run / ".hydra" / "config.yaml")["model"] == {"_target_": "own_parts.Net", "width": 4}
    assert command("evaluate", str(run), "--split", "val").status == 0
    assert command("train", f"resume={run}", "schedule.extra_epochs=1").status == 0
    assert command("preview", *SMALL, "model._target_=own_parts.Net", "--output", "seen.png").status == 0


def test_where_its_module_is_looked_for_is_told(command, place, monkeypatch):
    assert command("train", *SMALL, "model._target_=own_parts.Net").status == 0
    monkeypatch.delitem(sys.modules, "own_parts")
    (place / "own_parts.py").unlink()
    done = command("evaluate", str(only_run(place)))
    assert done.status == 2
    assert all(words in done.err for words in ("config.yaml", "own_parts.Net", "No module named", "where you stand"))


@pytest.mark.slow
def test_a_search_takes_another_model_too(command, place):
    words = ["--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=1", "model._target_=own_parts.Net"]
    done = command(*words)
    assert done.status == 0, done.err


def test_a_key_that_was_typed_is_refused_and_one_that_is_taken_stays(command, place):
    done = command("train", *SMALL, "model._target_=own_parts.Net", "model.channels=[1,2,3]")
    assert done.status == 2
    assert "channels" in done.err
    assert command("train", *SMALL, "model._target_=own_parts.Any").status == 0
    done = command("train", *SMALL, "optimizer=sgd", "optimizer._target_=torch.optim.Adam")
    assert done.status == 0, done.err
    assert "optimizer: torch.optim.Adam does not take momentum" in done.out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_parts.Net +model.outputs=7", ["number of outputs of the model is 7", "at least 10"]),
        ("own_parts.NoLogits", ["what the model makes of [2, 1, 28, 28] is [1568]", "logits [2, classes]"]),
        ("own_parts.Nett", ["own_parts.Nett", "Nett"]),
        ("own_part.Net", ["own_part"]),
    ],
)
def test_what_is_wrong_with_it_is_said(command, place, monkeypatch, name, words):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "own_parts.*,own_part.*")
    done = command("train", *SMALL, *f"model._target_={name}".split())
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert not list(Path("outputs").glob("runs/*/run.json"))


def test_our_parts_are_what_the_interfaces_ask_for():
    for protocol, part in ((interfaces.Network, SmallCNN), (interfaces.RateSchedule, Cosine)):
        assert [name for name in interfaces.members(protocol) if not hasattr(part, name)] == []
