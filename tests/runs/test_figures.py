"""How pictures of a run look, of which kinds they are, and what a notebook gets of them."""

import matplotlib as mpl
import numpy as np
import pytest
from helpers import SMALL, info, only_run

import mnist_exp
from mnist_exp.errors import UserError
from mnist_exp.runs import pictures
from mnist_exp.runs.folder import RunFolder

ROWS = [
    {
        "epoch": e,
        "phase": "strong",
        "train_loss": 1 / e,
        "val_loss": 0.9 / e,
        "train_acc": 90.0 + e,
        "val_acc": 91.0 + e,
    }
    for e in (1, 2, 3)
]


def test_pictures_come_in_the_kinds_that_are_asked_for(command, place):
    assert command("train", *SMALL, "paths.figures=[png,pdf,svg]", "hydra.run.dir=three").status == 0
    assert command("train", *SMALL, "hydra.run.dir=one").status == 0
    names = ("sample_seed42_acc", "sample_seed42_train_loss", "confusion", "mistakes")
    for name in names:
        assert (place / "three" / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (place / "three" / "results" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert b"<svg" in (place / "three" / "results" / f"{name}.svg").read_bytes()[:1000]
        assert (place / "one" / "results" / f"{name}.png").exists()
    assert not [p for p in (place / "one" / "results").iterdir() if p.suffix in (".pdf", ".svg")]
    for name, kinds in (("one", {".png"}), ("three", {".png", ".pdf", ".svg"})):
        assert command("evaluate", name, "--split", "val", "--output", f"scored-{name}").status == 0
        assert {p.suffix for p in (place / f"scored-{name}").glob("reliability.*")} == kinds
    runs = mnist_exp.load_runs("one", "three")
    assert runs["recipe"].nunique() == 1, "kinds of pictures make no other recipe"


@pytest.mark.parametrize("kinds", ["[gif]", "png", "[]", "null"])
def test_another_kind_is_refused_before_anything_is_written(command, place, kinds):
    done = command("train", *SMALL, f"paths.figures={kinds}")
    assert done.status == 2
    assert "paths.figures" in done.err
    assert "png, pdf, svg" in done.err
    assert not list(place.glob("outputs/runs/*/run.json"))


def test_each_panel_has_one_axis_and_the_confusion_a_bar():
    upper, lower = pictures.curves_figure(ROWS, 2, "title").axes
    assert not upper.get_position().overlaps(lower.get_position())
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("accuracy (%)", "cross-entropy (nats)")
    labels = np.array([0, 1, 2, 2])
    figure = pictures.confusion_figure(np.array([0, 1, 1, 2]), labels, ["shirt", "coat", "bag"], "title")
    (matrix,) = figure.axes
    (bar,) = matrix.child_axes
    assert [text.get_text() for text in matrix.get_xticklabels()] == ["shirt", "coat", "bag"]
    assert bar.get_ylabel() == "mistakes"


def test_one_style_whatever_the_notebook_has():
    with mpl.rc_context({"axes.prop_cycle": mpl.cycler(color=["#123456"]), "axes.spines.top": True}):
        before = dict(mpl.rcParams)
        figure = pictures.loss_figure(ROWS, None, "title")
        assert dict(mpl.rcParams) == before
    (axes,) = figure.axes
    assert [line.get_color() for line in axes.lines if len(line.get_xdata()) == 3] == ["#0072b2", "#d55e00"]
    assert not axes.spines["top"].get_visible()


def test_a_run_shows_itself_in_a_notebook(place):
    run = mnist_exp.train(*SMALL, "tags=['<b>']")
    assert "validation" in run.curves().axes[0].get_legend_handles_labels()[1]
    saved = np.load(run.predictions)
    numbers = [int(text.get_text()) for text in run.confusion().axes[0].texts]
    assert sum(numbers) == len(saved["labels"])
    shown = run._repr_html_()
    assert f"{info(only_run(place))['metrics']['test_acc']:.2f} % (95 % interval" in shown
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    run.predictions.unlink()
    with pytest.raises(UserError, match=r"predictions\.npz"):
        RunFolder.open(run.path).confusion()
