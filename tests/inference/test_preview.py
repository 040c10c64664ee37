"""``preview``: the pictures that the run would train on, and nothing else done."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL
from PIL import Image

from mnist_exp.config.job import checked_config
from mnist_exp.parts.augment import Mix
from mnist_exp.training.components import build_components
from mnist_exp.training.loop import Loop
from mnist_exp.training.preview import OWN, Example, examples, when_used

MIXED = [
    "data=sample",
    "data.train_limit=320",
    "data.batch_size=16",
    "augment.mix.prob=0.7",
    "model=small_cnn",
    "seed=3",
]
FOLDERS = [
    "data=custom",
    "data.root=mine",
    "data.num_workers=0",
    "data.val_size=2",
    "data.batch_size=4",
    "model.num_classes=2",
]


def built(*overrides: str, count: int = 16) -> list[Example]:
    config = checked_config(*overrides)
    return examples(build_components(config, new=True), config.seed, count)


def test_a_picture_is_written_and_no_run(command, place):
    done = command("preview", *SMALL)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == ["written  outputs/preview.png"]
    with Image.open("outputs/preview.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
    assert [p.name for p in place.rglob("*")] == ["outputs", "preview.png"]


@pytest.mark.parametrize(("name", "start"), [("a.pdf", b"%PDF"), ("new/a.SVG", b"<?xml"), ("a.png", b"\x89PNG")])
def test_the_name_says_the_kind_of_picture(command, place, name, start):
    assert command("preview", *SMALL, "--output", name).status == 0
    assert Path(name).read_bytes().startswith(start)


def test_the_picture_can_be_printed(place):
    words = [sys.executable, "-m", "mnist_exp", "preview", *SMALL, "data.name=mnist", "--output", "-"]
    done = subprocess.run(words, capture_output=True, cwd=place, timeout=240)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).format == "PNG"
    assert b"could not be downloaded" in done.stderr


def test_what_is_shown_is_what_the_run_trains_on(command, monkeypatch):
    batches, step = [], Loop._step

    def spy(self, batch):
        batches.append(batch)
        step(self, batch)

    monkeypatch.setattr(Loop, "_step", spy)
    assert command("train", *MIXED, "trainer.max_steps=16").status == 0
    found = built(*MIXED)
    assert len(found) == len(batches) == 16
    assert {example.kind for example in found} == {"MixUp", "CutMix", None}
    for example, batch in zip(found, batches, strict=True):
        assert (example.label, example.partner) == (batch.labels[0], batch.partners[0])
        assert example.weight == batch.weight
        seen = (batch.images[0, 0] * 0.3081 + 0.1307).clamp(0, 1)
        assert torch.equal(example.pictures["mixed"], seen)
        if example.kind is None:
            assert torch.equal(seen, example.pictures["strong"])


def test_the_columns_are_what_they_are_called():
    config = checked_config(*MIXED, "augment.mix.prob=1", "augment.mix.cutmix_prob=0", "schedule.initial_epochs=3")
    parts = build_components(config, new=True)
    found = examples(parts, config.seed)
    assert when_used(parts) == {"strong": "epochs 1 to 3", "light": "epochs 4 to 5", "mixed": "prob 1"}
    for example in found:
        assert list(example.pictures) == ["original", "strong", "light", "mixed"]
        same = (parts.splits.train.images.float() / 255 == example.pictures["original"]).flatten(1).all(1)
        assert parts.splits.train.labels[same].tolist() == [example.label]
    # a light crop moves by up to 2 pixels, and turns by up to 4 degrees: ink lost at the border is all that can be
    ink = [sum(float(e.pictures[name].sum()) for e in found) for name in ("original", "light")]
    assert ink[1] == pytest.approx(ink[0], rel=0.05)
    assert {example.kind for example in found} == {"MixUp"}
    assert not any(torch.equal(e.pictures["strong"], e.pictures["light"]) for e in found)


def test_without_augmentation_all_columns_are_the_original():
    for example in built(*MIXED, "augment=none", "augment.mix.prob=0"):
        assert all(torch.allclose(p, example.pictures["original"], atol=1e-6) for p in example.pictures.values())
        assert (example.kind, example.weight) == (None, 1)


def test_few_batches_give_several_digits_each():
    few = built("data=sample", "data.train_limit=20", "data.batch_size=16", "model=small_cnn")
    assert len(few) == 16
    assert len(built("data=sample", "data.train_limit=10", "model=small_cnn")) == 10


def test_another_seed_shows_others():
    first, second, again = (built(*MIXED[:-1], f"seed={seed}", count=2) for seed in (1, 2, 1))
    assert all(torch.equal(a.pictures[k], b.pictures[k]) for a, b in zip(first, again, strict=True) for k in a.pictures)
    assert not torch.equal(first[0].pictures["original"], second[0].pictures["original"])


def test_data_with_transforms_of_their_own_are_shown_as_they_yield_them(command, place):
    for part, count in (("train", 6), ("test", 1)):
        for grey, name in ((60, "dark"), (200, "light")):
            (place / "mine" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (28, 28), grey).save(place / "mine" / part / name / f"{number}.png")
    overrides = [*FOLDERS, "augment=none", "model=small_cnn"]
    found = built(*overrides, "data.train.augment=false", count=4)
    assert [list(example.pictures) for example in found] == [[OWN, "mixed"]] * 4
    for example in found:
        grey = (60, 200)[example.label] / 255
        assert torch.allclose(example.pictures[OWN], torch.tensor(grey), atol=1e-5)
    moved = built(*overrides, count=10)
    assert any((example.pictures[OWN] < 0.01).any() for example in moved)  # RandomAffine fills with black
    assert command("preview", *overrides, "--output", "own.png").status == 0
    refused = command("preview", *overrides, "augment=light")
    assert refused.status == 2
    assert "transforms of its own" in refused.err


@pytest.mark.parametrize(
    "wrong",
    [
        *("optimizer.lrr=1", "optimizr=sgd", "augment=strang", "augment.mix.prob=2", "augment.strong.crop=null"),
        *("~augment.stong", "data.train_limit=0", "model.num_classes=3", "seed=-1", "+foo=1", "lr 0.1"),
        *("pruner=null", "augment=3", "data.root=", "model._target_=os.system", "hydra.job.env_copy=[NOWHERE]"),
    ],
)
def test_mistakes_get_the_message_of_train(command, place, wrong):
    asked, trained = (command(name, "data=sample", wrong) for name in ("preview", "train"))
    assert (asked.status, trained.status) == (2, 2)
    assert asked.err == trained.err
    assert not list(place.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "a.gif"], ["--output is a.gif", "png, pdf, svg"]),
        (["--output", ""], ["--output is ''"]),
        (["--multirun"], ["--multirun"]),
        (["seed=1,2"], ["seed=1,2"]),
        (["resume=nowhere"], ["nowhere", "run.json"]),
        (["fast1"], ["fast1 is no override; wanted is KEY=VALUE"]),
        (["hparams_search=quick"], ["hparams_search", "one run"]),
        (["--config-dir", "nowhere"], ["--config-dir is", "nowhere"]),
    ],
)
def test_what_a_preview_is_not_asked_for(command, place, arguments, words):
    done = command("preview", "data=sample", *arguments)
    assert done.status == 2
    for word in words:
        assert word in done.err
    assert not list(place.iterdir())


def test_configs_of_ones_own_are_taken(command, place):
    (place / "mine" / "augment").mkdir(parents=True)
    (place / "mine" / "augment" / "wild.yaml").write_text(
        "defaults: [strong_light]\nstrong: {rotation: {degrees: 90}}\n"
    )
    assert command("preview", "--config-dir", "mine", "augment=wild", *SMALL).status == 0


def test_code_of_ones_own_can_be_allowed(command, place, monkeypatch):
    lines = ["import torch", "class Black(torch.nn.Module):", "    def forward(self, images, generator):"]
    (place / "blackened.py").write_text("\n".join([*lines, "        return 0 * images", ""]))
    monkeypatch.syspath_prepend(str(place))
    words = ["preview", *SMALL, "+augment.strong.black._target_=blackened.Black"]
    refused = command(*words)
    assert refused.status == 2
    assert "MNIST_EXP_ALLOW" in refused.err
    monkeypatch.setenv("MNIST_EXP_ALLOW", "blackened.*")
    assert command(*words).status == 0


def test_the_kind_of_mixing_is_drawn_as_before():
    # two numbers a batch: the first says whether it is mixed, the second how
    mix, draws = Mix(0.5, 0.1, 0.1, 0.5), torch.Generator().manual_seed(0)
    expected = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    kinds = [mix.kind(draws) for _ in range(200)]
    assert kinds == [None if a >= 0.5 else "CutMix" if b < 0.5 else "MixUp" for a, b in expected.tolist()]
