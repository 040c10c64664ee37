"""Pictures of a run: as matplotlib saves them, at half the drawing."""

import io

import numpy as np
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
