"""Mistakes at the command line: one clear message that names the key, never a traceback; and what imports what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from hydra import compose, initialize_config_dir

import mnist_exp
from mnist_exp import cli

PACKAGE = Path(mnist_exp.__file__).parent
# modules of each floor; imports go to the same or a lower one
FLOORS = [
    {"errors", "files", "signals", "whitelist", "_torchvision", "statistics"},
    {"models", "augment", "optim", "schedule", "data"},
    {"run_folder"},
    {"checkpoint", "progress", "evaluate", "plots", "loggers"},
    {"trainer", "compare", "report", "study"},
    {"sweep"},
    {"experiment"},
    {"cli"},
    {"__main__"},
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lrr=1"], ["optimizer.lrr", "Did you mean: 'lr'"]),
        (["optimizr=sgd"], ["optimizr"]),
        (["optimizer=sdg"], ["sdg", "sgd"]),
        (["optimizer.lr=fast"], ["optimizer.lr is 'fast'", "a number"]),
        (["optimizer.lr=-1"], ["optimizer", "-1"]),
        (["optimizer=adamw", "optimizer.weight_decay=-1"], ["optimizer", "weight_decay"]),
        (["model.ghost_batch_size=0"], ["model.ghost_batch_size is 0"]),
        (["model.ghost_batch_size=1.5"], ["model.ghost_batch_size is 1.5", "whole number or null"]),
        (["model.channels=[4,x]"], ["model.channels"]),
        (["model.num_classes=7"], ["model.num_classes is 7", "at least 10"]),
        (["augment.mix.prob=1.5"], ["augment.mix.prob is 1.5", "between 0 and 1"]),
        (["augment.strong.erasing.p=2"], ["erasing.p is 2"]),
        (["data.val_size=4000"], ["data.val_size is 4000", "below 4000"]),
        (["data.val_size=-1"], ["data.val_size is -1"]),
        (["data.train_limit=9999"], ["data.train_limit is 9999", "at most 3500"]),
        (["data.train_limit=0"], ["data.train_limit is 0"]),
        (["data.batch_size=0"], ["data.batch_size is 0"]),
        (["data.name=mnits"], ["data.name is mnits", "kmnist"]),
        (["schedule.swa_start=1.1"], ["schedule.swa_start is 1.1"]),
        (["schedule.initial_epochs=0", "schedule.extra_epochs=0"], ["schedule.initial_epochs"]),
        (["trainer.device=cuda:99"], ["trainer.device is cuda:99", "cpu"]),
        (["trainer.device=tpu"], ["trainer.device is tpu"]),
        (["trainer.device=cpu", "trainer.precision=fp16"], ["trainer.precision is fp16", "fp32"]),
        (["trainer.precision=fp8"], ["trainer.precision is fp8"]),
        (["trainer.compile=maybe"], ["trainer.compile is 'maybe'", "true or false"]),
        (["trainer.max_steps=0"], ["trainer.max_steps is 0"]),
        (["evaluate.tta_runs=0"], ["evaluate.tta_runs is 0"]),
        (["evaluate.tta_runs=26"], ["evaluate.tta_runs is 26", "between 1 and 25"]),
        (["evaluate.top_k=0"], ["evaluate.top_k is 0"]),
        (["seed=-1"], ["seed is -1"]),
        (["seed=abc"], ["seed is abc"]),
        (["tags=3"], ["tags"]),
        (["save_prefix=a/b"], ["save_prefix"]),
        (["resume=nowhere"], ["nowhere", "run.json"]),
        (["model._target_=os.system"], ["os.system", "MNIST_EXP_ALLOW"]),
        (["model._target_=mnist_exp.models.Nothing"], ["mnist_exp.models.Nothing"]),
        (["+model.depth=3"], ["model", "depth"]),
        (["lr 0.1"], ["lr 0.1"]),
        (["trian"], ["did you mean train?", "data"]),
        (["data", "status", "optimizer.lr=1"], ["optimizer.lr=1"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else None,
)
def test_mistakes_get_one_message(command, place, arguments, words):
    bare = arguments[0].isalpha()
    done = command(*arguments) if bare else command("train", *SMALL[:1], *arguments)
    assert done.status == 2, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) < 14
    assert not list(place.glob("outputs/runs/*")), "a folder was left behind"


def test_a_corrupt_run_json_is_named(command, place):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text('{"status": "runn')
    done = command("train", "resume=run")
    assert done.status == 2
    assert "run.json cannot be read" in done.err


def test_code_of_ones_own_can_be_allowed(command, place, monkeypatch):
    (place / "mine.py").write_text("from mnist_exp.models import SmallCNN\n\nclass Net(SmallCNN):\n    pass\n")
    monkeypatch.syspath_prepend(str(place))
    arguments = ["train", *SMALL, "model._target_=mine.Net"]
    assert command(*arguments).status == 2
    monkeypatch.setenv("MNIST_EXP_ALLOW", "mine.*")
    assert command(*arguments).status == 0


@pytest.mark.parametrize(
    "choice",
    [
        *(
            f"{group}={name.stem}"
            for group in ("augment", "optimizer", "schedule", "model")
            for name in sorted((PACKAGE.parent / "conf" / group).glob("*.yaml"))
        ),
        *("experiment=fast", "debug=overfit", "debug=profile", "optimizer.base._target_=torch.optim.NAdam"),
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
        with initialize_config_dir(cli.config_folder()):
            assert compose("train", [f"experiment={name.stem}"]).schedule.initial_epochs > 0


def test_every_constant_of_the_original_is_a_key_with_its_default():
    with initialize_config_dir(cli.config_folder()):
        config = compose("train")
        full = compose("train", ["experiment=obscure_full"])
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


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["data", "--help"]])
def test_help_does_not_import_what_is_heavy(place, arguments):
    heavy = ("torch", "optuna", "matplotlib.pyplot", "pandas", "scipy")
    program = f"""
import sys
sys.argv[1:] = {arguments!r}
from mnist_exp.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = [m for m in {heavy!r} if m in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_imports_run_downwards():
    floor_of = {module: level for level, modules in enumerate(FLOORS) for module in modules}
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert found == set(floor_of)
    for module in found:
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnist_exp"):
                inside = node.module.partition(".")[2]
                names = [inside] if inside else [alias.name for alias in node.names]
            for name in names:
                assert floor_of[name] <= floor_of[module], f"{module} imports {name}"
                source = (PACKAGE / f"{module}.py").read_text()
                assert module in ("experiment", "sweep") or "import instantiate" not in source


def test_torchvision_imports_beside_a_torch_without_its_operators():
    program = (
        "from mnist_exp._torchvision import import_torchvision as i; print(i('torchvision.transforms.v2').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "torchvision.transforms.v2", done.stderr


@pytest.mark.slow
def test_an_installed_wheel_works_from_any_folder(place, tmp_path_factory):
    home = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, PACKAGE.parent], check=True)
    (wheel,) = home.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", home / "site", wheel], check=True
    )
    program = f"import sys; sys.path.insert(0, {str(home / 'site')!r}); from mnist_exp.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "train", *SMALL], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert list(place.glob("outputs/runs/*/run.json"))


def test_the_terminal_gets_a_bar_with_speed_loss_and_time_left(monkeypatch, place):
    import io
    import re

    import rich
    from rich.console import Console

    from mnist_exp.progress import RunProgress

    screen = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=screen, force_terminal=True, width=120))
    clock = iter(x * 2.0 for x in range(1000))
    monkeypatch.setattr("mnist_exp.progress.time.monotonic", lambda: next(clock))
    with RunProgress(2, 10_000, 500, 1000, on_cpu=False) as progress:
        progress.start_epoch(1, 0)
        for done in range(256, 4000, 256):
            progress.step(done, 0.5)
        assert progress.rate == pytest.approx(128)
    assert re.search(r"128 images/s  loss 0\.5000  left 0:\d\d:\d\d", progress.bar.tasks[0].fields["facts"])


def test_a_long_wait_is_announced_early_with_the_way_out(monkeypatch, caplog):
    from mnist_exp.progress import RunProgress

    clock = iter(float(x) for x in range(1000))
    monkeypatch.setattr("mnist_exp.progress.time.monotonic", lambda: next(clock))
    for on_cpu, images, expected in ((True, 55_000, True), (True, 400, False), (False, 55_000, False)):
        caplog.clear()
        with RunProgress(4, images, 500, 1000, on_cpu=on_cpu) as progress:
            progress.start_epoch(1, 0)
            for done in range(100, 300, 10):
                progress.step(done, 0.5)
        assert ("experiment=fast" in caplog.text) == expected
