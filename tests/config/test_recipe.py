"""What belongs to the recipe: the one list behind resuming, searching, comparing and best.yaml."""

import pytest
from omegaconf import OmegaConf

from mnist_exp import compose
from mnist_exp.config import recipe


def digest(*overrides: str) -> str:
    return recipe.digest(OmegaConf.to_container(compose(*overrides)))


BASE = digest("data=sample")


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=7"],
        ["data.root=/elsewhere", "paths.outputs=/there", "paths.data=/here"],
        ["trainer.device=cuda", "trainer.threads=3"],
        ["logger=tensorboard"],
        ["tags=[a,b]", "task_name=other", "save_prefix=mine", "resume=runs/x"],
        ["optimizer.lr=1e-2"],
        ["optimizer.lr=0.010"],
        ["optimizer.k=5.0"],
        ["augment.strong.normalize.mean=0.1307"],  # what the reference to data.mean gives
        ["augment.mix={_target_:mnist_exp.augment.Mix,cutmix_prob:0.8,prob:0.102,mixup_alpha:0.091,cutmix_beta:0.35}"],
    ],
    ids=" ".join,
)
def test_where_and_how_a_run_is_written_is_not_its_recipe(overrides):
    assert digest("data=sample", *overrides) == BASE


@pytest.mark.parametrize(
    "override",
    [
        *("optimizer.lr=0.011", "data.split_seed=1", "data.mean=0.13", "trainer.precision=bf16", "model.blocks=2"),
        *(
            "trainer.max_steps=3",
            "evaluate.tta_shift=1",
            "~augment.strong.erasing",
            "+augment.strong.erasing.inplace=1",
        ),
    ],
)
def test_everything_else_is(override):
    assert digest("data=sample", override) != BASE


def test_the_order_of_transforms_is_part_of_it():
    crop = "+augment.strong.crop={_target_:mnist_exp.parts.augment.RandomCrop,padding:4}"
    assert digest("data=sample", "~augment.strong.crop", crop) != BASE


def test_whole_numbers_are_equal_however_they_are_written():
    lists = [digest("optimizer=adamw", f"+optimizer.betas={betas}") for betas in ("[0.9,1]", "[0.9,1.0]", "[0.9,0.99]")]
    assert lists[0] == lists[1] != lists[2]


def test_data_of_ones_own_have_one_recipe_wherever_they_lie():
    assert digest("data=custom", "data.root=/a") == digest("data=custom", "data.root=/b")
    assert digest("data=custom", "data.train.augment=false") != digest("data=custom")


@pytest.mark.parametrize("key", ["schedule.interval", "augment.label_smoothing"])
def test_a_config_from_before_a_key_has_the_recipe_of_its_default(key):
    config = OmegaConf.to_container(compose("data=sample"))
    group, _, name = key.partition(".")
    del config[group][name]
    assert recipe.digest(config) == BASE


def test_a_warm_start_is_part_of_it():
    config = OmegaConf.to_container(compose("data=sample"))
    assert len({recipe.digest(config), recipe.digest(config, "runs/a"), recipe.digest(config, "runs/b")}) == 3


def test_references_that_lead_nowhere_or_in_circles_stay_as_they_are():
    config = {"a": "${b}", "b": "${a}", "c": "${nowhere}", "d": "${oc.env:HOME}", "e": "x-${f.g}", "f": {"g": 1}}
    found = recipe.values(config)
    assert found["e"] == "x-1"
    assert (found["c"], found["d"]) == ("${nowhere}", "${oc.env:HOME}")
    assert found["a"].startswith("${")


def test_overrides_are_judged_by_their_keys():
    given = ["optimizer.lr=0.1", "+trainer.threads=2", "~logger", "hydra/launcher=joblib", "data.root=x", "data=sample"]
    assert recipe.overrides(given) == {"optimizer.lr=0.1", "data=sample"}
    assert recipe.overrides(["tagsy=1", "search.trial=3"]) == {"tagsy=1"}
    assert recipe.overrides(["model._target_=mnist_exp.models.SmallCNN"]) == {
        "model._target_=mnist_exp.parts.models.SmallCNN"
    }
