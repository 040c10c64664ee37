"""A machine that fails where a test wants it to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from faulty import RUN, SEARCH, found
from helpers import OFFLINE, ROOT


class Done(NamedTuple):
    status: int
    out: str
    err: str
    seen: list[str]


@pytest.fixture(scope="session")
def machine(data_root) -> Iterator[Callable[..., Done]]:
    """Run ``command`` in ``folder``, with a fault of ``kind`` at boundary ``at``; see machine.py."""
    environment = {**os.environ, **OFFLINE, "MNIST_EXP_DATA": str(data_root), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(Path(__file__).with_name("machine.py"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:

        def call(folder: Path, *command: str, kind: str | None = None, at: int = 0, **more: str) -> Done:
            folder.mkdir(exist_ok=True)
            case = {"folder": str(folder), "arguments": command, "kind": kind, "at": at, "environment": more}
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            return Done(**json.loads(process.stdout.readline()))

        yield call
        process.stdin.close()


@pytest.fixture(scope="session")
def whole_run(machine, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that nothing happened to, and its boundaries."""
    folder = tmp_path_factory.mktemp("whole")
    done = machine(folder, *RUN)
    assert done.status == 0, done.err
    return folder / "run", done.seen


@pytest.fixture(scope="session")
def whole_search(machine, tmp_path_factory) -> tuple[list[dict], list[str]]:
    """What a search that nothing happened to has found, and its boundaries."""
    folder = tmp_path_factory.mktemp("whole")
    done = machine(folder, *SEARCH)
    assert done.status == 0, done.err
    return found(folder), done.seen
