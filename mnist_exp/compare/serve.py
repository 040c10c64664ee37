"""The page about runs, served on this machine while they go on: made anew whenever their files have changed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from mnist_exp.compare.table import find_runs
from mnist_exp.console import shown
from mnist_exp.errors import UserError
from mnist_exp.local_server import HTML, LocalHandler, LocalServer

PORT = 7870
_WATCHED = ("run.json", "history.csv")  # of a run, whose sizes and times tell whether there is news


def version(folders: Iterable[str | Path]) -> str:
    """Return a digest that is another one whenever a run below ``folders`` has begun, gone on or ended."""
    seen = hashlib.sha1(usedforsecurity=False)
    for path in find_runs(folders, lambda line: None):
        for name in _WATCHED:
            try:
                found = (path / name).stat()
            except OSError:
                continue
            seen.update(f"{path / name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return seen.hexdigest()[:16]


class _Handler(LocalHandler):
    """GET / is the page, GET /version what its runs are like now."""

    server: Server

    def do_GET(self) -> None:
        if not self.of_this_machine():
            return
        try:
            if self.path == "/version":
                self.send(200, version(self.server.folders).encode())
            elif self.path == "/":
                self.send(200, self.server.page(), HTML, {"Content-Security-Policy": "frame-ancestors 'none'"})
            else:
                self.send(404, b"there is nothing here; the page is /")
        except UserError as error:  # there may be runs again
            self.send(503, shown(str(error)).encode(), more={"Refresh": "2"})


class Server(LocalServer):
    """Serves what ``make`` returns for a version of the runs in ``folders``; both to be set before the first request."""

    handler = _Handler
    folders: Iterable[str | Path]
    make: Callable[[str], bytes]

    def __init__(self, port: int):
        super().__init__(port)
        self._making = threading.Lock()  # many may ask, it is made once
        self._made: tuple[str, bytes] = ("", b"")

    def page(self) -> bytes:
        """Return the page of the runs as they are now."""
        with self._making:
            now = version(self.folders)
            if self._made[0] != now:
                self._made = (now, self.make(now))
            return self._made[1]
