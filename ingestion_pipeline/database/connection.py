"""Connections to the shop's database, and what its errors mean to us.

Every statement runs inside `database_errors`, so that the rest of the program sees only our own
error tree, with messages that hold no password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors as pg

from ingestion_pipeline.errors import (
    DatabaseRightsError,
    DatabaseUnavailableError,
    DiskFullError,
    IngestionError,
    OutageError,
    RangeFailedError,
    TransientError,
    redacted,
)

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]

CONNECT_TIMEOUT_SECONDS = 10

_NOT_A_URL = (
    "DATABASE_URL cannot be used as it is written. Expected "
    "postgresql://user:password@host:5432/database, where characters of the password such as "
    "@ / : ? # and % are percent-encoded (@ is %40)."
)
_PASSWORD_NOT_ENCODED = re.compile(r"^\w+://[^:/?#@]*:[^@]*(?:[/?#][^@]*@|@.*@)")
_REFUSALS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|permission denied|is not permitted to log in"
)


def connect(url: str, *, application_name: str = "ingestion_pipeline") -> Connection:
    """An autocommit connection that sends and receives `vector` in binary, where it exists.

    Raises `DatabaseUnavailableError` or `DatabaseRightsError`. Keepalives find a dead peer within
    a minute; statements are never prepared, since their best plan depends on the range.
    """
    with database_errors():
        try:
            connection = psycopg.connect(
                url,
                autocommit=True,
                prepare_threshold=None,
                application_name=application_name,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
            )
        except psycopg.ProgrammingError:
            # What libpq quotes of a string that it cannot read may be a part of the password.
            raise DatabaseUnavailableError(_NOT_A_URL) from None
        except psycopg.OperationalError:
            if _PASSWORD_NOT_ENCODED.search(url):
                raise DatabaseUnavailableError(_NOT_A_URL) from None
            raise
        connection.execute("SET TIME ZONE 'UTC'")
        if connection.execute("SELECT to_regtype('vector')").fetchone() != (None,):
            register_vector(connection)
        return connection


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
            return TransientError(f"The database asks to try again: {message}.")
        case pg.QueryCanceled() | pg.ForeignKeyViolation() | pg.OutOfMemory():
            return TransientError(f"The database gave a statement up: {message}.")
        case pg.DiskFull():
            return DiskFullError(
                f"The database server has no disk space left: {message}. Free space where its data "
                "lies, then run the same command again; everything committed is kept."
            )
        case (
            pg.InvalidPassword()
            | pg.InvalidAuthorizationSpecification()
            | pg.InsufficientPrivilege()
            | pg.ReadOnlySqlTransaction()
        ):
            return _rights_error(message)
        case pg.DataError() | pg.IntegrityError() | pg.RaiseException():
            return RangeFailedError(f"The database refuses these rows: {message}.")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            # libpq gives no code where a connection is refused, only words.
            if _REFUSALS.search(message):
                return _rights_error(message)
            return DatabaseUnavailableError(
                f"The database cannot be reached: {message}. Check that the server runs and that "
                "DATABASE_URL names it, then run the same command again."
            )
        case _:
            return OutageError(
                f"The database refuses a statement: {message}. `ingest preflight` says what of the "
                "schema is not as expected."
            )


def _rights_error(message: str) -> DatabaseRightsError:
    return DatabaseRightsError(
        f"The database refuses: {message}. Check user, password and privileges of DATABASE_URL; "
        "`ingest preflight` lists the privileges that are missing."
    )


def _message(error: psycopg.Error) -> str:
    """What happened in one line; the server's DETAIL, which may quote data, stays out."""
    primary = error.diag.message_primary or str(error)
    return " ".join(primary.split()).rstrip(".")
