"""A full disk under the database server, told with the file system and what lies on it.

The server says "no space left" and no more. Where its files are on this machine, this module adds
which disk that is; and where the server has gone down for want of space, that this was why. The
words are those of `disk`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from ingestion_pipeline.database.embeddings import VectorIndex
from ingestion_pipeline.database.inspection import server_folders
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.disk import (
    Place,
    disk_full_error,
    embedded_server,
    is_full,
    on_one_disk,
    places_beside,
    readable,
)
from ingestion_pipeline.errors import (
    ConnectionLostError,
    DatabaseUnavailableError,
    DiskFullError,
    IngestionError,
    redacted,
)
from ingestion_pipeline.settings import Settings

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at


def open_session(settings: Settings, url: str) -> Session:
    """The session with the shop's database, or why there is none, a full disk among the reasons."""
    folder = embedded_server(url)
    try:
        return Session(url)
    except DiskFullError as error:
        raise _located(_words_of(error), [folder] if folder else [], settings, []) from error
    except DatabaseUnavailableError as error:
        if folder is None or not is_full(folder):
            raise
        raise _gone_down([folder], settings) from error


@contextmanager
def full_disk_located(
    session: Session, settings: Settings, indexes: Callable[[], Sequence[VectorIndex]]
) -> Iterator[None]:
    """Let a full disk of the server be told with its place.

    `indexes` gives those of v2: one that an interrupted build has left is room to be had. Where
    the server keeps its files is asked beforehand, while it answers.
    """
    folders, why_unknown = server_folders(session.live, settings)

    def refuse_to_reopen() -> None:
        # Full for its log, a server goes down at every commit: one more would only take it down
        # again, and the shop with it.
        if any(is_full(folder) for folder in folders):
            raise _gone_down(folders, settings)

    session.before_reopening = refuse_to_reopen
    try:
        yield
    except DiskFullError as error:
        if not isinstance(error.__cause__, psycopg.Error):
            raise  # a disk beside the server, and told already
        happened = _words_of(error)
        if "shared memory segment" in happened:
            raise _no_shared_memory(happened, folders) from error
        if why_unknown:
            happened += f"\nWhich disk that is cannot be seen from here: {why_unknown}."
        leftovers: list[str] = []
        with suppress(IngestionError):  # asking may be too much for it now
            schema, dot, _ = settings.catalogue.v2.rpartition(".")
            leftovers = [_leftover(it, schema + dot) for it in indexes() if not it.valid]
        raise _located(happened, folders, settings, leftovers) from error
    except (DatabaseUnavailableError, ConnectionLostError) as error:
        if not any(is_full(folder) for folder in folders):
            raise
        raise _gone_down(folders, settings) from error


def _words_of(error: DiskFullError) -> str:
    """What the server said, in a sentence."""
    said = str(error.__cause__)
    if isinstance(error.__cause__, psycopg.Error):
        said = error.__cause__.diag.message_primary or said
    said = redacted(" ".join(said.split())).rstrip(".")
    return f"The database server has no disk space left: {said}."


def _gone_down(folders: Sequence[Path], settings: Settings) -> DiskFullError:
    happened = "The database server has gone down, and there is no disk space left for it."
    return _located(happened, folders, settings, [])


def _located(
    happened: str, folders: Sequence[Path], settings: Settings, clearable: Sequence[str]
) -> DiskFullError:
    # The log of changes has a disk of its own, or goes without saying.
    places = [
        Place("the database", folder)
        for folder in folders
        if folder.parent not in folders or not on_one_disk(folder, folder.parent)
    ]
    return disk_full_error(
        happened, folders, [*places, *places_beside(settings)], clearable=clearable
    )


def _leftover(index: VectorIndex, schema: str) -> str:
    return (
        f"the index {index.name} ({readable(index.bytes)}), left unfinished: DROP INDEX "
        f"CONCURRENTLY {schema}{index.name}; it is built again anyway"
    )


def _no_shared_memory(happened: str, folders: Sequence[Path]) -> DiskFullError:
    """A parallel index build found `/dev/shm` too small, as it is in most containers."""
    instead = (
        "give the server a larger /dev/shm (Docker: --shm-size=1g), or, in psql, ALTER SYSTEM SET "
        "max_parallel_maintenance_workers = 0; SELECT pg_reload_conf()"
    )
    where = [_SHARED_MEMORY] if folders else []
    return disk_full_error(happened, where, [], instead=instead)
