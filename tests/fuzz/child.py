"""A command line in a fork of this process, watched: how it ended, what it cost, what it touched."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helpers import run_command

SECONDS = 20
MEBIBYTES = 1024
_IDLE = 300  # MiB of a process that has imported torch
_LEFT = 97  # the exit status of a child that an exception has left
# audit events that change files: which of their arguments are paths
_CHANGES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
    "sqlite3.connect": (0,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
}
_ELSEWHERE = ("socket.connect", "socket.getaddrinfo", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class")
_NOWHERE = "'127.0.0.1', 9"  # the proxy of the tests, who ask for downloads by name and get none


class Ended(NamedTuple):
    """The exit status (negative: the signal that killed it), both outputs, seconds, MiB, and what it must not touch.

    Seconds and MiB are those of its own: what this process holds already, after whatever tests, counts as ``_IDLE``.
    """

    status: int
    out: str
    err: str
    seconds: float
    mebibytes: float
    strayed: list[str]


def run(arguments: list[str], place: Path, command: Callable[..., int] = run_command) -> Ended:
    """Run a command line (or ``command``) in the folder ``place``, which is all that it may change."""
    streams = [place.parent / f"{place.name}.{name}" for name in ("out", "err", "strayed")]
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    child = os.fork()
    if not child:
        status = _LEFT
        try:
            status = _work(lambda: command(*arguments), place, streams)
        finally:
            os._exit(status)
    status, usage = _wait(child)
    out, err, strayed = (stream.read_text(errors="replace") if stream.exists() else "" for stream in streams)
    seconds = usage.ru_utime + usage.ru_stime  # of its own, whatever else the machine is at
    mebibytes = usage.ru_maxrss / 1024 - max(held - _IDLE, 0)
    return Ended(os.waitstatus_to_exitcode(status), out, err, seconds, mebibytes, sorted(set(strayed.splitlines())))


def _wait(child: int) -> tuple[int, Any]:
    """Wait for ``child`` to end; kill it where it takes too long."""
    killer = threading.Timer(3 * SECONDS, os.kill, (child, signal.SIGKILL))
    killer.start()
    try:
        _, status, usage = os.wait4(child, 0)
    finally:
        killer.cancel()
    return status, usage


def _work(command: Callable[[], int], place: Path, streams: list[Path]) -> int:
    for descriptor, stream in ((1, streams[0]), (2, streams[1])):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "r" if n == 0 else "w", closefd=False) for n in (0, 1, 2))  # noqa: SIM115
    _tell_warnings()
    sys.dont_write_bytecode = True  # of modules that no test before has imported
    import rich

    rich.reconfigure(file=sys.stdout)
    os.chdir(place)
    os.environ["MNIST_EXP_DATA"] = str(place / "data")
    tempfile.tempdir = str(place)
    watch = os.open(streams[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.addaudithook(_hook(place, lambda line: os.write(watch, f"{line}\n".encode(errors="replace"))))
    try:
        return command()
    except BaseException:
        import traceback

        traceback.print_exc()
        return _LEFT
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _tell_warnings() -> None:
    """Let warnings be told as Python does outside pytest, which keeps them."""
    for silent in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", silent)
    warnings.showwarning = lambda message, kind, *_, **__: print(f"{kind.__name__}: {message}", file=sys.stderr)


def _hook(place: Path, tell: Callable[[str], Any]) -> Callable[[str, tuple[Any, ...]], None]:
    inside = os.path.realpath(place)
    free = (inside + os.sep, os.devnull)
    busy = False

    def paths(event: str, given: tuple[Any, ...]) -> Iterator[Any]:
        if event == "open":
            path, _, flags = given
            if isinstance(path, str | bytes) and (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                yield path
        elif event in _CHANGES:
            yield from (given[index] for index in _CHANGES[event])

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or (event != "open" and event not in _CHANGES and event not in _ELSEWHERE):
            return
        busy = True
        try:
            if event in _ELSEWHERE and _NOWHERE not in repr(given):
                tell(f"{event} {given!r:.200}")
            for path in paths(event, given):
                if isinstance(path, int):
                    continue
                real = os.path.realpath(os.fsdecode(path))
                if real != inside and not real.startswith(free):
                    tell(f"{event} {real}")
        finally:
            busy = False

    return hook
