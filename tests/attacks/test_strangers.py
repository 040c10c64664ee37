"""Run folders, exported folders and files of strangers: what is asked of them runs nothing, reads and writes nothing else.

Each is a fork of this process, watched: see ``fuzz/child.py``.
"""

import http.client
import io
import json
import os
import pickle
import shutil
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fuzz import child
from helpers import SMALL, info, run_command
from PIL import Image
from torch import nn

from mnist_exp import load_export, load_model
from mnist_exp.cli import main
from mnist_exp.data.formats import read_sample
from mnist_exp.errors import UserError
from mnist_exp.inference import bounded
from mnist_exp.inference.draw import SIDE, Server

Damage = Callable[[Path], object]
PREDICT = ["predict", "run", "--input", "digits.idx", "--output", "answers.csv"]
EVALUATE = ["evaluate", "run", "--output", "out"]
EXPORT = ["export", "run", "--format", "torchscript", "--output", "out"]
LARGE = {"_target_": "torch.nn.Linear", "in_features": 100_000, "out_features": 100_000}
# --------------------------------------------------------------------------------------------------- what lies there


def config(**changes) -> Damage:
    """A config.yaml with these groups; a function changes one."""

    def write(run: Path) -> None:
        file = run / ".hydra" / "config.yaml"
        tree = yaml.safe_load(file.read_text())
        for group, change in changes.items():
            tree[group] = tree[group] | change if isinstance(change, dict) and "_target_" not in change else change
        file.write_text(yaml.safe_dump(json.loads(json.dumps(tree))))  # without references to what is there twice

    return write


def about(**changes) -> Damage:
    """A run.json with these values of its data, or of itself."""

    def write(run: Path) -> None:
        found = info(run)
        for key, value in changes.items():
            (found["dataset"] if key in found["dataset"] else found)[key] = value
        (run / "run.json").write_text(json.dumps(found))

    return write


def weights(change: Callable[[dict], object]) -> Damage:
    """Checkpoints of the best epochs whose content ``change`` has changed."""

    def write(run: Path) -> None:
        for file in (run / "checkpoints").glob("*_ckpt_*.pth"):
            saved = torch.load(file, weights_only=True)
            change(saved)
            torch.save(saved, file)

    return write


def both(*damages: Damage) -> Damage:
    return lambda run: [damage(run) for damage in damages]


def network(described: dict, module: nn.Module) -> Damage:
    """A network of another kind, with weights that fit it."""
    return both(config(model=described), weights(lambda saved: saved.update(model=module.state_dict())))


def noted(note: object) -> Damage:
    """Weights with a ``note`` where torch has the versions of layers."""

    def write(saved: dict) -> None:
        saved["model"] = OrderedDict(saved["model"])
        saved["model"]._metadata = note

    return weights(write)


def links(name: str, target: str = "../away") -> Damage:
    """A link in the place of the file or folder ``name``, which lies elsewhere."""

    def write(run: Path) -> None:
        shutil.move(run / name, run.parent / "away")
        (run / name).symlink_to(
            os.path.relpath(run.parent / "away", (run / name).parent) if "away" in target else target
        )

    return write


def checkpoints(content: bytes) -> Damage:
    return lambda run: [file.write_bytes(content) for file in (run / "checkpoints").iterdir()]


class Evil:
    def __reduce__(self):
        return os.system, ("touch touched",)


def evil_checkpoint() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": Evil()}, protocol=2))
        archive.writestr("a/version", "3")
    return content.getvalue()


def bomb(kind: str = "a/data/0") -> bytes:
    """An archive of a gigabyte, in a megabyte."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(kind, "w") as part,
    ):
        for _ in range(1024):
            part.write(bytes(1 << 20))
    return content.getvalue()


def pipes(run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.unlink()
        os.mkfifo(file)


def custom(**part) -> Damage:
    """Data of one's own: torchvision's FakeData, with an MD5 that nobody knows."""
    fake = {"_target_": "torchvision.datasets.FakeData", "size": 20, "image_size": [1, 28, 28]}
    fake |= {"transform": {"_target_": "torchvision.transforms.ToTensor"}, **part}
    data = {"_target_": "mnist_exp.data.sets.CustomData", "name": "x", "val_size": 10, "mean": 0.5, "std": 0.5}
    sizes = {"train": fake["size"] - 10, "val": 10, "test": fake["size"], "md5": None, "name": "x"}
    return both(config(data=data | {"train": fake, "test": fake, "num_workers": 0}), about(**sizes))


def pictures_that_are_pipes(run: Path) -> None:
    for name in "ab":
        (run / "pictures" / name).mkdir(parents=True)
        os.mkfifo(run / "pictures" / name / "0.png")
    custom()(run)
    tree = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["data"]
    for part in ("train", "test"):
        tree[part] = {"_target_": "mnist_exp.data.sets.image_folder", "root": "run/pictures", "mean": 0.5, "std": 0.5}
        tree[part] |= {"augment": False}
    both(config(data=tree), about(train=1, val=1, test=2))(run)


IDENTITY = {"_target_": "torch.nn.Identity"}
WIDE = "mnist_exp.parts.models.WideSmallResNet"
CASES: dict[str, tuple[Damage, list[str], str]] = {
    # what is built
    "other code": (config(model={"_target_": "os.system", "command": "touch touched"}), PREDICT, "not os.system"),
    "code below": (
        config(model={"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "_args_": ["touch touched"]}]}),
        EXPORT,
        "not os.system",
    ),
    "half a network": (config(model={"_partial_": True}), PREDICT, "model._target_"),
    "half an evaluator": (config(evaluate={"_partial_": True}), PREDICT, "evaluate._target_"),
    "environment": (config(model={"num_classes": "${oc.env:HOME}"}), EXPORT, "oc.env:HOME"),
    "circle": (both(config(model={"num_classes": "${model.num_classes}"})), PREDICT, "config.yaml"),
    "a place of its own": (config(model={"_target_": "torch.nn.Linear", "_args_": [10**5, 10**5, True, "cpu"]}), PREDICT, "says a network of"),
    "no size": (config(model=LARGE | {"in_features": -5}), PREDICT, "config.yaml: "),
    "no size at all": (config(model=LARGE | {"in_features": 10**12, "out_features": 10**12}), EXPORT, "config.yaml: "),
    "large evaluator": (config(evaluate=LARGE), PREDICT, "config.yaml says"),
    "large below it": (config(evaluate={"normalize": LARGE}), EXPORT, "config.yaml says"),
    "no deviation": (config(data={"std": 0}), PREDICT, "config.yaml: evaluate.normalize.std"),
    "no mean": (config(data={"mean": float("nan")}), EXPORT, "are no numbers"),
    "large mean": (config(data={"mean": 1e308}), PREDICT, "are no numbers"),
    "shifts": (config(evaluate={"tta_runs": 10**9}), PREDICT, "tta_runs"),
    # what it answers
    "no classes": (network(IDENTITY | {"num_classes": 10}, nn.Identity()), PREDICT, "what its network answers"),
    "all classes": (network(IDENTITY | {"num_classes": 10**8}, nn.Identity()), EVALUATE, "what its network answers"),
    "text classes": (network(IDENTITY | {"num_classes": "x"}, nn.Identity()), EXPORT, "what its network answers"),
    "other pictures": (network(LARGE | {"in_features": 5, "out_features": 10}, nn.Linear(5, 10)), PREDICT, "its network fails"),
    "many names": (about(classes=[""] * 10**6), EVALUATE, "what its network answers"),
    "names of its own": (
        lambda run: (shutil.copytree(run, run.parent / "other"), about(classes=["W" * 10_000] * 10)(run)),
        ["predict", "run", "other", *PREDICT[2:]],
        "an ensemble is of networks with the same classes",
    ),
    "infinite": (weights(lambda saved: [w.fill_(1e38) for w in saved["model"].values() if w.is_floating_point()]), PREDICT, "no numbers"),
    # its weights
    "pickle": (checkpoints(evil_checkpoint()), PREDICT, "torn or not a checkpoint"),
    "old pickle": (checkpoints(pickle.dumps(Evil())), EXPORT, "torn or not a checkpoint"),
    "bomb": (checkpoints(bomb()), PREDICT, "torn or not a checkpoint"),
    "pipe": (pipes, PREDICT, "not a regular file"),
    "complex": (weights(lambda saved: saved.update(model={k: w * 1j for k, w in saved["model"].items()})), PREDICT, "do not fit"),
    "long name": (weights(lambda saved: saved["model"].update({"\x1b" * 9000: torch.zeros(1)})), PREDICT, "do not fit"),
    # what lies elsewhere
    "link to run.json": (links("run.json"), PREDICT, "run/run.json is a link"),
    "link to configs": (links(".hydra"), EXPORT, "run/.hydra is a link"),
    "link to a config": (links(".hydra/config.yaml"), PREDICT, "config.yaml is a link"),
    "link to weights": (links("checkpoints"), EVALUATE, "run/checkpoints is a link"),
    "link to itself": (links("checkpoints", "checkpoints"), [*PREDICT, "--checkpoint", "digits.idx"], "--checkpoint"),
    "prefix": (about(prefix="../../away/x"), PREDICT, "prefix"),
    # its data
    "data of code": (config(data={"_target_": "os.system", "command": "touch touched", "name": "x", "mean": 0.5, "std": 0.5}), EVALUATE, "not os.system"),
    "large data": (config(data=LARGE | {"mean": 0.5, "std": 0.5, "name": "x"}), EVALUATE, "the data of run: "),
    "endless data": (custom(size=10**12), EVALUATE, "10,000,000 images"),
    "large pictures": (custom(image_size=[1, 100_000, 100_000]), EVALUATE, "the data of run: "),
    "pictures that are pipes": (pictures_that_are_pipes, EVALUATE, "is not a regular file"),
    "classes of others": (custom(num_classes=1000), EVALUATE, "classes, the network of run tells 10 apart"),
    "scored for ever": (about(test_scored=10**12), [*EVALUATE, "--split", "test"], "test_scored"),
}  # fmt: skip
HARMLESS: dict[str, tuple[Damage, list[str]]] = {
    "versions of layers": (noted(5), PREDICT),
    "a version": (noted({"": {"version": "x"}, "features.2": {"version": "x"}}), EXPORT),
    "names that steer": (
        about(classes=[f"\u6f22\x1b]0;\x07\n$\\frac{{[/red]\U000e0041{'W' * 1000}{n}" for n in range(10)]),
        EVALUATE,
    ),
    "many at once": (config(evaluate={"bn_update_batch_size": 10**12}), PREDICT),
}
# -------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, data_root) -> Path:
    """A run, and a folder that it was exported to; made in this process, which so has all imports."""
    place = tmp_path_factory.mktemp("theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        quick = ["schedule.extra_epochs=0", "evaluate.tta_runs=1", "evaluate.test=false", "hydra.run.dir=run"]
        assert run_command("train", *SMALL, "model=small_cnn", *quick) == 0
        assert run_command("export", "run", "--format", "safetensors", "--output", "exported") == 0
        images = read_sample()[0][::500]
        Path("digits.idx").write_bytes(b"\0\0\x08\3" + struct.pack(">3I", *images.shape) + images.tobytes())
    return place


@pytest.fixture
def work(theirs, tmp_path) -> Path:
    shutil.copytree(theirs, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


def watched(work: Path, arguments: list[str], command: Callable[..., int] = run_command) -> child.Ended:
    ended = child.run(arguments, work, command)
    said = f"{ended.out[-1500:]}\n{ended.err[-3000:]}"
    assert ended.status in (0, 1, 2), said
    assert "Traceback" not in ended.err, said
    assert not ended.strayed, said
    assert (ended.seconds < child.SECONDS, ended.mebibytes < child.MEBIBYTES) == (True, True), f"{ended}"
    assert not any(ord(c) < 32 for c in (ended.out + ended.err).replace("\n", "")), said
    assert "Warning" not in ended.err, said
    assert len(ended.err) < 3000, said
    assert not (work / "touched").exists()
    assert not list(work.glob(".*unfinished"))
    return ended


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_refused_in_one_line(work, case):
    damage, arguments, words = CASES[case]
    damage(work / "run")
    before = content(work)
    ended = watched(work, arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err
    assert content(work) == before


def test_layers_that_are_copied_count_too(theirs, tmp_path, monkeypatch):
    shutil.copytree(theirs / "run", tmp_path / "run")
    monkeypatch.setattr(bounded, "PARTS", 1000)
    layer = {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 2, "nhead": 1, "dim_feedforward": 2}
    described = {"_target_": "torch.nn.TransformerEncoder", "encoder_layer": layer, "num_layers": 1_000_000}
    config(model=described)(tmp_path / "run")
    with pytest.raises(UserError, match=r"says a network of more than 1,000 layers and weights"):
        load_model(tmp_path / "run")


def test_a_network_of_more_layers_than_any_is_not_built(theirs, tmp_path, monkeypatch):
    shutil.copytree(theirs / "run", tmp_path / "run")
    monkeypatch.setattr(bounded, "PARTS", 1000)  # else it takes seconds
    config(model={"_target_": WIDE, "blocks": 1000, "channels": [1] * 5000})(tmp_path / "run")
    with pytest.raises(UserError, match=r"says a network of more than 1,000 layers and weights"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("case", HARMLESS)
def test_a_run_is_taken_as_it_is(work, case):
    damage, arguments = HARMLESS[case]
    damage(work / "run")
    assert watched(work, arguments).status == 0


def test_what_is_said_of_a_run_ends_no_card(work):
    """Nothing in it is metadata, HTML or a table of its own."""
    evil = "x\n---\nlicense: evil\n```\n<script>|`"
    config(data={"root": evil}, seed=5)(work / "run")
    about(classes=[f"{evil}{n}" for n in range(10)], name=evil, command=evil, device_name=evil, git_sha=evil)(
        work / "run"
    )
    found = info(work / "run")
    (work / "run" / "run.json").write_text(
        json.dumps(found | {"versions": {"python": evil}, "dataset": found["dataset"] | {"name": evil, "md5": evil}})
    )
    (work / "run").rename(work / evil.replace("\n---\n", " ").replace("/", "").replace("\n", " "))
    (run,) = (file for file in work.iterdir() if file.name.startswith("x "))
    assert watched(work, ["export", run.name, *EXPORT[2:]]).status == 0
    card = (work / "out" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["license"] == "cc0-1.0"
    outside, fenced = [], ""
    for line in text.splitlines():
        if line.startswith("```") and (not fenced or line == fenced):
            fenced = "" if fenced else line[: len(line) - len(line.lstrip("`"))]
        elif not fenced:
            outside.append(line)
    assert not fenced
    for line in outside:
        spans = line
        while "`" in spans:  # a span ends with as many ticks as it began with
            start, _, rest = spans.partition("`")
            ticks = 1 + len(rest) - len(rest.lstrip("`"))
            _, end, rest = rest.lstrip("`").partition("`" * ticks)
            assert end, line
            spans = start + rest
        assert "<script>" not in spans, line
        assert "license: evil" not in spans, line


# ------------------------------------------------------------------------------------------------ exported folders


def described(**changes) -> Damage:
    def write(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return write


def tensors(header: object, rest: bytes = b"") -> Damage:
    def write(folder: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + rest)

    return write


ONE = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
EXPORTED: dict[str, Damage] = {
    "code": described(
        model={"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "_args_": ["touch touched"]}]}
    ),
    "partial code": described(model={"_target_": "os.system", "_partial_": True, "command": "touch touched"}),
    "environment": described(model={"_target_": "torch.nn.Identity", "x": "${oc.env:HOME}"}),
    "circle": described(model={"_target_": "torch.nn.Identity", "x": "${model.y}", "y": "${model.x}"}),
    "no network": described(model={"_target_": "mnist_exp.console.LogFile", "filename": "touched"}),
    "other file": described(file="../run/checkpoints/last.pth"),
    "no mean": described(mean=10**400),
    "far shifts": described(shifts=[[0, 10**9]]),
    "deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "device": lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").symlink_to("/dev/zero")),
    "pipe": lambda folder: ((folder / "model.safetensors").unlink(), os.mkfifo(folder / "model.safetensors")),
    "weights that are not there": tensors({"x": ONE}),
    "weights in each other": tensors({n: ONE | {"shape": [2], "data_offsets": [0, 8]} for n in "ab"}, bytes(8)),
    "weights below": tensors({"x": ONE | {"data_offsets": [8, 0]}}, bytes(8)),
    "long header": tensors(b"{" * 1_000_000),
    "no text": tensors(b"\xff\xfe"),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_an_exported_folder_is_refused_in_one_line(work, case):
    EXPORTED[case](work / "exported")
    ended = watched(work, [], lambda: main.report(lambda: load_export("exported")))
    assert ended.status == 2
    assert ended.err.startswith("error: ")


# ------------------------------------------------------------------------------------------------ what is predicted


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + size
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(bytes(width * height + height)))
        + chunk(b"IEND", b"")
    )


def array(shape: str, content: bytes = b"") -> bytes:
    line = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


def archived(name: str, member: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        archive.writestr(name, member)
    return content.getvalue()


def torn_tiff() -> bytes:
    """One of which libtiff itself says something."""
    content = io.BytesIO()
    Image.fromarray(read_sample()[0][0]).save(content, "TIFF", compression="jpeg")
    return content.getvalue()[: len(content.getvalue()) * 57 // 100]


PREDICTED: dict[str, bytes] = {
    "torn tiff": torn_tiff(),
    "text bomb": png(28, 28, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300 << 20), 1))),
    "profile bomb": png(28, 28, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300 << 20), 1))),
    "more pixels than are there": b"P5 6000 6000 255\n",
    "tall": png(1, 60_000_000),
    "no images": array("(0, 28, 28)"),
    "all images": array("(999999999999999999, 28, 28)", bytes(784)),
    "images below": array("(-1, 28, 28)"),
    "objects": archived("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 28, 28), }" + b" " * 57 + b"\n" + pickle.dumps(Evil())),
    "other packing": archived("x.npy", array("(1, 28, 28)", bytes(784)), zipfile.ZIP_LZMA),
    "name that leads out": archived("../touched.npy", array("(1, 28, 27)")),
    "no ends of lines": b"pixel0," * 1_000_000,
    "all dimensions": b"\0\0\x08\xff" + b"\xff" * 1020,
    "all images of idx": b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 28, 28) + bytes(784),
    "pickle": pickle.dumps(Evil()),
}  # fmt: skip


@pytest.mark.parametrize("case", PREDICTED)
@pytest.mark.parametrize("pack", ["", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_file_is_refused_in_one_line(work, case, pack):
    packer = zlib.compressobj(1, wbits=31)
    content = PREDICTED[case]
    (work / "digits.idx").write_bytes(packer.compress(content) + packer.flush() if pack else content)
    ended = watched(work, [*PREDICT, "--show", "seen.png"])
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert not {"answers.csv", "seen.png"} & set(map(os.path.basename, work.iterdir()))


@pytest.mark.parametrize("name", ["pipe", "device", "gone", "nothing"])
def test_a_folder_of_pictures_with_what_is_none(work, name):
    (work / "scans").mkdir()
    file = work / "scans" / "a.png"
    make = {
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "gone": lambda: file.symlink_to("a.png"),
    }
    make.get(name, file.mkdir)()
    ended = watched(work, ["predict", "run", "--input", "scans", "--output", "answers.csv"])
    assert ended.status == 2
    assert "scans" in ended.err
    assert not (work / "answers.csv").exists()


# ------------------------------------------------------------------------------------------------ what a page is asked


@pytest.fixture
def server(theirs) -> Iterator[Server]:
    with Server(0) as serving:
        serving.model = load_model(theirs / "run")
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


HOST = b"Host: 127.0.0.1\r\n"
ASKED = {
    "traversal": b"GET /../../../../etc/passwd HTTP/1.1\r\n" + HOST,
    "encoded traversal": b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST,
    "another server": b"GET http://evil.example/ HTTP/1.1\r\n" + HOST,
    "tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST,
    "method": b"\x1b[31mGET\x07 / HTTP/1.1\r\n" + HOST,
    "version": b"GET / HTTP/9.9\r\n" + HOST,
    "no host": b"GET / HTTP/1.1\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n",
    "long path": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST,
    "long header": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 200,
    "folded host": b"GET / HTTP/1.1\r\nHost: evil.example\r\n 127.0.0.1\r\n",
    "two sizes": b"POST /predict HTTP/1.1\r\n"
    + HOST
    + b"Origin: http://127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 78400\r\n",
    "size": b"POST /predict HTTP/1.1\r\n" + HOST + b"Origin: http://127.0.0.1\r\nContent-Length: +78400\r\n",
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_no_browser_asks_is_refused(server, capfd, case):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as asking:
        asking.sendall(ASKED[case] + b"\r\n\r\n")
        asking.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: asking.recv(65536), b""))
    assert b" 200 " not in reply.partition(b"\r\n")[0]
    assert b"root:" not in reply
    assert b"<script" not in reply
    assert b"\x1b" not in reply.partition(b"\r\n\r\n")[2]
    assert capfd.readouterr().err == ""


def test_who_asks_slowly_keeps_nobody_waiting(server, capfd):
    ask = (
        b"POST /predict HTTP/1.1\r\n"
        + HOST
        + f"Origin: http://127.0.0.1\r\nContent-Length: {SIDE * SIDE}\r\n\r\n".encode()
    )
    slow = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(50)]
    for number, asking in enumerate(slow):
        asking.sendall(ask[: 40 + number] if number % 2 else ask + bytes(number))
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    origin = f"http://127.0.0.1:{server.server_port}"
    connection.request("POST", "/predict", bytes(SIDE * SIDE), {"Origin": origin})
    assert connection.getresponse().status == 200
    assert time.monotonic() - begun < 5
    for asking in slow:
        asking.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model", [LARGE, {"_target_": "os.system", "command": "touch touched"}])
def test_a_preview_of_configs_of_others_builds_nothing_large(work, model):
    (work / "conf" / "model").mkdir(parents=True)
    (work / "conf" / "model" / "theirs.yaml").write_text(yaml.safe_dump(model))
    ended = watched(work, ["preview", "--config-dir", "conf", "model=theirs", "data=sample", "--output", "seen.png"])
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert not (work / "seen.png").exists()


def test_from_python_a_run_of_a_stranger_raises_one_error(work):
    config(model={"_target_": "os.system", "command": "touch touched"})(work / "run")
    with pytest.raises(UserError, match="not os"):
        load_model(work / "run")
    assert not (work / "touched").exists()
