"""Checkpoints on a disk that is not to be trusted, and from people who are not."""

import collections
import copy
import functools
import io
import json
import logging
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, info

from mnist_exp.config.job import compose
from mnist_exp.errors import UserError
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training.checkpoints import Checkpoints, load, save
from mnist_exp.training.components import Components, build_components
from mnist_exp.training.state import State


def test_no_damage_changes_a_weight_silently(tmp_path):
    torch.manual_seed(0)
    weights = {f"layer{n}": torch.randn(40, 60) for n in range(8)}
    save(tmp_path / "whole.pth", {"model": weights, "epoch": 3})
    content = (tmp_path / "whole.pth").read_bytes()
    draws, path, noticed = np.random.default_rng(0), tmp_path / "damaged.pth", []
    for case in range(300):
        at, size = int(draws.integers(0, len(content))), int(draws.choice([1, 16, 512, 4096]))
        block = bytes(size) if case % 2 else draws.bytes(size)
        path.write_bytes((content[:at] + block + content[at + size :])[: len(content)])
        try:
            state = load(path, weights)
        except UserError as error:
            noticed.append(str(error))
        else:  # what was hit is of no meaning, such as padding
            assert state["epoch"] == 3
            assert all(torch.equal(state["model"][name], weights[name]) for name in weights)
    assert len(noticed) > 150
    assert all("damaged.pth" in message for message in noticed)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nothing.pth", weights)


@functools.cache
def components() -> tuple[Components, dict[str, Any], dict[str, Any]]:
    """Those of a small run, and their model and optimizer at the start."""
    small = ["model=small_cnn", "model.channels=[2,3,4]", "data.train_limit=64", "data.batch_size=16"]
    parts = build_components(compose("data=sample", *small, "data.val_size=20", "schedule.initial_epochs=2"))
    return parts, copy.deepcopy(parts.model.state_dict()), copy.deepcopy(parts.optimizer.state_dict())


def take_steps(state: State, count: int) -> None:
    for _ in range(count):
        state.optimizer.zero_grad()
        state.model(torch.rand(8, 1, 28, 28)).square().sum().backward()
        state.optimizer.step()
        state.step, state.total_steps = state.step + 1, state.total_steps + 1


class Stand:
    """A run cut off in its second epoch: last.pth is of the middle of it, previous.pth of its start."""

    def __init__(self, place: Path):
        (place / "checkpoints").mkdir()
        self.run = RunFolder(place, {"prefix": "p", "status": "interrupted"})
        self.parts, *_ = components()
        self.last = place / "checkpoints" / "last.pth"
        state, checkpoints = self.start(), self.checkpoints()
        state.begin_epoch()
        take_steps(state, 4)
        checkpoints.save_best(1, 50.0, 1.0, self.parts.model.state_dict())
        state.end_epoch()
        checkpoints.save_last(state.state_dict())
        state.begin_epoch()
        take_steps(state, 2)
        checkpoints.save_last(state.state_dict())
        self.content = self.last.read_bytes()
        self.saved = torch.load(self.last, weights_only=True)

    def start(self) -> State:
        parts, model, optimizer = components()
        parts.model.load_state_dict(model)
        parts.optimizer.load_state_dict(copy.deepcopy(optimizer))
        return State(parts, 1)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.run, 3, self.parts.model.state_dict())

    def go_on(self) -> tuple[dict[str, Any] | None, Checkpoints]:
        """Load the newest checkpoint that can be gone on from, and go on; nothing has changed before that."""
        state, checkpoints = self.start(), self.checkpoints()
        saved = checkpoints.load_last(state)
        _, model, optimizer = components()
        assert all(torch.equal(value, model[name]) for name, value in self.parts.model.state_dict().items())
        assert str(self.parts.optimizer.state_dict()) == str(optimizer)
        if saved is not None:
            state.load_state_dict(saved)
            take_steps(state, 1)
            for entry in checkpoints.best:
                self.parts.model.load_state_dict(checkpoints.load_best(entry["epoch"]))
            save(self.last.with_name("again.pth"), state.state_dict())
        return saved, checkpoints


@pytest.fixture
def stand(place) -> Stand:
    return Stand(place)


def whole_tree(depth: int) -> list:
    tree: list = [1]
    for _ in range(depth):
        tree = [tree, tree]
    return tree


def in_optimizer(key: str, value: Any) -> Callable[[dict], None]:
    return lambda saved: saved["optimizer"]["base"]["state"][0].update({key: value})


def in_group(key: str, value: Any) -> Callable[[dict], None]:
    return lambda saved: saved["optimizer"]["base"]["param_groups"][0].update({key: value})


def without(*keys: str) -> Callable[[dict], None]:
    def delete(saved: dict) -> None:
        for key in keys[:-1]:
            saved = saved[key]
        del saved[keys[-1]]

    return delete


def having(**values: Any) -> Callable[[dict], None]:
    return lambda saved: saved.update(values)


BEST = {"epoch": 1, "val_acc": 50.0, "val_loss": 1.0}
WEIGHT = "features.0.weight"
CHANGES: dict[str, tuple[Callable[[dict], None], str]] = {
    "no epoch": (without("epoch"), "epoch: Field required"),
    "no model": (without("model"), "model: Field required"),
    "no random numbers": (without("rng", "device"), "rng.device: Field required"),
    "no average": (having(average=None), "another average of weights"),
    "an epoch below": (having(epoch=0), "epoch: Input should be greater than or equal to 1"),
    "an epoch beyond": (having(epoch=10**9), "epoch 1,000,000,000, step 2, beyond this run"),
    "an epoch of words": (having(epoch="../../x"), "epoch: Input should be a valid integer"),
    "a half epoch": (having(epoch=1.5), "epoch: Input should be a valid integer"),
    "true": (having(epoch=True), "epoch: Input should be a valid integer"),
    "a step beyond": (having(step=5), "epoch 2, step 5, beyond this run"),
    "a negative step": (having(step=-1), "step: Input should be greater"),
    "steps that were not taken": (having(total_steps=7), "has taken 7 steps by epoch 2, step 2"),
    "a number too long": (having(total_steps=2**70), "holds a int that no checkpoint has"),
    "another rate": (having(base_lr=0.5), "with the rate 0.5, not 0.01"),
    "no rate": (having(base_lr=float("nan")), "base_lr: Input should be"),
    "a weight of words": (
        lambda saved: saved["model"].update({WEIGHT: "x"}),
        f"model.{WEIGHT}: Input should be an inst",
    ),
    "an average of another shape": (
        lambda saved: saved["average"].update({f"module.{WEIGHT}": torch.zeros(1)}),
        "another average of weights",
    ),
    "a weight that is not there": (
        lambda saved: saved["model"].update({WEIGHT: torch.zeros(1).expand(2, 1, 5, 5)}),
        "bytes that are not there",
    ),
    "a terabyte of one number": (in_optimizer("momentum_buffer", torch.zeros(1).expand(10**12)), "are not there"),
    "a sparse tensor": (in_optimizer("momentum_buffer", torch.eye(3).to_sparse()), "torch.sparse_coo"),
    "a tensor of nothing": (in_optimizer("momentum_buffer", torch.zeros(3, device="meta")), "on meta"),
    "momentum of another shape": (in_optimizer("momentum_buffer", torch.zeros(3)), "cannot be gone on from"),
    "momentum of words": (in_optimizer("momentum_buffer", "x"), "cannot be gone on from"),
    "another recipe": (in_group("weight_decay", 0.5), "whose weight_decay is 0.5, not 1.8e-05"),
    "a state of what is no weight": (
        lambda saved: saved["optimizer"]["base"]["state"].update({99: 0.5}),
        "cannot be gone on from",
    ),
    "an endless counter": (lambda saved: saved["optimizer"].update(counter=float("inf")), "cannot be gone on from"),
    "slow weights of another number": (lambda saved: saved["optimizer"]["slow"].pop(), "cannot be gone on from"),
    "no optimizer at all": (having(optimizer={}), "cannot be gone on from: 'base'"),
    "random numbers of another size": (
        lambda saved: saved["rng"].update(host=torch.zeros(9, dtype=torch.uint8)),
        "cannot be gone on from",
    ),
    "random numbers that are none": (
        lambda saved: saved["rng"].update(torch=torch.zeros(5056, dtype=torch.uint8)),
        "cannot be gone on from",
    ),
    "other sums": (having(sums=torch.zeros(3)), "cannot be gone on from"),
    "best by another name": (
        having(best=[{**BEST, "epoch": "../../x"}]),
        "best.0.epoch: Input should be a valid integer",
    ),
    "best of the future": (having(best=[{**BEST, "epoch": 2}]), "best epochs that cannot be: [2]"),
    "best twice": (having(best=[BEST, BEST]), "best epochs that cannot be: [1, 1]"),
    "lists in lists": (having(note=whole_tree(60)), "too deep or too long"),
    "many lists in few": (having(note=[[[1] * 1000] * 1000] * 1000), "too deep or too long"),
    "a set": (having(note={1, 2}), "holds a set that no checkpoint has"),
    "not ours": (having(format="mine"), "is not a checkpoint of mnist_exp"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_is_wrong_falls_back_to_the_one_before(stand, caplog, name):
    change, words = CHANGES[name]
    change(stand.saved)
    torch.save(stand.saved, stand.last)
    caplog.clear()
    saved, _ = stand.go_on()
    assert saved is not None
    assert (saved["epoch"], saved["step"]) == (2, 0)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(str(stand.last))
    assert words in told
    assert told.endswith("going on from previous.pth (epoch 2)")
    assert len(told) < 700


def test_a_state_of_another_device_goes_on_with_the_kernels_of_this_one(stand, caplog):
    in_group("fused", True)(stand.saved)  # as on a GPU
    torch.save(stand.saved, stand.last)
    saved, _ = stand.go_on()
    assert (saved["epoch"], saved["step"]) == (2, 2)
    assert not stand.parts.optimizer.param_groups[0]["fused"]


def compressed(content: bytes) -> bytes:
    """The same parts, and 200 MB of zeros, compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as parts, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in parts.namelist():
            bomb.writestr(name, parts.read(name))
        bomb.writestr("archive/data/99", bytes(200 << 20))
    return packed.getvalue()


def listed_often(content: bytes) -> bytes:
    """A list of a million parts."""
    entry = b"PK\1\2" + struct.pack("<HHHHHIIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    central = entry * 1_000_000
    return b"PK" + central + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, len(central), 2, 0)


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to(path), "does not exist"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "is larger than"),
        (compressed, "it is compressed"),
        (listed_often, "too many files"),
        (lambda content: b"", "torn"),
    ],
    ids=["pipe", "folder", "device", "loop", "terabyte", "bomb", "list", "empty"],
)
def test_what_stands_in_the_place_of_a_checkpoint_is_not_read(stand, caplog, put, words):
    stand.last.unlink()
    if put in (compressed, listed_often) or words == "torn":
        stand.last.write_bytes(put(stand.content))
    else:
        put(stand.last)
    caplog.clear()
    saved, _ = stand.go_on()
    assert saved is not None
    assert saved["step"] == 0
    assert "last.pth" in caplog.text
    assert words in caplog.text


def test_a_best_checkpoint_that_is_damaged_is_not_among_the_best(stand, caplog):
    stand.run.checkpoint(1).write_bytes(b"torn")
    saved, checkpoints = stand.go_on()
    assert saved["step"] == 2
    assert checkpoints.best == []
    assert "epoch 1 is not among the best any more" in caplog.text
    save(stand.run.checkpoint(1), {"epoch": 1, "model": {"x": torch.zeros(2)}})
    assert stand.go_on()[1].best == []
    assert "holds the weights of another model" in caplog.text


def test_a_run_is_not_scored_by_damaged_weights(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setenv("STOP_IN_EPOCH", "2")
    cut = [*SMALL, "+logger.stop._target_=stopper.Logger", "hydra.run.dir=cut"]
    assert command(*cut).status == 9
    monkeypatch.delenv("STOP_IN_EPOCH")
    best = json.loads((place / "cut" / "run.json").read_text())["best_epoch"]
    (weights,) = (place / "cut" / "checkpoints").glob(f"*_ckpt_epoch{best}.pth")
    read = Checkpoints.load_last

    def damaged_afterwards(self, state=None):
        saved = read(self, state)
        weights.write_bytes(weights.read_bytes()[:-99])
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "load_last", damaged_afterwards)
        done = command("train", "resume=cut")
    assert done.status == 1
    assert weights.name in done.err
    assert f"To have the run scored without epoch {best}, delete it and type resume=" in done.err
    weights.unlink()
    done = command("train", "resume=cut")
    assert done.status == 0, done.err
    about = info(place / "cut")
    assert (about["status"], about["test_scored"]) == ("finished", 1), "damaged weights scored nothing"
    kept = [int(path.stem.rpartition("epoch")[2]) for path in (place / "cut" / "checkpoints").glob("*_ckpt_epoch*.pth")]
    assert about["best_epoch"] in (kept or [None])
    done = command("evaluate", "cut")
    assert done.status == 0, done.err


def test_a_warm_restart_needs_whole_weights(command, place):
    assert command(*SMALL, "hydra.run.dir=first").status == 0
    checkpoints = place / "first" / "checkpoints"
    saved = torch.load(checkpoints / "last.pth", weights_only=True)
    del saved["model"]
    torch.save(saved, checkpoints / "last.pth")
    further = ["train", "resume=first", "schedule.extra_epochs=1"]
    done = command(*further, "hydra.run.dir=second")
    assert done.status == 0, done.err
    assert "last.pth is not the state of a training run: model: Field required" in done.out
    shutil.copy(checkpoints / "last.pth", checkpoints / "previous.pth")
    done = command(*further, "hydra.run.dir=third")
    assert done.status == 2
    assert "it must be a run with a readable checkpoint" in done.err
    assert not (place / "third" / "run.json").exists()


THINGS: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, -1, 0, 10**9, 2**63, -(2**70), "../../x", -1.5, True, b"x", 1j)),
    *(lambda value=value: value for value in (float("nan"), float("inf"), torch.float32, {1, 2}, whole_tree(60))),
    *(list, dict, tuple, lambda: collections.Counter("abc"), lambda: [BEST] * 3, lambda: {"a": {"b": torch.zeros(2)}}),
    *(lambda size=size: torch.zeros(size) for size in ((), 0, 1, (3, 5))),
    *(lambda: torch.zeros(1).expand(10**12), lambda: torch.zeros(1, dtype=torch.float64).expand(10**9)),
    *(lambda: torch.eye(3).to_sparse(), lambda: torch.zeros(3, device="meta"), lambda: torch.zeros(2).to(torch.cfloat)),
    *(lambda: torch.zeros(5056, dtype=torch.uint8), lambda: torch.nn.Parameter(torch.zeros(2))),
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from places(below, (*path, key))


def changed_state(stand: Stand, draws: random.Random) -> bytes:
    saved, every = copy.deepcopy(stand.saved), list(places(stand.saved))
    for _ in range(draws.choice([1, 1, 1, 2, 3])):
        depth = draws.choice([1, 2, 9])
        path = draws.choice([path for path in every if len(path) <= depth])
        try:
            at = functools.reduce(lambda inner, key: inner[key], path[:-1], saved)
            at[path[-1]]
        except (KeyError, IndexError, TypeError):  # changed before
            continue
        act = draws.random()
        if act < 0.2 and isinstance(at, dict | list):
            del at[path[-1]]
        elif act < 0.85 and isinstance(at, dict | list):
            at[path[-1]] = draws.choice(THINGS)()
        elif isinstance(at, dict):
            at[draws.choice(["x", 0, None, "epoch"])] = draws.choice(THINGS)()
        elif isinstance(at, list):
            at.append(draws.choice(THINGS)())
    packed = io.BytesIO()
    torch.save(saved, packed)
    return packed.getvalue()


def changed_pickle(stand: Stand, draws: random.Random) -> bytes:
    packed = io.BytesIO()
    parts = zipfile.ZipFile(io.BytesIO(stand.content))
    with zipfile.ZipFile(packed, "w") as archive:  # with the right checksums
        for name in parts.namelist():
            content = parts.read(name)
            if name.endswith("data.pkl") or draws.random() < 0.02:
                content = changed_bytes(content, draws)
            if draws.random() > 0.005:
                archive.writestr(name, content)
    return packed.getvalue()


def changed_bytes(content: bytes, draws: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draws.choice([1, 1, 2, 5, 20])):
        at, act = draws.randrange(len(changed) + 1), draws.random()
        if act < 0.5:
            changed[at : at + 1] = draws.randbytes(1)
        elif act < 0.65:
            changed[at:at] = draws.randbytes(draws.choice([1, 4, 512]))
        elif act < 0.8:
            del changed[at : at + draws.choice([1, 2, 64, 4096])]
        elif act < 0.95:
            size = draws.choice([1, 16, 512])
            changed[at : at + size] = bytes(size)
        else:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("cases", [60, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_any_bytes_at_all_are_told_of_in_a_line(stand, caplog, cases):
    draws, went_on = random.Random(7), collections.Counter[int]()
    caplog.set_level(logging.WARNING)
    for case in range(cases):
        make = draws.choice([changed_state, changed_pickle, lambda stand, draws: changed_bytes(stand.content, draws)])
        stand.last.write_bytes(make(stand, draws))
        caplog.clear()
        saved, _ = stand.go_on()
        assert saved is not None, case
        went_on[saved["step"]] += 1
        told = [record.getMessage() for record in caplog.records]
        if saved["step"] == 0:
            assert len(told) == 1, told
            assert "last.pth" in told[0]
            assert "\n" not in told[0]
    assert went_on[0] > 0.8 * cases, "it is the changed ones that are not gone on from"
