"""What ``explain`` says: of every group, choice and key, and that it is what a run is composed of."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mnist_exp import compose
from mnist_exp.config.explained import Explained
from mnist_exp.config.recipe import flatten


@pytest.fixture(scope="module")
def known() -> Explained:
    return Explained()


def test_every_key_of_every_file_has_an_explanation(known):
    silent = []
    for choice in known.choices:
        for key, entry in choice.entries.items():
            leaf = not isinstance(entry.value, dict) or f"{key}._target_" in choice.entries
            if leaf and not known.key(key).meaning:
                silent.append(f"{choice.group}/{choice.name}: {key}")
    assert not silent
    assert all(choice.about and choice.commands for choice in known.choices)
    assert all(known.purposes.get(group) for group in known.groups)


def test_defaults_are_those_of_a_run(known):
    composed = flatten(OmegaConf.to_container(compose()))
    composed = {key: value for key, value in composed.items() if not key.rpartition(".")[2].startswith("_")}
    told = {key: known.key(key) for key in known.known}
    usual = {k: v.default for k, v in told.items() if not v.only and not k.startswith("hydra.") and v.default != {}}
    assert {k: v for k, v in usual.items() if not isinstance(v, dict)} == {k: v for k, v in composed.items() if v != {}}


def test_a_key_is_told_with_its_range_and_where_it_is_set(command):
    done = command("explain", "optimizer.lr", "batch_size", "pct_start")
    assert done.status == 0, done.err
    text = " ".join(done.out.split())
    assert "the learning rate" in text
    assert "data.batch_size training images a step takes a whole number at least 1 default 256" in text
    assert "only with schedule=one_cycle" in text
    assert "argument of mnist_exp.parts.schedule.OneCycle" in text
    places = re.findall(r"(conf/\S+\.yaml):(\d+) +(\S+)", done.out)
    assert "0.006" in {value for _, _, value in places}
    assert len(places) > 8
    root = Path(__file__).parents[2]
    for file, line, value in places:
        assert value in (root / file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("width", [60, 200])
def test_groups_and_choices_are_told(command, monkeypatch, width):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(width))

    def told(*names: str) -> str:
        done = command("explain", *names)
        assert done.status == 0, done.err
        return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", done.out).split())

    everything = told()
    for word in ("optimizer", "lookahead_sgd*", "hydra/launcher", "save_prefix"):
        assert word in everything
    group = told("schedule")
    assert "schedule=one_cycle One cycle" in group
    assert "schedule.swa_lr = 0.01" in group
    choice = told("experiment=fast")
    assert "python -m mnist_exp train experiment=fast" in choice
    assert "model=plain_cnn_5x5" in choice
    assert "schedule.initial_epochs=3" in choice


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimiser", ["explain optimiser", "did you mean optimizer?"]),
        ("optimizer=adm", ["optimizer=adm", "adamw, lookahead_sgd, sgd"]),
        ("qqqqqq", ["no such group or key", "lists all groups"]),
        ("_target_", ["no such group or key"]),
    ],
)
def test_what_is_not_there_is_named(command, name, words):
    done = command("explain", "seed", name)
    assert (done.status, done.out) == (2, "")
    assert all(word in done.err for word in words)


def test_help_ends_with_how_to_ask(command):
    done = command("train", "--help")
    assert "explain [GROUP|GROUP=CHOICE|KEY ...]" in " ".join(done.out.split()[-30:])
