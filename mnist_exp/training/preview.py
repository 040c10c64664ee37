"""What a run's transforms and mixing do to the digits that it begins with, by the run's own random numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mnist_exp.errors import require
from mnist_exp.parts.augment import Mix, Mixed, Normalize
from mnist_exp.training.components import Components
from mnist_exp.training.state import TRANSFORMS, stream_seed

OWN = "as yielded"  # the column of a data set with transforms of its own


@dataclasses.dataclass(frozen=True)
class Example:
    """A digit: float pictures [H, W] in 0..1 by their column, the last one "mixed" if the run has mixing.

    ``label`` of the digit, ``partner`` of the one that it is mixed with, ``weight`` of the former; ``kind`` of mixing, None
    where its batch is left as it is.
    """

    pictures: dict[str, Tensor]
    label: int
    partner: int
    weight: float
    kind: str | None


def examples(parts: Components, seed: int, count: int = 16) -> list[Example]:
    """Return up to ``count`` digits of the first epoch of the run of ``parts`` and ``seed``, one of each batch.

    Where an epoch has fewer batches, several of each. Strong transforms and mixing are what the run draws in its first
    epoch, so if that is a strong one it trains on just these pictures; light transforms what it draws in the first light
    epoch.
    """
    split, augment = parts.splits.train, parts.augment
    light = next((epoch for epoch in range(1, parts.epochs + 1) if parts.schedule.light(epoch)), 1)
    phases = {} if split.own_transforms else {"strong": (augment.strong, 1), "light": (augment.light, light)}
    mixing = _draws(seed, 1, 1)
    torch.manual_seed(stream_seed(seed, 1, 2))
    found: list[Example] = []
    shares = _shares(len(split), parts.batch_size, count)
    for share, (images, labels, seen) in zip(shares, _batches(parts, seed, phases), strict=False):
        kind, mixed = _mixed(augment.mix, seen.get("strong", images), labels, mixing)
        columns = {OWN: _pixels(images, parts.evaluator.normalize)} if split.own_transforms else {"original": images}
        columns |= {name: _pixels(batch, phases[name][0]) for name, batch in seen.items()}
        if augment.mix is not None:
            columns["mixed"] = _pixels(mixed.images, phases["strong"][0] if phases else parts.evaluator.normalize)
        for place in range(share):
            pictures = {name: batch[place].float().mean(0).cpu() for name, batch in columns.items()}
            partner = int(mixed.partners[place])
            found.append(Example(pictures, int(labels[place]), partner, float(mixed.weight), kind))
    return found


def when_used(parts: Components) -> dict[str, str]:
    """Return when the run of ``parts`` does what a column shows: {"strong": "epochs 1 to 3", "light": "epoch 4", ...}."""
    epochs: dict[str, list[int]] = {"strong": [], "light": []}
    for epoch in range(1, parts.epochs + 1):
        epochs["light" if parts.schedule.light(epoch) else "strong"].append(epoch)
    when = {name: _span(found) for name, found in epochs.items()}
    if isinstance(parts.augment.mix, Mix):
        when["mixed"] = f"prob {parts.augment.mix.prob:.3g}"
    return when


def _span(epochs: list[int]) -> str:
    if not epochs:
        return "no epoch"
    return f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"


def _shares(images: int, batch_size: int, count: int) -> list[int]:
    """Return how many of ``count`` each batch gives, dealt out in turn while it has any."""
    sizes = [min(batch_size, images - first) for first in range(0, images, batch_size)][:count]
    turns = (batch for place in range(sizes[0]) for batch, size in enumerate(sizes) if place < size)
    return list(Counter(itertools.islice(turns, count)).values())


def _batches(
    parts: Components, seed: int, phases: Mapping[str, tuple[nn.Module, int]]
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Yield the first epoch's (images, labels, images by phase); a phase is a transform, and an epoch that has it."""
    size, device = parts.batch_size, parts.trainer.device
    for group, (images, labels) in enumerate(
        parts.splits.train.batches(size * parts.together, stream_seed(seed, 1, 3))
    ):
        seen = [phase(images, _draws(seed, epoch, TRANSFORMS + group, device)) for phase, epoch in phases.values()]
        for batch, answers, *others in zip(*(x.split(size) for x in (images, labels, *seen)), strict=True):
            yield batch, answers, dict(zip(phases, others, strict=True))


def _draws(seed: int, epoch: int, stream: int, device: Any = "cpu") -> Generator:
    return Generator(device).manual_seed(stream_seed(seed, epoch, stream))


def _mixed(mix: Any, images: Tensor, labels: Tensor, generator: Generator) -> tuple[str | None, Mixed]:
    """Return how a batch is mixed, and what comes of it; ``generator`` is where it then is in training."""
    if mix is None:
        return None, Mixed(images, labels, labels, 1.0)
    ahead = Generator().manual_seed(0)
    ahead.set_state(generator.get_state())
    mixed = mix(images, labels, generator)
    if isinstance(mix, Mix):
        return mix.kind(ahead), mixed
    return (None if mixed.weight == 1 else "mixed"), mixed  # a part of somebody's own


def _pixels(images: Tensor, phase: nn.Module) -> Tensor:
    """Return ``images`` as before the normalising in ``phase``, cut to 0..1. Raises UserError if they are no images."""
    require(images.ndim == 4, "augment", f"a batch of {list(images.shape)}", "[N, channels, H, W] after its transforms")
    for module in reversed([module for module in phase.modules() if isinstance(module, Normalize)]):
        images = images * module.std + module.mean
    return images.nan_to_num(0, 1, 0).clamp(0, 1)
