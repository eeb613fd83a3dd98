"""A session with the shop's database that outlives the connections it is made of.

A connection that the server ended, or that a dead line took, is replaced when the next statement
comes; never inside a transaction, of which the first half would be missing. What is said to the
database belongs elsewhere, and so does the decision to try again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.pq import TransactionStatus

from ingestion_pipeline.database import queries
from ingestion_pipeline.database.connection import (
    Connection,
    Row,
    connect_as,
    database_errors,
)
from ingestion_pipeline.errors import ConnectionLostError, DatabaseUnavailableError, IngestionError

SILENCE_SECONDS = 30.0
"""After so long without a word, the server is asked whether it is still at work."""


class Session:
    """One database, over one connection at a time. Opens it at once; is a context manager."""

    def __init__(self, url: str) -> None:
        """Raises `DatabaseUnavailableError` or `DatabaseRightsError`."""
        self._url = url
        self._in_transaction = False
        self._connection = self._opened()
        self.before_reopening: Callable[[], None] = lambda: None
        """Called where the connection is gone; raises where none must be opened in its place."""

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more; the next statement opens another.

        So it is, too, where a transaction could not be ended: what came next would be part of it.
        """
        if self._in_transaction:
            return self._connection.closed
        return self._connection.info.transaction_status is not TransactionStatus.IDLE

    @property
    def live(self) -> Connection:
        """The connection, or a new one where it is gone; inside a transaction just that one."""
        if self.lost and not self._in_transaction:
            self.before_reopening()
            try:
                successor = self._opened()
            except DatabaseUnavailableError as error:
                # A server that restarts comes back: whoever asks decides how long to wait.
                raise ConnectionLostError(str(error)) from error
            self._end(self._connection, successor)
            self._connection.close()
            self._connection = successor
        return self._connection

    def execute(
        self,
        query: LiteralString | sql.SQL | sql.Composed,
        parameters: Params | None = None,
        *,
        binary: bool = False,
    ) -> psycopg.Cursor[Row]:
        """Run one statement; `binary` asks for its rows in binary."""
        return self.live.execute(query, parameters, binary=binary)

    def cursor(self, **options: Any) -> psycopg.Cursor[Any]:
        """A cursor, for what `execute` does not do."""
        cursor: psycopg.Cursor[Any] = self.live.cursor(**options)
        return cursor

    @contextmanager
    def transaction(self, *, force_rollback: bool = False) -> Iterator[None]:
        """Commit what the block does, or nothing of it; blocks within blocks are savepoints."""
        connection, outermost = self.live, not self._in_transaction
        try:
            self._in_transaction = True
            with connection.transaction(force_rollback=force_rollback):
                yield
        finally:
            if outermost:
                self._in_transaction = False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> _WatchedConnection:
        # A name of its own: a pooler may hand the server's process on to other clients.
        name = f"ingestion_pipeline {uuid.uuid4().hex[:12]}"
        connection = connect_as(_WatchedConnection, self._url, name)
        connection.application_name = name
        connection.is_worth_waiting_for = lambda: self._is_at_work(name)
        return connection

    def _is_at_work(self, application_name: str) -> bool:
        with (
            suppress(IngestionError),
            database_errors(),
            connect_as(_WatchedConnection, self._url, "ingestion_pipeline asks") as other,
        ):
            row = other.execute(
                queries.text("session_is_at_work"), {"application_name": application_name}
            ).fetchone()
            return row is not None and bool(row[0])
        return False

    def _end(self, predecessor: _WatchedConnection, successor: Connection) -> None:
        try:
            with database_errors():
                successor.execute(
                    queries.text("end_session"), {"application_name": predecessor.application_name}
                )
        except IngestionError:
            successor.close()
            raise


class _WatchedConnection(psycopg.Connection[Row]):
    """Gives the line up after some silence, unless something speaks for going on waiting."""

    application_name = ""
    is_worth_waiting_for: Callable[[], bool] = staticmethod(lambda: False)

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """Run a generator of psycopg's to its end, as its own `wait` does."""
        try:
            return super().wait(self._watched(gen), *args, **options)
        except KeyboardInterrupt:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # Cut off in `_watched`, which psycopg cannot take up again to hear of its cancel.
                self.pgconn.finish()
            raise

    def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        heard_at = time.monotonic()
        ready = None
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                return end.value
            # psycopg comes back every tenth of a second, with nothing where nothing was heard.
            ready = yield wanted
            now = time.monotonic()
            if ready:
                heard_at = now
            elif now - heard_at > SILENCE_SECONDS:
                if not self.is_worth_waiting_for():
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"no answer for {SILENCE_SECONDS:.0f} s, and the server is not at work on "
                        "one: the line is dead"
                    )
                heard_at = now
