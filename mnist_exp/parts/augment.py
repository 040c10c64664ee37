"""Random transforms of whole batches on the training device, with parameters of its own for each image, and mixing.

A transform is an nn.Module called with (images float [N, 1, H, W], generator on the images' device); every random
number comes from that generator, so a batch is reproduced from its state. Those of this module draw for each image on its
own, so they may be called with several batches at once; somebody's own get batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mnist_exp.checked import Natural, Positive, Share, checked
from mnist_exp.errors import require

Number = TypeVar("Number")
Degrees = Annotated[float, Field(ge=0, le=180)]
Interpolation = Literal["nearest", "bilinear"]
Pair = Annotated[Sequence[Number], Field(min_length=2, max_length=2)]


def _uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(n, device=like.device, generator=generator) * (high - low) + low


@checked
class Compose(nn.Module):
    """Apply named transforms in the order given; a name can be overridden or deleted on the command line."""

    def __init__(self, **transforms: nn.Module):
        super().__init__()
        self.transforms = nn.ModuleDict(transforms)

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        for transform in self.transforms.values():
            images = transform(images, generator)
        return images


@checked
class RandomCrop(nn.Module):
    """Pad by ``padding`` zeros (pixels) and cut the original size out at a random place: torchvision's RandomCrop."""

    def __init__(self, padding: Natural):
        super().__init__()
        self.padding = padding

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        places = torch.randint(0, 2 * self.padding + 1, (2, len(images)), device=images.device, generator=generator)
        return self.crop(images, places[0], places[1])

    def crop(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Cut each image out of its padded self at row ``top`` and column ``left`` (int64 [N], 0..2 * padding)."""
        n, channels, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4)
        rows, columns = padded.shape[2:]
        starts = padded.flatten().unfold(0, width, 1)  # a view: every stretch of a row's width, copied as a whole
        plane = torch.arange(n * channels, device=images.device).view(n, channels, 1) * (rows * columns)
        row = top[:, None, None] + torch.arange(height, device=images.device)
        return starts.index_select(0, (plane + row * columns + left[:, None, None]).flatten()).view(images.shape)


@checked
class RandomRotation(nn.Module):
    """Rotate about the centre by a uniform angle within +-``degrees``; what comes from outside is 0.

    ``interpolation`` "nearest" is torchvision's default.
    """

    def __init__(
        self,
        degrees: Degrees,
        interpolation: Interpolation = "nearest",
    ):
        super().__init__()
        self.degrees = degrees
        self.interpolation = interpolation

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        return self.rotate(images, _uniform(len(images), -self.degrees, self.degrees, images, generator))

    def rotate(self, images: Tensor, degrees: Tensor) -> Tensor:
        """Rotate each square image counter-clockwise by its angle (float [N], degrees)."""
        side = images.shape[-1]
        x = (torch.arange(side, device=images.device) * 2 + 1) / side - 1  # centres of pixels, in -1..1
        plane = torch.complex(x.expand(side, side), x[:, None].expand(side, side))
        turn = torch.polar(torch.ones_like(degrees), torch.deg2rad(degrees))[:, None, None]
        grid = torch.view_as_real(turn * plane)  # F.affine_grid's, in a fraction of its time
        return F.grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


@checked
class RandomAffine(nn.Module):
    """Rotate, scale, shear and shift each image about its centre, at once: torchvision's RandomAffine.

    Uniform are the angle within +-``degrees``, the factor within ``scale``, the shear along x within +-``shear`` degrees
    and the shift within +-``translate`` (shares of height and width, as torchvision's but not rounded to pixels). What
    comes from outside is 0; ``interpolation`` as of RandomRotation.
    """

    def __init__(
        self,
        degrees: Degrees = 0.0,
        translate: Share = 0.0,
        scale: Pair[Positive] = (1.0, 1.0),
        shear: Annotated[float, Field(ge=0, lt=90)] = 0.0,
        interpolation: Interpolation = "bilinear",
    ):
        super().__init__()
        require(scale[0] <= scale[1], "scale", list(scale), "two ascending factors")
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear
        self.interpolation = interpolation

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        degrees = _uniform(n, -self.degrees, self.degrees, images, generator)
        shift = _uniform(2 * n, -self.translate, self.translate, images, generator).view(2, n)
        scale = _uniform(n, self.scale[0], self.scale[1], images, generator)
        shear = _uniform(n, -self.shear, self.shear, images, generator)
        return self.affine(images, degrees, shift, scale, shear)

    def affine(self, images: Tensor, degrees: Tensor, shift: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
        """Map each square image by its angle (float [N], degrees, clockwise), its shift ([2, N]: x, y, shares of the
        side), its factor ([N]) and its shear along x ([N], degrees), as torchvision's ``affine`` does.
        """
        turn, slant = torch.deg2rad(degrees), torch.deg2rad(shear).tan()
        cos, sin = turn.cos() / scale, turn.sin() / scale
        # from places in the output to those in the input: the inverse of rotation times shear times scale
        inverse = torch.stack([cos - slant * sin, sin + slant * cos, -sin, cos]).view(2, 2, -1)
        offset = -2 * (inverse * shift).sum(1)
        theta = torch.cat([inverse, offset[:, None]], 1).permute(2, 0, 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


@checked
class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std`` (of pixels in 0..1)."""

    def __init__(self, mean: float, std: Positive):
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return (images - self.mean) / self.std


@checked
class RandomErasing(nn.Module):
    """With probability ``p`` set a random rectangle to 0: area a share of the image in ``scale``, aspect in ``ratio``.

    As torchvision's RandomErasing, up to ten rectangles are drawn until one fits inside the image; none: no erasing.

    Source: Zhong et al., "Random Erasing Data Augmentation" (2017), https://arxiv.org/abs/1708.04896.
    """

    TRIES = 10

    def __init__(self, p: Share, scale: Pair[Share] = (0.02, 0.15), ratio: Pair[Positive] = (0.3, 3.3)):
        super().__init__()
        require(scale[0] <= scale[1], "scale", list(scale), "two ascending shares of the area")
        require(ratio[0] <= ratio[1], "ratio", list(ratio), "two ascending ratios of the sides")
        self.p = p
        self.scale = scale
        self.ratio = ratio

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        if self.p == 0:
            return images
        n, _, height, width = images.shape
        tries = n * self.TRIES
        area = _uniform(tries, self.scale[0], self.scale[1], images, generator) * (height * width)
        aspect = _uniform(tries, math.log(self.ratio[0]), math.log(self.ratio[1]), images, generator).exp()
        h = (area * aspect).sqrt().round().view(n, self.TRIES)
        w = (area / aspect).sqrt().round().view(n, self.TRIES)
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)  # of several maxima argmax gives the first
        h, w = h.gather(1, first), w.gather(1, first)
        place = torch.rand(3, n, 1, device=images.device, generator=generator)
        top = (place[0] * (height - h + 1)).floor()
        left = (place[1] * (width - w + 1)).floor()
        chosen = (place[2] < self.p) & fits.any(1, keepdim=True)
        y = torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        rows = ((y >= top) & (y < top + h) & chosen).to(images.dtype)
        columns = ((x >= left) & (x < left + w)).to(images.dtype)
        hole = (rows[:, :, None] * columns[:, None, :])[:, None]
        return torch.addcmul(images, images, hole, value=-1)  # a third of masked_fill's time


class Mixed(NamedTuple):
    """A batch and its two targets, int64 [N]; ``weight`` (0..1) of the first."""

    images: Tensor
    labels: Tensor
    partners: Tensor
    weight: float


def mixed_loss(logits: Tensor, batch: Mixed, label_smoothing: float = 0.0) -> Tensor:
    """Return ``weight * cross entropy(labels) + (1 - weight) * cross entropy(partners)``, the mean over the batch."""
    _, labels, partners, weight = batch
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if weight < 1:
        loss = weight * loss + (1 - weight) * F.cross_entropy(logits, partners, label_smoothing=label_smoothing)
    return loss


Smoothing = Annotated[float, Field(ge=0, lt=1)]
Beta = Annotated[float, Field(gt=0, allow_inf_nan=False, description="prob=0 turns mixing off")]


@checked
class Mix(nn.Module):
    """Mix a batch with itself rolled by one: CutMix or MixUp, drawn once a batch.

    ``prob``: chance that a batch is mixed at all; ``cutmix_prob``: share of the mixed batches that is CutMix;
    ``mixup_alpha`` and ``cutmix_beta``: both parameters of the Beta distribution the weight is drawn from. The weight
    of CutMix is corrected to the real area of the box, clipped at the border. The batch comes in random order, so its
    neighbour is a random partner. The generator is on the CPU: decisions are made there and never wait for the device.

    Sources: Zhang et al., "mixup" (2017), https://arxiv.org/abs/1710.09412; Yun et al., "CutMix" (2019),
    https://arxiv.org/abs/1905.04899.
    """

    def __init__(self, prob: Share, mixup_alpha: Beta, cutmix_beta: Beta, cutmix_prob: Share):
        super().__init__()
        self.prob = prob
        self.mixup_alpha = mixup_alpha
        self.cutmix_beta = cutmix_beta
        self.cutmix_prob = cutmix_prob

    def forward(self, images: Tensor, labels: Tensor, generator: Generator) -> Mixed:
        kind = self.kind(generator)
        if kind is None:
            return Mixed(images, labels, labels, 1.0)
        partners = labels.roll(1)
        if kind == "MixUp":
            weight = _beta(self.mixup_alpha, generator)
            return Mixed(images.lerp(images.roll(1, 0), 1 - weight), labels, partners, weight)
        height, width = images.shape[-2:]
        centre = torch.rand(2, generator=generator).tolist()
        top, bottom, left, right = self.box(_beta(self.cutmix_beta, generator), centre, height, width)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
        return Mixed(images, labels, partners, 1 - (bottom - top) * (right - left) / (height * width))

    def kind(self, generator: Generator) -> Literal["MixUp", "CutMix"] | None:
        """Draw what is done to the next batch; None: nothing."""
        mixed, cut = torch.rand(2, generator=generator).tolist()
        if mixed >= self.prob:
            return None
        return "CutMix" if cut < self.cutmix_prob else "MixUp"

    @staticmethod
    def box(weight: float, centre: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
        """Return (top, bottom, left, right) of a box of area 1 - ``weight`` about ``centre`` (0..1), clipped."""
        half = 0.5 * math.sqrt(1 - weight)
        y, x = int(centre[0] * height), int(centre[1] * width)
        top, bottom = max(int(y - half * height), 0), min(int(y + half * height), height)
        return top, bottom, max(int(x - half * width), 0), min(int(x + half * width), width)


def _beta(a: float, generator: Generator) -> float:
    """Draw from Beta(a, a) as a ratio of two gammas; where a is so small that both are 0, from its limit {0, 1}."""
    first, second = torch._standard_gamma(torch.full((2,), a, dtype=torch.float64), generator=generator).tolist()
    if first + second == 0:
        return float(torch.rand((), generator=generator) < 0.5)
    return first / (first + second)


def per_image(transform: nn.Module) -> bool:
    """Whether ``transform`` is known to treat each image on its own; a class made from one of ours is not."""
    if type(transform) is Compose:
        return all(per_image(part) for part in transform.transforms.values())
    return type(transform) in (RandomCrop, RandomRotation, RandomAffine, Normalize, RandomErasing)


@checked
class Augment:
    """What the trainer takes: ``strong`` with mixing in the first phase, ``light`` without in the last.

    ``label_smoothing``, in both: the share of each target that is spread over all classes alike.
    Source: Szegedy et al., "Rethinking the Inception Architecture" (2015), https://arxiv.org/abs/1512.00567.
    """

    def __init__(self, strong: Compose, light: Compose, mix: Mix | None = None, label_smoothing: Smoothing = 0.0):
        self.strong = strong
        self.light = light
        self.mix = mix
        self.label_smoothing = label_smoothing

    def transforms(self) -> list[str]:
        """Return the keys of all transforms but for normalising."""
        phases = {"strong": self.strong, "light": self.light}
        named = {f"augment.{phase}.{key}": t for phase, all_ in phases.items() for key, t in all_.transforms.items()}
        return [key for key, transform in named.items() if not isinstance(transform, Normalize)]
