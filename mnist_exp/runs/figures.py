"""How figures are made and written. Draws on matplotlib Figures of its own: no pyplot, so no global state in a sweep."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mnist_exp.console import shown
from mnist_exp.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("style.mplstyle")
GREY = "#888888"
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def styled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function that draws: what it draws looks as ``style.mplstyle`` has it."""

    @functools.wraps(function)
    def draw(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with _rc_params():
            return function(*arguments, **options)

    return draw


def _rc_params() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_style())


@functools.cache
def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_params_from_file(STYLE, use_default_template=False)


@styled
def colour(number: int) -> str:
    """Return a colour of the style, by its number from 0."""
    import matplotlib as mpl

    return mpl.colors.to_hex(f"C{number}")


def new_figure(width: float, height: float, margins: tuple[float, float, float, float] | None = None) -> Figure:
    """Return a figure of a size in inches; ``margins`` at left, bottom, right and top, which else are found by measuring."""
    from matplotlib.figure import Figure

    if margins is None:
        return Figure(figsize=(width, height), layout="constrained")
    figure, (left, bottom, right, top) = Figure(figsize=(width, height)), margins
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


@styled
def drawn(figure: Figure, kind: str = "png", dpi: int = 120) -> bytes:
    """Return the picture file, of the ``kind`` png, pdf or svg, that ``figure`` is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        if kind == "png":  # the same bytes as savefig's, which draws twice: once for the layout
            figure.set_dpi(dpi)
            FigureCanvasAgg(figure).print_png(content)
        else:
            figure.savefig(content, format=kind, dpi=dpi)
    return content.getvalue()


def write_figure(figure: Figure, path: Path, kinds: Sequence[str] = ("png",)) -> None:
    """Write ``figure`` to ``path``, whose ending becomes that of each of the ``kinds``: png, pdf or svg."""
    for kind in kinds:
        atomic_write(path.with_suffix(f".{kind}"), drawn(figure, kind))


def plain(text: str, most: int = 80) -> str:
    """Return ``text`` for matplotlib to draw as it is, in one line, with its middle left out if it has more than ``most`` letters.

    A $ begins no formula.
    """
    return short(shown(text), most).replace("$", r"\$")


def short(text: str, most: int) -> str:
    """Return ``text`` with its middle left out if it has more than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most // 2]}\u2026{text[-most // 2 + 1 :]}"
