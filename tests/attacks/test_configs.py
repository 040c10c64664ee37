"""A folder of configs or a run folder from somebody else: nothing of theirs runs, is written elsewhere or told anyone."""

import importlib
import inspect
import json
import os
import re
import shutil
import socket
import threading
from pathlib import Path

import pytest
import yaml
from helpers import PACKAGE, SMALL, info, only_run, run_command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mnist_exp.config import build
from mnist_exp.config.elsewhere import RESOLVED

CONF = PACKAGE.parent / "conf"
SECRET = "the-token-of-the-user"
FAST = [*SMALL[:1], "data.train_limit=64", "trainer.max_steps=1", "evaluate.test=false"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root) -> Path:
    """A finished run, to be copied."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        patch.chdir(place)
        assert run_command("train", *FAST, "evaluate.tta_runs=1", "hydra.run.dir=run") == 0
    return place / "run"


@pytest.fixture
def theirs(place, finished) -> Path:
    """A run folder from elsewhere, cut off before its end."""
    shutil.copytree(finished, place / "theirs")
    change(place / "theirs" / "run.json", status="interrupted")
    return place / "theirs"


@pytest.fixture(autouse=True)
def module_with_an_effect(place, monkeypatch):
    """A module in reach that leaves a mark when it is imported, and a token in the environment."""
    (place / "evil.py").write_text(
        f"open({str(place / 'mark')!r}, 'w')\ndef run(*a, **k): pass\nclass Callback:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("TOKEN", SECRET)


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_config(run: Path, key: str, value) -> None:
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    file.write_text(OmegaConf.to_yaml(config))


def config_folder(place: Path, text: str, name: str = "experiment/x") -> list[str]:
    """Write a file of a config folder; return how it is used."""
    file = place / "configs" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return ["--config-dir", "configs"]


def files(place: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and not p.name.endswith((".pyc", ".lock"))}


def assert_refused(done, before: dict, place: Path, *words: str) -> None:
    """It was one message with exit status 2, and changed nothing."""
    assert done.status == 2, done.out + done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert {p: c for p, c in files(place).items() if before.get(p) != c} == {}


# ------------------------------------------------------------------------------------------- what may be built


def test_every_target_in_conf_is_a_component():
    named = set()
    for file in CONF.rglob("*.yaml"):
        named |= set(re.findall(r"_target_: *([\w.]+)", file.read_text()))
    own = {target for target in named if not target.startswith(("torch.", "hydra_plugins.hydra_", "mnist_exp.search"))}
    assert len(own) > 20
    assert own <= set(build.COMPONENTS)
    assert {t for t in named if t.startswith("torch.")} <= set(build._torch())
    assert "mnist_exp.console.ConsoleHandler" in build.COMPONENTS


def test_all_that_may_be_built_is_a_component():
    """Whoever adds to the list must say of what kind it is."""
    import logging

    import hydra.experimental.callback
    import optuna
    import torch

    from mnist_exp.data.sets import image_folder
    from mnist_exp.parts import augment, evaluate, loggers, models, optim, schedule, trainer
    from mnist_exp.vision import import_torchvision

    intended = {
        "mnist_exp.data.sets": (object,),
        "mnist_exp.console": (logging.Handler,),
        "mnist_exp.compare.multirun": (hydra.experimental.callback.Callback,),
        "optuna.samplers": (optuna.samplers.BaseSampler,),
        "optuna.pruners": (optuna.pruners.BasePruner,),
        "torchvision.datasets": (import_torchvision("torchvision.datasets").VisionDataset,),
        "torchvision.transforms": (torch.nn.Module, object),
        "torch.optim": (torch.optim.Optimizer,),
        "torch.nn": (torch.nn.Module,),
        **{m.__name__: (object,) for m in (augment, evaluate, loggers, models, optim, schedule, trainer)},
    }
    functions = [image_folder]
    targets = [*build.COMPONENTS, *build._torch(), *build._torchvision()]
    assert len(targets) > 500
    for target in targets:
        assert re.fullmatch(r"\w+(\.\w+)+", target), target
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        if module == "hydra_plugins.hydra_optuna_sweeper._impl":
            assert re.fullmatch(r"create_nsgaii+_sampler", name)
            continue
        if found in functions:
            continue
        assert inspect.isclass(found), target
        bases = next(b for place, b in intended.items() if module == place or module.startswith(f"{place}."))
        assert issubclass(found, bases), target
        assert found.__module__.split(".")[0] == module.split(".")[0], target
        assert not any(word in target.lower() for word in ("parallel", "lambda", "download", "datasetfolder")), target


DOORS = {
    "a log file": {"_target_": "logging.FileHandler", "filename": "mark"},
    "a rotating one": {"_target_": "logging.handlers.RotatingFileHandler", "filename": "mark"},
    "an import of ours": {"_target_": "mnist_exp.data.install.import_torchvision", "name": "evil"},
    "the same": {"_target_": "mnist_exp.vision.import_torchvision", "name": "evil"},
    "an import of Hydra's": {"_target_": "hydra.utils.get_method", "path": "evil.run"},
    "an object of Hydra's": {"_target_": "hydra.utils.get_object", "path": "evil.run"},
    "instantiate itself": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "evil.run"}},
    "a module in reach": {"_target_": "evil.run"},
    "the shell": {"_target_": "os.system", "command": "touch mark"},
    "open": {"_target_": "builtins.open", "_args_": ["mark", "w"]},
    "a download": {
        "_target_": "torchvision.datasets.utils.download_url",
        "url": "file:///etc/hostname",
        "root": "mark",
    },
    "a data set that downloads": {"_target_": "torchvision.datasets.MNIST", "root": "mark", "download": True},
    "a data set of ours, torn": {"_target_": "torchvision.datasets.DatasetFolder", "root": ".", "loader": "x"},
    "our command line": {"_target_": "mnist_exp.cli.main.main"},
    "our training": {"_target_": "mnist_exp.cli.train.train", "_args_": [*FAST, "hydra.run.dir=mark"]},
    "our installing": {"_target_": "mnist_exp.data.formats.put", "target": "mark", "content": "x"},
    "our download": {"_target_": "mnist_exp.data.install.download", "name": "mnist", "root": "mark", "seconds": 1},
    "our locks": {"_target_": "mnist_exp.search.store.load_study", "folder": "mark"},
    "a database": {"_target_": "optuna.storages.RDBStorage", "url": "sqlite:///mark"},
    "a hook for all modules": {"_target_": "torch.nn.modules.module.register_module_forward_hook", "hook": "x"},
    "all devices": {"_target_": "torch.nn.DataParallel", "module": None},
    "weights": {"_target_": "torchvision.models.get_model", "name": "resnet18", "weights": "DEFAULT"},
    "a picture": {"_target_": "torchvision.utils.save_image", "tensor": [1], "fp": "mark"},
    "torch.load": {"_target_": "torch.load", "f": "mark"},
    "any function": {"_target_": "torchvision.transforms.Lambda", "lambd": {"_target_": "evil.run", "_partial_": True}},
    "partial": {"_target_": "evil.run", "_partial_": True},
    "below another": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "evil.run"}]},
}


@pytest.mark.parametrize("target", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("door", ["--config-dir", "resume"])
def test_no_other_target_is_called(command, place, theirs, door, target):
    if door == "resume":
        change_config(theirs, "logger", {"x": target})
        before = files(place)
        done = command("train", "resume=theirs")
    else:
        given = config_folder(place, "# @package _global_\n" + yaml.safe_dump({"logger": {"x": target}}))
        before = files(place)
        done = command("train", *given, "experiment=x", *FAST)
    assert_refused(done, before, place, "must be a component of mnist_exp")
    assert not (place / "mark").exists()


def test_layers_and_transforms_of_libraries_can_be_composed(command, place):
    """The list is long enough for a network, and for pictures, made of torch's and torchvision's own."""
    net = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Flatten"},
            {"_target_": "torch.nn.LazyLinear", "out_features": 10},
            {"_target_": "torch.nn.Identity"},
        ],
    }
    args = [json.dumps(net["_args_"][0]), '{"_target_":"torch.nn.Linear","in_features":784,"out_features":10}']
    config_folder(
        place, f"defaults: [small_cnn]\n_target_: torch.nn.Sequential\n_args_: [{args[0]}, {args[1]}]\n", "model/flat"
    )
    done = command(*["--config-dir", "configs"], *FAST, "model=flat", "~model.channels", "~model.ghost_batch_size")
    assert "unexpected keyword argument 'num_classes'" in done.err  # as far as a model without that key can go
    steps = [{"_target_": "torchvision.transforms.Grayscale"}, {"_target_": "torchvision.transforms.v2.RandomCrop"}]
    steps[1]["size"] = 28
    found = build.instantiated(OmegaConf.create({"_target_": "torchvision.transforms.Compose", "transforms": steps}))
    assert [type(step).__name__ for step in found.transforms] == ["Grayscale", "RandomCrop"]
    found = build.instantiated(OmegaConf.create(net))
    assert [type(layer).__name__ for layer in found] == ["Flatten", "LazyLinear", "Identity"]


# ------------------------------------------------------------------------------------------- folders of configs

SAID = {
    "callbacks of data": "hydra: {callbacks: {data: {_target_: evil.Callback, root: '${paths.data}'}}}",
    "callbacks": "hydra: {callbacks: {x: {_target_: evil.Callback}}}",
    "environment": "hydra: {job: {env_set: {MNIST_EXP_ALLOW: evil.*}}}\nlogger: {x: {_target_: evil.run}}",
    "environment copied": "hydra: {job: {env_copy: [TOKEN]}}",
    "a log file": "hydra: {job_logging: {handlers: {file: {filename: mark}}}}",
    "a log handler": "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: mark}}}}",
    "the run's folder": "hydra: {run: {dir: mark}}",
    "the sweep's folder": "hydra: {sweep: {dir: mark}}",
    "the configs' folder": "hydra: {output_subdir: ../mark}",
    "a search path": "hydra: {searchpath: ['pkg://evil']}",
    "a database": "hydra: {sweeper: {storage: 'postgresql+psycopg://127.0.0.1:9/x'}}",
    "a reference for Hydra": "hydra: {sweeper: {study_name: '${task_name}'}}",
    "what is swept": "hydra: {sweeper: {params: {hydra.run.dir: 'choice(mark,mark)'}}}",
    "what kind of data is swept": "hydra: {sweeper: {params: {data.root: mark, data._target_: 'choice(a,b)'}}}",
    "added to what is swept": "hydra: {sweeper: {params: {+hydra.job.env_set.X: '1'}}}",
    "outputs": "paths: {outputs: mark}",
    "data": "paths: {data: mark}",
    "data's root": "data: {root: mark}",
    "data's root above": "data: {root: '${paths.data}/../mark'}",
    "another run": "resume: theirs",
    "a server": "logger: {x: {_target_: mnist_exp.parts.loggers.MLflowLogger, tracking_uri: 'http://127.0.0.1:9', experiment_name: x}}",
    "a server by position": "logger: {x: {_target_: mnist_exp.parts.loggers.MLflowLogger, _args_: ['http://127.0.0.1:9', x]}}",
    "a server elsewhere": "a: {x: {_target_: mnist_exp.parts.loggers.MLflowLogger, tracking_uri: 'http://127.0.0.1:9'}}\nlogger: '${a}'",
    "a server in a list": "mine: [{_target_: mnist_exp.parts.loggers.MLflowLogger, tracking_uri: 'http://127.0.0.1:9', experiment_name: x}]\nlogger: {m: '${mine.0}'}",
    "a server in a range": "hydra: {sweeper: {params: {+logger.m: '{_target_: mnist_exp.parts.loggers.MLflowLogger, tracking_uri: x}'}}}",
    "data by position": "data: {_args_: [mnist, mark]}",
    "data elsewhere": "a: {root: mark, name: sample}\ndata: '${a}'",
    "the run's folder as usual": "hydra: {run: {dir: '${paths.data}/mark'}}",
    "a launcher with a tab": 'defaults: [{"override\\t/hydra/launcher": joblib}]',
    "the choice of nothing": "defaults: [{}]",
    "a launcher": "defaults: [{override /hydra/launcher: joblib}]",
    "a launcher, optional": "defaults: [{optional override hydra/launcher: joblib}]",
    "a path of a launcher": "defaults: [/hydra/launcher/joblib]",
    "a group elsewhere": "defaults: [{/data@hydra.job.env_set: mnist}]",
    "their group elsewhere": "defaults: [{/data@hydra.job: theirs}]",
    "their own paths": "defaults: [{override /paths: theirs}]",
    "a token in tags": "tags: ['${oc.env:TOKEN}']",
    "a token in a name": "save_prefix: ${oc.env:TOKEN}",
    "a token in a key's default": "task_name: ${oc.select:nowhere,${oc.env:TOKEN}}",
    "a token in pieces": "a: oc.env\ntask_name: '${${a}:TOKEN}'",
    "a token with spaces": "task_name: '${ oc.env:TOKEN }'",
    "a token in a list of mappings": "search: {baseline: {x: [{y: '${oc.env:TOKEN}'}]}}",
    "a token in a choice": "defaults: [{override /data: '${oc.env:TOKEN}'}]",
    "Hydra's own": "task_name: ${hydra:job.name}",
}


@pytest.mark.parametrize("text", SAID.values(), ids=SAID)
def test_a_config_folder_says_no_more_than_what_to_compute(command, place, theirs, text):
    given = config_folder(place, f"# @package _global_\n{text}\n")
    config_folder(place, "env_set: {MNIST_EXP_ALLOW: evil.*}", "data/theirs")
    config_folder(place, "outputs: mark\ndata: mark", "paths/theirs")
    before = files(place)
    named = (
        "tracking_uri"
        if "MLflowLogger, _args_" in text
        else "Missing group"
        if "[{}]" in text
        else "configs/experiment/x.yaml"
    )
    assert_refused(command("train", *given, "experiment=x", *FAST), before, place, named)
    assert not (place / "mark").exists()


FILES = {
    "a group of Hydra's": ("hydra/launcher/x", "_target_: evil.run", "hydra/launcher=x"),
    "Hydra's environment": ("hydra/env/x", "# @package _global_\nhydra: {job: {env_set: {X: y}}}", "hydra/env=x"),
    "a package": ("model/x", "# @package hydra.job\nenv_set: {MNIST_EXP_ALLOW: evil.*}", "model=x"),
    "a package below": ("model/x", "# @package _global_.hydra.job\nenv_set: {MNIST_EXP_ALLOW: evil.*}", "model=x"),
    "paths": ("paths/x", "outputs: mark\ndata: mark", "paths=x"),
    "the kind of data": ("data/x", "_target_: mnist_exp.data.sets.Data\nname: mnist", "data=x"),
    "the kind of data by an older name": ("data/x", "_target_: mnist_exp.data.Data\nname: mnist\nroot: mark", "data=x"),
    "the kind of data by reference": ("data/x", "_target_: ${a}\nroot: mark", "data=x"),
    "the root of data": ("data/x", "defaults: [sample]\nroot: mark", "data=x"),
    "a server": ("logger/x", "x: {_target_: mnist_exp.parts.loggers.MLflowLogger, tracking_uri: a}", "logger=x"),
    "no mapping": ("model/x", "[1, 2]", "model=x"),
    "a number": ("model/x", "3", "model=x"),
    "no YAML": ("model/x", "{a: [", "model=x"),
    "no text": ("model/x", "a: \udcff", "model=x"),
    "a header": ("model/x", "# @package a b c\na: 1", "model=x"),
    "a date": ("model/x", "a: 2024-01-01", "model=x"),
    "laughs": ("model/x", "a: &a [1,1]\n" + "".join(f"{c}: &{c} [*a,*a]\n" for c in "bcdefg"), "model=x"),
    "brackets": ("model/x", "a: " + "[" * 100_000, "model=x"),
    "size": ("model/x", "a: " + "1" * 2_000_000, "model=x"),
    "itself": ("model/x", "&a {b: *a}", "model=x"),
}


@pytest.mark.parametrize(("name", "text", "typed"), FILES.values(), ids=FILES)
def test_a_file_of_a_config_folder_is_named(command, place, name, text, typed):
    given = config_folder(place, "", name)
    (place / "configs" / f"{name}.yaml").write_bytes(text.encode(errors="surrogateescape"))
    before = files(place)
    done = command("train", *given, typed, *FAST[1:], "debug=tiny") if "model" not in name else command(*given, typed)
    if name == "model/x" and "2024" in text:  # a date is a text to Hydra: the model does not know it
        assert done.status == 2
        return
    assert_refused(done, before, place, f"{name}.yaml")
    assert not (place / "mark").exists()


def test_a_group_of_a_group_stands_for_it(command, place):
    """Of a file in experiment/data, which Hydra puts at data."""
    given = config_folder(place, "# @package _global_\ndefaults: [{data: x}, _self_]\n")
    config_folder(place, "root: mark\n", "experiment/data/x")
    assert_refused(command(*given, "experiment=x", *FAST), files(place), place, "experiment/data/x.yaml", "data.root")


def test_a_config_folder_says_what_to_compute(command, place):
    """As ever: choices of ours and theirs, values, references, a search; `--cfg` shows it."""
    given = config_folder(place, "# @package _global_\ndefaults: [{override /model: mine}]\noptimizer: {lr: 0.02}\n")
    config_folder(place, "defaults: [small_cnn, _self_]\nghost_batch_size: ${data.batch_size}\n", "model/mine")
    config_folder(
        place,
        "# @package _global_\ndefaults: [quick, {override /hydra/sweeper/sampler: random}, _self_]\n"
        "hydra: {sweeper: {study_name: mine, n_trials: 3, params: {optimizer.k: 'choice(3,5)'}}}\n",
        "hparams_search/mine",
    )
    done = command(*given, "experiment=x", "data=sample", *FAST[1:], "schedule.initial_epochs=1")
    assert done.status == 0, done.err
    config = OmegaConf.load(only_run(place) / ".hydra" / "config.yaml")
    assert (config.optimizer.lr, config.model.ghost_batch_size) == (0.02, 64)
    done = command("--cfg", "hydra", *given, "hparams_search=mine")
    sweeper = OmegaConf.create(done.out).hydra.sweeper
    assert (sweeper.study_name, sweeper.sampler._target_) == ("mine", "optuna.samplers.RandomSampler")
    assert "hydra.sweep.dir" not in done.err


@pytest.mark.parametrize("preset", sorted(file.stem for file in (CONF / "hparams_search").glob("*.yaml")))
def test_a_copy_of_a_search_of_ours_is_a_beginning(command, place, preset):
    """All that it says of Hydra is taken as it is; and where it is changed, the search but not the places."""
    text = (CONF / "hparams_search" / f"{preset}.yaml").read_text()
    given = config_folder(place, re.sub(r"study_name: \w+", "study_name: mine", text), "hparams_search/mine")
    done = command("--cfg", "hydra", *given, "hparams_search=mine")
    assert done.status == 0, done.err
    hydra = OmegaConf.create(done.out).hydra
    assert (hydra.sweeper.study_name, hydra.job_logging.root.handlers) == ("mine", ["file"])
    if preset == "optuna":
        config_folder(place, text.replace("/sweeps/", "/../sweeps/"), "hparams_search/mine")
        before = files(place)
        done = command("--multirun", *given, "hparams_search=mine", *FAST)
        assert_refused(done, before, place, "hparams_search/mine.yaml", "hydra.sweep.dir")


def bomb(levels: int, last: str, form: str = "'${{{0}}}${{{0}}}'") -> str:
    """Keys each of which names the next one twice: two to the ``levels`` steps."""
    lines = [f"a{level}: {form.format(f'a{level + 1}')}" for level in range(levels)]
    return "\n".join([*lines, f"a{levels}: {last}"])


BOMBS = {
    "text": bomb(40, "x"),
    "lists": bomb(40, "x", "['${{{0}}}', '${{{0}}}']"),
    "neighbours": f"b:\n{bomb(40, 'x').replace('${', '${.')}\na0: '${{b.a0}}'".replace("\na", "\n  a", 41),
    "a circle": bomb(3, "'${a0}${a0}'"),
    "references behind references": "\n".join(
        [f"p{n}: '${{a{n}}}'\na{n}: {{v: '${{p{n + 1}.v}}${{p{n + 1}.v}}'}}" for n in range(30)]
        + ["p30: '${a30}'", "a30: {v: x}"]
    ),
    "a chain that was begun at its end": "k0: x\n"
    + "\n".join(f"k{n}: '${{k{n - 1}}}'" for n in range(1, 400))
    + "\na0: '${k399}'",
    "a chain": "\n".join(f"a{level}: '${{a{level + 1}}}'" for level in range(2000)) + "\na2000: x",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "flags"),
    [
        *((text, []) for text in BOMBS.values()),
        (BOMBS["text"], ["--cfg", "job", "--resolve"]),
        (BOMBS["text"], ["--multirun", "hparams_search=quick"]),
    ],
    ids=[*BOMBS, "printed", "searched"],
)
def test_references_end(command, place, text, flags):
    given = config_folder(place, f"# @package _global_\ntags: ['${{a0}}']\n{text}\n")
    before = files(place)
    done = command(*flags, *given, "experiment=x", *FAST)
    assert_refused(done, before, place, "the composed config: ", "put values in their place")


@pytest.mark.timeout(60)
def test_references_of_a_run_end(command, place, theirs):
    file = theirs / ".hydra" / "config.yaml"
    file.write_text(re.sub(r"tags:.*", "tags: ['${a0}']", file.read_text()) + bomb(40, "x"))
    done = command("train", f"resume={theirs}")
    assert (done.status, "config.yaml: tags refers to keys" in done.err) == (2, True), done.err


def test_many_references_are_no_bomb(command, place):
    text = "a: [1, 2]\nb: {x: '${..a}', y: '${.x}', z: '${data.mean}'}\ntags: ['${b.x[0]}', '${b.z} ${b.z} ${seed}']"
    given = config_folder(place, f"# @package _global_\n{text}\n")
    done = command("--cfg", "job", "--resolve", *given, "experiment=x")
    assert done.status == 0, done.err
    assert yaml.safe_load(done.out)["tags"] == [1, "0.1307 0.1307 42"]


@pytest.mark.parametrize("name", ["experiment/fast", "train", "paths/default"])
def test_a_config_that_would_not_be_read_is_named(command, place, name):
    """Of two configs with one name Hydra takes ours, silently."""
    ours = (CONF / f"{name}.yaml").read_text()
    given = config_folder(place, ours, name)
    assert command("--cfg", "job", *given).status == 0, "the same"
    config_folder(place, f"{ours}\nseed: 7\n", name)
    done = command("--cfg", "job", *given)
    assert done.status == 2
    assert f"{name}.yaml would not be read" in done.err
    assert "rename it" in done.err


# ------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    "typed",
    [
        "+hydra.job.env_set.MNIST_EXP_ALLOW=evil.*",
        "hydra.job.env_set={MNIST_EXP_ALLOW:evil.*}",
        "hydra.job={env_set:{GIT_CONFIG_COUNT:1}}",
        "hydra={job:{env_set:{LD_PRELOAD:x}}}",
        "++hydra[job][env_set][PYTHONPATH]=x",
        "hydra.job.env_copy=[TOKEN]",
    ],
)
def test_the_environment_is_said_in_the_shell(command, place, typed):
    before = files(place)
    assert_refused(command("train", *FAST, typed), before, place, "in your shell")


def test_what_is_allowed_is_asked_once(command, place, monkeypatch):
    """Even where the variable changes after the start, as by a component that was allowed."""
    (place / "first.py").write_text(
        "import os\nfrom mnist_exp.parts.trainer import Trainer\n"
        "class First(Trainer):\n    def __init__(self, **k):\n"
        "        os.environ['MNIST_EXP_ALLOW'] = 'evil.*'\n        super().__init__(**k)\n"
    )
    monkeypatch.setenv("MNIST_EXP_ALLOW", "first.First")
    done = command("train", *FAST, "trainer._target_=first.First", "+logger.x._target_=evil.run")
    assert done.status == 2
    assert "must be a component of mnist_exp or a layer, optimizer or transform of torch's, not evil.run." in done.err
    assert not (place / "mark").exists()


def test_git_runs_no_program_for_us(command, place, monkeypatch):
    program = place / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {place / 'mark'}\n")
    program.chmod(0o755)
    settings = {"core.fsmonitor": str(program), "core.hooksPath": str(place)}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for number, (key, value) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_DIR", str(place / "nowhere"))
    from mnist_exp.runs.record import _git_sha

    sha = _git_sha.__wrapped__()
    if (PACKAGE.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", sha or "")
    assert not (place / "mark").exists()


# ------------------------------------------------------------------------------------------- run folders

LINES = [
    *("hydra.run.dir=mark", "hydra/launcher=joblib", "--config-dir=configs", "hydra.searchpath=['pkg://evil']"),
    *(
        "+hydra.callbacks.x._target_=evil.Callback",
        "hydra.job.env_set={MNIST_EXP_ALLOW:evil.*}",
        "hydra={run:{dir:mark}}",
    ),
    *("++hydra.job_logging.handlers.file.filename=mark", "seed=1,2", "seed=range(1,3)", "tags=['${oc.env:TOKEN}']"),
    *(
        "task_name=${oc.env:TOKEN}",
        "+data@hydra.job:x=mnist",
        "--multirun",
        "",
        "a b",
        "hydra[run][dir]=mark",
        "~hydra",
    ),
]


@pytest.mark.parametrize("line", LINES)
def test_the_overrides_of_a_run_are_values_and_choices(command, place, theirs, line):
    change(theirs / "run.json", status="finished")
    file = theirs / ".hydra" / "overrides.yaml"
    file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), line]))
    before = files(place)
    done = command("train", "resume=theirs", "schedule.extra_epochs=1")
    assert_refused(done, before, place, "theirs/.hydra/overrides.yaml", repr(line) if "{oc" not in line else "TOKEN")
    assert not (place / "mark").exists()


def test_a_run_does_not_say_where_another_is_written(command, place, theirs, caplog):
    change(theirs / "run.json", status="finished")
    file = theirs / ".hydra" / "overrides.yaml"
    places = ["paths.outputs=mark", "paths.data=mark", "resume=mark", "+logger.x.tracking_uri=mark"]
    file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), *places]))
    done = command("train", "resume=theirs", "schedule.extra_epochs=1")
    assert done.status == 0, done.err
    assert not (place / "mark").exists()
    assert only_run(place)
    for line in places:
        assert (line in caplog.text) is (line != "resume=mark")  # which the typed one replaces anyway


@pytest.mark.parametrize("ending", ["interrupted", "finished"])
def test_nothing_is_written_where_a_run_folder_says_data_are(command, place, theirs, ending):
    (place / "mine").mkdir()
    change(theirs / "run.json", status=ending)
    change_config(theirs, "data.root", str(place / "mine"))
    (theirs / ".hydra" / "overrides.yaml").write_text(
        yaml.safe_dump(["debug=tiny", "data.train_limit=64", f"data.root={place / 'mine'}"])
    )
    more = ["schedule.extra_epochs=1"] if ending == "finished" else []
    done = command("train", "resume=theirs", *more)
    assert done.status == 0, done.err
    assert list((place / "mine").iterdir()) == []
    change(theirs / "run.json", status=ending)
    change_config(theirs, "data.name", "mnist")
    change_config(theirs, "data.fallback", None)
    with (theirs / ".hydra" / "overrides.yaml").open("a") as file:
        file.write("- data.name=mnist\n- data.fallback=null\n")
    done = command("train", "resume=theirs", *more)
    assert done.status == 2
    assert "not downloaded to" in done.err
    assert list((place / "mine").iterdir()) == []


def test_a_run_that_goes_on_tells_no_server(command, place, theirs):
    heard = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            heard.append(connection.recv(1000))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    logger = {"_target_": "mnist_exp.parts.loggers.MLflowLogger", "tracking_uri": uri, "experiment_name": "x"}
    change_config(theirs, "logger", {"mlflow": logger})
    change_config(theirs, "paths.outputs", str(place / "mark"))
    done = command("train", "resume=theirs")
    server.close()
    assert done.status == 0, done.err
    assert "logger.mlflow.tracking_uri" in done.err + done.out
    assert heard == []
    assert not (place / "mark").exists()


KEYS = {
    "tags": ["${oc.env:TOKEN}"],
    "task_name": "${oc.env:TOKEN}",
    "save_prefix": "${oc.env:TOKEN}",
    "optimizer.lr": "${oc.decode:${oc.env:TOKEN}}",
    "hydra": {"run": {"dir": "mark"}},
    "data.name": "${oc.env:TOKEN}",
}


@pytest.mark.parametrize("key", KEYS)
def test_no_variable_of_the_environment_is_asked_of_a_run_folder(command, place, theirs, key):
    change_config(theirs, key, KEYS[key])
    before = files(place)
    assert_refused(command("train", "resume=theirs"), before, place, "theirs/.hydra/config.yaml", key)


def test_tokens_that_are_typed_land_in_no_file(command, place):
    for typed in ("tags=['${oc.env:TOKEN}']", "task_name='${oc.env:TOKEN}'", "+note='${oc.env:TOKEN}'"):
        assert command("train", *FAST, typed, "logger=tensorboard").status == 2
    url = "hydra.sweeper.storage='${oc.env:TOKEN}'"
    done = command("--multirun", "hparams_search=quick", "hydra.sweeper.n_trials=1", url)
    assert done.status == 2
    assert "hydra.sweeper.storage" in done.err
    assert [p for p, content in files(place).items() if SECRET.encode() in content] == []


def test_what_conf_resolves_is_what_may_be_resolved():
    texts = "".join(p.read_text() for p in CONF.rglob("*.yaml") if p.parent.name not in ("hydra", "hparams_search"))
    found = re.findall(r"\$\{[a-z_.]+:[^}]*\}", texts)
    assert found == [RESOLVED]


# ------------------------------------------------------------------------------------------- damage

DAMAGE = {
    "torn": b"seed: 4\nmodel: {_targ",
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"[1, 2]",
    "a number": b"3",
    "itself": b"&a {seed: *a}",
    "laughs": b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
    "brackets": b"[" * 200_000,
    "a date": b"seed: 2024-01-01\n",
    "an object": b"!!python/object/apply:os.system [touch mark]",
    "other keys": b"a: 1\n1: 2\nnull: 3\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "run.json", "history.csv"])
def test_a_damaged_file_of_a_run_is_named(command, place, theirs, name, damage):
    file = theirs / ".hydra" / name if name.endswith(".yaml") else theirs / name
    ending = "finished" if name == "overrides.yaml" else "interrupted"
    change(theirs / "run.json", status=ending)
    file.write_bytes(damage)
    before = files(place)
    more = ["schedule.extra_epochs=1"] if ending == "finished" else []
    assert_refused(command("train", "resume=theirs", *more), before, place, str(file))
    assert not (place / "mark").exists()


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_a_lost_file_of_a_run_is_named(command, place, theirs, name):
    change(theirs / "run.json", status="finished" if name == "overrides.yaml" else "interrupted")
    (theirs / ".hydra" / name).unlink()
    done = command("train", "resume=theirs", *(["schedule.extra_epochs=1"] if name == "overrides.yaml" else []))
    assert done.status == 2
    assert str(theirs / ".hydra" / name) in done.err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model", None), ("model", {}), ("model", 3), ("model._target_", 3), ("data", []), ("data.batch_size", "x")),
        *(
            ("seed", "x"),
            ("seed", None),
            ("optimizer", {}),
            ("trainer", {"_target_": "torch.nn.ReLU"}),
            ("paths", None),
        ),
        *(("evaluate", {"_target_": "mnist_exp.parts.augment.Compose"}), ("data", {"_target_": "torch.nn.ReLU"})),
        *(("augment.strong", None), ("schedule.initial_epochs", -1), ("logger", 3), ("logger", {"x": None})),
        *(("data.split_seed", "x"), ("model.num_classes", "${nowhere}"), ("model.channels", "${model.channels}")),
    ],
)
def test_a_config_of_a_run_that_cannot_be_is_named(command, place, theirs, key, value):
    change_config(theirs, key, value)
    before = files(place)
    assert_refused(command("train", "resume=theirs"), before, place, "theirs/.hydra/config.yaml")


NAMES = [
    *("my run", "a=b", "it's", 'say "x"', "[1,2]", "{a: b}", "a,b", "$HOME", "back\\slash", "end\\", "größe", "-dash"),
    *("~tilde", "a:b", "#5", "%d", "(x)", "???", "a\nb", " "),
]


@pytest.mark.parametrize("name", ['it\'s a=b, [1,2] {c: d} "say" $HOME back\\slash größe #5 %d (x) ~ ??? \\', "-dash"])
def test_a_run_folder_may_have_any_name(command, place, theirs, name):
    theirs.rename(place / name)
    done = command("train", f"resume={name}")
    assert done.status == 0, done.err
    assert info(place / name)["status"] == "finished"
    done = command("train", f"resume={place / name}", "schedule.extra_epochs=1")
    assert done.status == 0, done.err
    assert info(only_run(place))["warm_start"] == str(place / name)


@pytest.mark.parametrize("name", NAMES)
def test_hydra_is_told_the_folder_that_was_meant(place, theirs, name):
    from mnist_exp.cli.train import _resuming

    theirs.rename(place / name)
    for named in (f"./{name}", name, place / name):
        with initialize_config_dir(str(CONF)):
            config = compose("train", overrides=_resuming([f"resume={named}"]), return_hydra_config=True)
        assert config.resume == config.hydra.run.dir == str(place / name)


def test_a_name_that_would_be_a_reference_is_refused(command, place, theirs):
    theirs.rename(place / "${seed}")
    before = files(place)
    assert_refused(command("train", "resume=${seed}"), before, place, "rename it")


def test_a_log_that_is_a_link_is_not_written_through(command, place, theirs):
    (place / "mine").write_text("mine")
    (theirs / "train.log").unlink(missing_ok=True)
    (theirs / "train.log").symlink_to(place / "mine")
    before = files(place)
    assert_refused(command("train", "resume=theirs"), before, place, "train.log is a link")


def test_a_name_in_quotes_of_hydras_means_what_is_in_them(command, place, theirs):
    theirs.rename(place / "a=b")
    done = command("train", "resume='a=b'")
    assert done.status == 0, done.err


@pytest.mark.parametrize("door", ["--config-dir", "resume"])
def test_a_log_file_that_a_config_names_as_a_logger_is_not_touched(command, place, theirs, door):
    (place / "precious").write_text("of the user")
    target = {"_target_": "mnist_exp.console.LogFile", "filename": str(place / "precious")}
    if door == "resume":
        change_config(theirs, "logger", {"x": target})
        done = command("train", "resume=theirs")
    else:
        given = config_folder(place, "# @package _global_\n" + yaml.safe_dump({"logger": {"x": target}}))
        done = command("train", *given, "experiment=x", *FAST)
    assert done.status == 2
    assert (place / "precious").read_text() == "of the user"


def test_a_pipe_in_the_place_of_a_log_does_not_stop_a_resumed_run(command, place, theirs):
    (theirs / "train.log").unlink()
    os.mkfifo(theirs / "train.log")
    done = command("train", "resume=theirs")
    assert done.status == 2
    assert "train.log is neither a file nor a folder" in done.err


@pytest.mark.parametrize("root", ["a\0b", "~nobody-of-this-name/x"])
def test_a_root_that_is_no_path_is_a_message(command, theirs, root):
    change_config(theirs, "data.root", root)
    assert "Traceback" not in command("train", "resume=theirs").err
