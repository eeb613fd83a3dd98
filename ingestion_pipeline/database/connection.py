"""Connections to the shop's database, and what its errors mean to us.

Every statement runs inside `database_errors`, so that the rest of the program sees only our own
error tree, with messages that hold no password.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors as pg

from ingestion_pipeline.database import queries
from ingestion_pipeline.errors import (
    ConnectionLostError,
    DatabaseRightsError,
    DatabaseUnavailableError,
    DiskFullError,
    IngestionError,
    OutageError,
    OutOfMemoryError,
    RangeFailedError,
    TransientError,
    redacted,
)

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]
AnyConnection = TypeVar("AnyConnection", bound=Connection)

CONNECT_TIMEOUT_SECONDS = 10

_NOT_A_URL = (
    "DATABASE_URL cannot be used as it is written. Expected "
    "postgresql://user:password@host:5432/database, where characters of the password such as "
    "@ / : ? # and % are percent-encoded (@ is %40)."
)
_PASSWORD_NOT_ENCODED = re.compile(r"^\w+://[^:/?#@]*:[^@]*(?:[/?#][^@]*@|@.*@)")
_TIMEOUT = re.compile(
    r"due to (statement|lock|transaction|idle-in-transaction|idle-session) timeout"
)
_NO_SPACE = os.strerror(errno.ENOSPC)
_GARBLED = re.compile(r"lost synchronization|unexpected (?:message|field)|protocol|malformed")
"""What libpq says of an answer that is none, as a broken line gives."""
_NO_MEMORY = re.compile(r"out of memory|cannot allocate memory")  # libpq itself, not the server
_TIMEOUT_SETTINGS = {
    "idle-in-transaction": "idle_in_transaction_session_timeout",
    "idle-session": "idle_session_timeout",
}
_REFUSALS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|permission denied|is not permitted to log in"
)


def connect(url: str, *, application_name: str = "ingestion_pipeline") -> Connection:
    """An autocommit connection that sends and receives `vector` in binary, where it exists.

    Raises `DatabaseUnavailableError` or `DatabaseRightsError`. The system finds a dead peer within
    a minute; statements are never prepared, since their best plan depends on the range.
    """
    return connect_as(psycopg.Connection[Row], url, application_name)


def connect_as(kind: type[AnyConnection], url: str, application_name: str) -> AnyConnection:
    """What `connect` gives, as a class of connections that has more to it."""
    try:
        with database_errors():
            try:
                connection = kind.connect(
                    url,
                    autocommit=True,
                    prepare_threshold=None,
                    application_name=application_name,
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    keepalives_idle=30,
                    keepalives_interval=10,
                    keepalives_count=3,
                    tcp_user_timeout=60_000,
                )
            except psycopg.ProgrammingError:
                # What libpq quotes of a string that it cannot read may be a part of the password.
                raise DatabaseUnavailableError(_NOT_A_URL) from None
            except psycopg.OperationalError:
                if _PASSWORD_NOT_ENCODED.search(url):
                    raise DatabaseUnavailableError(_NOT_A_URL) from None
                raise
            row = connection.execute(queries.text("begin_session")).fetchone()
            if row and row[0]:
                register_vector(connection)
            return connection
    except ConnectionLostError as error:
        # There has been no session yet to be lost.
        raise DatabaseUnavailableError(str(error)) from error.__cause__


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what psycopg raises inside into our error tree."""
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error) from error


def _translated(error: psycopg.Error) -> IngestionError:
    message = redacted(_message(error))
    match error:
        case pg.SerializationFailure() | pg.DeadlockDetected() | pg.LockNotAvailable():
            return TransientError(f"The database asks to try again: {message}.{_remedy(message)}")
        case pg.QueryCanceled() | pg.ForeignKeyViolation() | pg.OutOfMemory():
            return TransientError(f"The database gave a statement up: {message}.{_remedy(message)}")
        case pg.DiskFull():
            return _disk_full_error(message)
        case (
            pg.InvalidPassword()
            | pg.InvalidAuthorizationSpecification()
            | pg.InsufficientPrivilege()
            | pg.ReadOnlySqlTransaction()
        ):
            return _rights_error(message)
        case pg.DataError() | pg.IntegrityError() | pg.RaiseException() | pg.ProgramLimitExceeded():
            return RangeFailedError(f"The database refuses these rows: {message}.")
        case psycopg.DatabaseError() if error.sqlstate is None and _NO_MEMORY.match(message):
            return OutOfMemoryError(
                f"This process has no memory for what the database answers: {message}. Let other "
                "programs give some back, or lower work.products_per_page in ingestion.toml."
            )
        case psycopg.Error() if _ends_the_session(error):
            # libpq gives no code where a connection is refused, only words.
            if _REFUSALS.search(message):
                return _rights_error(message)
            if _NO_SPACE in message:
                return _disk_full_error(message)
            return ConnectionLostError(
                f"{_gone(message)}: {message}. Check that the server runs and that "
                f"DATABASE_URL names it, then run the same command again.{_remedy(message)}"
            )
        case _:
            return OutageError(
                f"The database refuses a statement: {message}. `ingest preflight` says what of the "
                "schema is not as expected."
            )


def _ends_the_session(error: psycopg.Error) -> bool:
    """Whether there is no session after this; libpq gives no code where the line is gone.

    Codes: class 08 connection exception, 57P0x shutdown and the like, 53300 too many connections,
    25P03 and 25P04 timeouts of a transaction.
    """
    state = error.sqlstate
    if state is None:
        is_over = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        return is_over or _GARBLED.search(str(error)) is not None
    return state.startswith(("08", "57P")) or state in {"53300", "25P03", "25P04"}


def _gone(message: str) -> str:
    never_there = message.startswith(("connection failed", "connection timeout"))
    return f"The database {'cannot be reached' if never_there else 'has ended the session'}"


def _remedy(message: str) -> str:
    """Which setting of the server is too low for us, where the server's words say so."""
    found = _TIMEOUT.search(message)
    if not found:
        return ""
    setting = _TIMEOUT_SETTINGS.get(found[1], f"{found[1]}_timeout")
    return (
        f" If it happens again, {setting} is too low for this role: ALTER ROLE ... SET {setting} = "
        f"0, or options=-c%20{setting}%3D0 in DATABASE_URL, sets it."
    )


def _disk_full_error(message: str) -> DiskFullError:
    return DiskFullError(
        f"The database server has no disk space left: {message}. Free space where its data lies, "
        "then run the same command again; everything committed is kept."
    )


def _rights_error(message: str) -> DatabaseRightsError:
    return DatabaseRightsError(
        f"The database refuses: {message}. Check user, password and privileges of DATABASE_URL; "
        "`ingest preflight` lists the privileges that are missing."
    )


def _message(error: psycopg.Error) -> str:
    """What happened in one line; the server's DETAIL, which may quote data, stays out."""
    primary = error.diag.message_primary or str(error)
    printable = "".join(it if it.isprintable() else " " for it in primary)
    return " ".join(printable.split()).rstrip(".")
