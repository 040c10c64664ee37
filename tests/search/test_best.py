"""experiment=best: the same recipe as the best trial's, and what is typed beside it wins."""

from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import yaml
from omegaconf import OmegaConf
from small import TINY

from mnist_exp import compose
from mnist_exp.config import recipe
from mnist_exp.config.ours import config_folder
from mnist_exp.search.best import write_best

SWEEP = Path("outputs/sweeps/quick")
GROUPS = ("data", "model", "augment", "optimizer", "schedule", "trainer", "evaluate")


def best(command, *overrides: str, conf: Path = SWEEP / "conf") -> dict:
    """Return what the command line composes with experiment=best."""
    done = command("train", "--config-dir", str(conf), "--cfg", "job", "experiment=best", *overrides)
    assert done.status == 0, done.err
    return OmegaConf.to_container(OmegaConf.create(done.out))


def recipe_of(config: dict) -> dict:
    """Return the recipe, but for what only a search sets."""
    values = recipe.values(config)
    return {k: v for k, v in values.items() if not recipe.below(k, ("optimized_metric", "evaluate.test", "pruner"))}


def trial() -> dict:
    """Return the config of the first trial, as its folder has it."""
    return OmegaConf.to_container(OmegaConf.load(SWEEP / "trial-0" / ".hydra" / "config.yaml"))


def named() -> dict[str, str]:
    """Return the choices that best.yaml names."""
    written = yaml.safe_load((SWEEP / "conf" / "experiment" / "best.yaml").read_text())
    return {key.removeprefix("override /"): choice for line in written["defaults"] for key, choice in line.items()}


def test_best_is_the_trial_and_what_is_typed_wins(command, place):
    assert command(*TINY, "trainer.precision=fp32", "seed=7", "hydra.sweeper.n_trials=1").status == 0
    written = yaml.safe_load((SWEEP / "conf" / "experiment" / "best.yaml").read_text())
    assert set(written) == {"defaults", "data", "schedule", "trainer", "evaluate", "seed"}, "equal values are not named"
    assert written["data"] == {"batch_size": 32, "train_limit": 64}
    assert written["schedule"] == {"extra_epochs": 0}
    assert written["evaluate"] == {"tta_runs": 1}
    assert not [file for group in GROUPS for file in (SWEEP / "conf").glob(f"{group}/*")]
    config = best(command)
    assert recipe_of(config) == recipe_of(trial())
    assert config["seed"] == 7
    assert config["data"]["root"] == "${paths.data}"
    assert config["evaluate"]["test"] is True
    assert config["pruner"] == OmegaConf.to_container(compose())["pruner"]

    typed = best(command, "data=mnist", "data.batch_size=128", "optimizer=adamw", "optimizer.lr=0.5", "seed=1")
    assert (typed["data"]["name"], typed["data"]["val_size"], typed["data"]["batch_size"]) == ("mnist", 5000, 128)
    assert typed["data"]["train_limit"] == 64
    assert typed["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert "k" not in typed["optimizer"]
    assert (typed["optimizer"]["lr"], typed["seed"]) == (0.5, 1)
    assert best(command, "model=wide_small_resnet", "model.blocks=1")["model"]["channels"] == [32, 64, 128]


def test_what_values_cannot_say_is_a_choice_of_its_own(command, place):
    """Deletions, another order of transforms, a choice of the user's own."""
    (place / "mine" / "model").mkdir(parents=True)
    net = "_target_: mnist_exp.parts.models.SmallCNN\nchannels: [2, 3, 4]\nghost_batch_size: 8\nnum_classes: 10\n"
    (place / "mine" / "model" / "own.yaml").write_text(net)
    crop = "+augment.strong.crop={_target_:mnist_exp.parts.augment.RandomCrop,padding:4}"
    deleted = ["~augment.strong.crop", crop, "optimizer=sgd", "~optimizer.momentum", "model=own"]
    done = command(TINY[0], "--config-dir", "mine", *TINY[1:], *deleted, "hydra.sweeper.n_trials=1")
    assert done.status == 0, done.err
    whole = {group for group, choice in named().items() if choice == "best"}
    assert whole == {"augment", "optimizer", "model"}
    config = best(command)
    assert recipe_of(config) == recipe_of(trial())
    assert "momentum" not in config["optimizer"]
    assert best(command, "optimizer=sgd")["optimizer"] == OmegaConf.to_container(compose("optimizer=sgd"))["optimizer"]
    assert best(command, "augment=light", "model=small_cnn")["augment"]["strong"]["crop"]["padding"] == 2
    assert command("train", "--config-dir", str(SWEEP / "conf"), "experiment=best").status == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=fast"],
        ["hparams_search=quick"],
        ["hparams_search=quick", "experiment=fast", "optimizer.lr=0.003", "data.mean=${data.std}", "schedule=cosine"],
        ["augment=none", "+augment.strong.flip={_target_:mnist_exp.parts.augment.RandomCrop,padding:1}"],
        ["augment=none", "augment.light={_target_:mnist_exp.parts.augment.Compose}"],
        ["~augment.strong.erasing", "+model.extra={}", "data=custom", "data.root=/there", "data.train.augment=false"],
        [
            "debug=overfit",
            "trainer.device=cuda",
            "trainer.threads=3",
            "evaluate.test=false",
            "tags=[a]",
            "logger=mlflow",
        ],
        ["~evaluate.tta_seed", "~trainer.threads", "schedule.swa_start=null", "optimizer.k=7"],
    ],
    ids=" ".join,
)
def test_any_trial_can_be_said(command, place, overrides):
    with hydra.initialize_config_dir(config_folder()):
        config = OmegaConf.to_container(hydra.compose("train", overrides, return_hydra_config=True))
    choices = config.pop("hydra")["runtime"]["choices"]
    (SWEEP / "trial-0" / ".hydra").mkdir(parents=True)
    (SWEEP / "trial-0" / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    settings = OmegaConf.to_yaml({"hydra": {"runtime": {"choices": choices}}})
    (SWEEP / "trial-0" / ".hydra" / "hydra.yaml").write_text(settings)
    write_best(SWEEP, SimpleNamespace(number=0, value=99.0), "val_acc")
    first = best(command)
    assert recipe_of(first) == recipe_of(trial())
    assert first["seed"] == trial()["seed"]
    for key in ("paths", "logger", "tags"):
        assert first[key] == OmegaConf.to_container(compose())[key]
    assert first["data"]["root"].startswith("${paths.data}")
    assert first["evaluate"]["test"] is True


def test_what_the_best_before_needed_is_gone(command, place):
    assert command(*TINY, "~optimizer.momentum", "hydra.sweeper.n_trials=1").status == 0
    assert (SWEEP / "conf" / "optimizer" / "best.yaml").exists()
    file = SWEEP / "trial-0" / ".hydra" / "config.yaml"
    file.write_text(file.read_text().replace("  weight_decay: ", "  momentum: 0.9\n  weight_decay: ", 1))
    assert command("compare", str(SWEEP)).status == 0
    assert not (SWEEP / "conf" / "optimizer" / "best.yaml").exists()
    assert named()["optimizer"] == "lookahead_sgd"
