"""The networks, and ghost batch norm against BatchNorm applied to each ghost on its own."""

import pytest
import torch
from torch import nn

from mnist_exp.errors import UserError
from mnist_exp.parts.models import GhostBatchNorm2d, PlainCNN, SmallCNN, SprintCNN, WideSmallResNet


def test_the_original_network_has_its_parameters_and_shape():
    model = WideSmallResNet()
    assert sum(p.numel() for p in model.parameters()) == 1_084_010
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [m.stride for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)] == [(2, 2)] * 2
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(m, GhostBatchNorm2d) and m.ghost_batch_size == 32 for m in norms)


def test_small_cnn_is_small():
    assert sum(p.numel() for p in SmallCNN().parameters()) == 29_434
    assert SmallCNN(num_classes=7)(torch.zeros(3, 1, 28, 28)).shape == (3, 7)


@pytest.mark.parametrize(
    ("kernel", "widths", "parameters"), [(3, [4, 4, 8, 8, 9, 9], 307_370), (5, [4, 8, 9], 277_738)]
)
def test_plain_cnn_has_convolutions_without_padding(kernel, widths, parameters):
    model = PlainCNN((4, 8, 9), kernel, ghost_batch_size=32, num_classes=7)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == widths
    assert {(m.kernel_size, m.padding) for m in convolutions} == {((kernel, kernel), (0, 0))}
    assert sum(isinstance(m, GhostBatchNorm2d) for m in model.modules()) == len(widths)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 7)
    assert sum(p.numel() for p in PlainCNN(kernel_size=kernel).parameters()) == parameters


def test_sprint_cnn_is_small():
    assert sum(p.numel() for p in SprintCNN().parameters()) == 65_098
    assert SprintCNN(num_classes=7)(torch.zeros(3, 1, 28, 28)).shape == (3, 7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", ["_one_by_one", "_at_once"])
@pytest.mark.parametrize(("n", "size"), [(64, 16), (60, 16), (33, 32), (7, 3), (5, 1), (256, 32), (216, 32)])
def test_each_ghost_is_normalised_as_batchnorm_would_alone(n, size, way, layout, monkeypatch):
    monkeypatch.setattr(GhostBatchNorm2d, "_one_by_one", getattr(GhostBatchNorm2d, way))
    torch.manual_seed(0)
    ghost = GhostBatchNorm2d(4, size).double()
    with torch.no_grad():
        ghost.weight.uniform_()
        ghost.bias.uniform_()
    x = torch.randn(n, 4, 3, 5).double() * 3 + torch.arange(n)[:, None, None, None]
    x = x.contiguous(memory_format=layout).requires_grad_()
    sizes = ghost.sizes(n)
    ghosts = torch.arange(n).split(sizes)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1

    expected, means, variances = torch.empty(n, 4, 3, 5).double(), [], []
    for indices in ghosts:
        plain = nn.BatchNorm2d(4).double()
        plain.load_state_dict(ghost.state_dict())
        expected[indices] = plain(x[indices])
        means.append(plain.running_mean * len(indices) / n)
        variances.append(plain.running_var * len(indices) / n)
    direction = torch.randn(n, 4, 3, 5).double()
    (wanted,) = torch.autograd.grad((expected * direction).sum(), x)
    out = ghost(x)
    (gradient,) = torch.autograd.grad((out * direction).sum(), x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(gradient, wanted)
    torch.testing.assert_close(ghost.running_mean, sum(means))
    torch.testing.assert_close(ghost.running_var, sum(variances))


def test_ghost_differs_from_plain_batchnorm_unless_it_covers_the_batch():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 4, 4) + torch.arange(16)[:, None, None, None]
    plain = nn.BatchNorm2d(3)
    for size in (16, 100):
        ghost, plain = GhostBatchNorm2d(3, size), nn.BatchNorm2d(3)
        assert torch.equal(ghost(x), plain(x))
        assert torch.equal(ghost.running_var, plain.running_var)
    assert (GhostBatchNorm2d(3, 4)(x) - plain(x)).abs().max() > 0.1


def test_ghost_norm_evaluates_with_running_statistics_and_supports_cumulative_averages():
    torch.manual_seed(0)
    batches = [torch.randn(12, 3, 4, 4) * k + k for k in (1.0, 2.0)]
    norm = GhostBatchNorm2d(3, 4, momentum=None)
    statistics = []
    for x in batches:
        norm(x)
        statistics.append(torch.stack([x[i].mean((0, 2, 3)) for i in torch.arange(12).split(norm.sizes(12))]).mean(0))
    torch.testing.assert_close(norm.running_mean, torch.stack(statistics).mean(0))
    norm.eval()
    x = torch.randn(5, 3, 4, 4)
    wanted = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), wanted)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: WideSmallResNet(ghost_batch_size=0), "ghost_batch_size"),
        (lambda: WideSmallResNet(blocks=0), "blocks"),
        (lambda: WideSmallResNet(channels=[]), "channels"),
        (lambda: SmallCNN(channels=[4, 8]), "channels"),
        (lambda: SmallCNN(num_classes=1), "num_classes"),
        (lambda: PlainCNN(kernel_size=4), "kernel_size is 4; it must be 3 or 5"),
    ],
)
def test_impossible_models_name_the_parameter(build, key):
    with pytest.raises(UserError, match=key):
        build()
