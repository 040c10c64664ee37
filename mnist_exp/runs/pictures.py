"""Figures about runs: curves, confusion, mistakes, calibration; see ``figures.py`` for how they look and are written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_exp.console import shown
from mnist_exp.runs.figures import GREY, colour, drawn, new_figure, plain, short, styled
from mnist_exp.statistics import calibration, calibration_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _mark(axes: Axes, rows: list[dict[str, Any]], swa_epoch: int | None) -> None:
    """Mark each epoch that was better than all before it, and where averaging starts."""
    best, label = -1.0, "better checkpoint"
    for row in rows:
        if row["val_acc"] is not None and row["val_acc"] > best:
            best = row["val_acc"]
            axes.axvline(row["epoch"], color=GREY, linewidth=1, linestyle=":", label=label)
            label = "_"
    if swa_epoch is not None:
        axes.axvline(swa_epoch, color=colour(2), linewidth=1.2, linestyle="--", label="SWA starts")


def _integer_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@styled
def loss_figure(rows: list[dict[str, Any]], swa_epoch: int | None, title: str) -> Figure:
    """Return a figure of the training and validation loss over the epochs (log scale); ``rows``: of history.csv."""
    figure = new_figure(8, 4.5, (1, 0.8, 0.05, 0.25))  # every run draws it: to measure would take a third of the time
    axes = figure.subplots()
    _mark(axes, rows, swa_epoch)
    _draw_loss(axes, rows)
    axes.set_title(plain(title))
    _integer_epochs(axes)
    figure.legend(loc="lower center", ncols=4)
    return figure


@styled
def curves_figure(rows: list[dict[str, Any]], swa_epoch: int | None, title: str) -> Figure:
    """Return a figure of accuracy above loss (log scale), of training and validation, checkpoints and SWA marked."""
    figure = new_figure(8, 7, (1, 0.8, 0.05, 0.25))
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.08})
    for axes in (upper, lower):
        _mark(axes, rows, swa_epoch)
    _draw(upper, rows, "acc")
    upper.set(ylabel="accuracy (%)", title=plain(title))
    _draw_loss(lower, rows)
    _integer_epochs(lower)
    figure.legend(*upper.get_legend_handles_labels(), loc="lower center", ncols=4)
    return figure


def _draw_loss(axes: Axes, rows: list[dict[str, Any]]) -> None:
    _draw(axes, rows, "loss")
    axes.set(yscale="log", ylabel="cross-entropy (nats)")


def _draw(axes: Axes, rows: list[dict[str, Any]], metric: str) -> None:
    """Draw a ``metric``, acc or loss, of training and validation over the epochs."""
    epochs, marker = [row["epoch"] for row in rows], "o" if len(rows) < 30 else None
    axes.plot(epochs, [row[f"train_{metric}"] for row in rows], color=colour(0), marker=marker, label="training")
    if rows and rows[0][f"val_{metric}"] is not None:
        axes.plot(epochs, [row[f"val_{metric}"] for row in rows], color=colour(1), marker=marker, label="validation")


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class; of one that a model knows and the data do not, its number."""
    return classes[label] if label < len(classes) else f"#{label}"


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the confusion matrix int [C, C] of int arrays [N], rows are true classes, and the names of its C classes.

    These are ``classes``, and those beyond them that are there all the same.
    """
    kinds = np.union1d(np.arange(len(classes)), np.concatenate([predicted, labels]))
    matrix = np.zeros((len(kinds), len(kinds)), int)
    np.add.at(matrix, (np.searchsorted(kinds, labels), np.searchsorted(kinds, predicted)), 1)
    return [class_name(classes, label) for label in kinds.tolist()], matrix


@styled
def confusion_figure(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Return a figure of the confusion matrix of int arrays [N]: rows are true classes, only mistakes are coloured."""
    from matplotlib.ticker import MaxNLocator

    names, matrix = confusion(predicted, labels, classes)
    names, places = [plain(name, 40) for name in names], range(len(names))
    mistakes = np.where(np.eye(len(names), dtype=bool), 0, matrix)
    longest = max(map(len, names))
    side = min(max(6, 0.45 * len(names)) + 0.08 * longest, 40)  # inches; a letter is about 0.08 wide
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    most = max(1, mistakes.max())
    axes.grid(False)
    axes.set_anchor("W")  # and the bar in the axes: the layout, measured once, is then that of any number of drawings
    beside = axes.inset_axes((1.04, 0.15, 0.04, 0.7))
    shades = axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=most)
    bar = figure.colorbar(shades, cax=beside, label="mistakes")
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    for true, guess in np.argwhere(matrix).tolist():
        ink = "white" if mistakes[true, guess] > 0.6 * most else GREY if true == guess else "black"
        number = axes.text(guess, true, str(matrix[true, guess]), ha="center", va="center", color=ink, fontsize=9)
        number.set_in_layout(False)  # inside its cell
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    if longest > 3:
        for tick in axes.get_xticklabels():
            tick.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="true", title=plain(title))
    return figure


@styled
def mistakes_figure(
    images: np.ndarray, probs: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str
) -> Figure:
    """Return a figure of up to 24 mistakes, the most confident first, of uint8 ``images`` [N, 28, 28], ``probs`` [N, C], labels [N]."""
    predicted, confidence = probs.argmax(1), probs.max(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:24]
    names = [short(shown(name), 60) for name in classes]
    said = [f"{class_name(names, predicted[i])} ({100 * confidence[i]:.0f}\u00a0%)" for i in wrong]
    texts = [f"#{i}: {class_name(names, labels[i])}, said {guess}" for i, guess in zip(wrong, said, strict=True)]
    return _wall(images[wrong], texts, title if len(wrong) else f"{title}: none", columns=8)


@styled
def answers_figure(images: np.ndarray, answers: Sequence[str], title: str) -> Figure:
    """Return a figure of uint8 ``images`` [N, 28, 28], as a network saw them, and its answers."""
    return _wall(images, [short(answer, 60) for answer in answers], title, columns=min(10, len(images)))


def _wall(images: np.ndarray, texts: Sequence[str], title: str, columns: int) -> Figure:
    """Return a figure of uint8 ``images`` [N, 28, 28] with a text above each."""
    captions = [textwrap.wrap(text, 17) for text in texts]
    lines = max(map(len, captions), default=1)
    # one picture of them all: axes of its own for each digit would take a second
    rows, width, height = max(1, -(-len(images) // columns)), 34, 34 + 5 * lines
    wall = np.zeros((rows * height, columns * width), images.dtype)
    title = plain(title)
    across = max(1.5 * columns, 0.12 * len(title))  # inches; a letter is about 0.11 wide
    figure = new_figure(across, 1.75 * rows * height / 40 + 0.6)
    axes = figure.subplots()
    for place, image in enumerate(images):
        top, left = place // columns * height + height - 30, place % columns * width + 3
        wall[top : top + 28, left : left + 28] = image
        text = "\n".join(captions[place])
        axes.text(left + 14, top - 1, text, fontsize=11, ha="center", va="bottom", parse_math=False)
    axes.imshow(wall, cmap="gray_r", vmin=0, vmax=255)
    axes.set_title(title)
    axes.grid(False)
    axes.axis("off")
    return figure


@styled
def reliability_figure(probs: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Return a figure of how often float ``probs`` [N, C] are right where they are how sure, and how many images that are (log scale)."""
    confidence, right = probs.max(1), probs.argmax(1) == labels
    count, sure, accuracy = calibration(confidence, right)
    figure = new_figure(5.5, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.arange(len(count)) / len(count)
    upper.bar(edges, 100 * np.nan_to_num(accuracy), 1 / len(count), align="edge", color=colour(0), edgecolor="white")
    upper.plot(sure, 100 * accuracy, "o", color=colour(1), markersize=4, label="at their mean confidence")
    upper.plot([0, 1], [0, 100], "--", color=GREY, label="as sure as right")
    error = calibration_error(confidence, right)
    upper.set(ylabel="accuracy (%)", title=f"{plain(title, 50)}\ncalibration error {error:.2f} points", ylim=(0, 103))
    upper.legend(loc="upper left")
    lower.bar(edges, count, 1 / len(count), align="edge", color=GREY, edgecolor="white")
    lower.set(yscale="symlog", ylabel="images", xlabel="confidence", xlim=(0, 1))
    return figure


@styled
def runs_figure(histories: dict[str, list[dict[str, Any]]]) -> Figure:
    """Return a figure of the validation (dashed: training) accuracies and losses of several runs.

    ``histories``: {name: rows}.
    """
    import matplotlib as mpl

    figure = new_figure(13, 5)
    accuracy, loss = figure.subplots(1, 2)
    lines, names = [], [plain(name, 60) for name in histories]
    for number, rows in enumerate(histories.values()):
        hue = mpl.colormaps["tab20"](number % 20)
        epochs = [row["epoch"] for row in rows]
        for axes, metric in ((accuracy, "acc"), (loss, "loss")):
            for part, style in (("val", "-"), ("train", "--")):
                values = [np.nan if row[f"{part}_{metric}"] is None else row[f"{part}_{metric}"] for row in rows]
                (line,) = axes.plot(epochs, values, style, color=hue, linewidth=1.4 if part == "val" else 0.8)
                if (part, metric) == ("val", "acc"):
                    lines.append(line)
    accuracy.set(ylabel="accuracy (%)", title="validation (solid) and training (dashed)")
    loss.set(ylabel="cross-entropy (nats)", yscale="log", title=f"{len(histories)} runs")
    for axes in (accuracy, loss):
        _integer_epochs(axes)
    if len(names) <= 20:
        columns = max(1, min(5, 160 // max(map(len, names), default=1)))
        figure.legend(lines, names, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


@styled
def plot_examples(
    examples: Sequence[Any], notes: dict[str, str], classes: Sequence[str], title: str, kind: str = "png"
) -> bytes:
    """Return a picture (``kind`` png, pdf or svg) of ``training.preview.examples``, in two halves, a column each picture.

    ``notes``: {column: what stands below its name}.
    """
    import matplotlib as mpl

    columns, rows = list(examples[0].pictures), -(-len(examples) // 2)
    names = [short(shown(name), 10) for name in classes]
    lines = 3 if max(map(len, names)) > 2 else 2
    side = max(max(picture.shape) for example in examples for picture in example.pictures.values())
    # of a cell; between the halves and below
    width, height, gap, edge = round(side * 1.3), round(side * (1.16 + 0.12 * lines)), side // 2, round(side * 0.15)
    wall = np.full((rows * height + edge, 2 * len(columns) * width + gap), np.nan)
    figure = new_figure(wall.shape[1] / side * 0.78, wall.shape[0] / side * 0.78 + 0.9)
    axes = figure.subplots()
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "parse_math": False}
    for number, example in enumerate(examples):
        half, row = divmod(number, rows)
        captions = {columns[0]: class_name(names, example.label), "mixed": _mixing(example, names, lines)}
        for column, (name, picture) in enumerate(example.pictures.items()):
            left = (half * len(columns) + column) * width + half * gap + edge
            top = (row + 1) * height - side
            wall[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            middle = left + picture.shape[1] / 2 - 0.5
            axes.text(middle, top - side * 0.06, captions.get(name, ""), fontsize=6.5, **style)
            if row == 0:
                axes.text(middle, -side * 0.05, "\n".join(filter(None, (name, notes.get(name)))), fontsize=8, **style)
    axes.imshow(wall, cmap=mpl.colormaps["gray_r"].with_extremes(bad="#dfe6ee"), vmin=0, vmax=1)
    axes.set_title(plain(title), pad=26, fontsize=11)
    axes.grid(False)
    axes.axis("off")
    return drawn(figure, kind, dpi=150)


def _mixing(example: Any, names: Sequence[str], lines: int) -> str:
    if example.kind is None:
        return "not mixed"
    shares = [(example.weight, example.label), (1 - example.weight, example.partner)]
    said = [f"{100 * share:.0f} % {class_name(names, label)}" for share, label in shares]
    return f"{example.kind}\n{(', ' if lines == 2 else chr(10)).join(said)}"
