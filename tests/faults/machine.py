"""A machine that fails when it is told to: commands as forks of this process, which imports everything once.

Reads a case a line from stdin (JSON), carries it out, and answers with a line. A boundary is a change of the files below
the case's folder: a file opened for writing, renamed, linked or deleted, a folder made or removed, an entry in a study.
At boundary ``at``

- ``kill`` ends the process at once, as kill -9 does;
- ``tear`` lets a few bytes more be written to any file, then ends it in the middle of a write;
- ``full`` refuses this and every later boundary but deletions, as a full disk does;
- ``once`` refuses this one only, as a disk that is full for a moment.

Python tells an audit hook of the files, and the methods of Optuna's storage are wrapped, so nothing in the package has
to be made for this.
"""

import contextlib
import errno
import importlib
import io
import json
import os
import resource
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from PIL import Image

DELETIONS = ("os.remove", "os.rmdir")
CHANGES = ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate", *DELETIONS)
ENTRIES = ("create_new_study", "create_new_trial", "set_study_user_attr", "set_trial_param", "set_trial_user_attr")
ENTRIES += ("set_trial_state_values", "set_trial_intermediate_value", "set_trial_system_attr")
TORN = 20  # bytes that a file may grow by, still


class Fault:
    """An audit hook that counts boundaries below ``folder``, and lets the machine fail at one of them."""

    def __init__(self, folder: str, kind: str | None, at: int):
        self.folder = folder
        self.kind = kind
        self.at = at
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike):
                return
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  # links are not followed
        if not path.startswith(self.folder + os.sep) or (event == "os.mkdir" and Path(path).is_dir()):
            return  # a folder that is there already changes nothing, and a full disk says so
        self.reached(f"{event} {os.path.relpath(path, self.folder)}", event in DELETIONS, path)

    def reached(self, boundary: str, frees: bool, path: str) -> None:
        """Let a boundary be crossed, or fail at it."""
        self.seen.append(boundary)
        if len(self.seen) == self.at:
            if self.kind == "kill":
                os._exit(137)
            if self.kind == "tear":
                size = Path(path).stat().st_size if Path(path).is_file() else 0
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + TORN, resource.RLIM_INFINITY))
        full = self.kind == "full" and len(self.seen) >= self.at and not frees
        if full or (self.kind == "once" and len(self.seen) == self.at):
            if path == "study":
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise StorageInternalError from error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def watch(self, storage: type) -> None:
        """Count the entries in a study, too."""
        for name in ENTRIES:
            setattr(storage, name, self._counted(getattr(storage, name), name))

    def _counted(self, method: Callable, name: str) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.reached(f"study {name}", False, "study")
            return method(*arguments, **keywords)

        return call


def carry_out(case: dict) -> dict:
    """Run the command line of ``case`` in a fork; return its status, what it printed, and the boundaries that it met."""
    folder = Path(case["folder"])
    out, err, seen = (folder.parent / f".{folder.name}.{name}" for name in ("out", "err", "seen"))
    pid = os.fork()
    if not pid:
        status = 70
        try:
            for path, number in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(folder)
            os.environ.update(case["environment"])
            fault = Fault(str(folder), case["kind"], case["at"])
            sys.addaudithook(fault)
            fault.watch(RDBStorage)
            sys.argv = sys.orig_argv[:] = ["python", *case["arguments"]]
            from mnist_exp.cli import main

            status = main.report(lambda: main.dispatch(case["arguments"]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            seen.write_text(json.dumps(fault.seen))
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer = {"status": status, "out": out.read_text(), "err": err.read_text(), "seen": []}
    if seen.exists():
        answer["seen"] = json.loads(seen.read_text())
    for path in (out, err, seen):
        path.unlink(missing_ok=True)
    return answer


EVERYTHING = (
    *("optuna.samplers", "pandas", "scipy.stats", "torch._dynamo", "mnist_exp.cli.compare", "mnist_exp.cli.data"),
    *("mnist_exp.cli.train", "mnist_exp.compare.page", "mnist_exp.search.trial", "mnist_exp.training.experiment"),
)

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")  # stdout is the commands'
    for name in EVERYTHING:
        importlib.import_module(name)
    importlib.import_module("mnist_exp.training.loop").EVERY = 0  # a checkpoint each epoch, however short

    # pictures are written, but not drawn: that is half the time of such a small run
    blank = io.BytesIO()
    Image.new("L", (1, 1)).save(blank, "png")

    def save(figure: Figure | FigureCanvasAgg, target: Any, **options: Any) -> None:
        with contextlib.nullcontext(target) if hasattr(target, "write") else Path(target).open("wb") as file:
            file.write(blank.getvalue())

    Figure.savefig = FigureCanvasAgg.print_png = save
    for line in sys.stdin:
        answers.write(json.dumps(carry_out(json.loads(line))) + "\n")
        answers.flush()
