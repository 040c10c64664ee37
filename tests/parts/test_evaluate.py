"""Scores against their definitions; devices and precisions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist_exp.data.splits import Split
from mnist_exp.errors import UserError
from mnist_exp.parts.augment import Normalize
from mnist_exp.parts.evaluate import Evaluator, accuracy, nll
from mnist_exp.parts.models import GhostBatchNorm2d, SmallCNN
from mnist_exp.parts.trainer import resolve_device, resolve_precision

PLAIN = torch.autocast("cpu", torch.bfloat16, enabled=False)


@pytest.fixture
def split() -> Split:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (90, 28, 28), dtype=torch.uint8, generator=draws)
    return Split(images, torch.arange(90) % 10)


def test_tta_is_the_mean_of_the_shifted_probabilities(split):
    torch.manual_seed(0)
    model, evaluator = SmallCNN(), Evaluator(Normalize(0.1307, 0.3081), tta_runs=3, bn_update_batch_size=40)
    probs, labels = evaluator.probabilities(model, split, PLAIN, evaluator.shifts)
    images = (split.images.float() / 255 - 0.1307)[:, None] / 0.3081
    with torch.no_grad():
        model.eval()
        expected = sum(F.softmax(model(images.roll(shift, (2, 3))), 1) for shift in evaluator.shifts) / 3
    torch.testing.assert_close(probs, expected)
    assert torch.equal(labels, split.labels)
    assert len(set(evaluator.shifts)) == 3
    assert evaluator.shifts == Evaluator(Normalize(0.1, 0.3), tta_runs=3).shifts
    assert accuracy(probs, labels) == pytest.approx(100 * float((expected.argmax(1) == labels).double().mean()))
    assert nll(probs, labels) == pytest.approx(float(F.nll_loss(expected.log(), labels)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [30, 40])
def test_bn_statistics_are_those_of_the_untransformed_images(split, batch_size):
    torch.manual_seed(0)
    model = SmallCNN()
    first = model.features[1]
    evaluator = Evaluator(Normalize(0.1307, 0.3081), bn_update_batch_size=batch_size)
    for _ in range(3):  # something else before
        model(torch.randn(8, 1, 28, 28))
    evaluator.recompute_bn(model, split, PLAIN)
    images = (split.images.float() / 255 - 0.1307)[:, None] / 0.3081
    conv = model.features[0]
    assert isinstance(conv, nn.Conv2d)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    outputs = [conv(batch) for batch in images[order].split(batch_size)]
    torch.testing.assert_close(first.running_mean, conv(images).mean((0, 2, 3)))
    variances = torch.stack([o.var((0, 2, 3)) * len(o) / 90 for o in outputs]).sum(0)
    torch.testing.assert_close(first.running_var, variances)
    assert first.momentum == 0.1


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_auto_precision_is_what_the_device_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda", 0)) == expected
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize(
    ("units", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "fp32")],
)
def test_auto_precision_is_what_the_cpu_has(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"


def test_ghosts_of_sorted_images_are_of_all_classes():
    """Two classes, one after the other: what tells them apart is not lost in the ghosts' own means."""
    images = torch.cat([torch.full((256, 28, 28), grey, dtype=torch.uint8) for grey in (0, 255)])
    norm = GhostBatchNorm2d(1, 32)
    Evaluator(Normalize(0.0, 1.0)).recompute_bn(norm, Split(images, torch.zeros(512, dtype=torch.int64)), PLAIN)
    assert float(norm.running_var) == pytest.approx(0.25, abs=0.02)


def test_auto_device_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
