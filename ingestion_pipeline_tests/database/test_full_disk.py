"""What a full disk of the server is told as, from what the server and this machine say of it.

Servers whose disk is really full are in the tests of faults.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg

from ingestion_pipeline.database import full_disk
from ingestion_pipeline.database.connection import connect, database_errors
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.disk import file_system_of
from ingestion_pipeline.errors import DatabaseUnavailableError, DiskFullError
from ingestion_pipeline.settings import Settings
from ingestion_pipeline_tests.shops import create_products, products, settings_for

NO_ROOM = 'could not extend file "base/5/1": No space left on device'


@pytest.fixture
def settings(database_url: str) -> Settings:
    with connect(database_url) as connection:
        create_products(connection, products(1))
    return settings_for(database_url)


def _told(settings: Settings, words: str) -> str:
    """What a user hears once the server has said so."""
    with pytest.raises(DiskFullError) as full, open_shop(settings), database_errors():
        raise pg.DiskFull(words)
    return str(full.value)


def test_the_file_system_of_the_servers_data_is_named(
    settings: Settings, server: LocalServer
) -> None:
    system = file_system_of(server.data_directory)
    assert system is not None
    told = _told(settings, NO_ROOM)
    assert told.startswith(f"The database server has no disk space left: {NO_ROOM}.\n")
    assert f"The file system {system.mount_point} (" in told
    assert f"the database ({server.data_directory})" in told


def test_a_server_without_room_to_let_anybody_in_is_told_with_its_file_system(
    settings: Settings, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_url: str) -> None:
        with database_errors():
            raise psycopg.OperationalError("connection failed: FATAL: No space left on device")

    monkeypatch.setattr(full_disk, "Session", refused)
    with pytest.raises(DiskFullError) as full, open_shop(settings):
        pass
    assert "FATAL: No space left on device" in str(full.value)
    assert f"the database ({server.data_directory})" in str(full.value)


def test_a_server_that_is_away_is_told_as_full_where_its_disk_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_url: str) -> None:
        raise DatabaseUnavailableError("The database cannot be reached.")

    monkeypatch.setattr(full_disk, "Session", away)
    with pytest.raises(DatabaseUnavailableError), open_shop(settings):
        pass
    monkeypatch.setattr(full_disk, "is_full", lambda _: True)
    with pytest.raises(DiskFullError, match="has gone down"), open_shop(settings):
        pass


def test_of_a_server_elsewhere_is_said_why_its_disk_cannot_be_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "the server is on another machine (db.example)"
    monkeypatch.setattr(full_disk, "server_folders", lambda *_: ([], why))
    told = _told(settings, NO_ROOM)
    assert why in told
    assert "The file system" not in told


def test_too_little_shared_memory_is_not_blamed_on_the_disk(
    settings: Settings, server: LocalServer
) -> None:
    words = 'could not resize shared memory segment "/PostgreSQL.1" to 5 bytes: No space left'
    told = _told(settings, words)
    assert "The file system /dev/shm (" in told
    assert "--shm-size" in told
    assert str(server.data_directory) not in told


def test_a_full_disk_beside_the_server_is_told_as_it_was(settings: Settings) -> None:
    beside = DiskFullError("There is no space left for a model.")
    with pytest.raises(DiskFullError) as told, open_shop(settings):
        raise beside
    assert told.value is beside


def test_a_server_that_is_gone_and_has_room_is_told_as_gone_and_one_without_room_as_full(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = DatabaseUnavailableError("The database cannot be reached.")
    with pytest.raises(DatabaseUnavailableError), open_shop(settings):
        raise gone
    monkeypatch.setattr(full_disk, "is_full", lambda _: True)
    with pytest.raises(DiskFullError, match="has gone down"), open_shop(settings):
        raise gone


def test_a_connection_is_not_opened_anew_on_a_server_whose_disk_is_full(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def is_full(folder: Path) -> bool:
        asked.append(folder)
        return True

    with open_shop(settings) as shop:
        pid = shop.connection.live.info.backend_pid
        with connect(settings.database_url.get_secret_value()) as other:  # type: ignore[union-attr]
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(pg.AdminShutdown):
            shop.connection.execute("SELECT 1")
        monkeypatch.setattr(full_disk, "is_full", is_full)
        with pytest.raises(DiskFullError, match="has gone down"):
            shop.connection.execute("SELECT 1")
        assert asked
        monkeypatch.setattr(full_disk, "is_full", lambda _: False)
        assert shop.connection.execute("SELECT 1").fetchone() == (1,)
