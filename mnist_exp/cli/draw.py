"""``draw RUN [RUN ...]``: a page on this machine on which a digit is drawn, and what trained networks say of it."""

from __future__ import annotations

import argparse
import errno
import os
from typing import TYPE_CHECKING

from mnist_exp.errors import UserError, require

if TYPE_CHECKING:
    from mnist_exp.inference.draw import Server

PORT = 7860


def draw(arguments: list[str]) -> None:
    """Carry out the command, until Ctrl-C."""
    options = command_parser().parse_args(arguments)
    port = options.port
    require(port is None or 1 <= port <= 65_535, "--port", port, "between 1 and 65535")
    from mnist_exp.console import console, say
    from mnist_exp.inference.load import load_model
    from mnist_exp.inference.predict import framing
    from mnist_exp.signals import terminate_as_interrupt

    screen = console()
    with terminate_as_interrupt(), _bound(port) as server:
        server.model = load_model(*options.runs, checkpoint=options.checkpoint)
        framing(server.model, "no")  # which all of its networks must have in common
        for member in server.model.members:
            say(screen, f"network  {member.checkpoint}")
        for line in server.model.assumed:
            say(screen, line, "yellow")
        if port is None and server.server_port != PORT:
            say(screen, f"port {PORT} is in use, so another one was taken", "yellow")
        say(screen, f"page     {server.url}   (only from this machine; Ctrl-C ends it)")
        server.serve_forever()


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of this command\'s line."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist_exp draw",
        description="A page to draw a digit on, and what a trained network says of it; of several, also their mean.",
        epilog="example:\n  python -m mnist_exp draw outputs/runs/NAME --port 8000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run; several are an ensemble")
    add("--port", type=int, metavar="N", help=f"of 127.0.0.1 (default: {PORT}, or a free one)")
    add("--checkpoint", default="best", metavar="WHICH", help="best, last, swa, or the file of one (default: best)")
    return parser


def _bound(port: int | None) -> Server:
    """Return a server on ``port``; on the usual or a free one if it is None. Raises UserError if it cannot be had."""
    from mnist_exp.inference.draw import Server

    try:
        return Server(PORT if port is None else port)
    except OSError as error:
        if port is None:
            return Server(0)
        used = error.errno == errno.EADDRINUSE
        reason = "in use" if used else f"not to be had ({os.strerror(error.errno or 0)})"
        raise UserError(f"--port {port} is {reason}; name another one, or leave it out: a free one is taken") from error
