"""How the program starts: nothing heavy for help, from any folder, and installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PACKAGE, SMALL

from mnist_exp.cli import main

HEAVY = (
    "optuna",
    "sqlalchemy",
    "pandas",
    "scipy",
    "sklearn",
    "torchvision",
    "matplotlib.pyplot",
    "mnist_exp.search.sweeper",
)


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ("torch", "numpy", "matplotlib", *HEAVY)),
        (["--cfg", "job"], ("torch", "numpy", "matplotlib", *HEAVY)),
        (["data", "--help"], ("torch", "numpy", "matplotlib", *HEAVY)),
        (["train", *SMALL], HEAVY),
    ],
)
def test_a_command_imports_nothing_heavy_that_it_does_not_use(place, arguments, heavy):
    program = f"""
import gc, sys
sys.argv[1:] = {arguments!r}
from mnist_exp.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = [m for m in {heavy!r} if m in sys.modules]
assert not loaded, loaded
# a full search for garbage, of which Python makes several at its end, would take half a second
assert "torch" not in sys.modules or gc.get_freeze_count() > 100_000 > len(gc.get_objects())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_command():
    for name in main.COMMANDS:
        assert re.search(rf"python -m mnist_exp \[?{name}\b", main.USAGE)
    assert {p.stem for p in (PACKAGE / "cli").glob("[a-z]*.py")} == {*main.COMMANDS, "main", "completion"}


def test_the_console_script_is_the_same_as_the_module(place, monkeypatch):
    (place / "my_package.py").write_text("from mnist_exp.parts.models import SmallCNN as Net\n")
    monkeypatch.setenv("MNIST_EXP_ALLOW", "my_package.*,mnist_exp.*")
    script = Path(sys.executable).with_name("mnist-exp")
    words = [script, "train", *SMALL, "model._target_=my_package.Net"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    words[-1] = "model._target_=mnist_exp.no_module.Net"
    done = subprocess.run(words, capture_output=True, text=True, cwd=place)
    assert done.returncode == 2
    assert "No module named 'mnist_exp.no_module'" in done.stderr


@pytest.mark.slow
def test_an_installed_wheel_works_from_any_folder(place, tmp_path_factory):
    home = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, PACKAGE.parent], check=True)
    (wheel,) = home.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", home / "site", wheel], check=True
    )
    program = f"import sys; sys.path.insert(0, {str(home / 'site')!r}); from mnist_exp.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "train", *SMALL], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert list(place.glob("outputs/runs/*/run.json"))
