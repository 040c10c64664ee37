"""What is thrown at the command line: overrides, options, and files that somebody has damaged, or made."""

import functools
import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from mnist_exp.config.job import compose
from mnist_exp.config.ours import config_folder
from mnist_exp.config.recipe import flatten

_NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "1.5",
    "1e-3",
    "1e400",
    "-inf",
    "nan",
    "1_0",
    "0x1f",
    "08",
    "9" * 400,
    "2147483648",
)
_WORDS = (
    *("null", "true", "false", "x", "''", '""', "[]", "{}", "[1,x]", "[[1],2]", "{a:1}", "{a:{b:[1]}}", "1,2", "a,b"),
    *("choice(1,2)", "range(3)", "interval(0,1)", "tag(log,interval(1,2))", "glob(*)", "int(x)", "float(3)", "str(1)"),
    *(
        "${seed}",
        "${nothing}",
        "${data.name}",
        "${oc.env:HOME}",
        "${oc.env:NOTHING}",
        "${oc.create:{a:1}}",
        "${${seed}}",
    ),
    *(
        "${now:%Y}",
        "${hydra:job.name}",
        "${oc.decode:'['}",
        "${",
        "}",
        "$",
        "\\",
        "'",
        '"',
        "[",
        "{",
        "(",
        "é",
        "\u202e",
    ),
    *("[/red]", "[bold]", "</script>", "\x1b[31m", "a b", "a=b", "???", "a:b", "-", "--", "!!python/name:os.system"),
    *("os.system", "mnist_exp.files.atomic_write", "torch.optim.SGD", "torch.nn.Linear", "builtins.print"),
    *("mnist", "sample", "none", "default", "small_cnn", "sgd", "cpu", "cuda", "auto", "fp32", "bf16", "epoch", "step"),
)
VALUES = st.one_of(
    st.sampled_from(_NUMBERS),
    st.sampled_from(_WORDS),
    st.integers(-3, 300).map(str),
    st.floats(-1, 2, width=16).map(str),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=12),
)
_LIKELY = st.one_of(
    st.integers(-1, 9).map(str),
    st.floats(0, 1, width=16).map(str),
    st.sampled_from(["null", "true", "[2,3]", "10000000000000", "x"]),
)
_GROUPS = {
    folder.relative_to(config_folder()).as_posix(): [file.stem for file in sorted(folder.glob("*.yaml"))]
    for folder in sorted(Path(config_folder()).rglob("*"))
    if folder.is_dir()
}
_HYDRA = (
    *("verbose", "job.name", "job.chdir", "job.env_set", "job_logging", "job_logging.root", "job_logging.root.level"),
    *(
        "job_logging.handlers.file",
        "hydra_logging",
        "callbacks",
        "sweeper",
        "launcher",
        "output_subdir",
        "sweep.subdir",
    ),
    *("mode", "searchpath", "job.config.override_dirname", "help.template", "run", "sweep", "runtime", "job.num"),
)
_FLAGS = (
    *(
        "--cfg",
        "job",
        "hydra",
        "all",
        "--info",
        "--info=config",
        "defaults",
        "--resolve",
        "--package",
        "model",
        "--run",
    ),
    *(
        "--multirun",
        "-m",
        "--shell-completion",
        "--config-name",
        "train",
        "--config-dir",
        "conf",
        "--help",
        "--version",
    ),
    *(
        "--hydra-help",
        "--config-path",
        "--experimental-rerun",
        "x.pickle",
        "--verbose",
        "-c",
        "-p",
        "-i",
        "-s",
        "-h",
        "--",
    ),
)


@functools.cache
def override() -> st.SearchStrategy[str]:
    """Return overrides of real keys, most of them unlikely."""
    keys = st.sampled_from([*flatten(compose()), *_GROUPS, *(f"hydra.{key}" for key in _HYDRA)])
    # above what there is, below it, and beside it
    near = st.builds(lambda key, end: key[: max(1, end)], keys, st.integers(1, 30)) | keys.map(lambda key: f"{key}.x")
    key = st.one_of(keys, keys, keys, keys, near)
    prefix = st.sampled_from(["", "", "", "", "+", "++", "~"])
    return st.builds("{}{}{}{}".format, prefix, key, st.sampled_from(["=", "=", "=", "=", "", "@x=", ":="]), VALUES)


def overrides() -> st.SearchStrategy[list[str]]:
    """Return command lines of ``train``: likely overrides, up to three unlikely ones of real keys, and flags of Hydra's."""
    choice = st.sampled_from(sorted(_GROUPS)).flatmap(
        lambda group: st.sampled_from(_GROUPS[group]).map(f"{group}={{}}".format)
    )
    likely = st.builds("{}={}".format, st.sampled_from([*flatten(compose())]), _LIKELY) | choice
    flags = st.lists(st.sampled_from(_FLAGS) | VALUES, max_size=2)
    few = st.lists(override(), min_size=1, max_size=3)
    one = st.lists(likely, min_size=1, max_size=1)
    return one | one | one | few | few | st.builds(lambda a, b: [*a, *b], flags, few) | flags


_COLUMNS = (
    "name",
    "val_acc",
    "seed",
    "optimizer.lr",
    "model",
    "status",
    "tags",
    "nothing",
    "started",
    "a`b",
    "",
    "data.mean",
)
_QUERIES = (
    *(
        "val_acc > 5",
        "optimizer.lr < 1 and seed == 1",
        "status == 'finished'",
        "val_acc >",
        "nothing == 1",
        "@x",
        "@pd",
    ),
    *(
        "__import__('os').getcwd()",
        "name.str.contains('a')",
        "val_acc == null",
        "seed in [1,2]",
        "`a",
        "1",
        "'",
        "a" * 999,
    ),
    *("name.__class__", "val_acc > 1e400", "(" * 300, "-" * 3000 + "1", "seed ** seed ** 9", "index.max()", "\n", "#"),
)
_FILES = (
    "new.csv",
    "no/such/x",
    "FOLDER",
    "-",
    "x.html",
    "x.png",
    "x.pdf",
    "x.foo",
    "",
    ".",
    "a\nb",
    "y" * 300,
    "good",
)
_FOLDERS = (
    "good",
    "other",
    "good",
    "bad",
    "nowhere",
    ".",
    "good/run.json",
    "",
    "good/../good",
    "sweep",
    "sweep/trial-0",
)


def options() -> st.SearchStrategy[list[str]]:
    """Return command lines of ``compare``, over the folders and files that test_fuzz lays out."""
    column = st.sampled_from(_COLUMNS) | VALUES
    columns = st.lists(column, max_size=3).map(",".join)
    value = {
        "--filter": st.sampled_from(_QUERIES) | VALUES,
        "--sort": column,
        "--last": VALUES,
        "--columns": columns,
        "--group-by": columns,
        "--baseline": st.sampled_from(_FOLDERS) | VALUES,
        "--storage": st.sampled_from(
            ["sqlite:///sweep/study.db", "sqlite:///new.db", "x", "sqlite://", "mysql://a:b@c/d"]
        ),
        "--watch": st.sampled_from(["nan", "inf", "-1", "0", "x"]),
        **{f"--{kind}": st.sampled_from(_FILES) for kind in ("csv", "json", "html", "plot")},
    }
    pair = st.sampled_from(sorted(value)).flatmap(lambda name: value[name].map(lambda found: [name, found]))
    pair |= st.sampled_from([["--group-by"], ["--help"], ["--nothing"]])
    words = st.lists(pair, max_size=4).map(lambda pairs: [word for one in pairs for word in one])
    return st.builds(lambda folders, rest: [*folders, *rest], st.lists(st.sampled_from(_FOLDERS), max_size=2), words)


class Damage(NamedTuple):
    """What is done to the file ``number`` (of as many as there are): ``kind``, ``place`` (a share of it), ``what``."""

    number: int
    kind: str
    place: float
    what: bytes


_NASTY = (
    *(
        b"1e400",
        b"Infinity",
        b"NaN",
        b"9" * 400,
        b'"\\ud800"',
        b"null",
        b"-1",
        b"1.5",
        b"[]",
        b"{}",
        b"true",
        b'"x"',
        b'""',
    ),
    *(
        b"[" * 2000,
        b"{" * 2000,
        b'{"a":' * 2000,
        b"&a [*a]",
        b"&a {x: *a}",
        b"2026-11-24",
        b"!!binary aGk=",
        b"? x",
        b"\0",
    ),
    *(
        b"!!python/object/apply:os.getcwd []",
        b"!!set {a}",
        b"<<: 3",
        b"\xff\xfe",
        b"\xc3",
        b'"',
        b"'",
        b",",
        b"\n",
        b"\r",
        b":",
    ),
    *(
        b'"../../x"',
        b"'[/red]'",
        b'"<!--<script>"',
        b"${oc.env:HOME}",
        b"${a}${a}",
        b"%s" * 9,
        b"x" * 70000,
        b"- " * 2000,
    ),
    *(
        b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
        b'"\\u0000"',
        b"\x1b[31m",
        b"1_000",
        b"0x10",
        b".inf",
        b"~",
    ),
)
_KINDS = (
    "cut",
    "flip",
    "insert",
    "replace",
    "value",
    "value",
    "value",
    "value",
    "all",
    "append",
    "delete",
    "folder",
    "link",
    "pipe",
)


def damages() -> st.SearchStrategy[list[Damage]]:
    """Return one to three damages."""
    what = st.sampled_from(_NASTY) | st.sampled_from(_NASTY) | st.binary(max_size=40)
    one = st.builds(Damage, st.integers(0, 10**6), st.sampled_from(_KINDS), st.floats(0, 1), what)
    return st.lists(one, min_size=1, max_size=3)


def damage(folder: Path, done: list[Damage]) -> None:
    """Do what was drawn to the files of ``folder``, or to the file that it is."""
    for one in done:
        among = [folder, *folder.rglob("*")]
        files = sorted(p for p in among if p.is_file() and not p.is_symlink() and p.name != ".lock")
        if files:
            _damage(files[one.number % len(files)], one)


def _damage(file: Path, one: Damage) -> None:
    content = file.read_bytes()
    at = int(one.place * len(content))
    if one.kind in ("delete", "folder", "link", "pipe"):
        file.unlink()
        if one.kind == "folder":
            file.mkdir()
        elif one.kind == "link":
            file.symlink_to(os.fsdecode(one.what.replace(b"\0", b"")[:200] or b"."))
        elif one.kind == "pipe":
            os.mkfifo(file)
        return
    if one.kind == "value":  # in the place of a value of JSON, YAML or CSV
        marks = [i for i, byte in enumerate(content) if byte in b":,[-"]
        at = marks[int(one.place * (len(marks) - 1))] + 1 if marks else at
        ends = [found for end in b",\n]}" if (found := content.find(bytes([end]), at)) >= 0]
        content = (
            content[:at] + b" " * (content[at : at + 1] == b" ") + one.what + content[min(ends, default=len(content)) :]
        )
    elif one.kind == "cut":
        content = content[:at]
    elif one.kind == "flip":
        content = content[:at] + bytes(byte ^ 255 for byte in content[at : at + 3]) + content[at + 3 :]
    elif one.kind in ("insert", "append"):
        at = len(content) if one.kind == "append" else at
        content = content[:at] + one.what + content[at:]
    elif one.kind == "replace":
        content = content[:at] + one.what + content[at + len(one.what) :]
    else:
        content = one.what
    file.write_bytes(content)


def imported() -> dict[str, bytes]:
    """Return files that ``data import`` takes, small and right: {name: content}."""
    digits = np.arange(5 * 784, dtype=np.uint8).reshape(5, 28, 28)
    labels = np.arange(5, dtype=np.uint8)
    idx = {
        f"{part}-{name}": b"\0\0\x08"
        + bytes([array.ndim])
        + b"".join(n.to_bytes(4) for n in array.shape)
        + array.tobytes()
        for part in ("train", "t10k")
        for name, array in (("images-idx3-ubyte", digits), ("labels-idx1-ubyte", labels))
    }
    keras, packed = io.BytesIO(), io.BytesIO()
    np.savez_compressed(keras, x_train=digits, y_train=labels, x_test=digits, y_test=labels)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in idx.items():
            archive.writestr(f"{name}.gz", gzip.compress(content, mtime=0))
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    lines = [",".join(map(str, [label, *digit.ravel()])) for label, digit in zip(labels, digits, strict=True)]
    csv = "\n".join([header, *lines, ""]).encode()
    return {
        "train.csv": csv,
        "keras.npz": keras.getvalue(),
        "all.zip": packed.getvalue(),
        "train-images-idx3-ubyte.gz": gzip.compress(idx["train-images-idx3-ubyte"], mtime=0),
        **{f"folder/{name}": content for name, content in idx.items()},
    }
