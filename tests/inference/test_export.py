"""`export`: every format predicts what the run does, its card is true and works, and nothing half is left."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PACKAGE, SMALL, info, lay, run_command

from mnist_exp import load_export, load_model
from mnist_exp.data.formats import read_sample
from mnist_exp.errors import UserError
from mnist_exp.inference import export as exporting
from mnist_exp.inference.formats import FORMATS
from mnist_exp.statistics import wilson

NETWORKS = {
    "small": ["model.channels=[2,4,4]", "model.ghost_batch_size=8"],
    "wide": ["model=wide_small_resnet", "model.blocks=1", "model.channels=[2,4]", "model.ghost_batch_size=8"],
}
KINDS = list(FORMATS)
SIZES = (1, 5, 333)
FP32 = ["trainer.precision=fp32"]  # as exports compute: what a run says in bf16 is a little else


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_root) -> Path:
    """A run of each network, with a weight average."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        for name, overrides in NETWORKS.items():
            assert run_command(*SMALL, *overrides, "evaluate.tta_runs=3", *FP32, f"hydra.run.dir={place / name}") == 0
    return place


@pytest.fixture
def run(trained, place) -> Path:
    """A copy of a run, to be changed."""
    return Path(shutil.copytree(trained / "small", place / "run"))


def digits(size: int) -> torch.Tensor:
    images = torch.from_numpy(read_sample()[0])
    return images[:: len(images) // size][:size].contiguous()


def reader(kind: str, folder: Path) -> Callable[[torch.Tensor], np.ndarray]:
    """Read an exported file as one does without mnist_exp, where that can be."""
    file = str(folder / FORMATS[kind].file)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        return lambda images: session.run(None, {"images": images.numpy()})[0]
    model = {
        "torchscript": lambda: torch.jit.load(file),
        "pt2": lambda: torch.export.load(file).module(),
        "safetensors": lambda: load_export(folder),
    }[kind]()
    return lambda images: model(images).detach().numpy()


def names_folders(file: Path) -> bool:
    """Whether a file, or one packed in it, names folders of this machine."""
    contents = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            contents = [archive.read(part) for part in archive.infolist()]
    return any(
        str(folder).encode() in content for content in contents for folder in (PACKAGE, Path(torch.__file__).parent)
    )


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def left(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_predicts_what_the_run_does(command, trained, place, kind, network):
    done = command("export", str(trained / network), "--format", kind, "--output", "out")
    assert done.status == 0, done.err
    assert done.err == ""
    assert "same labels" in done.out
    assert left(place) == {"out"}
    assert left(place / "out") == {"README.md", "config.json", FORMATS[kind].file}
    predict = reader(kind, place / "out")
    for size in SIZES:
        found, expected = predict(digits(size)), load_model(trained / network).probabilities(digits(size))[0].numpy()
        assert found.shape == (size, 10)
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1e-4)
    assert len(predict(torch.zeros(0, 28, 28, dtype=torch.uint8))) == 0
    assert not names_folders(place / "out" / FORMATS[kind].file)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_card_works(command, run, place, kind, capsys, monkeypatch):
    assert command("export", str(run), "--format", kind, "--output", "out").status == 0
    program = re.search(r"```python\n(.*?)```", card(place / "out"), re.S)[1]
    assert len(program.splitlines()) <= 6
    monkeypatch.chdir(place / "out")
    exec(compile(program, "README.md", "exec"), {})
    label = int(load_model(run).predict(torch.zeros(1, 28, 28, dtype=torch.uint8))[0][0])
    assert capsys.readouterr().out == f"{label}\n"


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_tta_is_inside(command, trained, place, kind):
    done = command("export", str(trained / "small"), "--format", kind, "--output", "out", "--tta", "3")
    assert done.status == 0, done.err
    model, found = load_model(trained / "small"), reader(kind, place / "out")(digits(64))
    assert np.allclose(found, model.members[0].probabilities(digits(64), 3).numpy(), atol=1e-4)
    assert not np.allclose(found, model.members[0].probabilities(digits(64)).numpy(), atol=1e-4)
    assert "**TTA x 3**" in card(place / "out")


@pytest.mark.parametrize(
    ("checkpoint", "tta", "metric"),
    [
        ("best", 1, "test_acc"),
        ("best", 3, "test_acc_tta"),
        ("best", 2, None),
        ("swa", 1, "test_acc_swa"),
        ("swa", 3, None),
        ("last", 1, None),
        ("other.pth", 1, None),
    ],
)
def test_the_card_claims_only_scores_of_what_the_file_computes(command, run, place, checkpoint, tta, metric):
    from huggingface_hub import ModelCard

    about = info(run)
    best = next((run / "checkpoints").glob(f"*_ckpt_epoch{about['best_epoch']}.pth"))
    shutil.copy(best, run / "checkpoints" / "other.pth")
    if checkpoint.endswith(".pth"):
        checkpoint = str(run / "checkpoints" / checkpoint)
    about["dataset"]["name"] = "mnist"  # which Hugging Face has, unlike the bundled sample
    (run / "run.json").write_text(json.dumps(about))
    if checkpoint == "last":  # as if another epoch had been the best
        other = 3 - about["best_epoch"]
        (run / "run.json").write_text(json.dumps(about | {"best_epoch": 1}))
        assert about["epoch"] == 2
        assert other in (1, 2)
    arguments = ("--format", "safetensors", "--output", "out", "--tta", str(tta), "--checkpoint", checkpoint)
    done = command("export", str(run), *arguments)
    assert done.status == 0, done.err
    data = ModelCard(card(place / "out")).data
    assert data.license == "cc0-1.0"
    assert data.pipeline_tag == "image-classification"
    if metric is None:
        assert data.eval_results is None
        assert "has not scored what this file computes" in card(place / "out")
        assert not re.search(r"^\| \*\*", card(place / "out"), re.M)
        return
    accuracy, total = about["metrics"][metric], about["dataset"]["test"]
    (found,) = [result for result in data.eval_results if result.dataset_split == "test"]
    assert found.metric_value == pytest.approx(accuracy / 100)
    low, high = wilson(round(accuracy * total / 100), total)
    assert f"| **{accuracy:.2f} %** | **{low:.2f} to {high:.2f} %** |" in card(place / "out")


def test_the_card_says_what_made_it(command, run, place):
    assert command("export", str(run), "--format", "safetensors", "--output", "out").status == 0
    text, about = card(place / "out"), info(run)
    for expected in (about["command"], f"export {run} --format safetensors --output out", about["dataset"]["md5"]):
        assert expected in text
    assert f"torch `{about['versions']['torch']}`" in text
    assert "model.ghost_batch_size: 8" in text
    assert "MNIST's test set" in text, "the sample's test images are not MNIST's"


def test_the_card_names_data_of_hugging_face_only(command, run, place):
    from huggingface_hub import ModelCard

    for name, known in (("sample", None), ("mnist", "ylecun/mnist")):
        about = info(run)
        about["dataset"]["name"] = name
        (run / "run.json").write_text(json.dumps(about))
        assert command("export", str(run), "--format", "safetensors", "--output", name).status == 0
        data = ModelCard(card(place / name)).data
        assert data.datasets == (known and [known])
        assert (data.eval_results and {result.dataset_type for result in data.eval_results}) == (known and {known})
        assert "pip install '.[export]'" in card(place / name)
        assert "centred as MNIST's" in card(place / name)


def test_the_card_of_pictures_in_folders(command, place):
    lay(place / "mine", ["cat", "dog"], 12)
    folders = ["data=image_folder", "data.root=mine", "data.val_size=4", "data.train_limit=null", "data.invert=true"]
    more = ["data.name=mnist", "trainer.max_steps=1", "hydra.run.dir=run"]
    assert command("train", *SMALL, *folders, *more).status == 0
    assert command("export", "run", "--format", "safetensors", "--output", "out").status == 0
    text = card(place / "out")
    assert "apart (`cat`, `dog`)" in text
    assert "Its last 8 outputs stand for no class" in text
    assert "#2" not in text
    assert "padded with their background, and inverted" in text
    assert "centred" not in text
    assert "ylecun" not in text


def test_what_run_json_says_breaks_no_card(command, run, place):
    from huggingface_hub import ModelCard
    from markdown_it import MarkdownIt

    about, bad = info(run), "`x`` |\n---\n```\n# owned\n<script>alert(1)</script> [a](http://b) ${c} {{d}} \u202e: - &"
    about["dataset"] |= {"name": bad, "md5": bad, "classes": [bad + str(n) for n in range(10)]}
    versions = dict.fromkeys(about["versions"], bad)
    about |= {"command": bad, "device_name": bad, "precision": bad, "git_sha": bad, "versions": versions}
    (run / "run.json").write_text(json.dumps(about))
    done = command("export", str(run), "--format", "safetensors", "--output", "out")
    assert done.status == 0, done.err
    found = ModelCard(card(place / "out"))
    assert {*found.data.to_dict()} <= {
        *("license", "library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index")
    }
    assert found.data.eval_results is None
    tokens = [
        inner
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse(found.text)
        for inner in [token, *(token.children or [])]
    ]
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["`run`", "Use", "Scores", "Data", "Training", "Licence"]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "link_open", "image", "hr"}
    assert "\u202e" not in card(place / "out")
    assert load_export("out")(digits(1)).shape == (1, 10)


def damage_checkpoints(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.pth"):
        file.write_bytes(file.read_bytes()[:1000])


def without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        ("run --format onnx --output out", without_checkpoints, "has no best checkpoint"),
        ("run --format onnx --output out", damage_checkpoints, "is torn or not a checkpoint"),
        ("run --format tflite --output out", None, "invalid choice: 'tflite'"),
        ("run --format onnx", None, "--output"),
        ("run --format onnx --output file", None, "file is no folder"),
        ("run --format onnx --output file/out", None, "--output file/out cannot be written: "),
        ("run --format onnx --output filled", None, "filled is a folder that is not empty"),
        ("run --format onnx --output /proc/mnist_exp/out", None, "--output /proc/mnist_exp/out cannot be written"),
        ("run --format onnx --output /proc/mnist_exp/out", without_checkpoints, "name another place"),
        ("run --format onnx --output out --tta 0", None, "--tta is 0"),
        ("run --format onnx --output out --tta 26", None, "--tta is 26; it must be between 1 and 25"),
        ("run --format onnx --output out --checkpoint none.pth", None, "--checkpoint is none.pth"),
        ("run --format onnx --output out model=small_cnn", None, "unrecognized arguments: model=small_cnn"),
        ("filled --format onnx --output out", None, "filled is not a run folder"),
        ("nowhere --format onnx --output new/out", None, "nowhere does not exist"),
        ("file --format onnx --output out", None, "file is no folder"),
        (f"{'x' * 300} --format onnx --output out", None, "does not exist"),
        (f"run --format onnx --output {'x' * 300}", None, "cannot be written: File name too long"),
    ],
)
def test_what_cannot_be_is_one_message(command, run, place, arguments, change, message):
    (place / "file").write_text("mine")
    (place / "filled").mkdir()
    (place / "filled" / "mine").write_text("mine")
    if change is not None:
        change(run)
    before = left(place)
    done = command("export", *arguments.split())
    assert done.status == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert left(place) == before
    assert (place / "filled" / "mine").read_text() == "mine"


@pytest.mark.parametrize("package", ["huggingface_hub", "onnx", "onnxruntime"])
def test_a_package_that_is_missing(command, run, place, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    done = command("export", str(run), "--format", "onnx", "--output", "out")
    assert done.status == 2
    assert f"export needs {package}: `pip install '.[export]'`, in a checkout" in done.err
    assert left(place) == {"run"}


def test_a_file_that_predicts_otherwise_is_not_left(command, run, place, monkeypatch):
    kind = FORMATS["torchscript"]

    def wrong(servable, example):
        servable.mean += 0.01
        return kind.write(servable, example)

    monkeypatch.setitem(FORMATS, "torchscript", dataclasses.replace(kind, write=wrong))
    done = command("export", str(run), "--format", "torchscript", "--output", "above/out")
    assert done.status == 1
    assert "does not predict what the run does" in done.err
    assert left(place) == {"run"}


@pytest.mark.parametrize("kind", ["onnx", "pt2", "torchscript"])
def test_a_network_that_takes_one_size_of_batch_only(place, kind, monkeypatch, capfd):
    (place / "batches.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(784, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.reshape(int(x.shape[0]), 784))\n"
    )
    monkeypatch.setenv("MNIST_EXP_ALLOW", "batches.*")
    monkeypatch.syspath_prepend(place)
    changed = ["model._target_=batches.Net", *(f"~model.{key}" for key in ("channels", "ghost_batch_size"))]
    assert run_command(*SMALL, *changed, "hydra.run.dir=own") == 0
    before = left(place)
    capfd.readouterr()
    assert run_command("export", "own", "--format", kind, "--output", "out") == 1
    out, err = capfd.readouterr()  # what torch writes past Python's streams, too
    assert re.fullmatch(rf"error: own.* as {kind}.*\n", err), err
    assert out == ""
    assert left(place) == before


def test_a_disk_that_is_full_leaves_nothing(command, run, place, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exporting, "atomic_write", full)
    done = command("export", str(run), "--format", "safetensors", "--output", "above/out")
    assert done.status == 1
    assert done.err.strip() == "error: the disk is full: above/out could not be written"
    assert left(place) == {"run"}


def test_what_a_killed_export_has_left_is_swept_up_but_not_one_that_goes_on(command, run, place):
    dead, alive = (place / f".{letter * 16}.mnist_exp-unfinished" for letter in "ab")
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "model.onnx").write_text("half")
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        (place / "out").mkdir()  # an empty folder is as good as none
        assert command("export", str(run), "--format", "safetensors", "--output", "out").status == 0
    finally:
        os.close(descriptor)
    assert left(place) == {"run", "out", alive.name}
    assert "README.md" in left(place / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config | {"model": {"_target_": "os.system", "command": "touch owned"}}, "os.system"),
        (lambda config: config["model"].update(num_classes="${oc.env:HOME}") or config, "oc.env"),
        (lambda config: config["model"].update(channels=[2, 4, 8]) or config, "do not fit"),
        (lambda config: config["model"].update(channels=[16, 30000, 30000]) or config, "says a network of"),
        (lambda config: config | {"file": "../model.onnx"}, "file is"),
        (lambda config: config | {"shifts": []}, "shifts"),
        (lambda config: config | {"std": 0.0}, "std"),
        (lambda config: {}, "file"),
    ],
)
def test_a_folder_of_others_is_read_as_data(command, run, place, change, message):
    assert command("export", str(run), "--format", "safetensors", "--output", "out").status == 0
    file = place / "out" / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=re.escape(message)):
        load_export("out")
    assert not (place / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 100, (2**40).to_bytes(8, "little") + b"{}", bytes(4 << 20)])
def test_weights_that_are_damaged(command, run, place, content):
    assert command("export", str(run), "--format", "safetensors", "--output", "out").status == 0
    (place / "out" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_export("out")
