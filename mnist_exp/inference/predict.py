"""What a model says of images, a batch at a time: answers with their confidence, as CSV or as Kaggle wants them."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnist_exp.console import shown
from mnist_exp.data.pictures import padded
from mnist_exp.errors import RunFailed, UserError
from mnist_exp.inference.frame import Framed, Invert, frame
from mnist_exp.inference.inputs import Batch, Frame
from mnist_exp.inference.load import Member, Model, told

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("file", "label", "confidence", "second", "second_confidence", "note")
KAGGLES = 28_000  # digits in its test.csv
SHOWN = 100  # answers in a picture
_DIGITS = [str(digit) for digit in range(10)]
_DATA = "mnist_exp.data.sets."


class Answers(NamedTuple):
    """What is said of a batch: label and second int64 [N], their probabilities float32 [N], a note on each, or ""."""

    batch: Batch
    label: np.ndarray
    confidence: np.ndarray
    second: np.ndarray
    second_confidence: np.ndarray
    notes: list[str]


def answers(model: Model, batches: Iterator[Batch], tta_runs: int, unsure: float) -> Iterator[Answers]:
    """Yield what ``model`` says of ``batches``; the next one is read meanwhile.

    The note is "blank" where nothing is to be seen, and "unsure" where the confidence is below ``unsure``, or what is seen
    looks like no digit.
    """
    for batch in _ahead(batches):
        label, probabilities = model.predict(batch.images, tta_runs)
        rows = np.arange(len(label))
        rest = probabilities.copy()
        rest[rows, label] = -1
        second, confidence = rest.argmax(1), probabilities[rows, label]
        doubtful = np.where((confidence < unsure) | batch.doubtful, "unsure", "")
        notes = np.where(batch.inked, doubtful, "blank").tolist()
        yield Answers(batch, label, confidence, second, probabilities[rows, second], notes)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


# ------------------------------------------------------------------------------------------- what the network is to see


def framing(model: Model, invert: Invert) -> Frame:
    """Return the function that brings a grey picture to what ``model`` was trained on, and says whether it shows anything.

    For networks of digits (data=mnist, qmnist, kaggle, sample) that is ``frame``. For others it is ``padded``; there
    "auto" means what data.invert was where pictures in folders were trained on, and dark for a light border elsewhere.
    Raises UserError for an ensemble that was trained on both.
    """
    ways = {way(member) for member in model.members}
    if len(ways) > 1:
        names = ", ".join(f"{member.name} on data={member.config.data.name}" for member in model.members)
        raise UserError(
            f"an ensemble is of networks that see pictures alike; these were trained on other ones: {names}"
        )
    (one,) = ways
    if one == "digits":
        return lambda picture: frame(picture, invert)
    return lambda picture: _as_trained(picture, one if invert == "auto" else invert)


def way(member: Member) -> str:
    """Return how pictures come to what ``member`` was trained on: "digits", as MNIST's, or whether they are inverted."""
    data = member.config.data
    if data.get("_target_") == f"{_DATA}ImageFolder":
        return "yes" if data.get("invert") else "no"
    if data.get("_target_") == f"{_DATA}Data":
        return "digits" if data.name in ("mnist", "qmnist", "kaggle", "sample") else "auto"
    return "no"


def _as_trained(picture: Image, invert: str) -> Framed:
    image = padded(picture)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    if invert == "yes" or (invert == "auto" and np.median(border) > 127):
        image = 255 - image
    return Framed(image, bool(image.min() != image.max()))


def as_arrays(batches: Iterator[Batch], invert: Invert, tell: Callable[[str], None]) -> Iterator[Batch]:
    """Yield ``batches`` of arrays, their negatives if ``invert`` is "yes"; tell of those that look like negatives."""
    for number, batch in enumerate(batches):
        if invert == "auto" and number == 0 and batch.images[:, :: batch.images.shape[1] - 1].mean() > 127.5:
            tell("the edges of the images are light: for dark ink on light paper type --invert yes")
        yield batch._replace(images=255 - batch.images) if invert == "yes" else batch


# ---------------------------------------------------------------------------------------------------------- what is told


def as_csv(found: Iterable[Answers], classes: Sequence[str]) -> Iterator[bytes]:
    """Yield a CSV file with ``COLUMNS``, classes by their names, confidences 0..1."""
    yield _lines([COLUMNS])
    for some in found:
        labels, seconds = ([classes[label] for label in column.tolist()] for column in (some.label, some.second))
        sure, less = ([f"{p:.6f}" for p in column.tolist()] for column in (some.confidence, some.second_confidence))
        yield _lines(zip(some.batch.names, labels, sure, seconds, less, some.notes, strict=True))


def _lines(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def as_submission(found: Iterable[Answers], classes: Sequence[str]) -> Iterator[bytes]:
    """Yield what Kaggle's Digit Recognizer takes: ImageId, from 1 on, and Label, 0..9; each line is checked.

    Raises UserError if ``classes`` are no digits.
    """
    if list(classes) != _DIGITS:
        raise UserError(f"Kaggle's test.csv is of digits, and this model tells {told(classes)} apart")
    yield b"ImageId,Label\n"
    ids = itertools.count(1)
    for some in found:
        content = _lines(zip(some.batch.names, map(str, some.label.tolist()), strict=True))
        for line in content.splitlines():
            if not re.fullmatch(rb"%d,[0-9]" % next(ids), line):
                raise RunFailed(f"{line!r} would not be taken by Kaggle, so nothing is written; please report this")
        yield content


@dataclasses.dataclass
class Seen:
    """What has gone by: how many images, how many with which note, and the ``SHOWN`` that were least sure."""

    classes: Sequence[str]
    count: int = 0
    unsure: int = 0
    blank: int = 0
    kept: list[tuple[float, int, np.ndarray, str]] = dataclasses.field(default_factory=list)

    def watch(self, found: Iterable[Answers]) -> Iterator[Answers]:
        """Yield ``found`` as it is."""
        for some in found:
            for place in np.argsort(some.confidence, kind="stable")[:SHOWN].tolist():
                sure = float(some.confidence[place])
                text = (
                    shown(f"{some.batch.names[place]}: {self.classes[some.label[place]]}")
                    + f" ({100 * sure:.0f}\u00a0%)"
                )
                note = f" {some.notes[place]}" if some.notes[place] else ""
                self.kept.append((sure, self.count + place, some.batch.images[place], text + note))
            self.kept = sorted(self.kept, key=lambda one: one[:2])[:SHOWN]
            self.count += len(some.label)
            self.unsure += some.notes.count("unsure")
            self.blank += some.notes.count("blank")
            yield some

    def picture(self, kind: str) -> bytes:
        """Return a picture (``kind`` png, pdf or svg) of those that were kept, as the network saw them, and its answers."""
        from mnist_exp.runs.figures import drawn
        from mnist_exp.runs.pictures import answers_figure

        title = f"the {SHOWN} least sure of {self.count:,}" if self.count > SHOWN else "what the network saw"
        kept = self.kept if self.count > SHOWN else sorted(self.kept, key=lambda one: one[1])
        return drawn(answers_figure(np.stack([one[2] for one in kept]), [one[3] for one in kept], title), kind)
