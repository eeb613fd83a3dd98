"""Dagster's own storage: opening the instance over it, and what it means when it fails.

It may be another server than the shop's, and what happens to it says nothing of the shop's data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ingestion_pipeline.errors import DatabaseUnavailableError, redacted

STORAGE_ERRORS = (SQLAlchemyError, DagsterPostgresException)
"""What comes out of Dagster where its storage fails; nothing else here uses SQLAlchemy."""

_ATTEMPTS_A_ROUND = 6
_ROUND_SECONDS = 20.0
"""Longer than a round takes, and shorter than what would make two of them one."""


@contextmanager
def dagster_instance(say: Callable[[str], None] = lambda _: None) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; `say` hears when its storage does not answer at once.

    Raises `DatabaseUnavailableError` if it cannot be opened.
    """
    with _one_round_of_retries(say):
        try:
            instance = dg.DagsterInstance.get()
        except STORAGE_ERRORS as error:
            raise _unavailable(error) from None
        with instance:
            yield instance


def storage_error(error: BaseException) -> DatabaseUnavailableError | None:
    """What to tell where an error comes of a storage that is gone; None if it does not."""
    behind: BaseException | None = error
    seen: set[int] = set()
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        if isinstance(behind, (DagsterPostgresException, PoolTimeoutError)) or (
            isinstance(behind, DBAPIError) and behind.connection_invalidated
        ):
            return _unavailable(behind)
        behind = behind.__cause__ or behind.__context__
    return None


class _OneRoundOfRetries(logging.Filter):
    """Hears each attempt of Dagster's to reach its storage, and tells of them in one line.

    Dagster makes a round of attempts for every event that it has to note, a dozen seconds each, and
    an end has several. After one round in vain, the later ones end with their first attempt.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._times: list[float] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is about anything else."""
        if not str(record.msg).startswith("Retrying failed database connection"):
            return True
        if not self._times:
            self._say("Dagster's storage does not answer; trying again for some seconds.")
        now = time.monotonic()
        self._times = [it for it in self._times if now - it < _ROUND_SECONDS] + [now]
        if len(self._times) > _ATTEMPTS_A_ROUND:
            raise DagsterPostgresException("The storage has not answered for a round of attempts.")
        return False


@contextmanager
def _one_round_of_retries(say: Callable[[str], None]) -> Iterator[None]:
    retries = _OneRoundOfRetries(say)
    root = logging.getLogger()
    root.addFilter(retries)
    try:
        yield
    finally:
        root.removeFilter(retries)


def _unavailable(error: BaseException) -> DatabaseUnavailableError:
    said, *_ = _root(error).splitlines() or [""]
    return DatabaseUnavailableError(
        f"Dagster's storage cannot be reached: {redacted(said.rstrip('.'))}. Everything committed "
        "is kept.\n"
        "→ Run the same command again: it starts the embedded server. If DAGSTER_PG_URL names "
        "another one, start that first."
    )


def _root(error: BaseException) -> str:
    """The driver's own words, of which the first line says what happened."""
    if isinstance(error, DBAPIError):
        return str(error.orig)
    cause = error.__cause__ or error.__context__
    return _root(cause) if cause else str(error)
