"""The shop's server stopped without warning in the middle of a COPY, and started again.

The server is the tests' own, with everything on that guards against a crash. Dagster's storage lies
elsewhere, and stays.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.faults.worker import Job, Step
from ingestion_pipeline_tests.faults.worker_shop import LONGEST_BATCH, WorkerShop, worker_shop

ROWS = [30, 1, 9, 55, 80][: times(1, 5)]
"""The row of all COPYs after which the server stops."""

SECONDS_DOWN = times(1, 5)
JOBS: list[Job] = ["reingest", "ingest"]

_numbers = count(1)


@pytest.fixture(scope="module")
def own_server() -> Iterator[LocalServer]:
    folder = Path(tempfile.mkdtemp(prefix="ingestion-tests-"))
    try:
        yield local_server.start(folder / "postgres")
    finally:
        local_server.stop(folder / "postgres", immediate=True)
        shutil.rmtree(folder)


@pytest.fixture
def own_database(own_server: LocalServer) -> str:
    """A database on that server, with the extension vector."""
    local_server.start(own_server.data_directory)  # a test that failed may have left it stopped
    name = f"shop_{next(_numbers)}"
    own_server.create_database(name)
    with psycopg.connect(own_server.url(name), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    return own_server.url(name)


@pytest.mark.fault("server stopped with -m immediate in a COPY, back within the run's patience")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("job", JOBS if thorough() else ["ingest"])
def test_a_run_carries_on_by_itself_once_the_server_is_back(
    own_server: LocalServer,
    own_database: str,
    dagster_home: Path,
    tmp_path: Path,
    fault: Fault,
    job: Job,
    row: int,
) -> None:
    shop = worker_shop(own_database, tmp_path / "worker", dagster_home)
    shop.fill()
    with shop.working(job, stop_at=Step.COPYING, nth=row, act="pause") as process:
        _stop_in_a_copy(own_server, shop, process)
        time.sleep(SECONDS_DOWN)
        local_server.start(own_server.data_directory)
        back = time.monotonic()
        assert process.wait(120) == 0, shop.said()
        seconds = time.monotonic() - back

    fault.recovered(shop.audit(), seconds=seconds)


@pytest.mark.fault("server stopped with -m immediate in a COPY, back after the run has given up")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("job", JOBS if thorough() else ["reingest"])
def test_a_run_that_gave_the_server_up_is_finished_by_the_same_command(
    own_server: LocalServer,
    own_database: str,
    dagster_home: Path,
    tmp_path: Path,
    fault: Fault,
    job: Job,
    row: int,
) -> None:
    shop = worker_shop(own_database, tmp_path / "worker", dagster_home, retry_seconds=1)
    shop.fill()
    with shop.working(job, stop_at=Step.COPYING, nth=row, act="pause") as process:
        _stop_in_a_copy(own_server, shop, process)
        assert process.wait(60) not in (0, None)
    assert "Check that the server runs" in shop.said()
    assert "then run the same command again" in shop.said()
    local_server.start(own_server.data_directory)
    assert shop.wrong() == 0
    seconds = shop.finish(job)

    fault.recovered(shop.audit(), seconds=seconds, allowed_paid_twice=LONGEST_BATCH)


def _stop_in_a_copy(
    server: LocalServer, shop: WorkerShop, process: subprocess.Popen[bytes]
) -> None:
    """Stop the server while a worker's COPY is open, and let the worker find out."""
    shop.wait_until_paused(process)
    with psycopg.connect(shop.url) as connection:
        copies = connection.execute("SELECT command FROM pg_stat_progress_copy").fetchall()
        durable = connection.execute("SHOW fsync").fetchone()
    assert copies == [("COPY FROM",)]
    assert durable == ("on",)
    local_server.stop(server.data_directory, immediate=True)
    shop.resume()
