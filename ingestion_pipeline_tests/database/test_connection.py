"""What the server's refusals become, and that no password comes along."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo

from ingestion_pipeline.database.connection import connect, database_errors
from ingestion_pipeline.database.local_server import LocalServer
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
)

PASSWORD = "hunter2"


def _seen(error: BaseException) -> str:
    """All that a user could be shown of an error: its message and its traceback with causes."""
    return str(error) + "".join(traceback.format_exception(error))


def _refusal(url: str) -> IngestionError:
    with pytest.raises(IngestionError) as refused:
        connect(url)
    assert PASSWORD not in str(refused.value)
    causes: BaseException | None = refused.value
    while causes is not None:
        assert PASSWORD not in str(causes)
        causes = causes.__cause__
    return refused.value


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def password_server(database_url: str) -> Iterator[str]:
    """The name of a role that must give a password; answers as a server that asks for one."""
    with connect(database_url) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
    yield database_url
    with connect(database_url) as connection:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")


def test_a_connection_commits_each_statement_and_reads_vectors(database_url: str) -> None:
    with connect(database_url, application_name="a test") as connection:
        assert connection.autocommit
        row = connection.execute("SELECT '[1,2]'::vector, current_setting('TimeZone')").fetchone()
        assert row is not None
        assert row[0].to_list() == [1.0, 2.0]
        assert row[1] == "UTC"
        name = connection.execute("SELECT current_setting('application_name')").fetchone()
        assert name == ("a test",)


def test_a_database_without_the_extension_can_be_connected_to(server: LocalServer) -> None:
    with connect(server.url("postgres")) as connection:
        assert connection.execute("SELECT to_regtype('vector')").fetchone() == (None,)


def test_no_server_is_said_with_what_to_check(closed_port: int) -> None:
    error = _refusal(f"postgresql://shop:{PASSWORD}@127.0.0.1:{closed_port}/shop")
    assert isinstance(error, DatabaseUnavailableError)
    assert "127.0.0.1" in str(error)
    assert "DATABASE_URL" in str(error)
    assert PASSWORD not in _seen(error)


def test_a_database_that_is_not_there_is_named(server: LocalServer) -> None:
    error = _refusal(server.url("no_such_shop"))
    assert isinstance(error, DatabaseUnavailableError)
    assert "no_such_shop" in str(error)


def test_a_role_that_is_not_there_is_a_matter_of_rights(server: LocalServer) -> None:
    error = _refusal(make_conninfo(server.url("postgres"), user="nobody_here", password=PASSWORD))
    assert isinstance(error, DatabaseRightsError)
    assert "nobody_here" in str(error)
    assert PASSWORD not in _seen(error)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('FATAL:  password authentication failed for user "shop"', DatabaseRightsError),
        ("fe_sendauth: no password supplied", DatabaseRightsError),
        ('FATAL:  no pg_hba.conf entry for host "::1", user "shop"', DatabaseRightsError),
        ('FATAL:  role "shop" is not permitted to log in', DatabaseRightsError),
        ('FATAL:  permission denied for database "shop"', DatabaseRightsError),
        ("FATAL:  sorry, too many clients already", ConnectionLostError),
        ("FATAL:  could not write init file: No space left on device", DiskFullError),
        ("FATAL:  the database system is starting up", ConnectionLostError),
        ("server closed the connection unexpectedly", ConnectionLostError),
    ],
)
def test_a_refused_connection_is_told_by_the_servers_words(
    words: str, kind: type[IngestionError]
) -> None:
    with pytest.raises(kind) as refused, database_errors():
        raise psycopg.OperationalError(f"connection failed: {words}")
    assert type(refused.value) is kind


@pytest.mark.parametrize(
    "url",
    [
        "mysql://shop:hunter2@db/shop",
        "postgresql://shop:hunter2@[db/shop",
        "postgresql://shop:%zzhunter2@db/shop",
        "postgresql://shop:hunter2@127.0.0.1:1/shop?nonsense=1",
        "host=db password=correct hunter2",
        "postgresql://shop:p@hunter2@127.0.0.1:1/shop",
        "postgresql://shop:p/hunter2@127.0.0.1:1/shop",
        "postgresql://shop:p#hunter2@127.0.0.1:1/shop",
        "postgresql://shop:p?hunter2@127.0.0.1:1/shop",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_quoting_any_of_it(url: str) -> None:
    error = _refusal(url)
    assert isinstance(error, DatabaseUnavailableError)
    assert "DATABASE_URL" in str(error)
    assert "postgresql://user:password@host:5432/database" in str(error)
    assert "%40" in str(error)
    assert PASSWORD not in _seen(error).replace(url, "")


def test_a_write_to_a_read_only_server_is_a_matter_of_rights(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c default_transaction_read_only=on")
    with (
        connect(url) as connection,
        pytest.raises(DatabaseRightsError, match="read-only") as refused,
        database_errors(),
    ):
        connection.execute("CREATE TABLE t ()")
    assert "ingest preflight" in str(refused.value)


def test_a_missing_privilege_is_named(password_server: str) -> None:
    with connect(password_server) as connection:
        connection.execute("CREATE TABLE secrets (id integer)")
    with (
        connect(make_conninfo(password_server, user="reader", password=PASSWORD)) as connection,
        pytest.raises(DatabaseRightsError, match="permission denied for table secrets"),
        database_errors(),
    ):
        connection.execute("SELECT * FROM secrets")


def test_a_session_that_the_server_ends_is_lost_and_worth_another_try(database_url: str) -> None:
    with connect(database_url) as other, connect(database_url) as connection:
        pid = connection.info.backend_pid
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(ConnectionLostError) as gone, database_errors():
            connection.execute("SELECT 1")
    assert "run the same command again" in str(gone.value)


def test_a_statement_that_takes_too_long_may_be_tried_again(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c statement_timeout=50")
    with (
        connect(url) as connection,
        pytest.raises(TransientError, match="statement timeout") as given_up,
        database_errors(),
    ):
        connection.execute("SELECT pg_sleep(5)")
    assert "SET statement_timeout = 0" in str(given_up.value)


def test_a_lock_that_is_not_given_may_be_asked_for_again(database_url: str) -> None:
    with connect(database_url) as connection, connect(database_url) as other:
        connection.execute("CREATE TABLE t ()")
        other.execute("SET lock_timeout = '50ms'")
        with connection.transaction():
            connection.execute("LOCK TABLE t")
            with pytest.raises(TransientError, match="lock timeout"), database_errors():
                other.execute("SELECT * FROM t")


def test_rows_that_the_server_refuses_fail_the_range_and_data_stay_out_of_the_message(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        connection.execute("CREATE TABLE t (name text PRIMARY KEY)")
        with pytest.raises(RangeFailedError) as refused, database_errors():
            connection.execute("INSERT INTO t VALUES ('a customer'), ('a customer')")
    assert "t_pkey" in str(refused.value)
    assert "a customer" not in str(refused.value)


def test_a_missing_table_is_an_outage_that_names_it(database_url: str) -> None:
    with (
        connect(database_url) as connection,
        pytest.raises(OutageError, match='"nowhere" does not exist') as refused,
        database_errors(),
    ):
        connection.execute("SELECT * FROM nowhere")
    assert "ingest preflight" in str(refused.value)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (pg.DiskFull("could not extend file: No space left on device"), DiskFullError),
        (pg.SerializationFailure("could not serialize access"), TransientError),
        (pg.DeadlockDetected("deadlock detected"), TransientError),
        (pg.ForeignKeyViolation("violates foreign key constraint"), TransientError),
        (pg.OutOfMemory("out of memory"), TransientError),
        (psycopg.DatabaseError("out of memory for query result"), OutOfMemoryError),
        (pg.InvalidPassword("password authentication failed"), DatabaseRightsError),
        (pg.ReadOnlySqlTransaction("cannot execute INSERT"), DatabaseRightsError),
        (pg.DataException("expected 768 dimensions, not 384"), RangeFailedError),
        (pg.RaiseException("the shop's trigger says no"), RangeFailedError),
        (pg.AdminShutdown("terminating connection"), ConnectionLostError),
        (pg.TooManyConnections("too many clients already"), ConnectionLostError),
        (psycopg.InterfaceError("the connection is closed"), ConnectionLostError),
        (pg.SyntaxError("syntax error"), OutageError),
    ],
)
def test_each_kind_of_error_has_its_branch(
    raised: psycopg.Error, kind: type[IngestionError]
) -> None:
    with pytest.raises(IngestionError) as translated, database_errors():
        raise raised
    assert type(translated.value) is kind
    assert str(raised) in str(translated.value)
    assert translated.value.__cause__ is raised


def test_a_full_disk_says_that_nothing_is_lost_and_what_to_do() -> None:
    with pytest.raises(DiskFullError) as full, database_errors():
        raise pg.DiskFull("could not extend file")
    assert "everything committed is kept" in str(full.value)
    assert "Free space" in str(full.value)


def test_an_answer_that_is_garbled_on_the_line_is_a_lost_connection_in_printable_words() -> None:
    with pytest.raises(ConnectionLostError) as lost, database_errors():
        raise psycopg.DatabaseError('lost synchronization with server: got message type "\x00"')
    assert 'got message type " "' in str(lost.value)
    assert str(lost.value).isprintable()


def test_errors_of_others_pass_through_untouched() -> None:
    with pytest.raises(ValueError, match="mine"), database_errors():
        raise ValueError("mine")
