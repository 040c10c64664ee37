"""What the READMEs say is true: every command in them runs, or composes, and what they name is there."""

import gzip
import io
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
from helpers import PACKAGE, ROOT, SMALL, run_command
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from mnist_exp import compose
from mnist_exp.config.build import trusting
from mnist_exp.config.ours import config_folder
from mnist_exp.data.formats import COLUMNS, PIXELS
from mnist_exp.data.sets import Data
from mnist_exp.training.components import build_components

TEXTS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in (ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("conf", "mnist_exp", "scripts")))
}
README, CONF = TEXTS["README.md"], TEXTS["conf/README.md"]
LINES = dict.fromkeys(
    line.partition("  #")[0].strip()
    for text in TEXTS.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m mnist_exp" in line
)
TRAIN, OTHERS = [], []  # the words of what composes a run, and of all other commands
for line in LINES:
    words = shlex.split(line.partition("python -m mnist_exp ")[2])
    words = list(itertools.takewhile(lambda word: word not in (">", "2>/dev/null", "|"), words))
    if words[0] in ("train", "--multirun", "--cfg"):
        TRAIN.append(words[words[0] == "train" :])
    elif "--storage" not in words:  # of a database, which tests/search has
        OTHERS.append(words)
# of runs that are few, and learn little; of all of MNIST, which is not here
SHORT = {"val_acc > 99 and optimizer.lr < 0.02": "val_acc > 0", "5": "1", "mnist.zip": "train.csv"}
HEADINGS = {
    file: {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}
    for file, text in TEXTS.items()
}


def test_a_reader_gets_through_it():
    assert README.count("\n") <= 250
    assert [line for line in README.splitlines() if len(line) > 132 and not line.startswith("|")] == []
    for which in ("run", "test"):
        assert re.search(rf"<!-- quickstart: {which} -->\s*```bash\n(.*?)```", README, re.S)


@pytest.mark.parametrize("file", TEXTS)
def test_links_lead_somewhere(file):
    for link in re.findall(r"\]\((?!http)(.*?)\)|src=\"(.*?)\"", TEXTS[file]):
        link = "".join(link)
        path, _, heading = link.partition("#")
        target = (ROOT / file).parent / path
        assert target.exists(), link
        assert not heading or heading in HEADINGS[str(target.resolve().relative_to(ROOT))], link


def test_where_things_are_is_where_they_are():
    section = TEXTS["mnist_exp/README.md"].partition("## Where things are\n")[2].partition("\n## ")[0]
    for row in [line for line in section.splitlines() if line.startswith("| ")][2:]:
        folder = PACKAGE
        for name in re.findall(r"`([\w/]+(?:\.\w+)?/?)`", row.rpartition(" | ")[2]):
            if "." in name or "/" in name:
                file = next((f for f in (ROOT / name, PACKAGE / name, folder / name) if f.exists()), None)
                assert file is not None, name
                folder = file.parent


def block(heading: str, kind: str) -> str:
    """Return the first block of ``kind`` below a heading of the README."""
    section = README.partition(heading)[2].partition("\n## ")[0]
    return section.partition(f"```{kind}\n")[2].partition("```")[0]


def table(heading: str) -> list[list[str]]:
    section = CONF.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert rows
    return rows


def test_the_table_of_groups_names_every_choice():
    named = {}
    for groups, choices, _ in table("Config groups"):
        for group in re.findall(r"`([\w/]+)`", groups):
            named[group] = set(re.findall(r"`(\w+)`", choices))
    there = {
        str(folder.relative_to(ROOT / "conf")): {f.stem for f in folder.glob("*.yaml")}
        for folder in (ROOT / "conf").rglob("*")
        if folder.is_dir()
    }
    assert named == there


def test_every_constant_names_a_key_that_exists():
    config = compose()
    rows = table("The original's constants")
    assert len(rows) == 25
    for constant, key, *_ in rows:
        found = re.match(r"`([\w.]+)`", key)
        if constant != "`TOTAL_EPOCHS`":
            assert found is not None
            assert OmegaConf.select(config, found[1], default="missing") != "missing", key


def points(words: list[str]) -> list[list[str]]:
    """Return overrides of runs of a command in which each value that is swept stands once; resuming is no part of it."""
    said = [w for w in words if ("=" in w or w[0] == "~") and not w.startswith(("resume=", "seeds="))]
    parsed = OverridesParser.create().parse_overrides(said)
    swept = [list(one.sweep_string_iterator()) if one.is_sweep_override() else [None] for one in parsed]
    keys = [word.partition("=")[0] for word in said]
    return [
        [f"{k}={s[n % len(s)]}" if s[0] else word for k, word, s in zip(keys, said, swept, strict=True)]
        for n in range(max(map(len, swept), default=1))
    ]


@pytest.mark.parametrize("words", [words for words in TRAIN if "--config-dir" not in words], ids=" ".join)
def test_every_run_and_search_composes_and_can_be_built(words, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "my_parts.*")  # as that line says
    monkeypatch.syspath_prepend(place)
    (place / "my_parts.py").write_text(block("## Parts of your own", "python"))
    for point in points(words):
        with hydra.initialize_config_dir(config_folder()):  # what it says of Hydra itself, too
            hydra.compose("train", overrides=point, return_hydra_config=True)
        ours = [word for word in point if not word.startswith("hydra")]
        assert compose(*ours).seed > 0
    if not any(word.startswith("data=") for word in words):  # others are not here
        with trusting():
            assert build_components(compose(*ours, "data=sample")).optimizer.param_groups


@pytest.mark.parametrize(
    "words", [words for words in TRAIN if "--config-dir" in words and "mine" not in words], ids=" ".join
)
def test_configs_of_ones_own_compose(words, world, place, command):
    shutil.copytree(world, place, dirs_exist_ok=True)
    (place / "scripts").symlink_to(ROOT / "scripts")
    folder = words[words.index("--config-dir") + 1]
    for point in points(words):
        done = command("--cfg", "job", "--config-dir", folder, *point)
        assert done.status == 0, done.err


@pytest.fixture(scope="module")
def world(tmp_path_factory, data_root) -> Path:
    """What the commands name: runs, a search, several runs, and pictures and files in what one may be asked for."""
    place, digits = tmp_path_factory.mktemp("world"), Data("sample", "", 0).load().train
    images, labels = digits.images[:500].numpy(), digits.labels[:500].numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        for seed, name in enumerate(("NAME", "B")):
            words = ["experiment=fast", *SMALL, f"seed={seed}", f"hydra.run.dir=outputs/runs/{name}"]
            assert run_command("train", *words) == 0
        assert run_command("--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=2") == 0
        for word in {word for line in OTHERS for word in line if word.startswith("outputs/")}:
            if not Path(word).exists():  # other names of the same
                run, search = "outputs/runs/NAME", "outputs/sweeps/quick"
                many = word.count("/") == 1
                shutil.copytree(run if "/runs/" in word or many else search, f"{word}/trial-0" if many else word)
        Path("scans").mkdir()
        for name in ("scans/7.png", "digit.jpg", "digit.png"):
            Image.fromarray(255 - images[0]).resize((200, 200)).save(name)
        np.savez("mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        idx = np.array([2051, len(images), 28, 28], ">i4").tobytes() + images.tobytes()
        Path("t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
        for name, columns, rows in (
            ("train.csv", COLUMNS, np.column_stack([labels, images.reshape(-1, 784)])),
            ("test.csv", PIXELS, images.reshape(-1, 784)),
        ):
            np.savetxt(name, rows, "%d", ",", header=",".join(columns), comments="")
    return place


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_every_other_command_runs(words, world, place, capsysbinary, monkeypatch, tmp_path_factory):
    def at_once(*_):
        raise KeyboardInterrupt  # of what goes on until Ctrl-C

    shutil.copytree(world, place, dirs_exist_ok=True)
    monkeypatch.setattr("mnist_exp.local_server.LocalServer.serve_forever", at_once)
    monkeypatch.setattr("mnist_exp.cli.compare.time.sleep", at_once)
    monkeypatch.setenv("MNIST_EXP_DATA", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("digit.png").read_bytes())))
    capsysbinary.readouterr()
    status = run_command(*(SHORT.get(word, word) for word in words))
    out, err = capsysbinary.readouterr()
    goes_on = words[0] == "draw" or "--serve" in words or "--watch" in words
    assert status in ((0, 130) if goes_on else (0,)), err
    assert out


def test_parts_of_ones_own_work_as_shown(command, place, monkeypatch):
    code, configs, lines = (block("## Parts of your own", kind) for kind in ("python", "yaml", "bash"))
    for text in (code, *re.split(r"^(?=# )", configs, flags=re.M)[1:]):
        file = place / text.partition("\n")[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    setting, *lines = lines.splitlines()
    monkeypatch.setenv(*shlex.split(setting.removeprefix("export "))[0].split("="))
    monkeypatch.syspath_prepend(place)
    one = re.search(r"`(model\._target_=my_parts.*?)`", README.replace("\n", " "))[1]
    assert len(lines) == 2
    quick = ["schedule.extra_epochs=0", "evaluate.tta_runs=1", "evaluate.top_k=1"]
    for line in (*lines, f"python -m mnist_exp train {one}"):
        words = shlex.split(line.partition("mnist_exp ")[2])
        more = [] if "data=stripes" in words else ["data=sample", "data.train_limit=200"]
        done = command(*words, *more, *quick)
        assert done.status == 0, done.err


def test_code_works_as_shown(place):
    known, code = {"images": np.zeros((3, 28, 28), np.uint8)}, block("## Use", "python")
    exec(compile(code.replace('"experiment=fast"', ", ".join(map(repr, SMALL))), "README.md", "exec"), known)
    assert known["labels"].shape == (3,)
    assert len(known["runs"]) == 1
