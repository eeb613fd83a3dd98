"""The embedded server's life: each test starts and stops servers of its own."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from time import sleep

import psutil
import psycopg
import pytest
import sqlalchemy

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.errors import DatabaseUnavailableError

START = """
import sys
from pathlib import Path
from ingestion_pipeline.database import local_server
local_server.start(Path(sys.argv[1]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, which a server of any user can reach; servers right in it are stopped."""
    folder = Path(tempfile.mkdtemp(prefix="ingestion-"))
    yield folder
    for data_directory in folder.iterdir():
        local_server.stop(data_directory, immediate=True)
    shutil.rmtree(folder)


@pytest.fixture
def new_directory(folder: Path) -> Path:
    """Where a server may be initialised."""
    return folder / "postgres"


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ingestion-"))
    local_server.start(folder / "postgres")
    local_server.stop(folder / "postgres")
    yield folder / "postgres"
    shutil.rmtree(folder)


@pytest.fixture
def data_directory(initialised: Path, new_directory: Path) -> Path:
    """The data of a server that was initialised and stopped."""
    subprocess.run(["cp", "-a", initialised, new_directory], check=True)
    return new_directory


def answer(server: LocalServer, query: str, database: str = "postgres") -> object:
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def started_at(server: LocalServer) -> object:
    return answer(server, "SELECT pg_postmaster_start_time()")


def pid_file(data_directory: Path) -> Path:
    return data_directory / "postmaster.pid"


def postmaster(data_directory: Path) -> psutil.Process:
    return psutil.Process(int(pid_file(data_directory).read_text().splitlines()[0]))


def forge_pid_file(data_directory: Path, *, line: int, content: str) -> None:
    lines = pid_file(data_directory).read_text().splitlines()
    lines[line - 1] = content
    pid_file(data_directory).write_text("\n".join([*lines, ""]))


def test_a_new_server_has_its_settings_and_a_pgvector_without_the_hnsw_faults(
    new_directory: Path,
) -> None:
    server = local_server.start(new_directory)

    settings = {name: answer(server, f"SHOW {name}") for name in local_server.SETTINGS}
    assert settings == local_server.SETTINGS
    available = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
    version = tuple(int(part) for part in str(answer(server, available)).split("."))
    assert version >= (0, 8, 4)


def test_text_sorts_by_code_point_whatever_the_locale_of_the_machine(data_directory: Path) -> None:
    server = local_server.start(data_directory)

    ordered = answer(
        server, "SELECT string_agg(t, '' ORDER BY t) FROM unnest('{a,B,ä,b}'::text[]) t"
    )

    assert ordered == "Babä"


def test_only_the_servers_own_user_and_root_reach_its_socket(data_directory: Path) -> None:
    server = local_server.start(data_directory)

    socket = server.socket_directory / ".s.PGSQL.5432"
    assert stat.S_IMODE(socket.stat().st_mode) == stat.S_IRWXU
    assert answer(server, "SHOW listen_addresses") == ""


def test_starting_again_attaches_to_the_running_server(data_directory: Path) -> None:
    first = local_server.start(data_directory)
    since = started_at(first)

    assert local_server.start(data_directory) == first
    assert local_server.attach(data_directory) == first
    assert started_at(first) == since


def test_attaching_where_no_server_runs_makes_nothing(new_directory: Path) -> None:
    assert local_server.attach(new_directory) is None
    assert not new_directory.exists()


def test_a_stopped_server_is_gone_and_keeps_its_data(data_directory: Path) -> None:
    server = local_server.start(data_directory)
    assert server.create_database("shop")
    process = postmaster(data_directory)

    local_server.stop(data_directory)
    local_server.stop(data_directory)  # nothing runs: nothing to do

    assert local_server.attach(data_directory) is None
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not local_server.start(data_directory).create_database("shop")


def test_a_database_is_made_once_and_copies_its_template(data_directory: Path) -> None:
    server = local_server.start(data_directory)
    assert server.create_database("template")
    with psycopg.connect(server.url("template"), autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")

    assert server.create_database('a "copy"', template="template")
    assert not server.create_database('a "copy"', template="template")
    assert answer(server, "SELECT n FROM t", 'a "copy"') == 42


def test_of_several_that_create_one_database_at_once_exactly_one_does(data_directory: Path) -> None:
    server = local_server.start(data_directory)

    with ThreadPoolExecutor(4) as threads:
        created = list(threads.map(server.create_database, ["shop"] * 4))

    assert sorted(created) == [False, False, False, True]


def test_a_database_that_cannot_be_made_is_named(data_directory: Path) -> None:
    server = local_server.start(data_directory)

    with pytest.raises(DatabaseUnavailableError, match=r'could not create shop: .*"absent"'):
        server.create_database("shop", template="absent")


def test_several_processes_that_start_one_server_at_once_all_get_it(new_directory: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", START, str(new_directory)]) for _ in range(3)
    ]

    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    server = local_server.attach(new_directory)
    assert server is not None, "the server outlives the processes that started it"
    assert answer(server, "SELECT 1") == 1


def test_settings_meant_for_other_servers_change_nothing_and_nothing_is_printed(
    new_directory: Path,
) -> None:
    surroundings = {"PGPORT": "6543", "PGDATA": "/nowhere", "PGHOST": "absent", "LC_ALL": "xx_XX"}
    environment = {**os.environ, **surroundings}
    environment.pop("XDG_RUNTIME_DIR", None)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START, str(new_directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    server = local_server.attach(new_directory)
    assert server is not None
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PGPORT", "6543")
        assert answer(server, "SHOW port") == "5432"


def test_a_killed_server_starts_again_with_everything_committed(data_directory: Path) -> None:
    server = local_server.start(data_directory)
    assert server.create_database("shop")
    # A session too busy to notice that its server is gone, and in the way of the next one.
    busy = psycopg.connect(server.url("shop"))
    busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1e12::bigint)")

    postmaster(data_directory).send_signal(signal.SIGKILL)
    while local_server.attach(data_directory):
        sleep(0.01)

    assert not local_server.start(data_directory).create_database("shop")
    busy.close()


def test_a_pid_file_with_the_number_of_a_living_stranger_is_not_believed(
    data_directory: Path,
) -> None:
    server = local_server.start(data_directory)
    left = pid_file(data_directory).read_text()
    local_server.stop(data_directory)
    pid_file(data_directory).write_text(left)  # as a machine leaves it that loses its power
    forge_pid_file(data_directory, line=1, content=str(os.getpid()))

    assert local_server.attach(data_directory) is None
    local_server.stop(data_directory)  # must not signal the stranger, which is this test
    assert local_server.start(data_directory) == server
    assert answer(server, "SELECT 1") == 1


def test_an_empty_pid_file_of_a_full_disk_does_not_keep_the_server_from_starting(
    data_directory: Path,
) -> None:
    pid_file(data_directory).touch()

    assert answer(local_server.start(data_directory), "SELECT 1") == 1


def test_a_server_that_is_still_recovering_is_waited_for(data_directory: Path) -> None:
    server = local_server.start(data_directory)
    since = started_at(server)
    forge_pid_file(data_directory, line=8, content="starting")
    assert local_server.attach(data_directory) is None

    ready = Timer(0.5, forge_pid_file, [data_directory], {"line": 8, "content": "ready   "})
    ready.start()

    assert local_server.start(data_directory) == server
    ready.join()
    assert started_at(server) == since


def test_what_a_killed_initialisation_left_is_cleared_away(new_directory: Path) -> None:
    left = new_directory.with_name(".postgres.unfinished")
    left.mkdir()
    (left / "PG_VERSION").write_text("18\n")

    assert answer(local_server.start(new_directory), "SELECT 1") == 1
    assert not left.exists()


def test_a_path_that_pg_ctl_cannot_take_is_refused_in_words(folder: Path) -> None:
    with pytest.raises(DatabaseUnavailableError, match=r"takes no path with \$.*INGESTION_HOME"):
        local_server.start(folder / "a $HOME of its own")


@pytest.mark.parametrize(
    "name",
    ["a name with spaces, a comma, an ä and 100%", "a-path-too-long-for-a-socket-" + "x" * 80],
)
def test_any_path_will_do_for_the_data(folder: Path, name: str) -> None:
    server = local_server.start(folder / name)

    assert server.data_directory == folder / name
    assert answer(server, "SHOW data_directory") == str(folder / name)
    engine = sqlalchemy.create_engine(server.sqlalchemy_url("postgres"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SHOW data_directory")).scalar() == str(
            folder / name
        )
    engine.dispose()
    assert stat.S_IMODE(server.socket_directory.stat().st_mode) == stat.S_IRWXU

    local_server.stop(folder / name)
    assert server.socket_directory == folder / name or not server.socket_directory.exists()


def test_a_socket_directory_of_somebody_else_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    data_directory = folder / ("x" * 100)
    short = local_server.start(data_directory).socket_directory
    local_server.stop(data_directory)
    short.symlink_to(folder)

    with pytest.raises(DatabaseUnavailableError, match="belongs to another user"):
        local_server.start(data_directory)
    short.unlink()


def test_little_shared_memory_is_made_up_for_with_files(
    new_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "SHARED_MEMORY", new_directory / "absent")

    server = local_server.start(new_directory)

    assert answer(server, "SHOW dynamic_shared_memory_type") == "mmap"


def test_a_start_that_fails_quotes_the_end_of_the_servers_log(data_directory: Path) -> None:
    with (data_directory / "postgresql.conf").open("a") as settings:
        settings.write("shared_bufers = 1GB\n")

    with pytest.raises(DatabaseUnavailableError) as failure:
        local_server.start(data_directory)

    assert str(data_directory / "log") in str(failure.value)
    assert 'unrecognized configuration parameter "shared_bufers"' in str(failure.value)


def test_data_of_something_else_are_left_alone(new_directory: Path) -> None:
    new_directory.mkdir()
    (new_directory / "thesis.txt").write_text("three years of work")

    with pytest.raises(DatabaseUnavailableError, match="not empty and holds no PostgreSQL data"):
        local_server.start(new_directory)

    assert [path.name for path in new_directory.iterdir()] == ["thesis.txt"]


def test_a_place_where_no_directory_can_be_made_is_named(folder: Path) -> None:
    (folder / "file").touch()

    with pytest.raises(DatabaseUnavailableError, match=f"{folder}/file"):
        local_server.start(folder / "file" / "postgres")
