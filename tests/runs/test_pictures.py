"""Pictures of a run: as matplotlib saves them, at half the drawing."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from mnist_exp.runs import pictures
from mnist_exp.runs.figures import drawn, styled, write_figure


def test_a_picture_is_drawn_once_to_the_bytes_that_matplotlib_saves(place, monkeypatch):
    figures, draws = [], []
    new, draw = pictures.new_figure, Figure.draw
    monkeypatch.setattr(pictures, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: draws.append(figure) or draw(figure, renderer))
    scores = {"train_loss": 0.7, "val_loss": 0.6, "train_acc": 80.0, "val_acc": 82.0}
    rows = [{"epoch": epoch, **scores} for epoch in (1, 2, 3)]
    labels = np.arange(100) % 10
    write_figure(pictures.loss_figure(rows, 2, "sample"), place / "loss.png")
    write_figure(pictures.curves_figure(rows, 2, "sample"), place / "acc.png")
    write_figure(
        pictures.confusion_figure(labels[::-1], labels, [str(n) for n in range(10)], "sample"), place / "confusion.png"
    )
    assert draws == figures
    for figure, name in zip(figures, ("loss", "acc", "confusion"), strict=True):
        for axes in figure.axes:
            for text in axes.texts:
                text.set_in_layout(True)  # as it is, unless it is said to lie inside
        styled(figure.savefig)(content := io.BytesIO(), format="png", dpi=120)
        assert content.getvalue() == (place / f"{name}.png").read_bytes(), name


@pytest.mark.parametrize(("loss", "step"), [(1e-30, 1e-3), (0.3, 0.03), (1e30, 30)])
def test_nothing_of_a_history_sticks_out_of_its_picture(place, monkeypatch, loss, step):
    figures, new = [], pictures.new_figure
    monkeypatch.setattr(pictures, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    for epochs in (2, 250):
        row = {"train_loss": loss, "val_loss": loss, "train_acc": 100 - 3 * step, "val_acc": 100 - 2 * step}
        rows = [{**row, "epoch": epoch} for epoch in range(1, epochs)]
        rows.append({"epoch": epochs, "train_loss": loss / 2, "val_loss": loss / 3, "train_acc": 100, "val_acc": 100})
        drawn(pictures.loss_figure(rows, 2, "fashion_mnist, seed 4294967295"))
        drawn(pictures.curves_figure(rows, 2, "fashion_mnist, seed 4294967295"))
    assert len(figures) == 4
    for figure in figures:
        assert np.all(figure.get_tightbbox().min >= 0)
        assert np.all(figure.get_tightbbox().max <= figure.get_size_inches())
