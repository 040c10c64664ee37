"""Lookahead against its definition, and as a torch optimizer among others."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from mnist_exp.errors import UserError
from mnist_exp.parts.optim import Lookahead


def problem(seed: int = 0) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(5, 3), torch.randn(20, 5)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, n: int) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("base", "options"), [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}), (torch.optim.AdamW, {})]
)
def test_lookahead_follows_its_definition(base, options):
    model, x = problem()
    reference = copy.deepcopy(model)
    optimizer = Lookahead(model.parameters(), base, k=3, alpha=0.25, lr=0.1, **options)
    inner = base(reference.parameters(), lr=0.1, **options)
    slow = [p.detach().clone() for p in reference.parameters()]
    for step in range(1, 11):
        steps(model, optimizer, x, 1)
        steps(reference, inner, x, 1)
        if step % 3 == 0:
            with torch.no_grad():
                for s, p in zip(slow, reference.parameters(), strict=True):
                    s += 0.25 * (p - s)
                    p.copy_(s)
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("before", [0, 4])
def test_state_dict_round_trip_continues_identically(before):
    model, x = problem()
    optimizer = Lookahead(model.parameters(), torch.optim.SGD, k=5, alpha=0.25, lr=0.1, momentum=0.9)
    steps(model, optimizer, x, before)
    twin = copy.deepcopy(model)
    other = Lookahead(twin.parameters(), torch.optim.SGD, k=5, alpha=0.25, lr=0.5, momentum=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, x, 7)
    steps(twin, other, x, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_closure_groups_and_learning_rate_reach_the_base():
    model, x = problem()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.0}]
    optimizer = Lookahead(groups, partial(torch.optim.SGD), k=2, alpha=0.5, lr=0.1)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) > 0
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    weight = model.weight.detach().clone()
    optimizer.counter = 0
    optimizer.step(closure)
    assert torch.equal(model.weight, weight)
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra], "lr": 0.1})
    extra.grad = torch.ones(2)
    optimizer.step()
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 3
    assert extra.detach().tolist() == pytest.approx([0.95, 0.95])  # one step of 0.1, then halfway back


@pytest.mark.parametrize("fused", [None, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    model, x = problem()
    twin = copy.deepcopy(model)
    options = {"k": 2, "alpha": 0.25, "lr": 0.1, "momentum": 0.9}
    optimizer = Lookahead(model.parameters(), torch.optim.SGD, fused=fused, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, counted in ((1.0, 1), (float("inf"), 1), (1.0, 0), (float("nan"), 0), (1.0, 1), (1.0, 0)):
        optimizer.zero_grad()
        scaler.scale((model(x) * factor).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state_dict()["counter"] == counted
    # as those steps that were taken, without any scaler
    steps(twin, Lookahead(twin.parameters(), torch.optim.SGD, **options), x, 4)
    for ours, plain in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, plain)


def test_impossible_values_name_the_parameter():
    with pytest.raises(UserError, match=r"k"):
        Lookahead([nn.Parameter(torch.ones(1))], torch.optim.SGD, k=0, lr=0.1)
    with pytest.raises(UserError, match=r"alpha"):
        Lookahead([nn.Parameter(torch.ones(1))], torch.optim.SGD, alpha=1.5, lr=0.1)


def test_lookahead_goes_on_with_the_state_of_another_k():
    def stepped(optimizer, steps):
        for _ in range(steps):
            weight.grad = torch.ones(1)
            optimizer.step()

    weight = torch.nn.Parameter(torch.zeros(1))
    before = Lookahead([weight], torch.optim.SGD, lr=0.1, k=10, alpha=0.5)
    stepped(before, 7)
    after = Lookahead([weight], torch.optim.SGD, lr=0.1, k=5, alpha=0.5)
    after.load_state_dict(before.state_dict())
    stepped(after, 3)
    assert after.slow[0].item() == pytest.approx(-0.5), "after 7 of 10 and 3 of 5 steps, half the way to -1"
    for counter in (float("inf"), float("nan"), "x"):
        with pytest.raises((OverflowError, ValueError)):
            after.load_state_dict(before.state_dict() | {"counter": counter})
