"""A trained network with all that stands before and behind it, as one module; and one read back from an exported folder."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from omegaconf import OmegaConf
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from mnist_exp.checked import STRICT, Positive
from mnist_exp.config.build import build, trusting
from mnist_exp.config.elsewhere import refuse_endless, refuse_resolvers
from mnist_exp.config.recipe import modernised
from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded
from mnist_exp.inference.bounded import as_large_as
from mnist_exp.inference.load import Member
from mnist_exp.parts.evaluate import PLAIN
from mnist_exp.reading import MIB, read_bytes, refusal
from mnist_exp.training.components import load_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_CONFIG = 4 * MIB  # bytes, as of a run.json, which has as many names of classes
_WEIGHTS = 1024 * MIB
Shift = Annotated[int, Field(ge=-27, le=27)]


class Servable(nn.Module):
    """A network that takes images as they are stored and answers with probabilities, in fp32.

    Input: uint8 [N, 28, 28], light on dark as MNIST's; output: float32 [N, classes], the softmax averaged over
    ``shifts`` (dy, dx in pixels). In between images are scaled to 0..1, and normalised by ``mean`` and ``std``.
    """

    def __init__(self, network: nn.Module, mean: float, std: float, shifts: Sequence[tuple[int, int]] = PLAIN):
        super().__init__()
        self.network = network
        self.mean = mean
        self.std = std
        self.shifts = shifts

    @classmethod
    def of(cls, member: Member, tta_runs: int = 1) -> Servable:
        """Return what ``member.probabilities`` computes, on the CPU, with a copy of its network."""
        normalize, network = member.evaluator.normalize, copy.deepcopy(member.network).cpu().float()
        shifts = PLAIN if tta_runs == 1 else member.with_tta(tta_runs).shifts
        return cls(network, normalize.mean, normalize.std, shifts).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images.unsqueeze(1).float() / 255 - self.mean) / self.std
        outputs = [self.network(scaled.roll(shift, (2, 3))).softmax(1) for shift in self.shifts]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


class ExportConfig(BaseModel):
    """config.json of an exported folder: what its file computes, and what it takes to build it again."""

    model_config = STRICT

    format: Literal["mnist_exp export 1"] = "mnist_exp export 1"
    file: str
    classes: list[str]
    mean: Annotated[float, Field(allow_inf_nan=False)]  # of pixels in 0..1
    std: Positive
    shifts: Annotated[list[Annotated[list[Shift], Field(min_length=2, max_length=2)]], Field(min_length=1)]  # dy, dx
    model: dict[str, Any]  # as the config group

    @classmethod
    def of(cls, member: Member, servable: Servable, file: str) -> ExportConfig:
        """Return what there is to say of ``servable``, which was made of ``member``, in ``file``."""
        model: Any = OmegaConf.to_container(member.config.model, resolve=True)
        shifts = [list(shift) for shift in servable.shifts]
        return cls(file=file, classes=member.classes, mean=servable.mean, std=servable.std, shifts=shifts, model=model)


def need(*packages: str) -> None:
    """Raise UserError unless all ``packages``, which the extra `export` brings, can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"export needs {package}: `pip install '.[export]'`, in a checkout of mnist_exp") from error


def load_export(folder: str | Path) -> Servable:
    """Return the network of a folder that was exported as safetensors; call it with uint8 images [N, 28, 28].

    It is built of what a config may build, and its weights are read as numbers only. Raises UserError naming the file
    that is missing, damaged or another's.
    """
    need("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = expanded(folder)
    file = folder / CONFIG
    try:
        config = ExportConfig.model_validate_json(read_bytes(file, _CONFIG))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise refusal(file, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
    require(
        config.file == WEIGHTS, "file", repr(config.file)[:100], f"{WEIGHTS}, in {file}; load others as README.md says"
    )
    weights = folder / WEIGHTS
    content = read_bytes(weights, _WEIGHTS)
    refuse_resolvers(config.model, file)
    refuse_endless({"model": config.model}, file)
    with trusting(), as_large_as(len(content), weights, file):
        network = build(OmegaConf.create({"model": modernised(config.model)}), "model")
    require(isinstance(network, nn.Module), "model._target_", type(network).__name__, f"a network, in {file}")
    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise refusal(weights, str(error)[:200]) from error
    load_weights(network, found, weights)
    servable = Servable(network, config.mean, config.std, [(dy, dx) for dy, dx in config.shifts])
    return servable.eval().requires_grad_(False)
