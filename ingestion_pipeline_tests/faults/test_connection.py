"""The line to the shop's server delayed, cut and dead, at random and at exact moments.

Nothing that a model has answered is asked again: the answer outlives the connection. And what was
committed is counted once, even where the reply to COMMIT never came.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import connection, session
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.reingestion import (
    AspectModel,
    Pace,
    reingest,
)
from ingestion_pipeline.tally import RangeStep
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.faults.audit import Audit, audit
from ingestion_pipeline_tests.faults.proxy import Act, Moment, Proxy, Trap, proxy_to
from ingestion_pipeline_tests.faults.record import Fault, times
from ingestion_pipeline_tests.faults.worker_shop import (
    PRODUCTS_PER_RANGE,
    TOKENS_PER_BATCH,
    catalogue,
    worker_shop,
)
from ingestion_pipeline_tests.shops import (
    KnownEmbedder,
    create_products,
    prepared_shop,
    settings_for,
)

PRODUCTS = 16
PACE = Pace(
    products_per_page=4, tokens_per_batch=TOKENS_PER_BATCH, lease_seconds=60, retry_seconds=60
)
SECONDS_A_BATCH = 0.01
SILENCE_SECONDS = 0.5
"""Instead of half a minute, which the main job waits out once in `make faults`."""

MOMENTS = [Moment.RELEASING, Moment.COPYING, Moment.CLAIMING, Moment.READING, Moment.COMMITTING]
NTH = [2, 1][: times(1, 2)]
REFUSED = "Thing 1. is described"


@dataclass
class ShopBeyondALine:
    """A shop whose server is reached through a proxy, and by a test directly, too."""

    line: Proxy
    shop: Shop
    beyond: Shop
    sent: dict[str, list[str]] = field(default_factory=dict)
    committed_at: list[float] = field(default_factory=list)

    def work_through(self) -> None:
        """Every range through the work loop, in one session."""
        for key, range_ in self.beyond.embeddings.ranges():
            reingest(
                range_,
                catalogue=self.shop.catalogue,
                store=self.shop.embeddings,
                models={aspect: self._model(aspect) for aspect in Aspect},
                owner=RunIdentity("a run", "an invocation", key),
                pace=PACE,
                report=self._note_commit,
            )

    def audit(self) -> Audit:
        """What the shop has come to."""
        return audit(self.beyond, self.sent)

    def recovery(self, fault_at: float) -> float:
        """Seconds from a fault to the first commit after it, if there was still one to come."""
        return next((it - fault_at for it in self.committed_at if it > fault_at), 0.0)

    def forget(self) -> None:
        """As if nothing had ever been ingested."""
        self.sent.clear()
        self.beyond.connection.execute(
            "TRUNCATE product_embeddings_v2, ingestion.embedding_ledger, ingestion.spend, "
            "ingestion.failed_products"
        )

    def value(self, query: str) -> object:
        """The first column of the first row."""
        rows = self.beyond.connection.execute(query).fetchall()
        return rows[0][0]

    def _model(self, aspect: Aspect) -> AspectModel:
        fingerprint = self.shop.settings.fingerprint(aspect)
        sent = self.sent.setdefault(fingerprint, [])

        def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
            sent.extend(texts)
            time.sleep(SECONDS_A_BATCH)
            return right

        dimensions = self.shop.settings.aspects[aspect].dimensions
        refused = {REFUSED: "The model takes no such text."}
        return AspectModel(fingerprint, KnownEmbedder(dimensions, refused, answer))

    def _note_commit(self, _: RangeStep) -> None:
        self.committed_at.append(time.monotonic())


@pytest.fixture
def line(server: LocalServer) -> Iterator[Proxy]:
    """The line to the session's server."""
    with proxy_to(server) as line:
        yield line


@pytest.fixture
def shop(
    line: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ShopBeyondALine]:
    """A planned shop of which nothing is ingested yet."""
    monkeypatch.setattr(session, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_SECONDS", 2)
    with connection.connect(database_url) as direct:
        create_products(direct, catalogue(PRODUCTS))
    settings = settings_for(line.url(str(conninfo_to_dict(database_url)["dbname"])))
    with prepared_shop(database_url) as beyond, open_shop(settings) as shop:
        beyond.embeddings.plan_ranges(PRODUCTS_PER_RANGE)
        yield ShopBeyondALine(line, shop, beyond)


@pytest.mark.fault("connection cut at a random moment")
def test_a_run_outlives_cuts_at_random_moments(shop: ShopBeyondALine, fault: Fault) -> None:
    _befall_at_random(shop, fault, Act.CUT, at_least=times(5, 200))


@pytest.mark.fault("connection black-holed at a random moment")
@pytest.mark.timeout(900)
def test_a_run_outlives_silence_at_random_moments(shop: ShopBeyondALine, fault: Fault) -> None:
    _befall_at_random(shop, fault, Act.BLACK_HOLE, at_least=times(2, 100))


@pytest.mark.fault("connection cut at a named moment")
@pytest.mark.parametrize("nth", NTH)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_outlives_a_cut_at_any_moment(
    shop: ShopBeyondALine, fault: Fault, moment: Moment, nth: int
) -> None:
    trap = shop.line.set_trap(moment, Act.CUT, nth)
    shop.work_through()

    _recovered_from([trap], shop, fault)


@pytest.mark.fault("connection black-holed at a named moment")
@pytest.mark.parametrize("nth", NTH)
@pytest.mark.parametrize("moment", MOMENTS[: times(2, 5)])
def test_a_run_outlives_silence_at_any_moment(
    shop: ShopBeyondALine, fault: Fault, moment: Moment, nth: int
) -> None:
    trap = shop.line.set_trap(moment, Act.BLACK_HOLE, nth)
    shop.work_through()

    _recovered_from([trap], shop, fault)


@pytest.mark.fault("connection black-holed, and the next one too")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        # The first to begin is the one that asks, the second the one that comes instead.
        (Moment.BEGINNING, 2),
        (Moment.BEGINNING, 1),
        (Moment.ASKING, 1),
        (Moment.ENDING, 1),
    ][: times(1, 4)],
)
def test_a_run_outlives_silence_while_it_mends_its_line(
    shop: ShopBeyondALine, fault: Fault, moment: Moment, nth: int
) -> None:
    traps = [
        shop.line.set_trap(Moment.COPYING, Act.BLACK_HOLE, 2),
        shop.line.set_trap(moment, Act.BLACK_HOLE, nth),
    ]
    shop.work_through()

    _recovered_from(traps, shop, fault)


@pytest.mark.parametrize("nth", [1, 2, 3][: times(1, 3)])
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(Act.CUT, marks=pytest.mark.fault("reply to COMMIT lost, connection cut")),
        pytest.param(
            Act.BLACK_HOLE, marks=pytest.mark.fault("reply to COMMIT lost, connection black-holed")
        ),
    ],
)
def test_what_a_lost_reply_had_committed_is_counted_once(
    shop: ShopBeyondALine, fault: Fault, act: Act, nth: int
) -> None:
    trap = shop.line.set_trap(Moment.COMMITTED, act, nth)
    shop.work_through()

    _recovered_from([trap], shop, fault)


@pytest.mark.fault("every line black-holed, new ones too")
def test_a_run_waits_for_a_network_that_swallows_everything(
    shop: ShopBeyondALine, fault: Fault
) -> None:
    seconds, healed_at = times(2, 15), []

    def mend() -> None:
        time.sleep(seconds)
        shop.line.swallows_new_lines = False
        healed_at.append(time.monotonic())

    def swallow() -> None:
        time.sleep(5 * SECONDS_A_BATCH)
        shop.line.swallows_new_lines = True
        assert shop.line.befall(Act.BLACK_HOLE)
        mend()

    with _beside(swallow):
        shop.work_through()

    _counted_once(shop)
    fault.recovered(shop.audit(), seconds=shop.recovery(healed_at[0]))


@pytest.mark.fault("connection delayed")
def test_a_slow_line_changes_nothing_but_the_time(shop: ShopBeyondALine, fault: Fault) -> None:
    shop.line.delay = times(2, 50) / 1000
    began = time.monotonic()
    shop.work_through()

    _counted_once(shop)
    fault.recovered(shop.audit(), seconds=time.monotonic() - began)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(Act.CUT, marks=pytest.mark.fault("connection of the main job cut in a COPY")),
        pytest.param(
            Act.BLACK_HOLE,
            marks=pytest.mark.fault("connection of the main job black-holed in a COPY"),
        ),
    ][: times(1, 2)],
)
def test_the_main_job_outlives_a_line_that_fails_in_a_copy(
    line: Proxy, database_url: str, dagster_home: Path, tmp_path: Path, fault: Fault, act: Act
) -> None:
    name = str(conninfo_to_dict(database_url)["dbname"])
    shop = worker_shop(line.url(name), tmp_path / "worker", dagster_home)
    shop.fill(PRODUCTS)
    trap = line.set_trap(Moment.COPYING, act, nth=8)
    with shop.working("ingest") as process:
        assert process.wait(120) == 0, shop.said()

    assert trap.sprung_at is not None
    fault.recovered(shop.audit(), seconds=time.monotonic() - trap.sprung_at)


def _befall_at_random(shop: ShopBeyondALine, fault: Fault, act: Act, *, at_least: int) -> None:
    """Run after run with a line that fails again and again, until there were enough faults."""
    moments = random.Random(act.value)  # noqa: S311 - the same moments each time
    total = 0
    while total < at_least:
        shop.forget()
        over = threading.Event()
        faults: list[float] = []

        def disturb() -> None:
            while not over.wait(moments.uniform(0.02, 0.3)):  # noqa: B023 - joined in this round
                if shop.line.befall(act):
                    faults.append(time.monotonic())  # noqa: B023
                    # Faults that come faster than work goes on would only add up to one long one.
                    while not over.wait(0.01) and not shop.recovery(faults[-1]):  # noqa: B023
                        pass

        with _beside(disturb):
            try:
                shop.work_through()
            finally:
                over.set()
        total += len(faults)
        _counted_once(shop)
        fault.recovered(
            shop.audit(), caused=len(faults), seconds=max(map(shop.recovery, faults), default=0.0)
        )


def _recovered_from(traps: Sequence[Trap], shop: ShopBeyondALine, fault: Fault) -> None:
    missed = [trap.moment.name for trap in traps if trap.sprung_at is None]
    assert not missed, f"no such moment came so often: {missed}"
    _counted_once(shop)
    began = min(trap.sprung_at or 0.0 for trap in traps)
    fault.recovered(shop.audit(), caused=len(traps), seconds=shop.recovery(began))


def _counted_once(shop: ShopBeyondALine) -> None:
    """What the embedders were sent, and what failed, is on record just once; no range is held."""
    failed = shop.beyond.embeddings.failed_products()
    assert [(it.product_id, it.aspect, it.attempts) for it in failed] == [
        (1, Aspect.DESCRIPTION, 1)
    ]
    answered = sum(map(len, shop.sent.values()))
    assert shop.value("SELECT sum(texts) FROM ingestion.spend") == answered + len(failed)
    embedded = "SELECT sum(embedded) FROM ingestion.spend"
    assert shop.value(embedded) == answered
    # A run says more after its last range; a new connection then ends what hangs on a dead one.
    with suppress(psycopg.OperationalError):
        # Whereby a cut in the last moment of the run is noticed.
        shop.shop.connection.execute("SELECT")
    shop.shop.connection.execute("SELECT")
    live = (
        "SELECT count(*) FROM ingestion.leases JOIN pg_stat_activity ON pid = backend_pid "
        "WHERE expires_at > clock_timestamp()"
    )
    assert shop.value(live) == 0


@contextmanager
def _beside(action: Callable[[], None]) -> Iterator[None]:
    """Do `action` in a thread beside the block, and wait for it."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()
