"""The page on which a digit is drawn, and its server: on this machine only, and nothing from elsewhere."""

from __future__ import annotations

import json
import secrets
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from mnist_exp.console import shown
from mnist_exp.inference.load import Model
from mnist_exp.inference.predict import framing

HOST = "127.0.0.1"
SIDE = 280  # pixels of the drawing
_NAMES = ("127.0.0.1", "localhost")  # of this machine, as a browser says them; the port may be that of a tunnel
_SECONDS = 10  # that a browser may take to ask


def answer(model: Model, drawing: np.ndarray) -> dict[str, Any]:
    """Return what ``model`` says of a ``drawing``, uint8 [H, W], light on dark.

    ``image``: what the network sees, as ``framing`` has it, 784 grey values; ``inked``: whether there is anything on it;
    ``probabilities`` of the classes, the mean of the ``members``'.
    """
    image, inked, _ = framing(model, "no")(Image.fromarray(drawing))
    members = model.probabilities(image[None])[:, 0].double()
    return {
        "image": image.ravel().tolist(),
        "inked": inked,
        "probabilities": members.mean(0).tolist(),
        "members": members.tolist(),
    }


class Server(ThreadingHTTPServer):
    """Serves the page of a ``model``, to be set before the first request, and answers it."""

    daemon_threads = True
    request_queue_size = 128  # of those who have not been let in: five would keep others waiting for seconds
    model: Model

    def __init__(self, port: int):
        """Bind ``port`` of this machine, 0 for a free one. Raises OSError."""
        super().__init__((HOST, port), _Handler)
        self.asking = threading.Lock()  # one at a time, as a network may not be made for more

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

    def page(self, nonce: str) -> bytes:
        """Return the page, whose one script and style have the ``nonce``."""
        names = [member.name for member in self.model.members]
        if len(set(names)) < len(names):
            names = [str(member.run.path) for member in self.model.members]
        about = {"classes": list(map(shown, self.model.classes)), "members": list(map(shown, names))}
        text = resources.files("mnist_exp.inference").joinpath("draw.html").read_text("utf-8")
        text = text.replace("__NONCE__", nonce).replace("__SIDE__", str(SIDE))
        return text.replace("__DATA__", json.dumps(about).replace("<", "\\u003c")).encode()


class _Handler(BaseHTTPRequestHandler):
    """GET / is the page, POST /predict a drawing, uint8 [SIDE, SIDE]. Others are refused, and so are other sites' pages."""

    server: Server
    server_version, sys_version = "mnist_exp", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        if not self._of_this_machine():
            return
        if self.path != "/":
            self._send(404, b"there is nothing here; the page is /")
            return
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
        policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self._send(200, self.server.page(nonce), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        self.close_connection = True  # what is refused is not read
        if not self._of_this_machine():
            return
        if (
            self.headers.get("Origin") != f"http://{self.headers['Host']}"
        ):  # a page of another site; its scripts can send
            self._send(403, b"only the page itself is answered")
            return
        size = SIDE * SIDE
        if self.path != "/predict" or self.headers.get("Content-Length") != str(size):
            self._send(400, f"wanted: a drawing of {size} bytes at /predict".encode())
            return
        content = self.rfile.read(size)
        if len(content) < size:
            return
        try:
            with self.server.asking:
                said = answer(self.server.model, np.frombuffer(content, np.uint8).reshape(SIDE, SIDE))
        except Exception as error:
            self._send(500, f"the network fails: {shown(str(error))[:300]}".encode())
            raise
        self._send(200, json.dumps(said).encode(), "application/json")

    def _of_this_machine(self) -> bool:
        """Whether this machine was meant; a name that somebody else lets point here is refused (DNS rebinding)."""
        hosts = self.headers.get_all("Host", [])
        name, _, port = hosts[0].partition(":") if len(hosts) == 1 else ("", "", "")
        fine = name in _NAMES and ((port.isascii() and port.isdigit()) or not port)
        if not fine:
            self._send(403, b"this page is for its own machine only: http://127.0.0.1")
        return fine

    def _send(self, status: int, content: bytes, kind: str = "text/plain; charset=utf-8", more: Any = None) -> None:
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
        """Say nothing: each stroke is many requests."""
