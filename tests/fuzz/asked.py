"""What is thrown at trained networks: options, pictures and arrays that somebody has damaged, or made."""

import functools
import gzip
import io

import numpy as np
import strategies
from hypothesis import strategies as st
from PIL import Image

_RUNS = ("good", "good", "good", "other", "bad", "sweep", "nowhere", "good/run.json", "", ".", "good/../good", "a\nb")
_WRITTEN = (
    "new.csv",
    "out",
    "no/such/x.png",
    "FOLDER",
    "-",
    "x.png",
    "x.svg",
    "x.foo",
    "",
    ".",
    "good",
    "a\x1b[31mb",
    "~",
)
_NUMBERS = ("0", "1", "3", "25", "26", "-1", "nan", "1e400", "9" * 400, "x", "", "0.5", "65536")
_READ = (
    "digit.png",
    "scans",
    "digits.idx.gz",
    "digits.npz",
    "test.csv",
    "FOLDER",
    "nowhere",
    "",
    ".",
    "-",
    "good",
    "a\nb",
)
_OPTIONS = {
    "--input": _READ,
    "--output": _WRITTEN,
    "--show": _WRITTEN,
    "--tta": _NUMBERS,
    "--top": _NUMBERS,
    "--port": _NUMBERS,
    "--unsure": _NUMBERS,
    "--array": ("images", "labels", "nothing", ""),
    "--checkpoint": (
        "best",
        "last",
        "swa",
        "wrost",
        "good/checkpoints/last.pth",
        "good/run.json",
        "",
        ".",
        "/dev/zero",
    ),
    "--invert": ("yes", "no", "auto", "maybe"),
    "--split": ("val", "test", "train"),
    "--data": ("data", "nowhere", "", "${oc.env:HOME}", "/dev/zero", "good", "~nobody/x"),
    "--format": ("safetensors", "torchscript", "pth"),
    "--config-dir": ("FOLDER", "nowhere", "good", ""),
}
_TAKEN = {
    "predict": ("--input", "--output", "--show", "--tta", "--unsure", "--array", "--checkpoint", "--invert"),
    "evaluate": ("--tta", "--split", "--checkpoint", "--top", "--output", "--data"),
    "export": ("--format", "--output", "--tta", "--checkpoint"),
    "draw": ("--port", "--checkpoint"),
    "preview": ("--output", "--config-dir"),
}
# without these there is little to see
_NEEDED = {
    "predict": ["--input", "digit.png", "--output", "new.csv"],
    "export": ["--format", "safetensors", "--output", "out"],
}


@st.composite
def asked(draw) -> list[str]:
    """Draw a command line of one that asks a network, over the folders and files that test_networks lays out."""
    command = draw(st.sampled_from(("predict", "predict", "predict", "evaluate", "export", "draw", "preview")))
    words = list(_NEEDED.get(command, []))
    for option in draw(st.lists(st.sampled_from(_TAKEN[command]), max_size=3)):
        words += [option, draw(st.sampled_from(_OPTIONS[option]) | strategies.VALUES)]
    if command == "preview":
        few = draw(st.lists(strategies.override(), max_size=2))
        return [command, *words, "data=sample", "model.channels=[2,2,2]", *few]
    runs = draw(st.lists(st.sampled_from(_RUNS), min_size=1, max_size=2 if draw(st.booleans()) else 1))
    return [command, *runs, *words]


@functools.cache
def inputs() -> dict[str, bytes]:
    """Return files that ``predict`` takes, small and right: {name: content}."""
    digits = np.tile(np.arange(28, dtype=np.uint8) * 9, (5, 28, 1))
    digits[:, 10:18, 10:18] = 255
    colours = np.repeat(digits[0][:, :, None], 4, 2)
    idx = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in digits.shape) + digits.tobytes()
    lines = [",".join(f"pixel{i}" for i in range(784)), *(",".join(map(str, digit.ravel())) for digit in digits), ""]
    one, several, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(one, digits)
    np.savez(several, images=digits, labels=np.arange(5))
    np.savez_compressed(packed, x_test=digits)
    csv = "\n".join(lines).encode()
    grey, alpha = Image.fromarray(digits[0]), Image.fromarray(colours)
    return {
        "digit.png": _picture(grey, "PNG"),
        "alpha.png": _picture(alpha, "PNG"),
        "palette.png": _picture(grey.convert("P"), "PNG", transparency=3),
        "deep.png": _picture(Image.fromarray(digits[0].astype(np.uint16) * 257), "PNG"),
        "turned.jpg": _picture(grey, "JPEG", exif=_turned()),
        "digit.webp": _picture(alpha, "WEBP"),
        "digit.bmp": _picture(alpha.convert("RGB"), "BMP"),
        "digit.ppm": _picture(grey, "PPM"),
        "digit.tif": _picture(grey, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _picture(grey, "TIFF", compression="jpeg"),
        "digits.idx": idx,
        "digits.idx.gz": gzip.compress(idx, mtime=0),
        "digits.npy": one.getvalue(),
        "digits.npz": several.getvalue(),
        "packed.npz": packed.getvalue(),
        "test.csv": csv,
        "test.csv.gz": gzip.compress(csv, mtime=0),
        "scans/a.png": _picture(grey, "PNG"),
        "scans/below/b.jpg": _picture(grey, "JPEG"),
    }


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _picture(picture: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def content() -> st.SearchStrategy[bytes]:
    """Return any bytes, most of which begin as a file does that is read."""
    starts = [
        b"",
        b"\x1f\x8b\x08\0",
        b"PK\3\4",
        b"\x93NUMPY\1\0",
        b"\0\0\x08\x03",
        b"pixel0,pixel1",
        b"%PDF",
        b"II*\0",
        b"MM\0*",
    ]
    starts += [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff\xe0",
        b"P5 28 28 255\n",
        b"P6 99999 99999 255\n",
        b"BM",
        b"RIFF....WEBPVP8 ",
    ]
    plain = st.builds(lambda start, rest: start + rest, st.sampled_from(starts), st.binary(max_size=200))
    return plain | plain | plain.map(lambda found: gzip.compress(found, mtime=0))
