"""Pictures of a run: as matplotlib saves them, at half the drawing."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from mnist_exp.runs import pictures


def test_a_picture_is_drawn_once_to_the_bytes_that_matplotlib_saves(place, monkeypatch):
    figures, draws = [], []
    new, draw = pictures._figure, Figure.draw
    monkeypatch.setattr(pictures, "_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: draws.append(figure) or draw(figure, renderer))
    scores = {"train_loss": 0.7, "val_loss": 0.6, "train_acc": 80.0, "val_acc": 82.0}
    rows = [{"epoch": epoch, **scores} for epoch in (1, 2, 3)]
    labels = np.arange(100) % 10
    pictures.plot_loss(rows, 2, place / "loss.png", "sample")
    pictures.plot_curves(rows, 2, place / "acc.png", "sample")
    pictures.plot_confusion(labels[::-1], labels, [str(n) for n in range(10)], place / "confusion.png", "sample")
    assert draws == figures
    for figure, name in zip(figures, ("loss", "acc", "confusion"), strict=True):
        for axes in figure.axes:
            for text in axes.texts:
                text.set_in_layout(True)  # as it is, unless it is said to lie inside
        figure.savefig(content := io.BytesIO(), format="png", dpi=120)
        assert content.getvalue() == (place / f"{name}.png").read_bytes()


@pytest.mark.parametrize(("loss", "step"), [(1e-30, 1e-3), (0.3, 0.03), (1e30, 30)])
def test_nothing_of_a_history_sticks_out_of_its_picture(place, monkeypatch, loss, step):
    figures, new = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    for epochs in (2, 250):
        row = {"train_loss": loss, "val_loss": loss, "train_acc": 100 - 3 * step, "val_acc": 100 - 2 * step}
        rows = [{**row, "epoch": epoch} for epoch in range(1, epochs)]
        rows.append({"epoch": epochs, "train_loss": loss / 2, "val_loss": loss / 3, "train_acc": 100, "val_acc": 100})
        pictures.plot_loss(rows, 2, place / "loss.png", "fashion_mnist, seed 4294967295")
        pictures.plot_curves(rows, 2, place / "acc.png", "fashion_mnist, seed 4294967295")
    assert len(figures) == 4
    for figure in figures:
        assert np.all(figure.get_tightbbox().min >= 0)
        assert np.all(figure.get_tightbbox().max <= figure.get_size_inches())
