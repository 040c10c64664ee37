"""A database for searches that several machines share."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def postgres(tmp_path_factory):
    """A PostgreSQL of Debian's package, started for this test; yields the study's URL."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries or not shutil.which("runuser") or os.geteuid() != 0:
        pytest.skip("needs Debian's postgresql package, and root to start it as its own user")
    binary = binaries[-1].parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path("/tmp") / f"mnist_exp_postgres_{port}"
    home.mkdir()
    shutil.chown(home, "postgres")
    user = ["runuser", "-u", "postgres", "--"]
    subprocess.run([*user, binary / "initdb", "-D", home / "db", "-A", "trust"], check=True, capture_output=True)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    server = [*user, binary / "pg_ctl", "-D", home / "db", "-w", "-o", options, "-l", home / "log"]
    subprocess.run([*server, "start"], check=True, capture_output=True)
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([*user, binary / "pg_ctl", "-D", home / "db", "-m", "immediate", "stop"], capture_output=True)
    shutil.rmtree(home)
