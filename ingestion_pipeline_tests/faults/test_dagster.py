"""Dagster's own storage stopped in the middle of a run, and runs told to stop at random moments.

The shop's database lives on: what was committed there is kept, whatever Dagster could still note.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import dagster as dg
import pytest
from psycopg import sql

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline_tests.faults.audit import Audit, audit
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.faults.worker_shop import LONGEST_BATCH, WorkerShop, worker_shop
from ingestion_pipeline_tests.orchestration import known_models

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ingestion_pipeline_tests.orchestration.ingest_command"]
DEADLINE_SECONDS = 120.0
STOPS = times(2, 40)
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
SECONDS_OF_A_RUN = 6.0
PREFLIGHT, EMBEDDING, FINISHING = "disk_space", " products · ", "building "
"""Words of the command by which a test knows how far it is."""
MOMENTS = [PREFLIGHT, EMBEDDING, FINISHING] if thorough() else [EMBEDDING]


@dataclass(frozen=True)
class Told:
    """The end of a command."""

    code: int
    said: str


@dataclass(frozen=True)
class CommandShop:
    """A shop that is ingested by the command `ingest`, with models that note what they are sent."""

    shop: WorkerShop
    instance: dg.DagsterInstance

    @contextmanager
    def ingesting(self, *, seconds: float) -> Iterator[subprocess.Popen[str]]:
        """The command at work; a batch takes its models `seconds`."""
        told = {known_models.RECORD: str(self._record), known_models.SECONDS: str(seconds)}
        with subprocess.Popen(
            COMMAND,
            cwd=REPOSITORY,
            env=self.shop.environment | told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def finish(self) -> float:
        """Run the command to its end; seconds."""
        with self.ingesting(seconds=0) as process:
            began = time.monotonic()
            told = ended(process)
            assert told.code == 0, told.said
            return time.monotonic() - began

    def audit(self) -> Audit:
        """What the shop has come to."""
        sent = self._record.read_text(encoding="utf-8").splitlines()
        with open_shop(self.shop.settings) as shop:
            return audit(shop, sent)

    def rows(self, table: LiteralString) -> int:
        """How many rows a table of the bookkeeping has; 0 where it is not made yet."""
        with open_shop(self.shop.settings) as shop:
            if not shop.is_prepared():
                return 0
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("ingestion", table))
            [(number,)] = shop.connection.execute(query).fetchall()
            return int(number)

    def statuses(self) -> list[str]:
        """How the runs stand, oldest first."""
        return [run.status.value for run in reversed(list(self.instance.get_runs()))]

    @property
    def _record(self) -> Path:
        return self.shop.folder / "sent by the command"


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read on until the command says `words`; what it has said."""
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"The command has ended: {said}"
        said += line
    return said


def ended(process: subprocess.Popen[str]) -> Told:
    """Wait for the end of a command."""
    said, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return Told(process.returncode, said)


@pytest.fixture
def storage() -> Iterator[LocalServer]:
    """A server for Dagster alone, which a test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="ingestion-storage-"))
    try:
        server = local_server.start(folder / "postgres")
        server.create_database("dagster")
        yield server
    finally:
        local_server.stop(folder / "postgres", immediate=True)
        shutil.rmtree(folder)


@pytest.fixture
def shop(
    database_url: str,
    storage: LocalServer,
    dagster_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CommandShop]:
    """A shop of which nothing is ingested yet; Dagster notes its runs on the other server."""
    monkeypatch.setenv("DAGSTER_PG_URL", storage.sqlalchemy_url("dagster"))
    shop = worker_shop(database_url, tmp_path / "worker", dagster_home)
    shop.fill()
    with dg.DagsterInstance.get() as instance:
        yield CommandShop(shop, instance)


@pytest.mark.fault("Dagster's storage stopped in the middle of a run")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_loses_dagsters_storage_keeps_what_it_committed(
    shop: CommandShop, storage: LocalServer, fault: Fault, moment: str
) -> None:
    with shop.ingesting(seconds=0.05) as process:
        wait_for(process, moment)
        local_server.stop(storage.data_directory, immediate=True)
        told = ended(process)

    assert told.code == 3
    assert "Dagster's storage cannot be reached" in told.said
    assert "the same command again" in told.said
    assert "Traceback" not in told.said
    assert shop.rows("leases") == 0
    committed = shop.rows("embedding_ledger")
    assert (committed > 0) is (moment in (EMBEDDING, FINISHING))
    local_server.start(storage.data_directory)
    assert shop.statuses()[-1] == "STARTED"
    seconds = shop.finish()

    fault.recovered(shop.audit(), seconds=seconds)
    # The run that was left is ended by the next command, which runs all that it needs anew.
    statuses = shop.statuses()
    assert statuses.count("FAILURE") == 1
    assert set(statuses) == {"SUCCESS", "FAILURE"}


@pytest.mark.timeout(1800)
@pytest.mark.fault("Ctrl-C, SIGTERM or SIGHUP at a random moment")
def test_a_command_stopped_at_a_random_moment_leaves_no_run_and_no_range_at_work(
    shop: CommandShop, fault: Fault
) -> None:
    moments = random.Random(3)  # noqa: S311 - the same moments each time
    caused = 0
    for _ in range(STOPS):
        number, code = moments.choice(SIGNALS)
        with shop.ingesting(seconds=0.05) as process:
            wait_for(process, "Preflight")
            time.sleep(moments.uniform(0, SECONDS_OF_A_RUN))
            process.send_signal(number)
            told = ended(process)

        assert told.code in (code, 0), told.said
        assert "Traceback" not in told.said
        assert set(shop.statuses()) <= {"SUCCESS", "CANCELED"}
        assert shop.rows("leases") == 0
        caused += told.code != 0
    seconds = shop.finish()

    fault.recovered(
        shop.audit(), caused=caused, seconds=seconds, allowed_paid_twice=caused * LONGEST_BATCH
    )
