"""Whole-batch transforms against torchvision's, and mixing against its definition."""

import pytest
import torch
from torch import nn

from mnist_exp.errors import UserError
from mnist_exp.parts.augment import (
    Compose,
    Mix,
    Mixed,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomRotation,
    _beta,
    mixed_loss,
    per_image,
)
from mnist_exp.vision import import_torchvision

F = import_torchvision("torchvision.transforms.functional")
T = import_torchvision("torchvision.transforms")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crop_is_torchvisions(images):
    top, left = torch.randint(0, 9, (2, 50))
    ours = RandomCrop(4).crop(images, top, left)
    padded = F.pad(images, [4] * 4)
    for i in range(50):
        assert torch.equal(ours[i], F.crop(padded[i], int(top[i]), int(left[i]), 28, 28))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation_is_torchvisions(images, mode):
    angles = torch.linspace(-8, 8, 50)
    ours = RandomRotation(8, mode).rotate(images, angles)
    for i in range(50):
        theirs = F.rotate(images[i], float(angles[i]), F.InterpolationMode(mode))
        different = (ours[i] - theirs).abs() > 1e-3
        assert different.sum() <= (3 if mode == "nearest" else 0)  # a sample on the edge of two pixels may round


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_affine_is_torchvisions(images, mode):
    angles, shears, factors = (
        torch.linspace(-20, 20, 50),
        torch.linspace(15, -15, 50).roll(9),
        torch.linspace(1.2, 0.8, 50),
    )
    shift = torch.randint(-3, 4, (2, 50), generator=generator())
    ours = RandomAffine(interpolation=mode).affine(images, angles, shift / 28, factors, shears)
    for i in range(50):
        given = float(angles[i]), shift[:, i].tolist(), float(factors[i]), [float(shears[i]), 0.0]
        different = (ours[i] - F.affine(images[i], *given, F.InterpolationMode(mode))).abs() > 1e-3
        assert different.sum() <= (3 if mode == "nearest" else 0)


def test_affine_draws_uniformly_over_its_ranges(monkeypatch):
    drawn = {}
    monkeypatch.setattr(RandomAffine, "affine", lambda self, images, *values: drawn.update(enumerate(values)))
    RandomAffine(degrees=10, translate=0.1, scale=(0.8, 1.1), shear=5)(torch.zeros(4000, 1, 28, 28), generator())
    for values, low, high in (
        (drawn[0], -10, 10),
        *((x, -0.1, 0.1) for x in drawn[1]),
        (drawn[2], 0.8, 1.1),
        (drawn[3], -5, 5),
    ):
        share = (values - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        torch.testing.assert_close(
            share.sort().values, torch.linspace(0, 1, 4000), atol=0.03, rtol=0
        )  # Kolmogorov-Smirnov
    assert abs(torch.corrcoef(torch.stack([drawn[0], *drawn[1], drawn[2], drawn[3]])) - torch.eye(5)).max() < 0.07


def test_affine_without_ranges_changes_nothing(images):
    torch.testing.assert_close(RandomAffine()(images, generator()), images, atol=1e-5, rtol=0)


def test_normalise_is_torchvisions(images):
    torch.testing.assert_close(Normalize(0.1307, 0.3081)(images), T.Normalize(0.1307, 0.3081)(images))


def test_crop_and_rotation_draw_uniformly_over_their_range(images):
    many = torch.zeros(4000, 1, 28, 28)
    many[:, :, 14, 14] = 1
    places = RandomCrop(4)(many, generator()).flatten(1).argmax(1)
    rows, counts = (places // 28).unique(return_counts=True)
    assert rows.tolist() == list(range(10, 19))
    assert counts.min() > 4000 / 9 * 0.8
    assert counts.max() < 4000 / 9 * 1.2
    many = torch.zeros(4000, 1, 28, 28)
    many[:, :, 13:15, 27] = 1  # at the right edge 8 degrees are 1.9 pixels
    turned = RandomRotation(8, "bilinear")(many, generator())
    heights = (turned[..., 20:].sum(3).squeeze(1) * torch.arange(28)).sum(1) / turned[..., 20:].sum((1, 2, 3))
    assert abs(float(heights.mean()) - 13.5) < 0.1
    assert 1.5 < float(heights.max() - 13.5) < 2.1


def test_erasing_has_torchvisions_distribution():
    torch.manual_seed(0)
    n = 4000
    ones = torch.ones(n, 1, 28, 28)
    ours = RandomErasing(0.25)(ones, generator())
    erase = T.RandomErasing(0.25, (0.02, 0.15))
    theirs = torch.stack([erase(image) for image in ones])
    areas = []
    for result in (ours, theirs):
        erased = (result == 0).flatten(1).sum(1)
        hit = erased[erased > 0]
        assert abs(len(hit) / n - 0.25) < 0.025
        areas.append(hit.float() / 784)
    for quantile in (0.1, 0.5, 0.9):
        assert abs(float(areas[0].quantile(quantile) - areas[1].quantile(quantile))) < 0.012
    assert areas[0].min() > 0.01
    assert areas[0].max() < 0.17
    box = (ours[(ours == 0).flatten(1).any(1)][0, 0] == 0).nonzero()
    (top, left), (bottom, right) = box.min(0).values, box.max(0).values
    assert len(box) == (bottom - top + 1) * (right - left + 1)  # one full rectangle


def test_images_of_a_batch_get_different_parameters_and_a_seed_repeats_them(images):
    strong = Compose(
        crop=RandomCrop(4), rotation=RandomRotation(8), normalize=Normalize(0.1, 0.3), erasing=RandomErasing(0.25)
    )
    same = images[:1].expand(50, -1, -1, -1)
    once, again, other = (strong(same, generator(s)) for s in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len(once.flatten(1).unique(dim=0)) > 45


def test_only_what_is_known_to_treat_images_apart_gets_several_batches():
    class OneOf(Compose):
        pass

    class AllAlike(RandomCrop):
        pass

    assert per_image(Compose(crop=RandomCrop(2), affine=RandomAffine(5), both=Compose(normalize=Normalize(0.1, 0.3))))
    for own in (OneOf(crop=RandomCrop(2)), Compose(crop=AllAlike(2)), Compose(blur=nn.Identity())):
        assert not per_image(own)


def test_mixing_happens_as_often_as_asked(images):
    labels, draws = torch.arange(50), generator()
    mix = Mix(prob=0.102, mixup_alpha=0.091, cutmix_beta=0.35, cutmix_prob=0.8)
    results = [mix(images, labels, draws) for _ in range(4000)]
    mixed = [r for r in results if r.partners is not r.labels]
    assert abs(len(mixed) / 4000 - 0.102) < 0.02
    cut = [r for r in mixed if ((r.images == images) | (r.images == images.roll(1, 0))).all()]
    assert abs(len(cut) / len(mixed) - 0.8) < 0.09


def test_mixup_is_the_weighted_sum(images):
    labels = torch.arange(50)
    result = Mix(1.0, 1.0, 1.0, 0.0)(images, labels, generator())
    assert 0 < result.weight < 1
    assert torch.equal(result.partners, labels.roll(1))
    torch.testing.assert_close(result.images, result.weight * images + (1 - result.weight) * images.roll(1, 0))


def test_cutmix_weight_is_the_area_that_is_left_even_where_the_box_is_clipped(images):
    labels, draws = torch.arange(50), generator()
    for _ in range(200):
        result = Mix(1.0, 1.0, 1.0, 1.0)(images, labels, draws)
        own = (result.images == images).float().mean()
        assert result.weight == pytest.approx(float(own), abs=1e-6)
    top, bottom, left, right = Mix.box(0.75, (0.0, 0.99), 28, 28)  # a quarter of the area, centred in a corner
    assert (top, bottom, left, right) == (0, 7, 20, 28)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_mixed_and_smoothed_targets(images, smoothing):
    labels, logits = torch.arange(50) % 10, torch.randn(50, 10)
    for mixed in (Mix(1.0, 1.0, 1.0, 0.5)(images, labels, generator()), Mixed(images, labels, labels, 1.0)):
        own, partners = (nn.functional.one_hot(target, 10) for target in (mixed.labels, mixed.partners))
        hard = mixed.weight * own + (1 - mixed.weight) * partners
        soft = hard * (1 - smoothing) + smoothing / 10
        loss = mixed_loss(logits, mixed, smoothing)
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, soft))


@pytest.mark.parametrize("a", [0.091, 0.35, 1.0])
def test_beta_has_its_mean_and_variance(a):
    draws = generator()
    values = torch.tensor([_beta(a, draws) for _ in range(20000)], dtype=torch.float64)
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(0.25 / (2 * a + 1), rel=0.03)
    assert 0 <= _beta(1e-8, draws) <= 1


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: Mix(1.5, 1, 1, 1), "prob"),
        (lambda: Mix(0.5, 0, 1, 1), "mixup_alpha"),
        (lambda: Mix(0.5, 1, 1, -0.1), "cutmix_prob"),
        (lambda: RandomErasing(-1), "p is -1"),
        (lambda: RandomErasing(0.5, (0.2, 0.1)), "scale"),
        (lambda: RandomCrop(-1), "padding"),
        (lambda: RandomRotation(8, "cubic"), "interpolation"),
        (lambda: RandomAffine(8, scale=(1.1, 0.9)), "scale"),
        (lambda: RandomAffine(8, translate=2), "translate is 2"),
        (lambda: RandomAffine(8, shear=90), "shear is 90"),
    ],
)
def test_impossible_values_name_the_parameter(build, key):
    with pytest.raises(UserError, match=key):
        build()
