"""Scoring models: plain, averaged over fixed shifts (TTA), as a weight average (SWA), and as an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mnist_exp.checked import Count, Seed, checked
from mnist_exp.data.splits import LoaderSplit, Split
from mnist_exp.errors import require
from mnist_exp.parts.augment import Normalize
from mnist_exp.parts.trainer import Trainer

PLAIN = ((0, 0),)


@checked
class Evaluator:
    """How models are scored.

    ``tta_runs`` fixed shifts of up to ``tta_shift`` pixels, drawn once from ``tta_seed``, no two the same; ``top_k``
    checkpoints in the ensemble; ``bn_update_batch_size`` images a batch when BN statistics of the weight average are
    recomputed, and when scoring; ``test``: whether the test set is scored, once, at the end.
    """

    def __init__(
        self,
        normalize: Normalize,
        tta_runs: Count = 5,
        tta_shift: Annotated[int, Field(ge=0, le=27, description="pixels")] = 2,
        tta_seed: Seed = 0,
        top_k: Count = 3,
        bn_update_batch_size: Annotated[int, Field(ge=2)] = 512,
        test: bool = True,
    ):
        shifts = (2 * tta_shift + 1) ** 2
        require(tta_runs <= shifts, "tta_runs", tta_runs, f"between 1 and {shifts}, the different shifts")
        self.normalize = normalize
        self.tta_runs = tta_runs
        self.top_k = top_k
        self.test = test
        self.batch_size = bn_update_batch_size
        side = torch.arange(-tta_shift, tta_shift + 1)
        grid = torch.cartesian_prod(side, side)
        order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(tta_seed))
        self.shifts: Sequence[tuple[int, int]] = [tuple(pair) for pair in grid[order[:tta_runs]].tolist()]

    def images(self, split: Split | LoaderSplit, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images as the model takes them, labels) of ``split``, in order or permuted by ``seed``, else untouched."""
        for images, labels in split.batches(self.batch_size, seed):
            yield (images if split.own_transforms else self.normalize(images)), labels

    @torch.inference_mode()
    def probabilities(
        self,
        model: nn.Module,
        split: Split | LoaderSplit,
        autocast: torch.autocast,
        shifts: Sequence[tuple[int, int]] = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Return (float32 [N, classes], int64 labels [N]) on the CPU: the softmax averaged over ``shifts`` (dy, dx)."""
        model.eval()
        probs, targets = [], []
        for images, labels in self.images(split):
            with autocast:
                # at once: a compiled model may write its next outputs to the same place
                found = [F.softmax(model(images.roll(shift, (2, 3))).float(), 1) for shift in shifts]
            probs.append(torch.stack(found).mean(0))
            targets.append(labels)
        return torch.cat(probs).cpu(), torch.cat(targets).cpu()

    def of_images(
        self, model: nn.Module, images: Tensor, trainer: Trainer, shifts: Sequence[tuple[int, int]] = PLAIN
    ) -> Tensor:
        """Return ``probabilities`` of uint8 ``images`` [N, 28, 28] without labels, on the device of ``trainer``."""
        split = Split(images, torch.zeros(len(images), dtype=torch.int64)).to(trainer.device)
        return self.probabilities(model, split, trainer.autocast(), shifts)[0]

    @torch.no_grad()
    def recompute_bn(self, model: nn.Module, split: Split | LoaderSplit, autocast: torch.autocast) -> None:
        """Recompute the BN statistics of ``model`` on the untransformed ``split``, every image counting the same.

        As torch's swa_utils.update_bn, but that the batches are weighted by their size: the last one may be small.
        """
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            return
        momenta, training, seen = [norm.momentum for norm in norms], model.training, 0
        for norm in norms:
            norm.reset_running_stats()
        model.train()
        for images, _ in self.images(split, 0):  # data may be sorted by class, and ghosts are to be of all
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            with autocast:
                model(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest probability is the label's, in percent."""
    return 100 * int((probs.argmax(1) == labels).sum()) / len(labels)


def nll(probs: Tensor, labels: Tensor) -> float:
    """Return the mean negative log likelihood, in nats."""
    return F.nll_loss(probs.double().clamp_min(1e-12).log(), labels).item()
