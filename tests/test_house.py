"""The plan of the package: which wing may import which, and how long anything may be."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers import PACKAGE

# what each wing may import beside itself and the ground floor (the files that lie in no wing)
MAY = {
    "cli": {"search", "inference", "compare", "training", "runs", "parts", "data", "config"},
    "search": {"training", "runs", "parts", "data", "config"},
    "inference": {"training", "runs", "parts", "data", "config"},
    "training": {"runs", "parts", "data", "config"},
    "compare": {"runs", "config"},
    "parts": {"data"},
    "runs": {"config"},
    "data": set(),
    "config": set(),
}
WITHOUT_TORCH = ("runs", "compare", "config")
LINES_OF_A_CLASS, LINES_OF_A_FUNCTION, PARAMETERS = 200, 60, 6
FILES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def wing(module: str) -> str | None:
    """The wing of a module; None: the ground floor, or the entrance (the package itself and __main__)."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in MAY else None


def imports(module: str) -> Iterator[str]:
    """The modules of the package that ``module`` imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES and name not in ("mnist_exp", module):
                yield name


def test_every_folder_is_a_wing():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob("*.py"))}
    assert folders == set(MAY)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("mnist_exp", "mnist_exp.__main__")])
def test_imports_follow_the_plan(module):
    for name in imports(module):
        there, here = wing(name), wing(module)
        assert there in (None, here) or (here is not None and there in MAY[here]), f"{module} imports {name}"


def test_no_import_runs_in_a_circle():
    graphlib.TopologicalSorter({module: set(imports(module)) for module in MODULES}).prepare()


def test_nothing_is_too_long():
    long = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > (LINES_OF_A_CLASS if isinstance(node, ast.ClassDef) else LINES_OF_A_FUNCTION):
                long.append(f"{module}.{node.name}: {lines} lines")
            if not isinstance(node, ast.ClassDef) and node.name != "__init__":
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > PARAMETERS:
                    long.append(f"{module}.{node.name}: {', '.join(names)}")
    assert not long


def test_reading_runs_needs_no_torch():
    modules = [m for m in MODULES if wing(m) in WITHOUT_TORCH]
    assert len(modules) > 8
    program = (
        f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_job_and_the_command_line_know_hydras_globals():
    users = {m for m, path in MODULES.items() if "HydraConfig" in path.read_text()}
    assert users == {"mnist_exp.config.job", "mnist_exp.cli.train"}
    builders = {m for m, path in MODULES.items() if "import instantiate\n" in path.read_text()}
    assert builders == {"mnist_exp.config.build"}
