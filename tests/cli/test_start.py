"""How the program starts: nothing heavy for help, from any folder, and installed."""

import subprocess
import sys

import pytest
from helpers import PACKAGE, SMALL


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["data", "--help"]])
def test_help_does_not_import_what_is_heavy(place, arguments):
    heavy = ("torch", "optuna", "matplotlib.pyplot", "pandas", "scipy")
    program = f"""
import sys
sys.argv[1:] = {arguments!r}
from mnist_exp.cli.main import main
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
