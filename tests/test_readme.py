"""What README.md says of commands, groups and keys is true."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mnist_exp import compose

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m mnist_exp" in line
]


def table(heading: str) -> list[list[str]]:
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert rows
    return rows


def test_the_table_of_groups_names_every_choice():
    named = {}
    for groups, choices, _ in table("Config groups"):
        for group in re.findall(r"`(\w+)`", groups):
            named[group] = set(re.findall(r"`(\w+)`", choices))
    there = {
        folder.name: {f.stem for f in folder.glob("*.yaml")} for folder in (ROOT / "conf").iterdir() if folder.is_dir()
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


def composed(line: str) -> list[str] | None:
    """Return the overrides of a README command, None where it composes nothing, or needs what is not here."""
    words = shlex.split(line.partition("python -m mnist_exp")[2])
    if words[:1] == ["train"]:
        words = words[1:]
    elsewhere = ("FOLDER", "my_package", "--config-dir")
    if words[:1] in (["compare"], ["data"], ["explain"], ["export"], ["predict"]) or any(
        name in word for name in elsewhere for word in words
    ):
        return None
    # which run to resume and which launcher of another package to use is not the composition's business
    overrides = [
        w for w in words if ("=" in w or w.startswith("~")) and not w.startswith(("resume=", "seeds=", "hydra"))
    ]
    overrides += [w for w in words if w.startswith("hparams_search=")]
    return [re.sub(r"^([\w./]+)=([^,\[{(]+),.*", r"\1=\2", w) for w in overrides if "choice(" not in w]


@pytest.mark.parametrize("line", [line for line in COMMANDS if composed(line) is not None])
def test_every_command_composes(line):
    assert compose(*composed(line)).seed > 0


def test_parts_of_ones_own_work_as_shown(command, place, monkeypatch):
    section = README.partition("One of each kind, with a config of its own")[2].partition("</details>")[0]
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", section, re.S):
        if kind in ("python", "yaml"):
            file = place / text.partition("\n")[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        else:
            setting, *lines = text.splitlines()
    monkeypatch.setenv(*shlex.split(setting.removeprefix("export "))[0].split("="))
    monkeypatch.syspath_prepend(place)
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line.partition("mnist_exp ")[2])
        more = [] if "data=stripes" in words else ["data=sample", "data.train_limit=200"]
        done = command(*words, *more)
        assert done.status == 0, done.err


def test_the_two_quickstarts_are_marked():
    for which in ("run", "test"):
        assert re.search(rf"<!-- quickstart: {which} -->\s*```bash\n(.*?)```", README, re.S)
