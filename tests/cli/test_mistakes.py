"""Mistakes at the command line: one clear message that names the key, never a traceback."""

import pytest
from helpers import SMALL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lrr=1"], ["no key optimizer.lrr", "did you mean optimizer.lr?", "+optimizer.lrr="]),
        (["lr=1"], ["no key lr;", "did you mean optimizer.lr?"]),
        (["epochs=5"], ["no key epochs", "schedule.initial_epochs"]),
        (["n_trials=5"], ["no key n_trials", "hydra.sweeper.n_trials"]),
        (["optimizer=adamw", "optimizer.momentum=0.5"], ["key of other choices", "explain optimizer.momentum"]),
        (["optimizr=sgd"], ["optimizr"]),
        (["optimizer=sdg"], ["sdg", "sgd"]),
        (["optimizer.lr=fast"], ["optimizer.lr is 'fast'", "a number"]),
        (["optimizer.lr=-1"], ["optimizer", "-1"]),
        (["optimizer.lr=nan"], ["optimizer.lr is nan", "a finite number"]),
        (["optimizer=adamw", "optimizer.weight_decay=-1"], ["optimizer", "weight_decay"]),
        (["model.ghost_batch_size=0"], ["model.ghost_batch_size is 0"]),
        (["model.ghost_batch_size=1.5"], ["model.ghost_batch_size is 1.5", "a whole number at least 1", "or null"]),
        (["model.channels=[4,x]"], ["model.channels"]),
        (["model.num_classes=7"], ["model.num_classes is 7", "at least 10"]),
        (["augment.mix.prob=1.5"], ["augment.mix.prob is 1.5", "between 0 and 1"]),
        (["augment.strong.erasing.p=2"], ["erasing.p is 2"]),
        (["augment.strong.crop=null"], ["augment.strong.crop is None", "a Module"]),
        (["data.std=0"], ["data.std is 0", "above 0"]),
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
        (["trainer.compile=maybe"], ["trainer.compile is maybe", "auto, on or off"]),
        (["trainer.max_steps=0"], ["trainer.max_steps is 0"]),
        (["evaluate.tta_runs=0"], ["evaluate.tta_runs is 0"]),
        (["evaluate.tta_runs=26"], ["evaluate.tta_runs is 26", "between 1 and 25"]),
        (["evaluate.top_k=0"], ["evaluate.top_k is 0"]),
        (["seed=-1"], ["seed is -1"]),
        ([f"seed={10**30}"], [f"seed is {10**30}", "between 0 and"]),
        ([f"data.split_seed={10**30}"], [f"data.split_seed is {10**30}", "between"]),
        (["trainer.threads=100000"], ["trainer.threads is 100000", "between 1 and 1024 or null"]),
        (["data.num_workers=100000"], ["data.num_workers is 100000", "between 0 and 256"]),
        (["model=wide_small_resnet", "model.blocks=1000000"], ["model.blocks is 1000000", "between 1 and 1000"]),
        (["model.channels=[1000000000]"], ["model.channels is [1000000000]", "between 1 and 65536"]),
        (["seed=abc"], ["seed is 'abc'"]),
        (["tags=3"], ["tags"]),
        (["save_prefix=a/b"], ["save_prefix"]),
        (["resume=nowhere"], ["nowhere", "run.json"]),
        (["model._target_=os.system"], ["os.system", "MNIST_EXP_ALLOW"]),
        (["model._target_=mnist_exp.parts.models.Nothing"], ["mnist_exp.parts.models.Nothing"]),
        (["+model.depth=3"], ["model", "depth"]),
        (["+schedul.initial_epochs=5"], ["schedul.initial_epochs", "Did you mean schedule.initial_epochs?"]),
        (["+foo=1"], ["foo is no key", "augment, data", "trainer"]),
        (["+foo={}"], ["foo is no key"]),
        (["+logger.x=3"], ["logger.x is 3", "start, log, finish"]),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resolve"], ["--resolve", "--cfg"]),
        (["--shell-completion"], ["install"]),
        (["--shell-completion", "install=nosh"], ["nosh", "bash"]),
        (["--run", "--multirun"], ["--run, --multirun"]),
        (["--cfg", "job", "--info"], ["--cfg, --info"]),
        (["--cfg", "job", "--package", "nowhere"], ["nowhere"]),
        (["--experimental-rerun", "run"], ["--experimental-rerun", "resume="]),
        (["--config-name", "other"], ["--config-name", "--config-dir"]),
        (["--config-path", "other"], ["--config-path", "--config-dir"]),
        (["--config-dir", "nowhere"], ["--config-dir is", "nowhere", "a folder"]),
        (["augment=[-1,2,3]"], ["augment is [-1, 2, 3]", "conf/augment"]),
        (["augment=3"], ["augment is 3", "conf/augment"]),
        (["logger=true"], ["logger is True", "conf/logger"]),
        (["hydra=3"], ["hydra is 3"]),
        (["hydra.verbose=.5"], ["hydra.verbose is 0.5", "true, false"]),
        (["hydra.verbose={a:1}"], ["hydra.verbose"]),
        (["hydra.verbose=[1,2]"], ["logger name"]),
        (["hydra.job_logging.handlers.terminal.class=foo.Bar"], ["foo.Bar"]),
        (["hydra.job_logging.handlers.terminal.class=logging.handlers.SMTPHandler"], ["SMTPHandler"]),
        (["+hydra.job_logging.handlers.terminal.size=3"], ["terminal", "size"]),
        (["hydra.job_logging.root.handlers=[nope]"], ["nope"]),
        (["hydra.job_logging.root.handlers=3"], ["int"]),
        (["hydra.job_logging.root.level=LOUD"], ["LOUD"]),
        (["hydra.job_logging.formatters=3"], ["int"]),
        (["hydra.job_logging.version=2"], ["version", "2"]),
        (["hydra.hydra_logging.root.handlers=[nope]"], ["nope"]),
        (["hydra.mode=FAST"], ["FAST", "MULTIRUN"]),
        (["hydra.run.dir="], ["hydra.run.dir is ''", "a folder"]),
        (["paths.outputs=null"], ["paths.outputs is None", "a folder"]),
        (["hydra.output_subdir=x"], ["hydra.output_subdir"]),
        (["hydra.searchpath=[/tmp]"], ["hydra.searchpath", "--config-dir"]),
        (["hydra.job.env_copy=[NOWHERE]"], ["hydra.job.env_copy", "shell"]),
        (["--multirun", "hydra.sweeper._target_=os.system"], ["os.system"]),
        (["--multirun", "hydra.launcher=null", "seed=1"], ["launcher"]),
        (["--multirun", "seed=range(1,3,0)"], ["zero"]),
        (["seed=1,2"], ["seed=1,2", "--multirun"]),
        (["~data._target_"], ["data._target_", "load"]),
        (
            ["optimizer=adamw", "~optimizer.weight_decay", "~optimizer.lr", "optimizer._target_=torch.nn.ReLU"],
            ["optimizer"],
        ),
        (["search=3"], ["search is 3"]),
        (["task_name=[1]"], ["task_name is [1]"]),
        (["tags=[{a:1}]"], ["tags"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else None,
)
def test_what_hydra_stumbles_over_gets_one_message(command, place, arguments, words):
    done = command(*arguments, *([] if "--cfg" in arguments or "--shell" in arguments[0] else SMALL[:1]))
    assert done.status == 2, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) < 14
    assert not list(place.glob("outputs/runs/*/*")), "something was left behind"


def test_a_mistake_of_ours_still_has_its_traceback(command, place, monkeypatch):
    from mnist_exp.config.job import Job

    def broken(*arguments: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Job, "from_hydra", broken)
    for words in (SMALL, ["--multirun", "seed=1,2", *SMALL]):
        with pytest.raises(ValueError, match="a mistake of ours"):
            command(*words)


def test_a_corrupt_run_json_is_named(command, place):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text('{"status": "runn')
    done = command("train", "resume=run")
    assert done.status == 2
    assert "run.json cannot be read" in done.err


def test_code_of_ones_own_can_be_allowed(command, place, monkeypatch):
    (place / "mine.py").write_text("from mnist_exp.parts.models import SmallCNN\n\nclass Net(SmallCNN):\n    pass\n")
    monkeypatch.syspath_prepend(str(place))
    arguments = ["train", *SMALL, "model._target_=mine.Net"]
    assert command(*arguments).status == 2
    monkeypatch.setenv("MNIST_EXP_ALLOW", "mine.*")
    assert command(*arguments).status == 0


def test_a_key_of_ones_own_is_fine_where_another_refers_to_it(command, place):
    assert command("train", *SMALL, "+width=4", "model.channels=['${width}',8,8]").status == 0
