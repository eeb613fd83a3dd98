"""A full disk: which file system it is, what of ours lies on it, and what of that can be cleared.

What belongs here: paths, file systems and the words about them. What does not: where a database
server keeps its files, and which exceptions of a library mean a full disk beyond an error code.
Nothing is ever deleted from here; whoever reads the message decides.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ingestion_pipeline.errors import (
    ConnectionLostError,
    DatabaseUnavailableError,
    DiskFullError,
    redacted,
)
from ingestion_pipeline.settings import Settings

SMALLEST_ROOM = 16 << 20
"""Bytes: with less than this free, a disk counts as full: PostgreSQL's next file of its write-ahead
log takes as much at once."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""No space left, or a quota used up."""

_SQLSTATE = "53100"  # disk_full, as every PostgreSQL driver hands it on


@dataclass(frozen=True)
class Place:
    """Something that lies on a disk; `clearing` says how room is made of it, None if it stays."""

    what: str
    path: Path
    clearing: str | None = None


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system, and the room on it for anybody but root, in bytes."""

    mount_point: Path
    size_bytes: int
    free_bytes: int
    has_free_files: bool

    @property
    def is_full(self) -> bool:
        """Whether there is too little room for a database to go on."""
        return self.free_bytes < SMALLEST_ROOM or not self.has_free_files

    def __str__(self) -> str:
        room = f"{readable(self.free_bytes)} of {readable(self.size_bytes)} free"
        if self.has_free_files:
            return f"{self.mount_point} ({room})"
        return f"{self.mount_point} ({room}, and no room for another file)"


def file_system_of(path: Path) -> FileSystem | None:
    """The file system that `path` is on, or would be on once made; None if none can be asked."""
    try:
        nearest = path.expanduser().resolve()
        while not _exists(nearest) and nearest != nearest.parent:
            nearest = nearest.parent
        room = os.statvfs(nearest)
        while not os.path.ismount(nearest):
            nearest = nearest.parent
    except OSError:
        return None
    return FileSystem(
        mount_point=nearest,
        size_bytes=room.f_frsize * room.f_blocks,
        free_bytes=room.f_frsize * room.f_bavail,
        # Some file systems make room for files as they come, and say 0 of 0.
        has_free_files=room.f_favail > 0 or room.f_files == 0,
    )


def places_beside(settings: Settings) -> list[Place]:
    """What this project keeps on this machine, beside what a server of somebody else's keeps."""
    places = [
        Place("the embedded database", settings.home / "postgres"),
        Place("this project's files", settings.home),
        Place(
            "the model cache",
            settings.model_cache,
            "the models are fetched again when they are needed",
        ),
        Place("temporary files", _temporary_folder(), "those that nothing uses any more"),
    ]
    if storage := _dagster_storage():
        folder, database = storage
        clearing = (
            "runs deleted in the UI leave room for new ones; DROP DATABASE "
            f"{database} gives all of it back, and loses no more than the history"
        )
        places.append(Place(f"Dagster's history, the database {database}", folder, clearing))
    return places


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # what it says where nothing can be written to any of them
        return Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - only looked at


def embedded_server(url: str) -> Path | None:
    """Where the server that `url` leads to keeps its data, if it is an embedded one."""
    for host in parse_qs(urlsplit(url).query).get("host", []):
        # It keeps its socket beside its data.
        if _exists(Path(host, "PG_VERSION")):
            return Path(host)
    return None


def _dagster_storage() -> tuple[Path, str] | None:
    """Where the server of Dagster's storage keeps its data, if it is embedded, and the database."""
    url = os.environ.get("DAGSTER_PG_URL", "")
    folder = embedded_server(url)
    return (folder, urlsplit(url).path.strip("/")) if folder else None


@contextmanager
def full_disk_told(settings: Settings) -> Iterator[None]:
    """Let what comes of a full disk beside the shop's server be told as that, with its place."""
    try:
        yield
    except Exception as error:
        full = disk_full_beside(error, settings)
        if full is None or full is error:
            raise
        # Another one, since `full` may be what `error` came of.
        raise DiskFullError(str(full)) from error


def disk_full_beside(error: BaseException, settings: Settings) -> DiskFullError | None:
    """What to say where `error` comes of a full disk; None if it does not.

    It may be an OSError, or come of the embedded server, which may be Dagster's storage alone:
    where that is away, a full disk under it is taken for the reason.
    """
    told = _cause(error, lambda it: isinstance(it, DiskFullError))
    if isinstance(told, DiskFullError):
        return told
    behind = _cause(error, _says_full)
    places = places_beside(settings)
    storage = _dagster_storage()
    servers = [settings.home / "postgres", *([storage[0]] if storage else [])]
    full_servers = [folder for folder in servers if _exists(folder) and is_full(folder)]
    if isinstance(behind, OSError):
        # Without a name it is one of those that are full now, if any is.
        suspects = [place.path for place in places if is_full(place.path)]
        named = f": {behind.filename}" if behind.filename else ""
        return disk_full_error(
            f"A file could not be written: {behind.strerror}{named}.",
            [Path(str(behind.filename))] if behind.filename else suspects,
            places,
        )
    if isinstance(behind, DatabaseUnavailableError):
        # While it was made: what there was of it is gone again, and the disk no longer full.
        return disk_full_error(_embedded_is_full(behind), servers, places)
    if behind is not None:
        # The shop's server is told of by our own errors, so it is the other one.
        said = f"Dagster's storage has no disk space left: {_first_words(behind)}."
        return disk_full_error(said, full_servers, places)
    if full_servers and _cause(error, _is_about_a_server):
        return disk_full_error(_embedded_is_full(error), full_servers, places)
    return None


def _embedded_is_full(error: BaseException) -> str:
    return f"There is no disk space left for the embedded database. {redacted(str(error))}"


def _first_words(error: BaseException) -> str:
    """What a database server says, without its hints."""
    diagnosis = getattr(error, "diag", None)
    said = getattr(diagnosis, "message_primary", None) or str(error)
    return redacted(" ".join(said.split())).rstrip(".")


def _cause(error: BaseException, fits: Callable[[BaseException], bool]) -> BaseException | None:
    """The first fitting exception in `error` and what it came of; None if there is none."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        it = waiting.pop(0)
        if id(it) in seen:
            continue
        seen.add(id(it))
        if fits(it):
            return it
        # `orig` is where SQLAlchemy keeps the driver's own exception.
        waiting += [
            behind
            for behind in (getattr(it, "orig", None), it.__cause__, it.__context__)
            if isinstance(behind, BaseException)
        ]
    return None


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, DatabaseUnavailableError):
        # What PostgreSQL's programs say; the log quoted below it may be of another day.
        return os.strerror(errno.ENOSPC) in str(error).partition("\n")[0]
    return _SQLSTATE in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None))


def _is_about_a_server(error: BaseException) -> bool:
    # Every driver keeps a code there, None where the line broke; ours are told apart by class.
    return (
        isinstance(error, (DatabaseUnavailableError, ConnectionLostError))
        or hasattr(error, "pgcode")
        or hasattr(error, "sqlstate")
    )


def _exists(path: Path) -> bool:
    """Whether it is there; no where that may not be looked at."""
    return os.path.exists(path)  # noqa: PTH110 - the method raises there


def is_full(path: Path) -> bool:
    """Whether the file system of `path` is full."""
    system = file_system_of(path)
    return system is not None and system.is_full


def on_one_disk(path: Path, other: Path) -> bool:
    """Whether two paths are on the same file system."""
    return _mount_point(path) == _mount_point(other)


def disk_full_error(
    happened: str,
    paths: Sequence[Path],
    places: Sequence[Place],
    *,
    clearable: Sequence[str] = (),
    instead: str | None = None,
) -> DiskFullError:
    """The error for a full disk.

    `happened` is a sentence; `paths` are where it may have happened, and `places` what is known to
    lie on this machine. `clearable` is what else can go, `instead` another way out.
    """
    systems = list(_systems(paths))
    # A statement that fails gives its own room back, and a quota shows nowhere: with no full one
    # among them, it may have been any.
    suspects = [system for system in systems if system.is_full] or systems
    mount_points = {system.mount_point for system in suspects}
    there = [
        place
        for place in places
        if _exists(place.path) and _mount_point(place.path) in mount_points
    ]
    lines = [happened, *_found(suspects)]
    if there:
        named = [f"{place.what} ({place.path})" for place in _once(there)]
        lines.append(f"On it: {', '.join(named)}.")
    lines += ["What can be cleared:", *(f"  {line}" for line in _clearable(suspects, there))]
    lines += [f"  {line}" for line in clearable]
    if instead:
        lines.append(f"Or else: {instead}.")
    lines.append("→ Make room, then run the same command again: everything committed is kept.")
    return DiskFullError("\n".join(lines))


def _systems(paths: Sequence[Path]) -> Iterator[FileSystem]:
    seen: set[Path] = set()
    for path in paths:
        system = file_system_of(path)
        if system is not None and system.mount_point not in seen:
            seen.add(system.mount_point)
            yield system


def _mount_point(path: Path) -> Path | None:
    system = file_system_of(path)
    return system.mount_point if system else None


def _found(suspects: Sequence[FileSystem]) -> list[str]:
    if not suspects:
        return []
    listed = ", ".join(str(system) for system in suspects)
    if all(system.is_full for system in suspects):
        return [f"The file system {listed} is full."]
    return [f"The file system {listed} has too little room, or a quota on it is used up."]


def _once(places: Sequence[Place]) -> list[Place]:
    """One place for each path."""
    return list({place.path: place for place in reversed(places)}.values())[::-1]


def _clearable(suspects: Sequence[FileSystem], there: Sequence[Place]) -> list[str]:
    others = ", ".join(str(system.mount_point) for system in suspects)
    return [
        f"other files on {others}" if others else "other files on that disk",
        *(f"{place.what} in {place.path}: {place.clearing}" for place in there if place.clearing),
    ]


def readable(count: int) -> str:
    """Bytes for people, in the powers of 1,000 that disks are sold by."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1_000:  # noqa: PLR2004 - the next unit begins
            return f"{size:.0f} {unit}"
        size /= 1_000
    return f"{size:,.1f} GB"
