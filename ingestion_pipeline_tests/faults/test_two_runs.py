"""Two runs over one catalogue at the same moment, and one that sleeps while another takes over.

Each run is a process of its own, put to sleep with SIGSTOP and woken with SIGCONT.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.cli.main_job import code_of
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import LeaseLostError
from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.in_process import IngestOutcome, run_ingest
from ingestion_pipeline.ranges import EVERYTHING, ProductIdRange
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.faults import rival, worker
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, times
from ingestion_pipeline_tests.faults.worker import Step
from ingestion_pipeline_tests.orchestration import known_models
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import (
    DIMENSIONS,
    MODELS,
    KnownEmbedder,
    Product,
    create_products,
    embedders_of,
    prepared_shop,
    products,
    run,
)

REPOSITORY = Path(__file__).parents[2]

PRODUCTS = 24
PRODUCTS_PER_RANGE = 6
KEYS = [
    "*:0000000007",
    "0000000007:0000000013",
    "0000000013:0000000019",
    "0000000019:*",
]
LONGEST_BATCH = 4
"""Texts: 16 tokens a batch, and no text has fewer than 4."""

LEASE_SECONDS = 60
"""Longer than anything here takes, except where a test says otherwise."""
SHORTEST_LEASE_SECONDS = 5
"""That the settings allow."""

AT_ONCE_SECONDS = 2.0
"""A claim that waits for nobody has its answer long before."""

DEADLINE_SECONDS = 90.0

ALL_ROWS = """
SELECT 'v2' AS name, ctid::text, xmin::text, v2::text FROM product_embeddings_v2 AS v2
UNION ALL SELECT 'ledger', ctid::text, xmin::text, it::text FROM ingestion.embedding_ledger AS it
UNION ALL SELECT 'failed', ctid::text, xmin::text, it::text FROM ingestion.failed_products AS it
UNION ALL SELECT 'spend', ctid::text, xmin::text, it::text FROM ingestion.spend AS it
WHERE embedded + reused + empty + failed > 0
UNION ALL SELECT 'leases', ctid::text, xmin::text, it::text FROM ingestion.leases AS it
ORDER BY 1, 2
"""
"""Every row that a run writes, with its place and the transaction that put it there.

But for what a request took that led to nothing: it is paid for, and so on record.
"""

HELD = "SELECT run_id, range_key FROM ingestion.leases"
EXPIRED = "SELECT clock_timestamp() > expires_at FROM ingestion.leases"


@dataclass(frozen=True)
class Told:
    """The last words of a rival, and its exit code."""

    exit_code: int
    words: dict[str, Any]

    @property
    def lines(self) -> list[str]:
        return [str(line) for line in self.words.get("lines", ())]


@dataclass(frozen=True)
class Rival:
    """A run in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path

    def wait_for(self, note: str) -> None:
        """Until the rival has left a note in its folder."""
        until((self.folder / note).exists, f"{note} of {self.folder.name}", self._alive)

    def begin(self) -> None:
        """Let it begin to work."""
        (self.folder / rival.GATE).touch()

    def put_to_sleep(self) -> None:
        """Stop the process where it pauses."""
        self.wait_for(worker.PAUSED)
        os.kill(self.process.pid, signal.SIGSTOP)
        until(
            lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED,
            "the stopped process",
        )

    def resume(self) -> None:
        """Let it go on where it pauses."""
        (self.folder / worker.RESUME).touch()

    def wake_up(self) -> None:
        """Let the stopped process go on."""
        self.resume()
        os.kill(self.process.pid, signal.SIGCONT)

    def told(self) -> Told:
        """What it says at its end, for which this waits."""
        said, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        return Told(self.process.returncode, json.loads(said.splitlines()[-1]))

    def sent(self) -> dict[str, list[str]]:
        """The texts that it has sent, by model."""
        return {
            file.name: file.read_text(encoding="utf-8").splitlines()
            for file in (self.folder / worker.SENT).glob("*")
        }

    def unknown(self) -> dict[str, tuple[float, float]]:
        """For each text that it embedded: from when to when it held the text for unknown."""
        looked_up: dict[str, float] = {}
        spans: dict[str, tuple[float, float]] = {}
        for line in (self.folder / rival.NOTES).read_text().splitlines():
            note = json.loads(line)
            if note["what"] == "looked up":
                looked_up |= dict.fromkeys(note["keys"], note["at"])
            else:
                spans |= {key: (looked_up[key], note["at"]) for key in note["keys"]}
        return spans

    def _alive(self) -> None:
        assert self.process.poll() is None, "the rival has ended"


@dataclass(frozen=True)
class Rivalry:
    """A catalogue of which nothing is ingested yet, and the runs that are to meet over it."""

    settings: Settings
    folder: Path
    environment: dict[str, str]

    def fill(self, rows: Iterable[Product]) -> None:
        with connect(self.url) as connection:
            create_products(connection, rows)

    @property
    def url(self) -> str:
        assert self.settings.database_url is not None
        return self.settings.database_url.get_secret_value()

    @contextmanager
    def rival(
        self,
        name: str,
        job: str,
        *,
        seconds: float = 0.0,
        pause_at: Step | None = None,
        nth: int = 1,
        lease_seconds: int = 1,
    ) -> Iterator[Rival]:
        """A run that waits at the gate; killed at the end of the block if it is still there."""
        folder = self.folder / name
        folder.mkdir()
        told = {
            worker.FOLDER: str(folder),
            worker.SECONDS: str(seconds),
            worker.STEP: pause_at or "",
            worker.NTH: str(nth),
            rival.LEASE_SECONDS: str(lease_seconds),
        }
        with subprocess.Popen(
            [sys.executable, "-m", rival.__name__, job],
            cwd=REPOSITORY,
            env=self.environment | told,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield Rival(process, folder)
            finally:
                process.kill()

    def with_lease(self, seconds: int) -> Rivalry:
        """The same with another length of lease, for runs that are still to come."""
        file = Path(self.environment["INGESTION_SETTINGS"])
        old, new = (f"lease_seconds = {it}\n" for it in (LEASE_SECONDS, seconds))
        file.write_text(file.read_text().replace(old, new))
        return replace(self, settings=load_settings(file, self.environment))

    def ingest(self) -> tuple[IngestOutcome, KnownModels]:
        """The main job in this process, and what was sent to its models."""
        models, lines = KnownModels(), rival.Lines()
        return run_ingest(self.settings, lines, models=models), models


@pytest.fixture
def rivalry(database_url: str, dagster_home: Path, tmp_path: Path) -> Rivalry:
    """The settings in a file, for all processes."""
    assert dagster_home.exists()
    file = tmp_path / "ingestion.toml"
    aspects = "".join(
        f'[aspects.{aspect}]\nmodel = "{MODELS[aspect]}"\ndimensions = {DIMENSIONS[aspect]}\n'
        "max_tokens = 64\n"
        for aspect in Aspect
    )
    file.write_text(
        f"[ranges]\nproducts_per_range = {PRODUCTS_PER_RANGE}\n[work]\ntokens_per_batch = 16\n"
        f"lease_seconds = {LEASE_SECONDS}\n{aspects}"
    )
    environment = dict(os.environ) | {
        "DATABASE_URL": database_url,
        "INGESTION_SETTINGS": str(file),
        "INGESTION_HOME": str(tmp_path / "home"),
    }
    return Rivalry(load_settings(file, environment), tmp_path, environment)


@pytest.fixture
def instance(dagster_instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """The instance of all runs of the test."""
    return dagster_instance


def until(
    reached: Callable[[], bool], what: str, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        meanwhile()
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def rows(shop: Shop, query: str) -> list[tuple[Any, ...]]:
    return shop.connection.execute(query).fetchall()


def together(*sent: dict[str, list[str]]) -> dict[str, list[str]]:
    """What several processes have sent, by model."""
    return {
        model: [text for it in sent for text in it.get(model, [])] for it in sent for model in it
    }


def sent_by(models: KnownModels) -> dict[str, list[str]]:
    return {fingerprint: embedder.texts for fingerprint, embedder in models.embedders.items()}


def twins(count: int) -> list[Product]:
    """Products of which each of the second half has the texts of one of the first half."""
    half = count // 2
    return [
        Product(id_, f"Thing {(id_ - 1) % half + 1}", "is described", "is used", "has features")
        for id_ in range(1, count + 1)
    ]


# Two at once


@pytest.mark.fault("two terminals on one catalogue at the same moment")
@pytest.mark.parametrize("catalogue", [twins, products][: times(1, 2)])
@pytest.mark.parametrize("_time", range(times(1, 5)))
def test_two_terminals_share_the_ranges_and_every_product_is_done_once(
    catalogue: Callable[[int], list[Product]],
    rivalry: Rivalry,
    instance: dg.DagsterInstance,
    fault: Fault,
    _time: int,
) -> None:
    """The first one lingers in its first range until the other has gone on to the next."""
    rivalry.fill(catalogue(PRODUCTS))
    with (
        open_shop(rivalry.settings) as shop,
        rivalry.rival("first", "ingest", seconds=0.1, pause_at=Step.CLAIMED, nth=2) as first,
        rivalry.rival("second", "ingest", seconds=0.1) as second,
    ):
        rivals = (first, second)
        for each in rivals:
            each.wait_for(rival.READY)
        first.begin()
        first.wait_for(worker.PAUSED)
        [(run_id, key)] = rows(shop, HELD)
        assert key == KEYS[0]
        second.begin()
        until(lambda: KEYS[1] in _worked_on(shop, run_id), "the other run in the next range")
        first.resume()
        began = time.monotonic()
        told = [each.told() for each in rivals]
        seconds = time.monotonic() - began

    held_by_first = f"Range {key} is held by run {run_id} "
    assert any(line.startswith(held_by_first) for line in told[1].lines), told
    # Neither fails the other; who ends while the other holds ranges says so, and leaves the end.
    assert [it.words.get("error") for it in told] == [None, None], told
    assert [it.words["failed"] for it in told] == [{}, {}]
    for it in told:
        assert it.exit_code == (ExitCode.INCOMPLETE if it.words["held"] else ExitCode.OK), it
    assert ExitCode.OK in {it.exit_code for it in told}

    with open_shop(rivalry.settings) as shop:
        done = rows(shop, "SELECT sum(embedded + reused), sum(failed + empty) FROM ingestion.spend")
        assert done == [(3 * PRODUCTS, 0)]
        assert rows(shop, HELD) == []
        indexes = shop.embeddings.vector_indexes()
        assert [(it.column, it.valid) for it in indexes] == sorted(
            (aspect.column, True) for aspect in Aspect
        )
        assert unfinished_ranges(instance, KEYS) == {}
        fault.recovered(
            audit(shop, together(*(each.sent() for each in rivals))),
            seconds=seconds,
            allowed_paid_twice=_met_at_once(*(each.unknown() for each in rivals)),
        )


def _worked_on(shop: Shop, run_id: str) -> set[str]:
    """The ranges in which a run other than this one has committed something."""
    work = rows(shop, "SELECT run_id, range_key FROM ingestion.spend")
    return {key for whose, key in work if whose != run_id}


def _met_at_once(
    first: dict[str, tuple[float, float]], second: dict[str, tuple[float, float]]
) -> int:
    """Texts that two runs had in hand at the same time, neither knowing the other's vector."""
    return sum(
        max(first[key][0], second[key][0]) <= min(first[key][1], second[key][1])
        for key in first.keys() & second.keys()
    )


@pytest.mark.fault("a terminal beside a run that Dagster started")
def test_a_terminal_leaves_a_range_to_the_run_of_dagster_and_takes_the_others(
    rivalry: Rivalry, instance: dg.DagsterInstance, fault: Fault, tmp_path: Path
) -> None:
    """Dagster's run sleeps meanwhile, well within its lease: it holds a range the whole time."""
    rivalry.fill(products(PRODUCTS))
    run_ingest(rivalry.settings, rival.Lines(), limit=1, models=KnownModels())
    record = tmp_path / "sent"
    slow = {known_models.RECORD: str(record), known_models.SECONDS: "0.3"}
    ranges = {"dagster/asset_partition_range_start": KEYS[0]}
    ranges |= {"dagster/asset_partition_range_end": KEYS[-1]}
    with (
        open_shop(rivalry.settings) as shop,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "job", "execute", "-j", "reingest"),
                *("-m", "ingestion_pipeline_tests.orchestration.served_definitions"),
                *("--tags", json.dumps(ranges)),
            ],
            cwd=REPOSITORY,
            env=rivalry.environment | slow,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            until(lambda: rows(shop, HELD) != [], "the lease of Dagster's run")
            os.kill(process.pid, signal.SIGSTOP)
            [(run_id, key)] = rows(shop, HELD)
            lines, models = rival.Lines(), KnownModels()
            outcome = run_ingest(rivalry.settings, lines, models=models)
            assert rows(shop, HELD) == [(run_id, key)]
            os.kill(process.pid, signal.SIGCONT)
            began = time.monotonic()
            _, log = process.communicate(timeout=DEADLINE_SECONDS)
            seconds = time.monotonic() - began
        finally:
            process.kill()

        held = f"Range {key} is held by run {run_id}"
        assert any(line.startswith(held) for line in lines.said), lines.said
        assert list(dict(outcome.held_ranges)) == [key]
        assert outcome.failed_ranges == []
        assert code_of(outcome) == ExitCode.INCOMPLETE
        assert outcome.report is None, "the end is left to the run that holds the range"
        assert set(KEYS) - {key} <= _worked_on(shop, run_id)
        # It found the other ranges done, and failed nowhere.
        assert process.returncode == 0, log
        run_of_dagster = instance.get_run_by_id(run_id)
        assert run_of_dagster is not None
        assert run_of_dagster.status == dg.DagsterRunStatus.SUCCESS
        assert rows(shop, HELD) == []
        last, more = rivalry.ingest()
        assert (last.held_ranges, last.failed_ranges, more.texts) == ([], [], [])
        texts = [*record.read_text().splitlines(), *models.texts]
        # The three texts of the first product went before.
        assert len(texts) == 3 * PRODUCTS - 3
        fault.recovered(audit(shop, texts), seconds=seconds)


@pytest.mark.fault("two runs that build the indexes at the same moment")
def test_an_index_that_another_run_is_building_is_neither_dropped_nor_built_again(
    database_url: str, fault: Fault
) -> None:
    """An open transaction of the shop's keeps the first build from ending until both are there."""
    with connect(database_url) as connection:
        create_products(connection, products(6))
    began = time.monotonic()
    with prepared_shop(database_url) as shop, connect(database_url) as visitor:
        sent = run(shop).texts
        errors: list[BaseException] = []

        def build() -> None:
            try:
                with open_shop(shop.settings) as other:
                    other.embeddings.create_vector_indexes()
            except BaseException as error:  # noqa: BLE001 - told to the test
                errors.append(error)

        builders = [threading.Thread(target=build) for _ in range(2)]
        with visitor.transaction():
            visitor.execute("LOCK TABLE product_embeddings_v2 IN ROW EXCLUSIVE MODE")
            builders[0].start()
            until(lambda: len(_indexes(shop)) == 1, "the first index, unfinished")
            [(oid, valid)] = _indexes(shop)
            assert not valid
            builders[1].start()
            time.sleep(1)
        for builder in builders:
            builder.join(DEADLINE_SECONDS)
            assert not builder.is_alive()
        assert errors == []
        after = _indexes(shop)
        assert oid in dict(after), "the first run's index was dropped and built again"
        assert [valid for _, valid in after] == [True] * 3
        fault.recovered(audit(shop, sent), seconds=time.monotonic() - began)


def _indexes(shop: Shop) -> list[tuple[int, bool]]:
    """The HNSW indexes in the order in which they were made."""
    query = (
        "SELECT indexrelid, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid "
        "JOIN pg_am ON pg_am.oid = relam WHERE amname = 'hnsw' ORDER BY indexrelid"
    )
    return [(oid, valid) for oid, valid in rows(shop, query)]


# One asleep


@pytest.mark.parametrize("wakes_up", ["while the other is at work", "when the other is done"])
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(
            Step.EMBEDDED, marks=pytest.mark.fault("SIGSTOP in a model, past the lease, SIGCONT")
        ),
        pytest.param(
            Step.BEFORE_COMMIT,
            marks=pytest.mark.fault("SIGSTOP in a transaction, past the lease, SIGCONT"),
        ),
    ],
)
def test_a_run_that_slept_past_its_lease_changes_no_row_when_it_wakes_up(
    step: Step, wakes_up: str, rivalry: Rivalry, fault: Fault
) -> None:
    rivalry.fill(products(PRODUCTS))
    with connect(rivalry.url) as connection:
        # The sessions of this project have a longer one where the server has none.
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '3s'")
    told: list[Told] = []
    with (
        rivalry.rival("sleeper", "range", pause_at=step, nth=3) as sleeper,
        prepared_shop(rivalry.url, rivalry.settings) as shop,
    ):

        def wake_the_sleeper() -> None:
            before = rows(shop, ALL_ROWS)
            sleeper.wake_up()
            told.append(sleeper.told())
            assert rows(shop, ALL_ROWS) == before

        def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
            if not told and wakes_up == "while the other is at work":
                wake_the_sleeper()
            return right

        embedders = embedders_of(rivalry.settings)
        for embedder in embedders.values():
            embedder.answer = answer
        sleeper.begin()
        sleeper.put_to_sleep()
        began = time.monotonic()
        _take_over(shop, embedders)
        seconds = time.monotonic() - began
        if not told:
            wake_the_sleeper()

        assert told[0].words["error"] == "LeaseLostError", told
        assert "taken over by another run" in told[0].words["message"]
        assert told[0].exit_code == ExitCode.INCOMPLETE
        writers = rows(shop, "SELECT DISTINCT run_id FROM ingestion.embedding_ledger")
        assert sorted(writers) == [("rival",), ("second",)]
        second = {fingerprint: embedder.texts for fingerprint, embedder in embedders.items()}
        fault.recovered(
            audit(shop, together(sleeper.sent(), second)),
            seconds=seconds,
            allowed_paid_twice=LONGEST_BATCH,
        )


def _take_over(shop: Shop, embedders: Mapping[str, KnownEmbedder]) -> None:
    """Run as soon as the range is free, told at once each time that it is not."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        asked = time.monotonic()
        try:
            run(shop, embedders=embedders, run_id="second")
        except LeaseLostError as held:
            message, seconds = str(held), time.monotonic() - asked
        else:
            return
        assert "held by run rival" in message
        assert seconds < AT_ONCE_SECONDS
        time.sleep(0.2)
    pytest.fail("the range never became free")


@pytest.mark.fault("SIGSTOP between two rows of a COPY, SIGCONT")
def test_a_claim_does_not_wait_for_a_writer_that_sleeps_in_the_middle_of_its_copy(
    rivalry: Rivalry, fault: Fault
) -> None:
    """Its server waits for the next row, so nothing ends its session: the lease is its own."""
    rivalry.fill(products(PRODUCTS))
    with (
        rivalry.rival("sleeper", "range", pause_at=Step.COPYING, nth=6) as sleeper,
        prepared_shop(rivalry.url, rivalry.settings) as shop,
    ):
        sleeper.begin()
        sleeper.put_to_sleep()
        until(lambda: rows(shop, EXPIRED) == [(True,)], "the end of the lease")
        owner = RunIdentity("second", "second", "0000000003:0000000005")
        shop.connection.execute("SET statement_timeout = '10s'")
        for range_ in (EVERYTHING, ProductIdRange(3, 5)):
            asked = time.monotonic()
            with pytest.raises(LeaseLostError, match="held by run rival"):
                shop.embeddings.claim(range_, owner, 5)
            assert time.monotonic() - asked < AT_ONCE_SECONDS
        began = time.monotonic()
        sleeper.wake_up()
        told = sleeper.told()
        assert told.exit_code == ExitCode.OK, told
        assert rows(shop, HELD) == []
        fault.recovered(audit(shop, sleeper.sent()), seconds=time.monotonic() - began)


@pytest.mark.fault("SIGSTOP of the main job past its lease, SIGCONT")
def test_a_main_job_that_slept_past_its_lease_leaves_the_range_to_the_one_that_took_it_over(
    rivalry: Rivalry, instance: dg.DagsterInstance, fault: Fault
) -> None:
    rivalry = rivalry.with_lease(SHORTEST_LEASE_SECONDS)
    rivalry.fill(products(PRODUCTS))
    # The canary takes about five batches, and the first range one more: this is in the second.
    with rivalry.rival("sleeper", "ingest", pause_at=Step.EMBEDDED, nth=9) as sleeper:
        sleeper.begin()
        sleeper.put_to_sleep()
        with open_shop(rivalry.settings) as shop:
            [(_, key)] = rows(shop, HELD)
            assert key in KEYS
            until(lambda: rows(shop, EXPIRED) == [(True,)], "the end of the lease")
            began = time.monotonic()
            outcome, models = rivalry.ingest()
            seconds = time.monotonic() - began
            assert outcome.held_ranges == outcome.failed_ranges == []
            assert outcome.report is not None
            data = [row for row in rows(shop, ALL_ROWS) if row[0] != "leases"]
            sleeper.wake_up()
            told = sleeper.told()

            assert [row for row in rows(shop, ALL_ROWS) if row[0] != "leases"] == data
            assert any("taken over by another run" in line for line in told.lines), told
            # What it lost is done, as it finds at its end.
            assert (told.exit_code, told.words["held"], told.words["failed"]) == (0, {}, {}), told
            assert unfinished_ranges(instance, KEYS) == {}
            assert rows(shop, HELD) == []
            fault.recovered(
                audit(shop, together(sleeper.sent(), sent_by(models))),
                seconds=seconds,
                allowed_paid_twice=LONGEST_BATCH,
            )
            statuses = Counter(run.status for run in instance.get_runs())
            assert dg.DagsterRunStatus.STARTED not in statuses
