"""What the benchmarks share: a process that is timed, its peak memory, and the machine that it ran on.

Nothing here imports torch: Linux counts what the starting process holds as memory of the one that it starts.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parent
MIB = 2**20
_EVERY = 0.2  # seconds between two looks at the memory of a process and its children


class Finished(NamedTuple):
    """A process that has ended: its exit status, wall time, the time of all its cores, which other work of the machine
    changes little, peak memory in MiB, and where what it printed lies.
    """

    status: int
    seconds: float
    cpu_seconds: float
    memory_mib: float
    printed: Path

    def json(self) -> dict[str, Any]:
        """Return the last line that it printed in JSON."""
        lines = [line for line in self.printed.read_text(errors="replace").splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def failure(self) -> str:
        """Return the last line that it printed, which says why it failed."""
        lines = self.printed.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it printed nothing and ended with {self.status}"


def run_process(words: list[str], place: Path, threads: int | None = None) -> Finished:
    """Run ``python WORDS`` in the folder ``place``, this checkout's package before an installed one.

    Its memory is the larger of the peak of the process itself and of the sum of it and its children, each of which adds
    what it alone holds (Linux; looked at five times a second, so that a short peak of the sum may be missed).
    """
    environment = dict(os.environ)
    paths = [str(SCRIPTS), str(SCRIPTS.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    printed = place / "printed.txt"
    with printed.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=place, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        sums, done = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, sums, done), daemon=True)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            seconds = time.perf_counter() - started
            done.set()
            watch.join()
            if process.returncode is None:
                process.kill()
                process.wait()
    own = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = usage.ru_utime + usage.ru_stime
    return Finished(process.returncode, seconds, cpu, max(own, *sums) / MIB, printed)


def _watch(pid: int, sums: list[int], done: threading.Event) -> None:
    """Add to ``sums``, until ``done``, what ``pid`` and its children hold in bytes, wherever it has children."""
    while not done.wait(_EVERY):
        children = _children(pid)
        if children:
            sums.append(
                _held(pid, ("Rss",)) + sum(_held(child, ("Private_Clean", "Private_Dirty")) for child in children)
            )


def _children(pid: int) -> list[int]:
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_children(int(child))]
    except OSError:  # it has ended, or this is no Linux
        pass
    return found


def _held(pid: int, kinds: tuple[str, ...]) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return 1024 * sum(int(fields[kind][0]) for kind in kinds if kind in fields)


def machine() -> dict[str, Any]:
    """Return the name of the CPU, how many cores this process may use, units for bf16, memory, and versions."""
    name, flags, total = platform.processor() or platform.machine(), [], None
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            if key == "flags":
                flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in value.split()]
        total = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    versions = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("torch", "torchvision", "numpy")}
    return {"cpu": name, "cores": cores, "flags": flags, "memory_mib": total, "versions": versions}
