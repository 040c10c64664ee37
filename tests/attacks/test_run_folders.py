"""Run folders of strangers: whatever lies in one, it costs one line, and the runs beside it are told as they are."""

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, Outcome

from mnist_exp import load_runs
from mnist_exp.reading import load_yaml
from mnist_exp.runs.folder import is_locked

MIB = 2**20
ARCHIVE = ROOT / "tests" / "runs" / "written_before_the_wings.tar.xz"
GOOD = ["finished-1", "finished-2", "interrupted"]
# --------------------------------------------------------------------------------------------------- what lies there


def text(content: str | bytes) -> Callable[[Path], None]:
    """A file with this content."""

    def write(file: Path) -> None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def changed(**values) -> Callable[[Path], None]:
    """A run.json with these values; None leaves a key out."""

    def write(file: Path) -> None:
        info = json.loads(file.read_text()) | values
        file.write_text(json.dumps({key: value for key, value in info.items() if value is not ...}))

    return write


def extended(**values) -> Callable[[Path], None]:
    """A run.json with these values added to its dataset and metrics."""

    def write(file: Path) -> None:
        info = json.loads(file.read_text())
        for key, added in values.items():
            info[key] |= added
        file.write_text(json.dumps(info))

    return write


def config(lines: str) -> Callable[[Path], None]:
    """A config.yaml with these lines at its end."""
    return lambda file: file.write_text(f"{file.read_text()}{lines}\n")


def rows(*lines: str) -> Callable[[Path], None]:
    """A history.csv with these lines at its end."""
    return lambda file: file.write_text("\n".join([*file.read_text().splitlines()[:2], *lines]) + "\n")


def sparse(file: Path) -> None:
    """A file of a gigabyte, which takes no place."""
    with file.open("r+b") as opened:
        opened.truncate(1024 * MIB)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link(target: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return write


def arrays(**changes) -> Callable[[Path], None]:
    """A predictions.npz with these arrays, or what these functions make of them."""

    def write(file: Path) -> None:
        with np.load(file) as saved:
            found = dict(saved)
        found |= {name: change(found[name]) if callable(change) else change for name, change in changes.items()}
        np.savez_compressed(file, **found)

    return write


def archive(name: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED, claimed: int | None = None):
    """A predictions.npz in which the array ``name`` is these bytes, said to be ``claimed`` of them."""

    def write(file: Path) -> None:
        with zipfile.ZipFile(file) as saved:
            members = {member: saved.read(member) for member in saved.namelist()}
        with zipfile.ZipFile(file, "w", kind, compresslevel=1) as saved:
            for member, original in members.items():
                saved.writestr(member, content if member == f"{name}.npy" else original)
            if claimed is not None:
                saved.getinfo(f"{name}.npy").file_size = claimed

    return write


def header(described: str, content: bytes = b"") -> bytes:
    """An array as NumPy writes it, whose header says ``described``."""
    line = described.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


def directory_of(entries: int) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "a") as saved:
            for number in range(entries):
                saved.writestr(f"{number}", b"")

    return write


RUN = {
    "nothing": text(""),
    "cut": text('{"status": "finis'),
    "no-text": text(b"\xff\xfe\x00"),
    "mark": text('\ufeff{"status": "finished"}'),
    "list": text("[1, 2]"),
    "deep": text("[" * 100_000),
    "deep-key": changed(extra=json.loads("[" * 150 + "]" * 150)),  # no harm in it
    "surrogate": text('{"status": "\\ud800"}'),
    "digits": text('{"status": "finished", "seconds": ' + "9" * 3_000_000 + "}"),
    "nan-seconds": changed(seconds=float("nan")),
    "big-seconds": changed(seconds=10**400),
    "text-seconds": changed(seconds="1"),
    "status": changed(status="done"),
    "status-list": changed(status=["finished"]),
    "metrics-list": changed(metrics=[]),
    "metrics-null": changed(metrics=None),
    "no-metrics": changed(metrics=...),
    "text-metric": extended(metrics={"val_acc": "99"}),
    "list-metric": extended(metrics={"val_acc": [99]}),
    "percent": extended(metrics={"test_acc": 1e300}),
    "overrides": changed(overrides=[1]),
    "overrides-text": changed(overrides="abc"),
    "tags": changed(tags=[{}]),
    "tags-null": changed(tags=None),
    "task": changed(task_name={}),
    "seed": changed(seed="1"),
    "seed-size": changed(seed=10**400),
    "epoch": changed(epoch=10**20),
    "epoch-below": changed(epoch=-1),
    "began": changed(started="yesterday"),
    "began-number": changed(started=5),
    "prefix": changed(prefix="../../neighbour/x"),
    "prefix-line": changed(prefix="x\n"),
    "no-prefix": changed(prefix=...),
    "data": changed(dataset=["mnist"]),
    "data-size": extended(dataset={"test": -5}),
    "data-classes": extended(dataset={"classes": [1]}),
    "md5": extended(dataset={"md5": {}}),
    "recipe": changed(recipe="abc"),
    "recipe-digest": changed(recipe={"rule": 2, "digest": {}}),
    "named": changed(named=["optimizer.lr"]),
    "named-many": changed(named={f"x.k{n}": n for n in range(100_000)}),
    "parent": changed(warm_start=5),
    "version": changed(format="one"),
    "newer": changed(format=99),
    "large": sparse,
    "pipe": pipe,
    "folder": folder,
    "device": link("/dev/zero"),
    "gone": link("nowhere"),
    "loop": link("run.json"),
}
HARMLESS = {
    "deep-key": RUN.pop("deep-key"),
    "not-finite": extended(metrics={"val_acc": float("nan"), "test_acc_tta": 10**400, "val_loss": float("inf")}),
    "twice": lambda file: file.write_text('{"status": "failed", ' + file.read_text().lstrip("{\n ")),
    "named-anything": changed(
        named={"path": "/", "test_low": "x", "warm_start": 5, "a b": 1, "`": 1, "x.list": [[1], {}], "x.big": 10**400}
        | {"x.text": "\x1b]0;title\x07", "x.long": "y" * 100_000, "x.null": None, "x.inf": float("inf"), "\n": 0}
    ),
    "named-text": changed(named={"data.batch_size": "x"}),
    "number-tags": changed(tags=[1, 2.5, True], task_name=2024),
    "no-seed": changed(seed=None),
}
YAML = {
    "binary": config("x: !!binary aGVsbG8="),
    "object": config("x: !!python/object/apply:os.system ['touch touched']"),
    "itself": config("x: &a [*a]"),
    "laughs": config(
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{('*' + p + ',') * 9}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
    ),
    "brackets": config("x: " + "[" * 200_000),
    "braces": config("x: " + "{a: " * 200_000),
    "dashes": text("- " * 200_000),
    "directives": text("".join(f"%TAG !{n}! x\n" for n in range(60_000)) + "---\na: 1\n"),
    "sixties": config("x: 1" + ":1" * 40),
    "list-key": config("? [a]\n: 1"),
    "twice": config("seed: 5"),
    "documents": config("---\na: 1"),
    "many": config("x: [" + "a," * 100_000 + "]"),
    "no-text": text(b"\xff\xfe"),
    "large": sparse,
    "pipe": pipe,
    "device": link("/dev/zero"),
    "loop": link("config.yaml"),
}
HARMLESS_YAML = {
    "date": config("x: 2024-01-01\ny: 2024-01-01 00:00:00"),
    "references": config(
        "x: ${y}\ny: ${x}\n" + "".join(f"z{n}: ${{z{n + 1}}}${{z{n + 1}}}\n" for n in range(60)) + "z60: x"
    ),
    "references-deep": config("x: {a: '${x}', b: '${x}', c: ['${x}']}"),
    "keys": config("x: [{2: a, true: b, 1.5: c, d: e}]\n7: 8"),
}
HISTORY = {
    "no-text": text(b"\xff\xfe\n"),
    "nothing": text("\n"),
    "field": rows("2,strong," + "9" * MIB),
    "zeros": rows("\0" * 1000, "2,strong,1,1,1,1,1,1,1"),
    "word": rows("2,strong,one,1,1,1,1,1,1", "3,strong,1,1,1,1,1,1,1"),
    "short": rows("2,strong,1,1,1"),
    "before": rows("-5,strong,1,1,1,1,1,1,1"),
    "absurd": rows(f"{10**300},strong,1,1,1,1,1,1,1"),
    "big-loss": rows("2,strong,1,1e308,1,1,1,1,1"),
    "percent": rows("2,strong,1,1,1000,1,1,1,1"),
    "many": rows(*["2,s,1,1,1,1,1,1,1"] * 200_000),
    "large": sparse,
    "pipe": pipe,
    "device": link("/dev/zero"),
}
HARMLESS_HISTORY = {
    "not-finite": rows("2,strong,nan,nan,nan,inf,nan,nan,nan", "3,strong,1,inf,1,nan,,1,1"),
    "torn": lambda file: file.write_bytes(file.read_bytes() + b"2,strong,0.01,0.5,90,0.5,90,1,75"),
}
PREDICTIONS = {
    "torn": lambda file: file.write_bytes(file.read_bytes()[:-300]),
    "nothing": text(""),
    "words": text("predicted"),
    "one-array": lambda file: np.save(file.open("wb"), np.arange(20)),
    "objects": arrays(predicted=np.array([{}] * 20, dtype=object)),
    "text": arrays(predicted=np.array(["1"] * 20)),
    "dims": arrays(predicted=lambda found: found[:, None]),
    "scalar": arrays(predicted=np.int64(5)),
    "empty": arrays(predicted=lambda found: found[:0], labels=lambda found: found[:0]),
    "short": arrays(predicted=lambda found: found[:-1]),
    "fewer": arrays(predicted=lambda found: found[:-1], labels=lambda found: found[:-1]),
    "below": arrays(predicted=lambda found: found - 300),
    "huge": arrays(predicted=lambda found: found + 2**40),
    "float": arrays(labels=lambda found: found.astype("f2") * np.nan),
    "bomb": archive(
        "predicted", header("{'descr': '<i8', 'fortran_order': False, 'shape': (2000000000,)}", bytes(200 * MIB))
    ),
    "hidden-bomb": archive("predicted", bytes(300 * MIB), claimed=1000),
    "claim": archive("predicted", header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}")),
    "negative": archive("predicted", header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}")),
    "header": archive("predicted", header("(" * 100)),
    "lzma": archive("predicted", header("{'descr': '<i8', 'fortran_order': False, 'shape': (0,)}"), zipfile.ZIP_LZMA),
    "directory": directory_of(20_000),
    "large": sparse,
    "pipe": pipe,
    "loop": link("predictions.npz"),
}
PICTURES = {  # what only the page reads
    "labels": lambda file: (
        arrays(labels=lambda found: found + 290)(file),
        extended(dataset={"classes": list("0123456789")})(file.parents[1] / "run.json"),
    ),
    "wrong": arrays(wrong=lambda found: found + 1000),
    "sizes": arrays(images=lambda found: found[:, :5]),
    "other": arrays(images=lambda found: found[1:]),
    "kind": arrays(images=lambda found: found.astype(float)),
}
PLACES = {
    "run": (RUN, "run.json"),
    "harmless-run": (HARMLESS, "run.json"),
    "yaml": (YAML, ".hydra/config.yaml"),
    "harmless-yaml": (HARMLESS_YAML, ".hydra/config.yaml"),
    "history": (HISTORY, "history.csv"),
    "harmless-history": (HARMLESS_HISTORY, "history.csv"),
    "predictions": (PREDICTIONS, "results/predictions.npz"),
    "pictures": (PICTURES, "results/predictions.npz"),
}
CASES = [(kind, case) for kind, (cases, _) in PLACES.items() for case in cases]
# ------------------------------------------------------------------------------------------------- what is made of it


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """Good runs, and beside them a run for each case, with one file of its own."""
    place = tmp_path_factory.mktemp("strange")
    with tarfile.open(ARCHIVE) as opened:
        opened.extractall(place, filter="data")
    for kind, (cases, name) in PLACES.items():
        for case, damage in cases.items():
            run = place / "runs" / f"{kind}.{case}"
            shutil.copytree(place / "runs" / "finished-1", run, ignore=shutil.ignore_patterns("*.pth"))
            damage(run / name)
    return place


@pytest.fixture(scope="module")
def told(strange) -> dict[str, Outcome]:
    """What ``compare`` says, asked for everything, as processes of a gigabyte and 20 seconds each."""

    def compare(*arguments: str) -> Outcome:
        words = [sys.executable, "-m", "mnist_exp", "compare", "runs", *arguments]
        limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (1024 * MIB, 1024 * MIB))  # noqa: E731
        started = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, cwd=strange, timeout=120, preexec_fn=limit)
        print(arguments, time.monotonic() - started)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return {
        "page": compare("--html", "page.html", "--plot", "curves.png", "--csv", "runs.csv"),
        "baseline": compare("--baseline", "finished-2", "--csv", "against.csv", "--filter", "data.batch_size > 0"),
        "groups": compare(
            "--group-by", "--json", "groups.json", "--sort", "data.batch_size", "--columns", "name,test_acc"
        ),
    }


def lines(outcome: Outcome, kind: str, case: str) -> list[str]:
    """The lines of what was said, beside the tables, about one run."""
    said = ("skipped: ", "incomplete: ", "no learning curve: ", "no confusion matrix: ", "not compared: ")
    return [
        line for line in outcome.out.splitlines() if line.startswith(said) and re.search(rf"\b{kind}\.{case}[/ ]", line)
    ]


def test_nothing_of_it_ends_a_comparison(told, strange):
    for outcome in told.values():
        assert (outcome.status, outcome.err) == (0, "")
    assert not (strange / "touched").exists()
    assert (strange / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_runs_beside_it_are_told_as_they_are(told, strange):
    alone = load_runs([strange / "runs" / name for name in GOOD]).set_index("name").loc[GOOD]
    found = pd.read_csv(strange / "runs.csv").set_index("name").loc[GOOD]
    for column in ("status", "val_acc", "test_acc", "val_loss", "seed", "data.batch_size", "test_95", "data_id"):
        expected = alone[column].replace("", None)
        pd.testing.assert_series_equal(found[column].astype(expected.dtype), expected)
    against = pd.read_csv(strange / "against.csv").set_index("name")
    assert (
        against.at["finished-1", "difference"]
        == alone.at["finished-1", "test_acc"] - alone.at["finished-2", "test_acc"]
    )


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_it_costs_one_line(told, strange, kind, case):
    names = set(pd.read_csv(strange / "runs.csv")["name"])
    about = {question: lines(outcome, kind, case) for question, outcome in told.items()}
    assert (f"{kind}.{case}" in names) == (kind != "run")
    expected = {
        "run": {"page": "skipped", "baseline": "skipped", "groups": "skipped"},
        "yaml": {"page": "incomplete", "baseline": "incomplete", "groups": "incomplete"},
        "history": {"page": "no learning curve"},
        "predictions": {"page": "no confusion matrix", "baseline": "not compared"},
        "pictures": {"page": "no confusion matrix"} | ({"baseline": "not compared"} if case == "labels" else {}),
    }.get(kind, {})
    for question, said in about.items():
        assert [line.partition(":")[0] for line in said] == ([expected[question]] if question in expected else [])
        assert all(PLACES[kind][1] in line or "same test images" in line for line in said)


@pytest.fixture
def older(place) -> Path:
    """Runs and a search of an older version."""
    with tarfile.open(ARCHIVE) as opened:
        opened.extractall(place, filter="data")
    return place


@pytest.fixture
def open_place(monkeypatch) -> Iterator[Path]:
    """A folder that another user may look into."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        monkeypatch.chdir(place)
        yield Path(place)


def test_what_may_not_be_read_costs_one_line(command, open_place):
    with tarfile.open(ARCHIVE) as opened:
        opened.extractall(open_place, filter="data")
    for name, mode in (("folder", 0), ("listed", 0o444), ("file", 0o755)):
        shutil.copytree("runs/finished-1", f"runs/{name}")
        Path("runs", name).chmod(mode)
    Path("runs/file/run.json").chmod(0)
    assert command("compare", "runs/interrupted").status == 0  # all is imported
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # root may read everything
    try:
        done = command("compare", "runs")
    finally:
        os.seteuid(user)
        for name in ("folder", "listed"):
            Path("runs", name).chmod(0o755)
    assert done.status == 0, done.err
    skipped = [line for line in done.out.splitlines() if line.startswith("skipped: ")]
    assert {os.path.relpath(line.split()[1], "runs") for line in skipped} == {
        "folder",
        "listed/run.json",
        "file/run.json",
    }
    assert all(line.endswith("Permission denied") for line in skipped)
    assert "3 runs: 2 finished, 1 interrupted" in done.out


@pytest.fixture
def endless(older) -> Iterator[Path]:
    """Runs beside folders in folders, longer than any path may be."""
    deep = os.open(older / "runs", os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("a", dir_fd=deep)
        below = os.open("a", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    yield older
    subprocess.run(["rm", "-r", older / "runs" / "a"], check=True)  # which pytest cannot


def test_folders_in_folders_without_end_are_not_followed(command, endless):
    (endless / "runs" / "b").symlink_to("..")
    done = command("compare", "runs")
    assert done.status == 0, done.err
    assert done.out.count("skipped: ") == done.out.count("more than 64 folders deep") == 1
    assert "3 runs: 2 finished, 1 interrupted" in done.out


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_is_written_to_see_who_is_at_work(command, older, kind):
    precious = older / "precious"
    precious.write_text("precious")
    lock = older / "sweeps" / "quick" / "trial-1" / ".lock"
    {"link": lambda: lock.symlink_to(precious), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    done = command("compare", "sweeps/quick")
    assert done.status == 0, done.err
    assert "trial-1" in done.out
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "results", ".hydra", "history.csv", ".lock"])
def test_a_run_that_is_resumed_writes_nothing_through_links(command, older, name):
    run, away = older / "runs" / "interrupted", older / "neighbour"
    if (run / name).exists():
        shutil.move(run / name, away)
    else:
        away.write_text("precious")
    (run / name).symlink_to(away)
    before = {file: file.read_bytes() for file in (away.rglob("*") if away.is_dir() else [away]) if file.is_file()}
    done = command("train", "resume=runs/interrupted")
    assert done.status == 2, done.out
    assert f"runs/interrupted/{name} is a link" in done.err
    now = {file: file.read_bytes() for file in (away.rglob("*") if away.is_dir() else [away]) if file.is_file()}
    assert now == before


@pytest.mark.parametrize(("file", "damage"), [("run.json", "[" * 100_000), ("history.csv", "epoch\n\xff")])
def test_what_cannot_be_resumed_names_its_file(command, older, file, damage):
    (older / "runs" / "interrupted" / file).write_bytes(damage.encode("latin-1"))
    done = command("train", "resume=runs/interrupted")
    assert done.status == 2, done.out
    assert f"runs/interrupted/{file} cannot be read" in done.err


def test_a_search_with_strange_trials_is_reported(command, older):
    trials = older / "sweeps" / "quick"
    (trials / "trial-0" / "run.json").write_text('{"status": 1}')
    (trials / "trial-1" / ".hydra" / "config.yaml").write_text("x: " + "[" * 200_000)
    done = command("compare", "sweeps/quick")
    assert done.status == 0, done.err
    assert "quick: 2 trials" in done.out


def test_many_large_configs_are_not_kept(place):
    """Of a config that is larger than any of ours nothing stays in memory; small ones are read once."""
    lines = "".join(f"k{number}: {'x' * 90}\n" for number in range(9_000))
    tracemalloc.start()
    try:
        for number in range(20):
            file = place / f"{number}.yaml"
            file.write_text(lines)
            assert len(load_yaml(file)) == 9_000
        assert tracemalloc.get_traced_memory()[0] < 2 * MIB  # one is 1.4 MiB
    finally:
        tracemalloc.stop()
    file.write_text("a: 1\n")
    assert load_yaml(file) is load_yaml(file)


@pytest.mark.parametrize("system", ["without locks", "held", "free"])
def test_a_run_whose_lock_cannot_be_asked_counts_as_locked(place, monkeypatch, system):
    """Then nobody can know, and a trial that may be running elsewhere is not called interrupted."""
    (place / ".lock").touch()
    if system == "without locks":
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    with (place / ".lock").open() as other:
        if system == "held":
            fcntl.flock(other, fcntl.LOCK_EX)
        assert is_locked(place) == (system != "free")
