"""The page on which a digit is drawn, and its server: on this machine only, and nothing from elsewhere."""

from __future__ import annotations

import json
import secrets
import threading
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from mnist_exp.console import shown
from mnist_exp.inference.load import Model
from mnist_exp.inference.predict import framing
from mnist_exp.local_server import HTML, LocalHandler, LocalServer

SIDE = 280  # pixels of the drawing


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


class _Handler(LocalHandler):
    """GET / is the page, POST /predict a drawing, uint8 [SIDE, SIDE]. Others are refused, and so are other sites' pages."""

    server: Server

    def do_GET(self) -> None:
        if not self.of_this_machine():
            return
        if self.path != "/":
            self.send(404, b"there is nothing here; the page is /")
            return
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
        policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send(200, self.server.page(nonce), HTML, {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        self.close_connection = True  # what is refused is not read
        if not self.of_this_machine():
            return
        if (
            self.headers.get("Origin") != f"http://{self.headers['Host']}"
        ):  # a page of another site; its scripts can send
            self.send(403, b"only the page itself is answered")
            return
        size = SIDE * SIDE
        if self.path != "/predict" or self.headers.get("Content-Length") != str(size):
            self.send(400, f"wanted: a drawing of {size} bytes at /predict".encode())
            return
        content = self.rfile.read(size)
        if len(content) < size:
            return
        try:
            with self.server.asking:
                said = answer(self.server.model, np.frombuffer(content, np.uint8).reshape(SIDE, SIDE))
        except Exception as error:
            self.send(500, f"the network fails: {shown(str(error))[:300]}".encode())
            raise
        self.send(200, json.dumps(said).encode(), "application/json")


class Server(LocalServer):
    """Serves the page of a ``model``, to be set before the first request, and answers it."""

    handler = _Handler
    model: Model

    def __init__(self, port: int):
        super().__init__(port)
        self.asking = threading.Lock()  # one at a time, as a network may not be made for more

    def page(self, nonce: str) -> bytes:
        """Return the page, whose one script and style have the ``nonce``."""
        names = [member.name for member in self.model.members]
        if len(set(names)) < len(names):
            names = [str(member.run.path) for member in self.model.members]
        about = {"classes": list(map(shown, self.model.classes)), "members": list(map(shown, names))}
        text = resources.files("mnist_exp.inference").joinpath("draw.html").read_text("utf-8")
        text = text.replace("__NONCE__", nonce).replace("__SIDE__", str(SIDE))
        return text.replace("__DATA__", json.dumps(about).replace("<", "\\u003c")).encode()
