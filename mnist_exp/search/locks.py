"""Who works at a study: sweepers take turns at it, and a lock that nobody holds any more tells that its sweeper is gone.

Locks end with their process, whatever ends it: no clocks, no signs of life.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


class Locks(Protocol):
    """The locks of one study."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Have the study to oneself: what is done to it is several writes at a time. Not to be nested."""

    def present(self, sweeper: str) -> contextlib.AbstractContextManager[None]:
        """Be known as at work, as ``sweeper``."""

    def stay_present(self) -> None:
        """See that one is still known as at work."""

    def at_work(self, sweeper: str) -> bool:
        """Whether ``sweeper``, another one than this, is still at work."""


class FileLocks:
    """Locks in the study's ``folder``, for a study that lies there too."""

    def __init__(self, folder: Path):
        self.folder = folder

    def turn(self) -> contextlib.AbstractContextManager[Any]:
        return FileLock(self.folder / ".study.lock")

    @contextlib.contextmanager
    def present(self, sweeper: str) -> Iterator[None]:
        path = self._path(sweeper)
        lock = FileLock(path)
        with self.turn():
            for left in self.folder.glob(".sweeper-*.lock"):
                _held(left)  # those of killed sweepers go
            lock.acquire()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def stay_present(self) -> None:
        """A lock on a file is not lost."""

    def at_work(self, sweeper: str) -> bool:
        return _held(self._path(sweeper))

    def _path(self, sweeper: str) -> Path:
        return self.folder / f".sweeper-{''.join(c for c in sweeper if c.isalnum())}.lock"


def _held(path: Path) -> bool:
    """Whether a sweeper holds its lock; one that is not held is deleted, as its name is never used again."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True


class PostgresLocks:
    """Advisory locks of the PostgreSQL database that holds the study, which other machines see.

    They belong to a connection, so they need a real one: a proxy that pools transactions loses them.
    """

    def __init__(self, url: str, study: str):
        import sqlalchemy

        # psycopg's names for not losing a connection that says nothing while trials run
        alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        options = alive if "psycopg" in sqlalchemy.make_url(url).get_driver_name() else {}
        self.engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
        self.study = study

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self._session() as session:
            self._call(session, "pg_advisory_lock", "")
            yield

    @contextlib.contextmanager
    def present(self, sweeper: str) -> Iterator[None]:
        self.me = sweeper
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def stay_present(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._call(self.presence, "pg_try_advisory_lock", self.me)  # held already, so it is held twice
            self._call(self.presence, "pg_advisory_unlock", self.me)
        except SQLAlchemyError:
            log.warning("the connection to the study was lost; other sweepers may have taken over what this one runs")
            self._leave()
            self._enter()

    def _enter(self) -> None:
        self.presence = self._session()
        self._call(self.presence, "pg_advisory_lock", self.me)

    def _leave(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(SQLAlchemyError):
            self.presence.close()

    def at_work(self, sweeper: str) -> bool:
        with self._session() as session:
            return not self._call(session, "pg_try_advisory_lock", sweeper)

    def _session(self) -> Any:
        return self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _call(self, session: Any, function: str, name: str) -> Any:
        import sqlalchemy

        query = sqlalchemy.text(f"select {function}(hashtextextended(:name, 0))")
        return session.execute(query, {"name": f"mnist_exp {self.study} {name}".strip()}).scalar()
