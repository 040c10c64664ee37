"""The YAML files: every choice trains, every experiment composes, every constant of the original is a key."""

import pytest
from helpers import PACKAGE

from mnist_exp import compose
from mnist_exp.errors import UserError


@pytest.mark.parametrize(
    "choice",
    [
        *(
            f"{group}={name.stem}"
            for group in ("augment", "optimizer", "schedule", "model")
            for name in sorted((PACKAGE.parent / "conf" / group).glob("*.yaml"))
        ),
        *("experiment=fast", "experiment=sprint", "debug=overfit", "debug=profile"),
        "optimizer.base._target_=torch.optim.NAdam",
    ],
)
def test_every_choice_trains(command, choice):
    small = [
        "data=sample",
        "data.train_limit=32",
        "data.batch_size=16",
        "schedule.initial_epochs=1",
        "trainer.max_steps=24",
    ]
    if choice == "model=wide_small_resnet":
        small += ["model.blocks=1", "model.channels=[4,8]"]
    model = [] if choice.startswith(("model", "experiment")) else ["model=small_cnn"]
    drop = ["~optimizer.momentum"] if "NAdam" in choice else []
    done = command("train", choice, *model, *small, *drop)
    assert done.status == 0, done.err


def test_every_experiment_composes():
    for name in (PACKAGE.parent / "conf" / "experiment").glob("*.yaml"):
        assert compose(f"experiment={name.stem}").schedule.initial_epochs > 0


@pytest.mark.parametrize("augment", ["affine", "light", "none", "strong_light"])
def test_the_two_phases_of_augmentation_are_changed_apart(augment):
    before = compose(f"augment={augment}").augment
    after = compose(f"augment={augment}", "augment.light.normalize.mean=0.7").augment
    assert after.light.normalize.mean == 0.7
    assert after.strong == before.strong


def test_every_constant_of_the_original_is_a_key_with_its_default():
    config, full = compose(), compose("experiment=obscure_full")
    found = {
        "DEVICE": config.trainer.device,
        "SEED": config.seed,
        "BATCH_SIZE": config.data.batch_size,
        "GHOST_BATCH": config.model.ghost_batch_size,
        "GHOST_BN_UPDATE_BATCH": config.evaluate.bn_update_batch_size,
        "NUM_CLASSES": config.model.num_classes,
        "EPOCHS": (config.schedule.initial_epochs, config.schedule.extra_epochs),
        "FULL_EPOCHS": (full.schedule.initial_epochs, full.schedule.extra_epochs),
        "RESUME": config.resume,
        "MIXPROB": config.augment.mix.prob,
        "MIXUP_ALPHA": config.augment.mix.mixup_alpha,
        "CUTMIX_BETA": config.augment.mix.cutmix_beta,
        "USE_CUTMIX_PROB": config.augment.mix.cutmix_prob,
        "FINAL_FRAC": config.schedule.final_frac,
        "SWA_START": int(4 * config.schedule.swa_start),
        "BASE_LR": config.optimizer.lr,
        "RESUME_LR": config.schedule.resume_lr,
        "ETA_MIN": config.schedule.eta_min,
        "MOMENTUM": config.optimizer.momentum,
        "WEIGHT_DECAY": config.optimizer.weight_decay,
        "TTA_RUNS": config.evaluate.tta_runs,
        "SAVE_PREFIX": config.save_prefix,
        "LOOKAHEAD": (config.optimizer.k, config.optimizer.alpha),
        "SWA_LR": config.schedule.swa_lr,
        "TOP": config.evaluate.top_k,
        "STRONG": (config.augment.strong.crop.padding, config.augment.strong.rotation.degrees),
        "ERASING": (config.augment.strong.erasing.p, *config.augment.strong.erasing.scale),
        "LIGHT": (config.augment.light.crop.padding, config.augment.light.rotation.degrees),
        "NORMALISE": (config.augment.strong.normalize.mean, config.evaluate.normalize.std),
    }
    assert found == {
        "DEVICE": "auto",
        "SEED": 42,
        "BATCH_SIZE": 256,
        "GHOST_BATCH": 32,
        "GHOST_BN_UPDATE_BATCH": 512,
        "NUM_CLASSES": 10,
        "EPOCHS": (2, 2),
        "FULL_EPOCHS": (200, 50),
        "RESUME": None,
        "MIXPROB": 0.102,
        "MIXUP_ALPHA": 0.091,
        "CUTMIX_BETA": 0.35,
        "USE_CUTMIX_PROB": 0.8,
        "FINAL_FRAC": 0.25,
        "SWA_START": 3,
        "BASE_LR": 0.01,
        "RESUME_LR": 5e-4,
        "ETA_MIN": 1e-6,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 1.8e-5,
        "TTA_RUNS": 5,
        "SAVE_PREFIX": "mnist_seed42",
        "LOOKAHEAD": (5, 0.25),
        "SWA_LR": 0.01,
        "TOP": 3,
        "STRONG": (4, 8),
        "ERASING": (0.25, 0.02, 0.15),
        "LIGHT": (2, 4),
        "NORMALISE": (0.1307, 0.3081),
    }


@pytest.mark.parametrize("override", ["sed=1", "seed=1,2", "model=foo", "-h", "a b"])
def test_a_mistake_in_a_notebook_is_an_error_of_ours(override):
    with pytest.raises(UserError, match=r"sed|seed|foo|-h|a b") as told:
        compose(override)
    assert "Config search path" not in str(told.value)
