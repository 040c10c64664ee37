"""A server of pages on this machine, for this machine only: pages of other sites are refused."""

from __future__ import annotations

import errno
import os
import socketserver
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from mnist_exp.errors import UserError

HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")  # of this machine, as a browser says them; the port may be that of a tunnel
_SECONDS = 10  # that a browser may take to ask
HTML = "text/html; charset=utf-8"


class LocalServer(ThreadingHTTPServer):
    """Binds a port of this machine, 0 for a free one. Raises OSError."""

    daemon_threads = True
    request_queue_size = 128  # of those who have not been let in: five would keep others waiting for seconds
    handler: type[LocalHandler]

    def __init__(self, port: int):
        super().__init__((HOST, port), self.handler)

    def server_bind(self) -> None:
        """Bind, as HTTPServer does, but without asking a name server for the name of this machine."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of mistakes of ours; a browser that has gone is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}"


class LocalHandler(BaseHTTPRequestHandler):
    """What every answer has, and who gets one."""

    server_version, sys_version = "mnist_exp", ""
    timeout = _SECONDS

    def of_this_machine(self) -> bool:
        """Whether this machine was meant; a name that somebody else lets point here is refused (DNS rebinding)."""
        hosts = self.headers.get_all("Host", [])
        name, _, port = hosts[0].partition(":") if len(hosts) == 1 else ("", "", "")
        fine = name in _NAMES and ((port.isascii() and port.isdigit()) or not port)
        if not fine:
            self.send(403, b"this page is for its own machine only: http://127.0.0.1")
        return fine

    def send(self, status: int, content: bytes, kind: str = "text/plain; charset=utf-8", more: Any = None) -> None:
        """Answer with ``content``, which nobody else may keep or show."""
        self.send_response(status)
        usual = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in (usual | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of single requests."""


Served = TypeVar("Served", bound=LocalServer)


def bound(make: Callable[[int], Served], option: str, port: int | None, usual: int) -> Served:
    """Return a server on ``port``; on the ``usual`` or a free one if it is None. Raises UserError if it cannot be had."""
    try:
        return make(usual if port is None else port)
    except OSError as error:
        if port is None:
            return make(0)
        used = error.errno == errno.EADDRINUSE
        reason = "in use" if used else f"not to be had ({os.strerror(error.errno or 0)})"
        raise UserError(
            f"{option} {port} is {reason}; name another one, or leave it out: a free one is taken"
        ) from error
