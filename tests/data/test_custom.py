"""Data of one's own, through a loader: known again by its pictures, validated without augmentation, never silently."""

import json
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from helpers import info, lay
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from mnist_exp import compose
from mnist_exp.config.build import build
from mnist_exp.data.identity import changes, identity
from mnist_exp.data.sets import image_folder
from mnist_exp.search import study

SMALL = ["model=small_cnn", "schedule.initial_epochs=1", "schedule.extra_epochs=1", "evaluate.tta_runs=1"]
CUSTOM = ["train", *SMALL, "data=custom", "data.val_size=9", "data.num_workers=0", "data.batch_size=17", "augment=none"]
PARTS = (("train", 60, 1.0), ("val", 60, 0.0), ("test", 15, 1.0))
MINE = """
import torch

class Noisy:  # draws random numbers where nobody sees it
    def __init__(self, n, noise):
        self.targets = [i % 3 for i in range(n)]
        self.noise = noise

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        label = self.targets[index]
        return torch.full((1, 28, 28), float(label)) + self.noise * torch.rand(1, 28, 28), label
"""


@pytest.fixture
def mine(place) -> Path:
    lay(place / "mine" / "train", ["a", "b", "c"], 20)
    lay(place / "mine" / "test", ["a", "b", "c"], 5)
    return place / "mine"


@pytest.fixture
def noisy(place, monkeypatch) -> list[str]:
    """The command that trains on data of unknown kind that change whenever they are read."""
    (place / "noisy_sets.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("MNIST_EXP_ALLOW", "noisy_sets.*")
    parts = {part: f"{{_target_: noisy_sets.Noisy, n: {n}, noise: {noise}}}" for part, n, noise in PARTS}
    lines = ["_target_: mnist_exp.data.sets.CustomData", "name: noisy", *(f"{k}: {v}" for k, v in parts.items())]
    (place / "conf" / "data").mkdir(parents=True)
    settings = ["root: ''", "val_size: 9", "split_seed: 0", "batch_size: 17", "num_workers: 0", "mean: 0.0", "std: 1.0"]
    (place / "conf" / "data" / "noisy.yaml").write_text("\n".join([*lines, *settings]))
    return ["train", "--config-dir", "conf", *SMALL, "data=noisy", "augment=none"]


def torchvision_tree(root: Path, augment: bool = False) -> object:
    return image_folder(str(root), 0.1, 0.3, augment)


def invert(root: Path) -> None:
    for picture in root.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)


def test_inverted_pictures_with_the_same_labels_are_other_data(command, place, mine):
    for seed in (1, 2):
        assert command(*CUSTOM, "data.root=mine", f"seed={seed}", f"hydra.run.dir=runs/a{seed}").status == 0
    invert(mine)
    assert command(*CUSTOM, "data.root=mine", "seed=1", "hydra.run.dir=runs/inverted").status == 0
    done = command("compare", "runs", "--group-by", "--csv", "groups.csv")
    assert done.status == 0, done.err
    groups = pd.read_csv("groups.csv", dtype={"seeds": str})
    assert sorted(groups["seeds"]) == ["1", "1,2"], "two runs on the same data are repetitions, the other is none"
    done = command("compare", "runs", "--baseline", "a1", "--csv", "against.csv")
    assert pd.read_csv("against.csv")["name"].tolist() == ["a2"]
    assert "not compared: inverted has other data" in done.out
    assert info(place / "runs" / "a1")["dataset"]["classes"] == ["a", "b", "c"]


def test_data_that_change_are_never_compared(command, place, noisy):
    for seed in (1, 2):
        done = command(*noisy, f"seed={seed}", f"hydra.run.dir=runs/{'ab'[seed - 1]}")
        assert done.status == 0, done.err
        assert "changes when it is read again" in done.out
        assert done.out.splitlines()[-1] == "data     noisy: 51 train, 9 val, 15 test, MD5 unknown"
    assert info(place / "runs" / "a")["dataset"]["md5"] is None
    done = command("compare", "runs", "--group-by", "--csv", "groups.csv")
    assert "a stands alone: it has no MD5 of its data" in done.out
    assert pd.read_csv("groups.csv")["n"].tolist() == [1, 1]
    for options in ([], ["--group-by"]):
        done = command("compare", "runs", "--baseline", "a", *options)
        assert "not compared: " in done.out
        assert "b: it has no MD5 of its data" in done.out
        assert "nothing to compare with" in done.out
    about = info(place / "runs" / "a")
    (place / "runs" / "a" / "run.json").write_text(json.dumps({**about, "status": "interrupted"}))
    done = command("train", "resume=runs/a")
    assert done.status == 0, done.err
    assert "it cannot be known whether" in done.out


def test_a_search_over_such_data_says_so_once(caplog):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study()
    caplog.set_level("INFO")
    dataset = {"name": "mine", "train": 1, "val": 1, "test": 1, "md5": None, "classes": ["a"]}
    assert study._other_data(found, dataset) is None
    assert study._other_data(found, dataset) is None
    assert sum("it cannot be known" in record.getMessage() for record in caplog.records) == 1
    assert "it had other data" in study._other_data(found, {**dataset, "md5": "0"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["augment=strong_light"], ["augment.strong.crop", "augment=none", "data=image_folder"]),
        (["augment=light"], ["augment.light.rotation", "would be ignored"]),
        (["data.val=null"], ["validated on pictures that change", "data.val_size=0"]),
        (["data.val.root=mine/test"], ["data.val must hold the items of data.train"]),
        (["data.root=nowhere"], ["nowhere", "<class>/<image>"]),
    ],
)
def test_what_would_be_silently_otherwise_is_refused(command, place, mine, arguments, words):
    done = command(*CUSTOM, "data.root=mine", *arguments)
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert not list(place.glob("outputs/runs/*"))


@pytest.mark.parametrize("arguments", [["augment.mix.prob=0.5"], ["data.val=null", "data.val_size=0"]])
def test_mixing_and_training_on_everything_are_not(command, mine, arguments):
    done = command(*CUSTOM, "data.root=mine", *arguments)
    assert done.status == 0, done.err


def test_a_run_begun_by_an_older_version_goes_on(command, place, mine):
    assert command(*CUSTOM, "data.root=mine", "hydra.run.dir=run").status == 0
    config = OmegaConf.load("run/.hydra/config.yaml")
    config.augment = OmegaConf.to_container(compose("data=custom").augment)
    del config.data.val
    OmegaConf.save(config, "run/.hydra/config.yaml")
    about = info(place / "run")
    del about["dataset"]["classes"]
    about |= {"status": "interrupted", "dataset": {**about["dataset"], "md5": "of the labels"}}
    (place / "run" / "run.json").write_text(json.dumps(about))
    done = command("train", "resume=run")
    assert done.status == 0, done.err
    assert "it cannot be known whether" in done.out
    assert "Validation is done on pictures that change at random" in done.out
    assert "stands alone" in command("compare", "run", "--group-by").out


def test_validation_sees_the_pictures_as_they_are(mine):
    splits = build(compose("data=custom", f"data.root={mine}", "data.val_size=9", "data.num_workers=0"), "data").load()
    plain = torch.stack([torchvision_tree(mine / "train")[i][0] for i in range(60)])
    (images, _) = next(splits.val.batches(9))
    mean, std = 0.1307, 0.3081
    expected = (plain * 0.3 + 0.1 - mean) / std
    for image in images:
        assert (expected - image).abs().amax((1, 2, 3)).min() < 1e-5


def test_what_identity_is_of(mine, place):
    whole = torchvision_tree(mine / "train")
    before = identity([whole], 0)
    assert before is not None
    augmented = torchvision_tree(mine / "train", augment=True)
    assert identity([augmented], 0) == before, "random transforms of torchvision's are not read"
    assert augmented.transform is not None
    assert identity([augmented], 2) == before
    assert changes(augmented)
    assert not changes(whole)
    assert identity([Subset(augmented, range(60))], 0) == before
    whole.target_transform = lambda label: label % 2  # what is learnt and scored
    assert identity([whole], 0) not in (before, None)
    whole.target_transform = None
    assert identity([ConcatDataset([Subset(augmented, range(20)), Subset(whole, range(20, 60))])], 0) == before
    assert identity([Subset(whole, range(59, -1, -1))], 0) != before
    assert len({before, identity([whole, whole], 0), identity([Subset(whole, range(59))], 0)}) == 3
    whole.samples[0] = (whole.samples[0][0], 1)
    relabelled = identity([whole], 0)
    invert(mine / "train" / "a")
    assert len({before, relabelled, identity([torchvision_tree(mine / "train")], 0)}) == 3


@pytest.mark.parametrize("kind", ["random", "fixed", "needs its transform", "no bytes"])
def test_other_classes_than_torchvisions_are_read_twice(kind):
    class Set(torch.utils.data.Dataset):
        transform = None

        def __len__(self):
            return 40

        def __getitem__(self, index):
            if kind == "needs its transform":
                return self.transform(index), 0
            picture = {"random": np.random.rand(4) > 0.9, "fixed": np.full(4, index), "no bytes": [object()]}[kind]
            return picture, 0

    data = Set()
    if kind == "needs its transform":
        data.transform = lambda index: torch.rand(4)
    found = identity([data], 0)
    assert (found is not None) == (kind == "fixed")
    assert found == identity([data], 0)


def test_a_palette_is_part_of_a_picture():
    def picture(colour: int) -> list:
        image = Image.new("P", (4, 4))
        image.putpalette([colour] * 3)
        return [(image, 0)]

    assert identity([picture(0)], 0) != identity([picture(255)], 0)


def test_labels_alone_never_told_data_apart_by_whatever_name(command, mine):
    """As the first versions wrote it: a component of another module, an MD5 of labels, no classes."""
    assert command(*CUSTOM, f"data.root={mine}", "hydra.run.dir=runs/a").status == 0
    run = Path("runs/a")
    about = info(run)
    del about["dataset"]["classes"]
    about["dataset"]["md5"] = "of the labels"
    (run / "run.json").write_text(json.dumps(about))
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("mnist_exp.data.sets.CustomData", "mnist_exp.data.CustomData"))
    assert command(*CUSTOM, f"data.root={mine}", "hydra.run.dir=runs/b").status == 0
    done = command("compare", "runs", "--baseline", "b")
    assert "not compared: a" in done.out
