"""Pictures of digits come into MNIST's frame, whatever they are on."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mnist_exp.data.formats import read_sample
from mnist_exp.data.pictures import read_grey
from mnist_exp.inference.frame import frame

DIGITS = read_sample()[0][::50]


def enlarged(digit: np.ndarray, times: int = 5, paper: float = 255, ink: float = 0, margin: int = 20) -> np.ndarray:
    """A digit as a larger picture of float grey values, out of the middle."""
    side = 28 * times
    big = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    return paper + (ink - paper) * np.pad(big, ((margin, 5), (7, margin)))


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def likeness(image: np.ndarray, digit: np.ndarray) -> float:
    """The correlation of their pixels."""
    return np.corrcoef(image.ravel(), digit.ravel())[0, 1]


def alike(pictures: list[Image.Image], invert: str = "auto") -> float:
    return np.mean([likeness(frame(p, invert).image, d) for p, d in zip(pictures, DIGITS, strict=True)])


def test_what_is_in_the_frame_stays_and_so_does_its_negative():
    for digit in read_sample()[0]:
        assert frame(Image.fromarray(digit)).image is not None
        assert np.array_equal(frame(Image.fromarray(digit)).image, digit)
    for digit in DIGITS:
        assert np.array_equal(frame(Image.fromarray(255 - digit)).image, digit)


def test_whatever_comes_out_is_in_the_frame():
    for digit in DIGITS:
        image, inked, _ = frame(grey(enlarged(digit, 3)))
        assert inked
        ys, xs = np.nonzero(image)
        assert max(np.ptp(ys), np.ptp(xs)) + 1 in (19, 20)
        assert image.max() == 255
        off = np.subtract(ndimage.center_of_mass(image), 13.999)
        assert np.abs(off).max() < 0.52, "the centre of mass is in the middle"


def test_a_digit_out_of_its_place_is_put_back():
    kept = [digit for digit in DIGITS if not digit[-2:].any() and not digit[:, :3].any()]
    moved = [Image.fromarray(np.roll(digit, (2, -3), (0, 1))) for digit in kept]
    assert len(kept) > 80
    assert np.mean([likeness(frame(p).image, d) for p, d in zip(moved, kept, strict=True)]) > 0.98


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (225, 60), (180, 140), (40, 90)])
def test_dark_on_light_and_light_on_dark_of_any_contrast(paper, ink):
    assert alike([grey(enlarged(digit, 5, paper, ink)) for digit in DIGITS]) > 0.93


def test_noise_shadow_and_dirt_are_no_ink():
    draws, pictures = np.random.default_rng(0), []
    for digit in DIGITS:
        pixels = enlarged(digit, 8, 200, 60, 40)
        pixels += np.linspace(-30, 30, len(pixels))[:, None] + draws.normal(0, 15, pixels.shape)
        pixels[3:6, 100:103] = 20
        pictures.append(grey(pixels))
    assert alike(pictures) > 0.9


@pytest.mark.parametrize("kind", ["white", "grey", "black", "one pixel", "noise", "shadow", "noisy shadow"])
def test_blank_paper_is_blank(kind):
    pixels = np.full((120, 200), {"white": 255, "black": 0}.get(kind, 200), float)
    if "noise" in kind or "noisy" in kind:
        pixels += np.random.default_rng(1).normal(0, 12, pixels.shape)
    if "shadow" in kind:
        pixels += np.linspace(-40, 40, 200)
    image, inked, _ = frame(grey(pixels if kind != "one pixel" else np.full((1, 1), 7.0)))
    assert not inked
    assert not image.any()


def test_a_hair_thin_pen_is_seen():
    picture = Image.new("L", (900, 700), 255)
    ImageDraw.Draw(picture).line((300, 100, 400, 600), 0, width=1)
    image, inked, _ = frame(picture)
    assert inked
    assert image.max() == 255
    assert (image > 60).any(1).sum() >= 19


def photo(digit: np.ndarray, kind: str) -> Image.Image:
    """A digit on paper, 300 x 400, as photographs show it: a table around it, a shadow on it, dark corners."""
    ink = enlarged(digit, 6, 0, 1, 0)
    paper = np.pad(ink, ((60, 300 - 60 - ink.shape[0]), (110, 400 - 110 - ink.shape[1])))
    rows, columns = np.mgrid[-1:1:300j, -1:1:400j]
    light, table = np.full(paper.shape, 220.0), np.zeros(paper.shape, bool)
    if kind == "a table":
        table = (abs(rows) > 0.8) | (abs(columns) > 0.85)
    elif kind == "a sheet tilted":
        table = (abs(rows + 0.1 * columns) > 0.8) | (abs(columns - 0.06 * rows) > 0.8)
    elif kind == "a table to the left and below":
        table = (rows + 0.05 * columns > 0.8) | (columns < -0.8)
    elif kind == "a sharp shadow":
        light[columns + 0.5 * rows > 0.05] *= 0.5
    elif kind == "dark corners":
        light *= 1 - 0.4 * (rows**2 + columns**2)
    pixels = np.where(table, 60, light * (1 - 0.75 * paper)) + np.random.default_rng(0).normal(0, 3, paper.shape)
    return grey(ndimage.gaussian_filter(pixels, 0.8))


@pytest.mark.parametrize(
    "kind", ["a table", "a sheet tilted", "a table to the left and below", "a sharp shadow", "dark corners"]
)
def test_photographs_show_the_table_shadows_and_dark_corners(kind):
    seen = [frame(photo(digit, kind)) for digit in DIGITS[::4]]
    found = [likeness(one.image, digit) for one, digit in zip(seen, DIGITS[::4], strict=True)]
    assert np.mean(found) > 0.87
    assert not any(one.doubtful for one in seen)


def test_a_digit_that_is_cut_out_tightly_is_whole_and_not_doubtful():
    seen = []
    for digit in DIGITS:
        rows, columns = np.nonzero(enlarged(digit, 8, 0, 255) > 60)
        crop = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        seen.append(frame(grey(enlarged(digit, 8)[crop])))
    assert np.mean([likeness(one.image, digit) for one, digit in zip(seen, DIGITS, strict=True)]) > 0.9
    assert np.mean([one.doubtful for one in seen]) < 0.1


def test_what_looks_like_no_ink_on_paper_is_doubtful():
    sheet = np.full((300, 400), 60.0)
    sheet[40:250, 50:350] = 220
    bar = np.full((300, 400), 220.0)
    bar[:, :180] = 60
    bar[150] = 60
    assert frame(grey(sheet)).doubtful
    assert frame(grey(bar), "yes").doubtful
    assert not any(frame(grey(enlarged(digit))).doubtful for digit in DIGITS)


def test_invert_is_obeyed_where_the_border_misleads():
    """A digit whose ink covers the border: a bold 1, cut out tightly, under a bar."""
    pixels = np.zeros((100, 100))
    pixels[:, :45] = 255
    pixels[20:80, 20:30] = 0
    dark, light = frame(grey(pixels), "yes").image, frame(grey(pixels), "no").image
    assert not np.array_equal(dark, light)


def test_printed_digits_keep_their_proportions():
    font = ImageFont.load_default(120)
    for text in ("1", "0", "8"):
        picture = Image.new("L", (300, 200), 240)
        ImageDraw.Draw(picture).text((120, 30), text, 10, font)
        left, top, right, bottom = Image.eval(picture, lambda grey: 240 - grey).getbbox()
        ys, xs = np.nonzero(frame(picture).image)
        assert np.ptp(ys) + 1 == 20
        assert abs(np.ptp(xs) + 1 - 20 * (right - left) / (bottom - top)) < 1.5


def test_white_strokes_on_nothing_are_seen():
    for digit in DIGITS[:5]:
        content, white = io.BytesIO(), np.full_like(digit, 255)
        Image.fromarray(np.dstack([white, white, white, digit])).save(content, "PNG")
        assert np.array_equal(frame(read_grey(content, "drawn", 28)).image, digit)


@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (5, 5), (256, 256)])
def test_pictures_that_show_no_two_kinds_of_grey_are_read(shape):
    """Small ones, and smooth ones."""
    values = np.linspace(0, 255, shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    for pixels in (values, values.T, np.roll(values, 1), np.full(shape, 200, np.uint8)):
        image, _, _ = frame(Image.fromarray(pixels), "auto")
        assert (image.shape, image.dtype) == ((28, 28), np.uint8)
