"""From a picture of a digit, scanned, photographed or drawn, to MNIST's frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Invert = Literal["yes", "no", "auto"]
SIDE, BOX = 28, 20  # pixels of the frame, and of the box in it that the ink is scaled to
LOOKED_AT = 512  # pixels of the longer side in which the ink is looked for
_FAINTEST = 24  # grey values between paper and ink; what differs by less is no ink
_EDGE = (
    0.3  # of the contrast; what is fainter is paper, or the soft edge of a stroke (in small pictures: a third of it)
)
_SMALL = 48  # pixels of the shorter side, below which a picture is edges mostly, and nothing tells its noise
_ALONG = 0.06  # of the border, for each side with ink; a digit that is cut out tightly touches less of it
_SHADE = 0.5  # of the contrast; where the paper is in shadow, what is fainter may be shadow too
_LEAST = 0.1  # of the longer side; what is smaller, beside what runs along the border, is no digit
_WIDEST = 0.15  # of the shorter side; strokes are narrower, shadows wider
_SHEET = 0.15  # of the picture; what is smaller is no sheet of paper on a table
_STRAIGHT, _ROUND = 0.88, 0.72  # of the rectangle around it, that a sheet covers, and a round patch of light
_SPECK = 0.03  # of the largest stroke's area; what is smaller is dirt


class Framed(NamedTuple):
    """What the network sees, uint8 [28, 28], whether there is any ink on it, and whether that looks like no digit's."""

    image: np.ndarray
    inked: bool
    doubtful: bool = False


def frame(picture: Image, invert: Invert = "auto") -> Framed:
    """Bring a grey ``picture`` (mode L) of any size into MNIST's frame, as its makers did.

    The contrast between paper and ink is stretched to 0..255, the picture cropped to the ink, scaled to fit a box of
    20 x 20 with its proportions kept (antialiased), and placed in 28 x 28 with its centre of mass in the middle.
    ``invert``: "yes" for dark ink on light paper, "no" for light on dark, "auto" to go by the picture's border. Paper
    may be grey, noisy, and darker towards one side; what is faint beside the ink, or tiny, is not taken for ink.

    A picture that is in the frame already stays as it is: one of 28 x 28 where the pixels above 0 are 19 or 20 high or
    wide, whichever is more, and their centre of mass is in the middle (pixel 14, 14), to half a pixel. All 70,000 digits
    of MNIST are so. Of a negative of such a picture, that is what is returned.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", http://yann.lecun.com/exdb/mnist.
    """
    pixels = np.asarray(picture)
    for known in [pixels] * (invert != "yes") + [255 - pixels] * (invert != "no"):
        if _in_frame(known):
            return Framed(known, True)
    ink = _ink(_smaller(picture), invert)
    if ink is None:
        return Framed(np.zeros((SIDE, SIDE), np.uint8), False)
    kept = ink[_box(ink > 0)]
    return Framed(_placed(_fitted(kept)), True, _runs_along_border(ink) or _sheet(ink > 0)[0] is not None)


def _in_frame(pixels: np.ndarray) -> bool:
    if pixels.shape != (SIDE, SIDE) or not pixels.any():
        return False
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    off = np.abs(np.subtract(_centre(pixels), SIDE / 2)).max()
    return bool(longer in (BOX - 1, BOX) and off < 0.53)  # there is one of 13.48 among MNIST's


def _centre(pixels: np.ndarray) -> tuple[float, float]:
    """Return the centre of mass, row and column; the first pixel's is 0, 0."""
    mass = pixels.astype(np.float64)
    rows, columns = (np.arange(size) for size in mass.shape)
    return float(mass.sum(1) @ rows / mass.sum()), float(mass.sum(0) @ columns / mass.sum())


def _smaller(picture: Image) -> np.ndarray:
    """Return the pixels, float32; squares of them averaged where there are many, which bounds noise and time."""
    factor = -(-max(picture.size) // LOOKED_AT)
    return np.asarray(picture if factor == 1 else picture.reduce(factor), np.float32)


def _ink(pixels: np.ndarray, invert: Invert) -> np.ndarray | None:
    """Return how much ink there is on each pixel, 0..1; None if there is none.

    Ink is what differs from a plane of paper. Where that is a sheet, the ink is looked for on it; where it runs along the
    border, as shadows, dark corners and tables do, or is nothing, ink is what differs from the paper near it.
    """
    if np.ptp(pixels) < _FAINTEST:
        return None
    noise = _noise(pixels)
    above, dark = _above_paper(pixels, invert)
    ink = _strokes(_smooth(above, noise), noise)
    if not _tells_noise(pixels):
        return ink
    sheet, straight = _sheet(ink > 0) if invert == "auto" and ink is not None else (None, False)
    if ink is not None and not _runs_along_border(ink) and (sheet is None or straight):
        on_it = None if sheet is None else _ink(_only(pixels, sheet), "no" if dark else "yes")
        return ink if on_it is None or _runs_along_border(on_it) else on_it
    for way in (True, False) if invert == "auto" else (dark,):
        near = _strokes(_above_near(_smooth(pixels, noise), way), noise, True)
        if near is not None and _extent(near) > _LEAST * max(pixels.shape):
            return near
    return ink


def _strokes(ink: np.ndarray, noise: float, inside: bool = False) -> np.ndarray | None:
    """Return the strokes in ``ink``, 0..1, and 0 elsewhere, None if there are none; ``inside``: that touch no border."""
    from scipy import ndimage

    if noise > 1:
        noise = _spread(ink[ink < _middle(ink)])
    strong = ink > _middle(ink)
    contrast = float(np.percentile(ink[strong], 75)) if strong.any() else 0.0
    if contrast < max(_FAINTEST, 6 * noise):
        return None
    edge = _SHADE if inside else _EDGE if _tells_noise(ink) else _EDGE / 3
    floor = max(edge * contrast, 4 * noise)
    strokes, _ = ndimage.label(ink > floor, np.ones((3, 3)))
    areas = np.bincount(strokes[ink > contrast / 2], minlength=strokes.max() + 1)
    areas[0] = 0
    if inside:
        areas[_border(strokes)] = 0
    kept = (areas > _SPECK * areas.max())[strokes]
    return np.where(kept, np.clip(ink / contrast, 0, 1), 0) if kept.any() else None


def _smooth(pixels: np.ndarray, noise: float) -> np.ndarray:
    """Return ``pixels`` averaged over about a tenth of a stroke's width, if there is ``noise``."""
    from scipy import ndimage

    return ndimage.gaussian_filter(pixels, 0.01 * max(pixels.shape)) if noise > 1 else pixels


def _above_near(pixels: np.ndarray, dark: bool) -> np.ndarray:
    """Return by how much each pixel differs from the paper near it, as a share of that paper's light.

    The paper is the closing of the picture, which fills what is darker and narrower than a square of ``_WIDEST``, and
    nothing that is wider or goes on beyond the border (Serra, "Image Analysis and Mathematical Morphology", 1982).
    """
    from scipy import ndimage

    if not dark:
        pixels = pixels.max() + pixels.min() - pixels
    paper = ndimage.grey_closing(pixels, int(_WIDEST * min(pixels.shape)), mode="nearest")
    return (paper - pixels) * (paper.max() / np.maximum(paper, 0.3 * paper.max()) if dark else 1)


def _sheet(ink: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Return where the sheet, or the light, is if ``ink`` is one, a large area with few holes; and if its sides are straight."""
    from scipy import ndimage

    filled = ndimage.binary_fill_holes(ink)
    area = filled.sum()
    if area < _SHEET * filled.size or ink.sum() < 0.7 * area:
        return None, False
    places = np.argwhere(filled ^ ndimage.binary_erosion(filled)).astype(np.float32)
    turns = np.radians(np.arange(0, 180, 3))
    spans = np.ptp(places @ np.stack([np.cos(turns), np.sin(turns)]).astype(np.float32), axis=0) + 1
    across = np.roll(spans, len(spans) // 2)
    turn = int((spans * across).argmin())
    share, aspect = area / (spans * across)[turn], spans[turn] / across[turn]
    straight = bool(share > _STRAIGHT)
    if not 0.5 < aspect < 2 or not (straight or (share > _ROUND and ink.sum() > 0.85 * area)):
        return None, False
    return ndimage.binary_erosion(filled, iterations=max(2, max(ink.shape) // 60), border_value=1), straight


def _only(pixels: np.ndarray, sheet: np.ndarray) -> np.ndarray:
    """Return ``pixels`` cropped to the ``sheet``; what is not of it has the value of the nearest pixel that is."""
    from scipy import ndimage

    crop = _box(sheet)
    nearest = ndimage.distance_transform_edt(~sheet[crop], return_distances=False, return_indices=True)
    return pixels[crop][tuple(nearest)]


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _extent(ink: np.ndarray) -> int:
    return max(ink[_box(ink > 0)].shape)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _runs_along_border(ink: np.ndarray) -> bool:
    """Return whether more ink lies on the border than of strokes that end there, or bend."""
    sides = sum(bool(side.any()) for side in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
    return bool((_border(ink) > 0).mean() > _ALONG * sides)


def _above_paper(pixels: np.ndarray, invert: Invert) -> tuple[np.ndarray, bool]:
    """Return by how much each pixel differs from the paper towards the ink, and whether ink is the darker one.

    The paper is the plane through the pixels that are no ink.
    """
    rows, columns = (np.linspace(-1, 1, size, dtype=np.float32) for size in pixels.shape)
    terms = [np.ones_like(pixels), rows[:, None] + 0 * pixels, columns + 0 * pixels]
    paper, ink, dark = np.ones(pixels.shape, bool), pixels, False
    for _ in range(3):
        found, *_ = np.linalg.lstsq(np.stack([term[paper] for term in terms], 1), pixels[paper])
        ink = pixels - sum(factor * term for factor, term in zip(found, terms, strict=True))
        dark = invert == "yes" or (invert == "auto" and bool(np.median(_border(ink)) > _middle(ink)))
        ink = -ink if dark else ink
        ink -= np.median(ink[ink <= _middle(ink)])
        paper = ink <= max(3 * _spread(ink[ink <= _middle(ink)]), 1)
    return ink, dark


def _noise(pixels: np.ndarray) -> float:
    """Return the noise's standard deviation, from differences between neighbours, which few strokes and no slope have."""
    if not _tells_noise(pixels):
        return 0.0
    return _spread(np.diff(np.diff(pixels, axis=0), axis=1)) / 2


def _tells_noise(pixels: np.ndarray) -> bool:
    return min(pixels.shape) >= _SMALL


def _spread(values: np.ndarray) -> float:
    """Return the standard deviation as the median deviation gives it, on which a few values have no influence."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def _middle(values: np.ndarray) -> float:
    """Return the threshold between the two kinds of ``values`` (Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076)."""
    counts, edges = np.histogram(values.ravel()[:: 1 + values.size // 20_011], 256)  # so many tell it as well
    centres = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()[:-1].astype(float)
    above = counts.sum() - below
    sums = (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return max(float(edges[1 + np.nan_to_num(apart).argmax()]), float(values.min()))


def _fitted(ink: np.ndarray) -> np.ndarray:
    """Return ``ink`` with its longer side scaled to 20 pixels, uint8, its darkest 255."""
    from PIL import Image

    height, width = ink.shape
    scale = BOX / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.HAMMING))
    return (np.clip(small / small.max(), 0, 1) * 255 + 0.5).astype(np.uint8)


def _placed(ink: np.ndarray) -> np.ndarray:
    """Return ``ink`` in the frame, its centre of mass in the middle as far as it does not reach out of it."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    places = [int(np.ceil((SIDE - 1) / 2 - centre)) for centre in _centre(ink)]
    top, left = (min(max(place, 0), SIDE - size) for place, size in zip(places, ink.shape, strict=True))
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image
