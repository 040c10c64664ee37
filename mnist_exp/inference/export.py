"""A trained network as a folder to serve or to publish: its file, checked, what it takes to use it, and a model card."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mnist_exp.data.formats import read_sample
from mnist_exp.errors import RunFailed, UserError, WrongValue
from mnist_exp.files import atomic_write, naming, new_folder
from mnist_exp.inference.card import Export, model_card
from mnist_exp.inference.formats import FORMATS
from mnist_exp.inference.load import Member, load_member
from mnist_exp.inference.servable import CONFIG, ExportConfig, Servable, need
from mnist_exp.parts.trainer import Trainer

CARD = "README.md"
BATCHES = (1, 7, 200)  # images, on which an export is checked
_CLOSE, _TIE = 1e-4, 1e-6  # how far probabilities may differ; and two classes, either of which may be the label


def export_run(run: Path, kind: str, output: Path, tta_runs: int = 1, checkpoint: str = "best") -> Export:
    """Export the network of ``run`` to the new or empty folder ``output``, as one of ``FORMATS``; return what was made.

    ``tta_runs`` and ``checkpoint`` are as in ``Model.probabilities`` and ``load_model``. It is there once it has been read
    back and has predicted what the run does, else nothing is left. Raises UserError for what cannot be asked for,
    RunFailed if the network cannot be exported, or what was written predicts otherwise.
    """
    need("huggingface_hub", *FORMATS[kind].packages)
    with new_folder(output) as folder:
        member = load_member(run, checkpoint)
        try:
            servable = Servable.of(member, tta_runs)
        except WrongValue as error:
            raise WrongValue("--tta", tta_runs, error.allowed) from error
        with naming(output):
            config = ExportConfig.of(member, servable, FORMATS[kind].file)
            atomic_write(folder / CONFIG, config.model_dump_json(indent=2).encode())
            with _exporting(member, kind):
                content = FORMATS[kind].write(servable, torch.zeros(2, 28, 28, dtype=torch.uint8))
            atomic_write(folder / config.file, content)
            difference = _check(folder, member, kind, tta_runs)
            command = _command(run, kind, output, tta_runs, checkpoint)
            made = Export(command, member, kind, tta_runs, len(content), BATCHES, difference)
            atomic_write(folder / CARD, model_card(made).encode())
    return made


def _command(run: Path, kind: str, output: Path, tta_runs: int, checkpoint: str) -> str:
    """Return the command line that asks for this."""
    asked = ["--format", kind, "--output", str(output)]
    asked += ["--tta", str(tta_runs)] * (tta_runs > 1) + ["--checkpoint", checkpoint] * (checkpoint != "best")
    return shlex.join(["python", "-m", "mnist_exp", "export", str(run), *asked])


def _check(folder: Path, member: Member, kind: str, tta_runs: int) -> float:
    """Return how far the probabilities of the file in ``folder`` are from the run's in fp32, at most.

    Raises RunFailed if that is too far, or a label is another.
    """
    reference = dataclasses.replace(member, network=member.network.cpu(), trainer=Trainer("cpu", "fp32"))
    images = torch.from_numpy(read_sample()[0])
    farthest = 0.0
    with _exporting(member, kind):
        predict = FORMATS[kind].read(folder / FORMATS[kind].file)
    for size in BATCHES:
        batch = images[:: len(images) // size][:size].contiguous()  # the digits are sorted by class
        with _exporting(member, kind), torch.no_grad():
            found = predict(batch)
        expected = reference.probabilities(batch, tta_runs)
        farthest = max(farthest, _difference(found, expected, f"{member.run.path} as {kind}, {size} images"))
    return farthest


def _difference(found: Tensor, expected: Tensor, what: str) -> float:
    """Return the largest difference of two tables of probabilities. Raises RunFailed if they do not say the same."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise RunFailed(f"{what}: it gives {found.dtype} {list(found.shape)}, the run {list(expected.shape)}")
    difference = float((found - expected).abs().max())
    # of two classes that the run holds for equally likely, rounding decides
    lost = expected.max(1).values - expected.gather(1, found.argmax(1, keepdim=True))[:, 0]
    others = int((lost > _TIE).sum())
    if others or not difference <= _CLOSE:  # NaN is no agreement
        raise RunFailed(
            f"{what}: it does not predict what the run does: probabilities differ by {difference:.2g} (allowed: {_CLOSE:g}), "
            f"{others} of {len(found)} labels. Nothing was written; try another --format"
        )
    return difference


@contextmanager
def _exporting(member: Member, kind: str) -> Iterator[None]:
    """Say in one line what torch, ONNX and their like make of a network that they cannot take; else keep them quiet."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what they will do otherwise one day
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # anything may be wrong with a network of others
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(filter(None, map(str.strip, str(cause).splitlines())), type(cause).__name__)[:300]
        raise RunFailed(
            f"{member.run.path} cannot be exported as {kind}: {reason.rstrip('.')}. Try another --format"
        ) from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
