"""Learning rates against torch's schedulers, phases against the original's constants."""

import math
from fractions import Fraction

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from mnist_exp.errors import UserError
from mnist_exp.parts.schedule import Cosine, OneCycle, Schedule


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)


def test_phases_of_the_original():
    short, full = Cosine(2, 2, swa_start=0.8), Cosine(200, 50, swa_start=0.8)
    assert short.swa_epoch == 3
    assert full.swa_epoch == 200
    assert [short.phase(e) for e in range(1, 5)] == ["strong", "strong", "strong+swa", "light+swa"]
    assert not full.light(187)
    assert full.light(188)
    assert Cosine(2, 2).swa_epoch == 5  # none


def test_shares_of_epochs_are_exact():
    for total in range(1, 301):
        for percent in range(101):
            share = Fraction(percent, 100)
            schedule = Cosine(total, 0, final_frac=percent / 100, swa_start=percent / 100)
            assert schedule.swa_epoch == max(1, math.floor(total * share)), (total, percent)
            light = sum(schedule.light(epoch) for epoch in range(1, total + 1))
            assert light == total - math.floor(total * (1 - share)), (total, percent)


def test_cosine_is_torchs():
    schedule = Cosine(12, 8, eta_min=1e-6)
    optimizer = sgd(0.01)
    theirs = CosineAnnealingLR(optimizer, 20, 1e-6)
    for epoch in range(1, 21):
        assert schedule.lr(0.01, epoch, 0, 10) == schedule.lr(0.01, epoch, 9, 10)
        assert schedule.lr(0.01, epoch, 0, 10) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_one_curve_per_phase_cosine_until_averaging_then_swalr():
    schedule = Cosine(30, 10, swa_start=0.5, swa_lr=0.02, swa_anneal_epochs=10)
    rates = [schedule.lr(0.01, epoch, 0, 1) for epoch in range(1, 41)]
    before = schedule.swa_epoch - 1
    assert rates[:before] == sorted(rates[:before], reverse=True)
    optimizer = sgd(0.01)
    cosine = CosineAnnealingLR(optimizer, before, 1e-6)
    for epoch in range(before):
        assert rates[epoch] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        cosine.step()
    swalr = SWALR(optimizer, swa_lr=0.02, anneal_epochs=10)
    for epoch in range(before, 40):
        optimizer.step()
        swalr.step()
        assert rates[epoch] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert rates[-1] == pytest.approx(0.02)


def test_by_the_step_each_curve_reaches_its_end_in_its_last_step():
    schedule = Cosine(6, 4, swa_start=0.7, swa_lr=0.02, swa_anneal_epochs=3, interval="step")
    steps, before = 7, schedule.swa_epoch - 1
    rates = [schedule.lr(0.01, epoch, step, steps) for epoch in range(1, 11) for step in range(steps)]
    optimizer = sgd(0.01)
    cosine = CosineAnnealingLR(optimizer, before * steps - 1, 1e-6)
    for step in range(before * steps):
        assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        cosine.step()
    swa = rates[before * steps :]
    for step in range(3 * steps):
        share = (1 + math.cos(math.pi * (step + 1) / (3 * steps))) / 2
        assert swa[step] == pytest.approx(0.02 + (1e-6 - 0.02) * share, rel=1e-6)
    assert rates[before * steps - 1] == pytest.approx(1e-6)
    assert swa[3 * steps - 1 :] == pytest.approx([0.02] * (len(swa) - 3 * steps + 1))


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_rate_anneals_over_the_averaged_epochs_there_are(interval):
    short, full = (Cosine(*epochs, swa_start=0.8, swa_lr=0.01, interval=interval) for epochs in ((2, 2), (200, 50)))
    assert short.lr(0.01, 4, 99, 100) == pytest.approx(0.01)
    assert short.lr(0.01, 3, 99, 100) == pytest.approx(0.005, rel=1e-3)
    first = full.swa_epoch
    assert full.lr(0.01, first + 9, 99, 100) == pytest.approx(0.01)
    assert full.lr(0.01, first + 4, 99, 100) == pytest.approx(0.005, rel=1e-3)  # torch's ten


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("swa_start", [None, 0.0, 0.5, 1.0])
def test_the_shortest_runs_have_a_rate(interval, swa_start):
    for epochs, steps in ((1, 1), (1, 3), (2, 1)):
        schedule = Cosine(epochs, 0, swa_start=swa_start, interval=interval)
        for epoch in range(1, epochs + 1):
            assert all(1e-6 <= schedule.lr(0.01, epoch, step, steps) <= 0.01 for step in range(steps))
        assert schedule.lr(0.01, 1, 0, steps) == pytest.approx(0.01)


def test_averaging_from_the_first_epoch_by_the_step_ends_at_swa_lr():
    schedule = Cosine(3, 0, swa_start=0.0, swa_lr=0.05, interval="step")
    rates = [schedule.lr(0.01, epoch, step, 3) for epoch in (1, 2, 3) for step in range(3)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == pytest.approx((0.01, 0.05))


def test_one_cycle_is_torchs():
    schedule = OneCycle(3, 1)
    optimizer = sgd(0.01)
    theirs = OneCycleLR(optimizer, 0.01, epochs=4, steps_per_epoch=25, cycle_momentum=False)
    for epoch in range(1, 5):
        for step in range(25):
            assert schedule.lr(0.01, epoch, step, 25) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
            optimizer.step()
            if (epoch, step) != (4, 24):
                theirs.step()


def test_a_warm_restart_trains_the_extra_epochs():
    schedule = Cosine(200, 50, swa_start=0.8).restarted()
    assert schedule.total == 50
    assert schedule.swa_epoch == 40
    with pytest.raises(UserError, match=r"extra_epochs"):
        Schedule(2, 0).restarted()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"swa_start": 1.5}, "swa_start"),
        ({"final_frac": -0.1}, "final_frac"),
        ({"eta_min": -1.0}, "eta_min"),
        ({"swa_lr": 0.0}, "swa_lr"),
        ({"initial_epochs": -1}, "initial_epochs"),
        ({"initial_epochs": 0, "extra_epochs": 0}, "initial_epochs"),
        ({"swa_anneal_epochs": 0}, "swa_anneal_epochs"),
    ],
)
def test_impossible_values_name_the_parameter(options, key):
    with pytest.raises(UserError, match=key):
        Cosine(**{"initial_epochs": 2, "extra_epochs": 2, **options})
