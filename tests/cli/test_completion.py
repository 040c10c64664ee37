"""What the shell offers behind ``mnist-exp``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_exp.cli.completion import candidates
from mnist_exp.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("mnist-exp ", {*COMMANDS, "optimizer=", "seed="}, {"--multirun"}),
        ("mnist-exp co", {"compare"}, {"train"}),
        ("mnist-exp --mul", {"--multirun"}, {"--group-by"}),
        ("mnist-exp train ", {"optimizer=", "optimizer.", "hydra/launcher="}, {"compare"}),
        ("mnist-exp train optimizer=", {"optimizer=adamw", "optimizer=sgd"}, {"optimizer=cosine"}),
        ("mnist-exp train optimizer=ad", {"optimizer=adamw"}, {"optimizer=sgd"}),
        ("mnist-exp train optimizer=sgd optimizer.l", {"optimizer.lr="}, {"optimizer.k="}),
        ("mnist-exp train schedule.p", {"schedule.pct_start="}, set()),
        (
            "mnist-exp train augment.strong.",
            {"augment.strong.crop."},
            {"augment.strong.crop.padding=", "augment.strong.crop="},
        ),
        ("mnist-exp train ~augment.strong.era", {"~augment.strong.erasing."}, {"augment.strong.erasing."}),
        (
            "mnist-exp train trainer.precision=",
            {f"trainer.precision={p}" for p in ("auto", "fp32", "bf16", "fp16")},
            set(),
        ),
        ("mnist-exp train evaluate.test=", {"evaluate.test=true", "evaluate.test=false"}, set()),
        ("mnist-exp preview exp", {"experiment="}, {"explain"}),
        ("mnist-exp compare --g", {"--group-by"}, {"--csv"}),
        ("mnist-exp compare outputs/", set(), {"outputs/"}),
        ("mnist-exp evaluate run --split ", {"val", "test"}, {"--split"}),
        ("mnist-exp export run --format ", {"onnx", "pt2"}, set()),
        ("mnist-exp data ", {"status", "import"}, set()),
        ("mnist-exp explain sche", {"schedule", "schedule."}, {"schedule="}),
    ],
)
def test_what_may_follow(line, wanted, unwanted):
    found = set(candidates(line, COMMANDS))
    assert wanted <= found
    assert not unwanted & found
    last = line.split(" ")[-1]
    assert all(one.startswith(last) for one in found)


def test_configs_of_ones_own_are_offered(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# My own.\n_target_: nowhere.at.all\nwidth: 3  # of it\n")
    line = f"mnist-exp train --config-dir {tmp_path} model"
    assert {"model=mine", "model=small_cnn"} <= set(candidates(f"{line}=", COMMANDS))
    assert "model.width=" in candidates(f"{line}.", COMMANDS)
    assert candidates(f"{line}.width=", COMMANDS) == ["model.width=3"]


def test_bash_completes_the_word_at_the_cursor():
    there = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = """
        eval "$(mnist-exp --shell-completion install=bash)"
        complete -p mnist-exp >&2
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
        for COMP_LINE in "mnist-exp com" "mnist-exp train optimizer=ad" "mnist-exp train optimizer.l"; do
            COMP_POINT=${#COMP_LINE}
            _mnist_exp
            echo "${COMPREPLY[@]}"
        done
        eval "$(mnist-exp --shell-completion uninstall=bash)"
        complete -p mnist-exp || echo gone
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env={**os.environ, "PATH": there})
    assert done.stdout.splitlines() == ["compare", "adamw", "optimizer.lr=", "gone"], done.stderr
    assert "-F _mnist_exp mnist-exp" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(command, shell):
    for action in ("install", "uninstall"):
        done = command("--shell-completion", f"{action}={shell}")
        assert (done.status, done.err) == (0, "")
        assert "mnist-exp" in done.out
    assert command("train", f"--shell-completion=install={shell}").status == 0


@pytest.mark.parametrize("text", ["install=tcsh", "install", ""])
def test_another_shell_is_refused(command, text):
    done = command("--shell-completion", text)
    assert (done.status, done.out) == (2, "")
    assert "bash, zsh, fish" in done.err


@pytest.mark.timeout(60)
def test_a_strangers_folder_is_read_as_plain_data(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "pipe.yaml")
    bomb = "\n".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60))
    (folder / "bomb.yaml").write_text(f"a0: &a0 {{x: 1}}\n{bomb}\n")
    (folder / "code.yaml").write_text("x: !!python/object/apply:os.mkdir [made]\n")
    (folder / "list.yaml").write_text("[1, 2]\n")
    (folder / "good.yaml").write_text("# Good.\ndefaults: [good, nobody]\nwidth: 3\ntext: $(touch made)\n")
    (folder / "$(touch made).yaml").write_text("# Bad.\n")
    (tmp_path / "train.yaml").write_text("defaults: [x]\nseed: 1\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "other.yaml").write_text("# Other.\ndefaults: [/model/good]\n_target_: evil.Thing\nof: 1\n")
    found = candidates(f"mnist-exp train --config-dir {tmp_path} model=", COMMANDS)
    assert "model=good" in found
    assert not {"model=pipe", "model=bomb", "model=code"} & set(found)
    assert not [one for one in found if "touch" in one]
    line = f"mnist-exp train --config-dir={tmp_path} "
    assert candidates(f"{line}model.text=", COMMANDS) == []
    assert candidates(f"{line}deeper.of=", COMMANDS) == ["deeper.of=1"]
    assert "seed=42" in candidates(f"{line}seed=", COMMANDS)
    assert not Path("made").exists()
