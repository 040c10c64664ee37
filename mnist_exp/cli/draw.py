"""``draw RUN [RUN ...]``: a page on this machine on which a digit is drawn, and what trained networks say of it."""

from __future__ import annotations

import argparse

from mnist_exp.errors import require

PORT = 7860


def draw(arguments: list[str]) -> None:
    """Carry out the command, until Ctrl-C."""
    options = command_parser().parse_args(arguments)
    port = options.port
    require(port is None or 1 <= port <= 65_535, "--port", port, "between 1 and 65535")
    from mnist_exp.console import console, say
    from mnist_exp.inference.draw import Server
    from mnist_exp.inference.load import load_model
    from mnist_exp.inference.predict import framing
    from mnist_exp.local_server import bound
    from mnist_exp.signals import terminate_as_interrupt

    screen = console()
    with terminate_as_interrupt(), bound(Server, "--port", port, PORT) as server:
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
    """Return the parser of this command's line."""
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
