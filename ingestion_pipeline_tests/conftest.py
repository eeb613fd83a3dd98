"""What every test may ask for: one embedded server a session, databases and Dagster instances of
its own, cloned from templates.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer

if TYPE_CHECKING:
    from dagster import DagsterInstance

REPOSITORY = Path(__file__).parents[1]
SHOP_TEMPLATE = "shop_template"
DAGSTER_TEMPLATE = "dagster_template"

_numbers = count(1)

# Whoever runs tests under nohup has them ignore it, and with them every command that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _nothing_from_outside() -> Iterator[None]:
    """Tests never see the shop, the settings or the Dagster of whoever runs them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(("DATABASE_URL", "INGESTION_", "DAGSTER_", "PG")):
                monkeypatch.delenv(name)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """One embedded server for the whole session; it and its data are gone afterwards."""
    # Not pytest's own temporary directory: that one is closed to the user a server of root runs as.
    folder = Path(tempfile.mkdtemp(prefix="ingestion-tests-"))
    try:
        server = local_server.start(folder / "postgres")
        _stop_waiting_for_the_disk(server)
        yield server
    finally:
        local_server.stop(folder / "postgres", immediate=True)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _shop_template(server: LocalServer) -> None:
    server.create_database(SHOP_TEMPLATE)
    with psycopg.connect(server.url(SHOP_TEMPLATE), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")


@pytest.fixture
def database_url(server: LocalServer, _shop_template: None) -> Iterator[str]:
    """URL of an empty database of this test's own, with the extension vector."""
    with _cloned(server, SHOP_TEMPLATE) as name:
        yield server.url(name)


@pytest.fixture(scope="session")
def _dagster_template(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A migrated storage: cloning it takes 0.1 s, and letting Dagster make one 0.7 s."""
    server.create_database(DAGSTER_TEMPLATE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DAGSTER_PG_URL", server.sqlalchemy_url(DAGSTER_TEMPLATE))
        with _instance(tmp_path_factory.mktemp("dagster-template")):
            pass


@pytest.fixture
def dagster_home(
    server: LocalServer,
    _dagster_template: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A DAGSTER_HOME of this test's own, with the project's dagster.yaml and an empty storage.

    DAGSTER_HOME and DAGSTER_PG_URL are in the environment.
    """
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    with _cloned(server, DAGSTER_TEMPLATE) as name:
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        monkeypatch.setenv("DAGSTER_PG_URL", server.sqlalchemy_url(name))
        yield home


@pytest.fixture
def dagster_instance(dagster_home: Path) -> Iterator[DagsterInstance]:
    """The Dagster instance of `dagster_home`."""
    with _instance(dagster_home) as instance:
        yield instance


@contextmanager
def _instance(home: Path) -> Iterator[DagsterInstance]:
    from dagster import DagsterInstance

    if not (home / "dagster.yaml").exists():
        shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


@contextmanager
def _cloned(server: LocalServer, template: str) -> Iterator[str]:
    """The name of a copy of `template`, dropped afterwards whoever is still connected."""
    name = f"test_{next(_numbers)}"
    server.create_database(name, template=template)
    try:
        yield name
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def _stop_waiting_for_the_disk(server: LocalServer) -> None:
    """Give up what only guards against a power cut: these data live as long as the session."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            alter = sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting))
            connection.execute(alter)
        connection.execute("SELECT pg_reload_conf()")
