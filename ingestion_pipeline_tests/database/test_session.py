"""A session outlives its connections, and a transaction never does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ingestion_pipeline.database import session as module
from ingestion_pipeline.database.connection import Connection, connect, database_errors
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.errors import ConnectionLostError, DatabaseUnavailableError


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    with connect(database_url) as connection:
        connection.execute("CREATE TABLE notes (note text)")
        yield connection


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    with Session(database_url) as session:
        yield session


def _end(session: Session, other: Connection) -> int:
    pid = session.live.info.backend_pid
    other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    return pid


def _notes(connection: Connection) -> list[str]:
    return [note for (note,) in connection.execute("SELECT note FROM notes").fetchall()]


def test_the_statement_after_a_lost_one_runs_over_a_new_connection(
    session: Session, other: Connection
) -> None:
    before = _end(session, other)
    with pytest.raises(ConnectionLostError), database_errors():
        session.execute("SELECT 1")
    assert session.lost
    row = session.execute("SELECT pg_backend_pid(), '[1,2]'::vector").fetchone()
    assert row is not None
    assert row[0] != before
    assert row[1].to_list() == [1.0, 2.0]
    assert not session.lost


def test_a_transaction_whose_connection_is_lost_is_not_carried_on_over_another(
    session: Session, other: Connection
) -> None:
    with suppress(psycopg.OperationalError), session.transaction():
        session.execute("INSERT INTO notes VALUES ('the first half')")
        _end(session, other)
        for half in ("the second half", "and once more"):
            with suppress(psycopg.OperationalError):
                session.execute("INSERT INTO notes VALUES (%(half)s)", {"half": half})
    assert _notes(other) == []
    with session.transaction():
        session.execute("INSERT INTO notes VALUES ('whole')")
    assert _notes(other) == ["whole"]


def test_what_a_session_has_lost_is_ended_in_the_server_before_it_goes_on(
    session: Session, other: Connection
) -> None:
    """A line that is dead here may live on there, in the middle of a transaction, with locks."""
    pid, line = session.live.info.backend_pid, session.live.fileno()
    # The line lives on in a copy, so the server does not hear that this end is gone.
    copy = os.dup(line)
    with suppress(psycopg.OperationalError), session.transaction():
        session.execute("INSERT INTO notes VALUES ('never committed')")
        session.execute("LOCK TABLE notes")
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), line)
        session.execute("SELECT 1")
    assert other.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() == (
        "idle in transaction",
    )
    session.execute("INSERT INTO notes VALUES ('after')")
    os.close(copy)
    assert other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is None
    assert _notes(other) == ["after"]


def test_a_statement_that_takes_long_is_waited_for_while_the_server_is_at_work(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.3)
    assert session.execute("SELECT pg_sleep(1.5), 1").fetchone() == ("", 1)


def test_a_line_without_an_answer_and_without_a_server_at_work_is_given_up(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's process is stopped, as if the answer were lost on its way."""
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.3)
    row = session.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match="the line is dead"), database_errors():
            session.execute("SELECT 1")
        assert time.monotonic() - began < 5
    finally:
        os.kill(row[0], signal.SIGCONT)
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_away_is_worth_another_try(
    session: Session, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _end(session, other)
    with suppress(ConnectionLostError), database_errors():
        session.execute("SELECT 1")
    away = DatabaseUnavailableError("there is no server")

    def connect_as(*_: object) -> object:
        raise away

    with monkeypatch.context() as patch:
        patch.setattr(module, "connect_as", connect_as)
        with pytest.raises(ConnectionLostError, match="there is no server"):
            session.execute("SELECT 1")
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_session_that_begins_sets_what_its_transactions_may_leave_lying_about(
    database_url: str,
) -> None:
    setting = "SELECT current_setting('idle_in_transaction_session_timeout')"
    with Session(database_url) as session:
        assert session.execute(setting).fetchone() == ("1min",)
    options = "-c idle_in_transaction_session_timeout=5s"
    with Session(make_conninfo(database_url, options=options)) as session:
        assert session.execute(setting).fetchone() == ("5s",)
