"""The command line as tests call it: in this process, or as the real program in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg import sql

from ingestion_pipeline.cli import app
from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer

VARIABLES = (
    *("DATABASE_URL", "DAGSTER_HOME", "DAGSTER_PG_URL"),
    *("INGESTION_SETTINGS", "INGESTION_DEBUG"),
)
PROGRAM = Path(sys.executable).parent / "ingest"


@dataclass(frozen=True)
class Answer:
    """What a command line said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Ingest = Callable[..., Answer]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a working directory of this test's own; restored, whatever a command exports.

    No database and no Dagster: a test asks for `shop_url` or `embedded`, and for `dagster`.
    """
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INGESTION_HOME", str(tmp_path / "home"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with mock.patch.dict(os.environ):
        yield folder
    forgotten = local_server.attach(tmp_path / "home" / "postgres")
    if forgotten is not None:
        local_server.stop(forgotten.data_directory, immediate=True)
        pytest.fail("a command started a server of its own: the test lacks a fixture")


@pytest.fixture
def dagster(environment: Path, request: pytest.FixtureRequest) -> None:  # noqa: ARG001 - order
    """Dagster's home and storage, of this test's own; after `environment` has unset the user's."""
    request.getfixturevalue("dagster_home")


@pytest.fixture
def ingest(
    environment: Path,  # noqa: ARG001 - asked for so that it is there
    capfd: pytest.CaptureFixture[str],
) -> Ingest:
    """Runs a command line in this process."""

    def run(*arguments: str | Path) -> Answer:
        capfd.readouterr()
        code = app.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def program(environment: Path) -> Ingest:  # noqa: ARG001 - so that it is there
    """Runs a command line as the installed program, as a user does."""

    def run(*arguments: str | Path) -> Answer:
        done = subprocess.run(
            [PROGRAM, *arguments], capture_output=True, text=True, timeout=200, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def shop_url(
    database_url: str,
    environment: Path,  # noqa: ARG001 - asked for so that it is there
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """DATABASE_URL, leading to an empty database that is no embedded one for the command."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


@pytest.fixture
def embedded(
    server: LocalServer,
    environment: Path,  # noqa: ARG001 - asked for so that it is there
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LocalServer]:
    """The session's server, as the embedded one of the command; its databases go afterwards."""
    monkeypatch.setenv("INGESTION_HOME", str(server.data_directory.parent))
    try:
        yield server
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            for name in ("ecommerce", "dagster"):
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                connection.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
def catalogue(environment: Path) -> Path:
    """A catalogue file of twelve products, two of them with the same texts, one without usage."""
    file = environment / "products.jsonl"
    kinds = ("coat", "kettle", "tent", "lamp", "rope", "drum", "vase", "saw", "bell", "mat", "cup")
    rows = [
        {
            "id": number,
            "name": f"A {kind}",
            "description": f"This {kind} was made to last, and looks it.",
            "usage": None if kind == "cup" else f"Use the {kind} on any day of the year.",
            "features": f"The {kind} weighs {number} kg.",
        }
        for number, kind in enumerate(kinds, start=1)
    ]
    rows.append({**rows[0], "id": 12})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements; returns the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
