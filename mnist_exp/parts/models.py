"""Networks for 28 x 28 grey images: the wide ResNet of ObsCure MNIST, a small CNN, and ghost batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_exp.checked import Count, checked

GHOSTS = "neighbours"  # which images of a batch form a ghost; kept in run.json, as older versions dealt them otherwise
Ghost = Annotated[int, Field(ge=1, description="null: plain BatchNorm")]
Classes = Annotated[int, Field(ge=2)]
Width = Annotated[int, Field(ge=1, le=65536)]
Widths = Annotated[Sequence[Width], Field(min_length=1)]
Blocks = Annotated[int, Field(ge=1, le=1000)]


@checked
class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training statistics come from ghost batches instead of the whole batch.

    A batch of N images is cut, in its order, into ``K = ceil(N / ghost_batch_size)`` ghosts whose sizes differ by at most
    one, so no ghost is larger than ``ghost_batch_size`` and a last batch that does not divide has no tiny remainder. Each
    ghost is normalised with its own mean and variance. The running statistics move once a batch, towards the average
    of the ghosts' (weighted by their sizes). With ``ghost_batch_size >= N``, and in evaluation, this is BatchNorm2d.

    A batch comes in random order, so neighbours are random images; where mixing pairs an image with the one before, both
    are of one ghost. (Runs whose run.json names no ``ghosts`` were of an older version: there image i was of ghost i
    modulo K.)

    Input and output: float [N, C, H, W], in any memory format, which is kept.

    Source: Hoffer, Hubara, Soudry, "Train longer, generalize better" (2017), https://arxiv.org/abs/1705.08741.
    """

    def __init__(self, num_features: int, ghost_batch_size: Count, eps: float = 1e-5, momentum: float | None = 0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_batch_size = ghost_batch_size

    def sizes(self, n: int) -> list[int]:
        """Return how many of a batch of ``n`` images each ghost has, in their order."""
        ghosts = -(-n // self.ghost_batch_size)
        size, larger = divmod(n, ghosts)
        return [size + 1] * larger + [size] * (ghosts - larger)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) <= self.ghost_batch_size:  # in evaluation any size, also where it is exported
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum None means a cumulative average, as in BatchNorm2d; swa_utils.update_bn relies on it
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        sizes = self.sizes(len(x))
        normalise = self._one_by_one if x.device.type == "cpu" else self._at_once
        out, mean, var = normalise(x, sizes)
        self.running_mean.lerp_(_weighted(mean, sizes), momentum)
        self.running_var.lerp_(_weighted(var, sizes), momentum)
        return out

    def _one_by_one(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x`` normalised, mean and variance of each ghost [K, C]: a fused kernel each, best on a CPU."""
        mean, var = torch.zeros(2, len(sizes), self.num_features, device=x.device, dtype=self.weight.dtype)
        outputs = [
            F.batch_norm(ghost, mean[k], var[k], self.weight, self.bias, True, 1.0, self.eps)
            for k, ghost in enumerate(x.split(sizes))
        ]
        return torch.cat(outputs), mean, var

    def _at_once(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as ``_one_by_one``: few kernels for all ghosts, best on a GPU, and to be compiled."""
        outputs, means, variances = [], [], []
        for size in dict.fromkeys(sizes):  # two at most
            ghosts = sizes.count(size)
            start = 0 if size == sizes[0] else len(x) - size * ghosts
            part = x[start : start + size * ghosts].unflatten(0, (ghosts, size))
            # over the unbiased variance BatchNorm2d takes the running average, by the other it divides
            var, mean = torch.var_mean(part.to(self.weight.dtype), (1, 3, 4), correction=0)
            scale = self.weight * (var + self.eps).rsqrt()
            shift = self.bias - mean * scale
            scale, shift = (value[:, None, :, None, None] for value in (scale, shift))
            outputs.append((part * scale + shift).to(x.dtype).flatten(0, 1))
            count = size * x.shape[2] * x.shape[3]
            means.append(mean.detach())
            variances.append(var.detach() * (count / max(count - 1, 1)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), torch.cat(means), torch.cat(variances)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"


def _weighted(values: Tensor, sizes: list[int]) -> Tensor:
    """Return the mean [C] of the ghosts' ``values`` [K, C], each weighted by its size."""
    larger = sizes.count(sizes[0])
    return (values[:larger].sum(0) * sizes[0] + values[larger:].sum(0) * sizes[-1]) / sum(sizes)


def _norm(channels: int, ghost_batch_size: int | None) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels) if ghost_batch_size is None else GhostBatchNorm2d(channels, ghost_batch_size)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut: float [N, in, H, W] to [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, ghost_batch_size: int | None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = _norm(out_channels, ghost_batch_size)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = _norm(out_channels, ghost_batch_size)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, _norm(out_channels, ghost_batch_size))

    def forward(self, x: Tensor) -> Tensor:
        # in place where autograd allows it: a third less memory, so fewer page faults, so faster on a CPU
        out = F.relu_(self.norm1(self.conv1(x)))
        return F.relu_(self.norm2(self.conv2(out)).add_(self.shortcut(x)))


@checked
class WideSmallResNet(nn.Module):
    """The network of ObsCure MNIST: a 3 x 3 stem, one stage of ``blocks`` BasicBlocks per entry of ``channels``
    (stride 1 in the first, 2 in the others), global average pooling and a linear layer.

    The defaults have 1,084,010 parameters. Input: float [N, 1, 28, 28]; output: logits [N, num_classes].
    ``ghost_batch_size`` None means plain BatchNorm2d.

    Source: Zagoruyko, Komodakis, "Wide Residual Networks" (2016), https://arxiv.org/abs/1605.07146.
    """

    def __init__(
        self,
        blocks: Blocks = 3,
        channels: Widths = (32, 64, 128),
        ghost_batch_size: Ghost | None = 32,
        num_classes: Classes = 10,
    ):
        super().__init__()
        width = channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), _norm(width, ghost_batch_size), nn.ReLU(inplace=True)
        )
        stages = []
        for stage, out in enumerate(channels):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(width, out, stride, ghost_batch_size))
                width = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


@checked
class SmallCNN(nn.Module):
    """Three convolutions and a linear layer, 29,000 parameters: a minute of training on a laptop gives over 99 %.

    Input: float [N, 1, 28, 28]; output: logits [N, num_classes].
    """

    def __init__(
        self,
        channels: Annotated[Sequence[Width], Field(min_length=3, max_length=3)] = (16, 32, 64),
        ghost_batch_size: Ghost | None = None,
        num_classes: Classes = 10,
    ):
        super().__init__()
        a, b, c = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, a, 5, 2, 2, bias=False),  # 28 -> 14
            _norm(a, ghost_batch_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(a, b, 3, 1, 1, bias=False),
            nn.MaxPool2d(2),  # 14 -> 7, before the norm: four times fewer values to normalise
            _norm(b, ghost_batch_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, c, 3, 1, 1, bias=False),
            nn.MaxPool2d(2),  # 7 -> 3
            _norm(c, ghost_batch_size),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(c * 9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


@checked
class SprintCNN(nn.Module):
    """Three convolutions without padding and a linear layer, 65,000 parameters, for 99 % in one epoch.

    Wider than SmallCNN at about its cost: the second convolution sees 12 x 12 pixels instead of 14 x 14, the third 5 x 5
    instead of 7 x 7. Input: float [N, 1, 28, 28]; output: logits [N, num_classes].
    """

    def __init__(
        self,
        channels: Annotated[Sequence[Width], Field(min_length=3, max_length=3)] = (32, 48, 96),
        ghost_batch_size: Ghost | None = None,
        num_classes: Classes = 10,
    ):
        super().__init__()
        a, b, c = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, a, 5, 2, bias=False),  # 28 -> 12
            _norm(a, ghost_batch_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(a, b, 3, bias=False),
            nn.MaxPool2d(2),  # 10 -> 5
            _norm(b, ghost_batch_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, c, 3, bias=False),  # 5 -> 3
            _norm(c, ghost_batch_size),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(c * 9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


@checked
class PlainCNN(nn.Module):
    """Convolutions without padding or shortcuts, and a linear layer: 307,370 parameters.

    Each of the three ``channels`` has a pair of 3 x 3 convolutions or, with ``kernel_size`` 5, one of 5 x 5, which sees as
    much in half the time. The maps shrink from 28 x 28 to 24 x 24, are pooled to 12 x 12, and shrink to 8 x 8 and 4 x 4.
    Input: float [N, 1, 28, 28]; output: logits [N, num_classes].

    After An et al., "An Ensemble of Simple Convolutional Neural Network Models for MNIST Digit Recognition" (2020),
    https://arxiv.org/abs/2008.10400, which have no pooling, more layers and several times the cost.
    """

    def __init__(
        self,
        channels: Annotated[Sequence[Width], Field(min_length=3, max_length=3)] = (32, 64, 128),
        kernel_size: Literal[3, 5] = 3,
        ghost_batch_size: Ghost | None = None,
        num_classes: Classes = 10,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for stage, out in enumerate(channels):
            for last in (False, True) if kernel_size == 3 else (True,):
                layers.append(nn.Conv2d(width, out, kernel_size, bias=False))
                if stage == 0 and last:
                    layers.append(nn.MaxPool2d(2))  # before the norm: four times fewer values to normalise
                layers += [_norm(out, ghost_batch_size), nn.ReLU(inplace=True)]
                width = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))
