"""Random numbers: each seed has streams of its own, and a run goes on by the rule that it was begun with."""

import json

import numpy as np
import pytest
import stopper
import torch
from helpers import SMALL, assert_same_result, info

from mnist_exp import compose
from mnist_exp.data.splits import LoaderSplit
from mnist_exp.training.components import Components, build_components
from mnist_exp.training.state import State, stream_seed


def draws(seed: int) -> list[float]:
    return torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()


def test_seeds_that_differ_in_any_bit_have_different_streams():
    others = [42 ^ (1 << bit) for bit in range(32)]
    for stream in range(4):
        assert draws(stream_seed(42, 3, stream)) not in [draws(stream_seed(other, 3, stream)) for other in others]
    assert draws(stream_seed(42, 3, 0, rule=0)) == draws(stream_seed(298, 3, 0, rule=0))  # as they were


@pytest.mark.parametrize(("epoch", "stream"), [(1, 0), (1, 3), (7, 1), (250, 2)])
def test_the_low_half_of_a_stream_tells_the_seed(epoch, stream):
    def low(seed: int) -> int:
        return stream_seed(seed, epoch, stream) % 2**32

    inverse = pow(low(1) - low(0), -1, 2**32)  # exists for odd factors only: then it is one to one
    for seed in (0, 1, 42, 298, 2**24, 2**31, 2**32 - 1):
        assert (low(seed) - low(0)) * inverse % 2**32 == seed
        assert 0 <= stream_seed(seed, epoch, stream) < 2**64  # what torch takes


def test_epochs_and_streams_of_a_run_differ():
    for seed in range(20):
        # the low half, which is all that a CPU takes
        low = {stream_seed(seed, epoch, stream) % 2**32 for epoch in range(1, 300) for stream in range(4)}
        assert len(low) == 299 * 4


def test_a_run_trained_further_draws_as_if_it_went_on():
    parts = build_components(compose(*SMALL[1:], "data=sample", "model=small_cnn"))
    whole, further = State(parts, 7), State(parts, 7, epochs_before=4)
    whole.epoch = 5
    assert (further.epoch, further.order_seed) == (1, whole.order_seed)
    for state in (whole, further):
        state.begin_epoch()
        state.begin_group()
    for name in ("device_draws", "host_draws"):
        assert torch.equal(getattr(whole, name).get_state(), getattr(further, name).get_state())


def test_two_seeds_train_on_different_batches(command, place):
    for seed in (42, 298):
        assert command(*SMALL, f"seed={seed}", "hydra.run.dir=" + str(seed)).status == 0
    states = [torch.load(place / run / "checkpoints" / "last.pth", weights_only=True) for run in ("42", "298")]
    for stream in ("device", "host", "torch"):
        assert not torch.equal(states[0]["rng"][stream], states[1]["rng"][stream])


@pytest.mark.parametrize("rule", [0, 1])
def test_a_run_goes_on_by_the_rule_it_was_begun_with(command, place, monkeypatch, rule):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "schedule.initial_epochs=3", "+logger.stop._target_=stopper.Logger"]
    with monkeypatch.context() as patch:  # as the version before did
        patch.setattr("mnist_exp.training.experiment.STREAMS", rule)
        assert command(*arguments, "hydra.run.dir=whole").status == 0
        patch.setenv("STOP_IN_EPOCH", "2")
        assert command(*arguments, "hydra.run.dir=cut").status == 9
    for run in ("whole", "cut"):
        about = info(place / run)
        assert about["streams"] == rule
        if rule == 0:
            del about["streams"]  # it did not say so
        (place / run / "run.json").write_text(json.dumps(about))
    assert command("train", "resume=cut").status == 0
    assert_same_result(place / "whole", place / "cut")
    assert command(*arguments, "hydra.run.dir=today").status == 0
    assert info(place / "today")["streams"] == 2
    losses = [info(place / run)["metrics"]["val_loss"] for run in ("whole", "today")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("step", [33, 70])  # of 75, 32 of which are transformed at once
def test_a_run_goes_on_among_batches_that_are_transformed_together(command, place, monkeypatch, step):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "data.train_limit=300", "data.batch_size=4", "model._target_=stopper.Net"]
    with monkeypatch.context() as patch:
        patch.setattr(Components, "together", 32)
        assert command(*arguments, "hydra.run.dir=whole").status == 0
        patch.setenv("INTERRUPT_IN_STEP", str(step))
        assert command(*arguments, "hydra.run.dir=cut").status == 130
        assert torch.load("cut/checkpoints/last.pth", weights_only=True)["step"] == step
        patch.delenv("INTERRUPT_IN_STEP")
        assert command("train", "resume=cut").status == 0
    assert_same_result(place / "whole", place / "cut")


def test_a_transform_of_ones_own_gets_batch_by_batch(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "+augment.strong.alike._target_=stopper.Alike", "schedule=cosine"]
    assert build_components(compose(*SMALL)).together > 1
    stopper.Alike.sizes.clear()
    assert command("train", *arguments).status == 0
    assert set(stopper.Alike.sizes) == {64}


class Noisy(torch.utils.data.Dataset):
    """Images of random numbers from torch, numpy and random."""

    targets = list(range(10)) * 2

    def __len__(self):
        return 20

    def __getitem__(self, index):
        import random

        return torch.rand(1, 28, 28) + np.random.rand() + random.random(), self.targets[index]


def test_an_image_has_its_own_random_numbers_in_whatever_process_it_is_made():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole = [images for images, _ in LoaderSplit(Noisy(), 0).batches(6, seed=5)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    workers = [images for images, _ in LoaderSplit(Noisy(), 2).batches(6, seed=5)]
    assert all(torch.equal(a, b) for a, b in zip(whole, workers, strict=True))
    later = [images for images, _ in LoaderSplit(Noisy(), 0).batches(6, seed=5, skip=2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))
    assert len(torch.cat(whole).unique(dim=0)) == 20
    other = [images for images, _ in LoaderSplit(Noisy(), 0).batches(6, seed=6)]
    assert len(torch.cat([*whole, *other]).unique(dim=0)) == 40
    scores = [torch.cat([images for images, _ in LoaderSplit(Noisy(), 0).batches(6)]) for _ in range(2)]
    assert torch.equal(*scores)
