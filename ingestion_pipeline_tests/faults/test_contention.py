"""Locks of other sessions, and a server that was told to be strict or impatient.

The work loop runs in this process, with real waits, and every refusal is the server's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    IngestionError,
    LeaseLostError,
    WeightsError,
)
from ingestion_pipeline.patience import Patience
from ingestion_pipeline.ranges import EVERYTHING, ProductIdRange, key_of
from ingestion_pipeline.reingestion import (
    AspectModel,
    Pace,
    reingest,
)
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.tally import RangeResult
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, times
from ingestion_pipeline_tests.shops import (
    KnownEmbedder,
    create_products,
    embedders_of,
    products,
    settings_for,
)

PRODUCTS = 8
BATCH = 16
"""Texts at most: two aspects share a model, and one batch holds all of a model's texts."""

LOW = "400ms"
LONGER_SECONDS = 1.0
"""Than the low timeout, so that the server gives up twice."""

DEADLINE_SECONDS = 60.0

LOCK_V2 = 'SELECT FROM product_embeddings_v2 WHERE "productId" = 1 FOR UPDATE'
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
EDIT_ALL = "UPDATE products SET name = name || ' anew'"


@dataclass
class Ingestion:
    """A shop's catalogue, and the work loop over it; each run has a session of its own."""

    settings: Settings
    embedders: dict[str, KnownEmbedder] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __call__(self, *, retry_seconds: float = 30.0) -> RangeResult:
        """One run over the whole catalogue."""
        with open_shop(self.settings) as shop:
            return reingest(
                EVERYTHING,
                catalogue=shop.catalogue,
                store=shop.embeddings,
                models={
                    aspect: AspectModel(fingerprint, self.embedders[fingerprint])
                    for aspect, fingerprint in self.settings.fingerprints.items()
                },
                owner=RunIdentity("run", "run", key_of(EVERYTHING, shop.id_type)),
                pace=Pace(
                    products_per_page=PRODUCTS,
                    tokens_per_batch=1000,
                    lease_seconds=60,
                    retry_seconds=retry_seconds,
                ),
                say=self.lines.append,
            )

    @property
    def url(self) -> str:
        assert self.settings.database_url is not None
        return self.settings.database_url.get_secret_value()

    def before_each_answer(self, action: Callable[[], None]) -> None:
        """Do something while a model works, for every request."""

        def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
            action()
            return right

        for embedder in self.embedders.values():
            embedder.answer = answer

    def recovered(
        self, fault: Fault, began: float, *, caused: int = 1, allowed_paid_twice: int = 0
    ) -> None:
        """Nothing is lost, wrong, or left to another run."""
        seconds = time.monotonic() - began
        sent = {fingerprint: embedder.texts for fingerprint, embedder in self.embedders.items()}
        with open_shop(self.settings) as shop:
            found = audit(shop, sent)
            left = shop.catalogue.aspect_counts(self.settings.fingerprints)
        assert {count.state for count in left} == {"done"}
        fault.recovered(
            found, seconds=seconds, caused=caused, allowed_paid_twice=allowed_paid_twice
        )


@pytest.fixture
def ingestion(database_url: str) -> Ingestion:
    """Eight products that are ingested once, and have other texts since."""
    with connect(database_url) as connection:
        create_products(connection, products(PRODUCTS))
    settings = settings_for(database_url)
    ingestion = Ingestion(settings, embedders_of(settings))
    with open_shop(settings) as shop:
        shop.prepare()
    ingestion()
    with connect(database_url) as connection:
        connection.execute(EDIT_ALL)
    return ingestion


@pytest.fixture
def shop_session(ingestion: Ingestion) -> Iterator[Connection]:
    """A session of the shop's own, which keeps the server's settings as they were."""
    with connect(ingestion.url) as connection:
        yield connection


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Threads for what goes on beside the test."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def set_on_database(url: str, name: LiteralString, value: str | None) -> None:
    """Change a setting for the sessions that are still to come; None sets it back."""
    with psycopg.connect(url, autocommit=True) as connection:
        database = sql.Identifier(connection.info.dbname)
        change = (
            sql.SQL("RESET {}").format(sql.Identifier(name))
            if value is None
            else sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
        )
        connection.execute(sql.SQL("ALTER DATABASE {} {}").format(database, change))


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def count(connection: Connection, query: LiteralString) -> int:
    [(number,)] = connection.execute(query).fetchall()
    return int(number)


# Deadlocks

SOON = "1s"  # a session looks once for a deadlock, which must be there by then
NEVER = "60s"
OPPOSITE_ORDERS: dict[str, tuple[LiteralString, LiteralString]] = {
    "ledger, then v2": (
        "SELECT FROM ingestion.embedding_ledger WHERE product_id = 1 FOR UPDATE",
        LOCK_V2,
    ),
    "rows of v2 from the last to the first": (
        'SELECT FROM product_embeddings_v2 WHERE "productId" = 8 FOR UPDATE',
        LOCK_V2,
    ),
    "products deleted from the last to the first": (
        "DELETE FROM products WHERE id = 8",
        "DELETE FROM products WHERE id = 1",
    ),
}


@pytest.mark.parametrize("order", OPPOSITE_ORDERS)
@pytest.mark.parametrize(
    ("writers_patience", "shops_patience"),
    [
        pytest.param(SOON, NEVER, marks=pytest.mark.fault("deadlock, the writer is the victim")),
        pytest.param(NEVER, SOON, marks=pytest.mark.fault("deadlock, the shop is the victim")),
    ],
)
def test_a_deadlock_costs_neither_a_vector_nor_a_second_request(
    writers_patience: str,
    shops_patience: str,
    order: str,
    ingestion: Ingestion,
    shop_session: Connection,
    beside: ThreadPoolExecutor,
    fault: Fault,
) -> None:
    """Whoever looks for a deadlock first becomes its victim."""
    first, second = OPPOSITE_ORDERS[order]
    set_on_database(ingestion.url, "deadlock_timeout", writers_patience)
    shop_session.execute("SELECT set_config('deadlock_timeout', %s, false)", [shops_patience])
    if order.startswith("products"):
        # Only a new row of v2 refers anew to its product.
        shop_session.execute("DELETE FROM product_embeddings_v2")
    with connect(ingestion.url) as observer:
        with _tolerating_a_deadlock() as victim, shop_session.transaction():
            shop_session.execute(first)
            writer = beside.submit(ingestion)
            until(lambda: count(observer, WAITING) == 1, "the writer at the shop's lock")
            began = time.monotonic()
            shop_session.execute(second)
        writer.result(DEADLINE_SECONDS)
        if shops_patience == SOON:
            assert victim
        else:
            assert not victim
            deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            until(lambda: count(observer, deadlocks) == 1, "the server's word of a deadlock")
    ingestion.recovered(fault, began)


@contextmanager
def _tolerating_a_deadlock() -> Iterator[list[pg.DeadlockDetected]]:
    """What the shop is told if it is the victim; its transaction is then undone."""
    told: list[pg.DeadlockDetected] = []
    try:
        yield told
    except pg.DeadlockDetected as error:
        told.append(error)


# Strict isolation

STRICT = ("repeatable read", "serializable")


@pytest.mark.fault("the database's isolation is repeatable read or serializable, with edits")
@pytest.mark.parametrize("isolation", STRICT)
def test_a_strict_isolation_set_on_the_database_changes_nothing(
    isolation: str,
    ingestion: Ingestion,
    beside: ThreadPoolExecutor,
    fault: Fault,
) -> None:
    """The shop changes the first row that the writer is about to write, and edits texts."""
    set_on_database(ingestion.url, "default_transaction_isolation", isolation)
    edits = times(4, 40)
    with connect(ingestion.url) as shop_session, connect(ingestion.url) as observer:
        began = time.monotonic()
        for edit in range(1, edits + 1):
            with shop_session.transaction():
                shop_session.execute(
                    "UPDATE product_embeddings_v2 SET usage_embedding = usage_embedding "
                    'WHERE "productId" = 8'
                )
                shop_session.execute(
                    "UPDATE products SET usage = %s WHERE id = %s",
                    [f"is used in way {edit}", edit % PRODUCTS + 1],
                )
                writer = beside.submit(ingestion)
                until(
                    lambda: count(observer, WAITING) == 1 or writer.done(),  # noqa: B023 - at once
                    "the writer at the shop's lock",
                )
            writer.result(DEADLINE_SECONDS)
        ingestion()
    ingestion.recovered(fault, began, caused=edits)


@pytest.mark.fault("serialization failure")
def test_a_commit_that_the_server_cannot_serialize_is_made_again(
    ingestion: Ingestion, shop_session: Connection, fault: Fault
) -> None:
    shop_session.execute("CREATE SEQUENCE refusals")
    shop_session.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('refusals') <= 3 THEN RAISE EXCEPTION 'could not serialize access' "
        "USING ERRCODE = 'serialization_failure'; END IF; RETURN NEW; END $$"
    )
    shop_session.execute(
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON product_embeddings_v2 "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    began = time.monotonic()
    ingestion()
    assert count(shop_session, "SELECT last_value FROM refusals") > 3
    ingestion.recovered(fault, began, caused=3)
    spent = "SELECT sum(texts) FROM ingestion.spend"
    assert count(shop_session, spent) == sum(len(it.texts) for it in ingestion.embedders.values())


@pytest.mark.fault("two claims of overlapping ids at the same moment, under every isolation")
@pytest.mark.parametrize("isolation", ["read committed", *STRICT])
@pytest.mark.parametrize("other", [ProductIdRange(None, 4), EVERYTHING])
def test_of_two_claims_at_the_same_moment_one_is_told_that_the_other_holds_the_ids(
    isolation: str,
    other: ProductIdRange,
    ingestion: Ingestion,
    shop_session: Connection,
    beside: ThreadPoolExecutor,
    fault: Fault,
) -> None:
    """Both wait for their turn before either of them looks at the leases."""
    set_on_database(ingestion.url, "default_transaction_isolation", isolation)
    began = time.monotonic()
    with open_shop(ingestion.settings) as first, open_shop(ingestion.settings) as second:

        def claim(shop: Shop, run_id: str, range_: ProductIdRange) -> str:
            owner = RunIdentity(run_id, run_id, key_of(range_, shop.id_type))
            try:
                Patience(10)(lambda: shop.embeddings.claim(range_, owner, 60))
            except LeaseLostError as held:
                return str(held)
            return "claimed"

        with shop_session.transaction():
            shop_session.execute("SELECT pg_advisory_xact_lock(hashtext('ingestion.leases'))")
            claims = [
                beside.submit(claim, first, "first", EVERYTHING),
                beside.submit(claim, second, "second", other),
            ]
            with connect(ingestion.url) as observer:
                until(lambda: count(observer, WAITING) == 2, "both claims in front of the lock")
        answers = [it.result(DEADLINE_SECONDS) for it in claims]
        assert answers.count("claimed") == 1, answers
        assert any("is held by run" in answer for answer in answers)
        assert count(shop_session, "SELECT count(*) FROM ingestion.leases") == 1
    until(lambda: _lease_is_free(shop_session), "the end of the sessions that claimed")
    ingestion()
    ingestion.recovered(fault, began)


def _lease_is_free(connection: Connection) -> bool:
    query: LiteralString = (
        "SELECT count(*) FROM ingestion.leases JOIN pg_stat_activity ON pid = backend_pid"
    )
    return count(connection, query) == 0


@pytest.mark.fault("two first runs that make the tables at the same moment")
@pytest.mark.parametrize("isolation", ["read committed", *STRICT])
def test_two_first_runs_make_the_tables_once(
    isolation: str, database_url: str, beside: ThreadPoolExecutor, fault: Fault
) -> None:
    settings = settings_for(database_url)
    ingestion = Ingestion(settings, embedders_of(settings))
    with connect(database_url) as session, connect(database_url) as observer:
        create_products(session, products(PRODUCTS))
        set_on_database(database_url, "default_transaction_isolation", isolation)
        began = time.monotonic()

        def prepare() -> None:
            with open_shop(settings) as shop:
                shop.prepare()

        with session.transaction():
            session.execute("SELECT pg_advisory_xact_lock(hashtext('ingestion.migrations'))")
            both = [beside.submit(prepare) for _ in range(2)]
            until(lambda: count(observer, WAITING) == 2, "both in front of the lock")
        for one in both:
            one.result(DEADLINE_SECONDS)
    ingestion()
    ingestion.recovered(fault, began)


# Low timeouts


@contextmanager
def _locked(session: Connection, statement: LiteralString) -> Iterator[None]:
    """What `statement` locks stays locked for the length of a `with` block."""
    with session.transaction():
        session.execute(statement)
        yield


def _after(seconds: float, action: Callable[[], Any]) -> None:
    threading.Timer(seconds, action).start()


LOW_TIMEOUTS: tuple[LiteralString, ...] = (
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(it, marks=pytest.mark.fault(f"{it} set low, for a while"))
        for it in LOW_TIMEOUTS
    ],
)
def test_a_run_outlasts_a_lock_that_is_held_longer_than_the_timeout_allows(
    setting: LiteralString,
    ingestion: Ingestion,
    shop_session: Connection,
    beside: ThreadPoolExecutor,
    fault: Fault,
) -> None:
    set_on_database(ingestion.url, setting, LOW)
    with _locked(shop_session, LOCK_V2):
        writer = beside.submit(ingestion)
        time.sleep(LONGER_SECONDS)
        assert not writer.done(), writer.exception()
        began = time.monotonic()
    writer.result(DEADLINE_SECONDS)
    set_on_database(ingestion.url, setting, None)
    ingestion.recovered(fault, began)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(it, marks=pytest.mark.fault(f"{it} set low, for as long as the run lasts"))
        for it in LOW_TIMEOUTS
    ],
)
def test_a_run_that_cannot_outlast_a_lock_names_the_setting_and_the_next_one_finishes(
    setting: LiteralString, ingestion: Ingestion, shop_session: Connection, fault: Fault
) -> None:
    set_on_database(ingestion.url, setting, LOW)
    with _locked(shop_session, LOCK_V2), pytest.raises(IngestionError) as stopped:
        ingestion(retry_seconds=1)
    assert setting in str(stopped.value)
    _finish_in_the_next_run(ingestion, setting, fault)


def _finish_in_the_next_run(
    ingestion: Ingestion, setting: LiteralString, fault: Fault, *, caused: int = 1
) -> None:
    """Nothing is written that is not right, and once the setting is mended all is done."""
    set_on_database(ingestion.url, setting, None)
    with open_shop(ingestion.settings) as shop:
        states = {it.state for it in shop.catalogue.aspect_counts(ingestion.settings.fingerprints)}
        assert states <= {"text changed", "done"}
    began = time.monotonic()
    ingestion()
    ingestion.recovered(fault, began, caused=caused, allowed_paid_twice=caused * BATCH)


class _SlowClient:
    """A client that takes longer than it may between two statements of a transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, often: int) -> None:
        self.left = often
        compose = Queries.compose

        def slow(queries: Queries, name: str, **literals: sql.Composable) -> sql.Composed:
            if name == "delete_outdated_incoming" and self.left:
                self.left -= 1
                time.sleep(LONGER_SECONDS)
            return compose(queries, name, **literals)

        monkeypatch.setattr(Queries, "compose", slow)


IDLE: LiteralString = "idle_in_transaction_session_timeout"


@pytest.mark.fault(f"{IDLE} set low, for a while")
def test_a_run_outlasts_the_end_of_a_session_in_the_middle_of_a_commit(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    set_on_database(ingestion.url, IDLE, LOW)
    client = _SlowClient(monkeypatch, often=1)
    began = time.monotonic()
    ingestion()
    assert client.left == 0
    ingestion.recovered(fault, began)


@pytest.mark.fault(f"{IDLE} set low, for as long as the run lasts")
def test_a_run_whose_commits_are_all_ended_names_the_setting_and_the_next_one_finishes(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    set_on_database(ingestion.url, IDLE, LOW)
    client = _SlowClient(monkeypatch, often=100)
    with pytest.raises(IngestionError) as stopped:
        ingestion(retry_seconds=2)
    assert IDLE in str(stopped.value)
    client.left = 0
    _finish_in_the_next_run(ingestion, IDLE, fault)


IDLE_SESSION: LiteralString = "idle_session_timeout"


@pytest.mark.fault("idle_session_timeout set lower than a request to the model takes")
def test_a_run_opens_a_new_session_after_each_request_that_took_too_long(
    ingestion: Ingestion, fault: Fault
) -> None:
    set_on_database(ingestion.url, IDLE_SESSION, LOW)
    ingestion.before_each_answer(lambda: time.sleep(LONGER_SECONDS))
    began = time.monotonic()
    ingestion()
    set_on_database(ingestion.url, IDLE_SESSION, None)
    ingestion.recovered(fault, began, caused=len(ingestion.embedders))


@pytest.mark.fault("idle_session_timeout ends the session of a run that stops")
def test_a_session_that_is_gone_does_not_hide_why_a_run_stopped(
    ingestion: Ingestion, shop_session: Connection, fault: Fault
) -> None:
    set_on_database(ingestion.url, IDLE_SESSION, LOW)

    def fail() -> None:
        time.sleep(LONGER_SECONDS)
        raise WeightsError("the model's files are gone")

    ingestion.before_each_answer(fail)
    with pytest.raises(WeightsError, match="files are gone"):
        ingestion()
    until(lambda: _lease_is_free(shop_session), "the end of the lease")
    ingestion.before_each_answer(lambda: None)
    _finish_in_the_next_run(ingestion, IDLE_SESSION, fault)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(it, marks=pytest.mark.fault(f"{it} set low while an index is built"))
        for it in ("statement_timeout", "lock_timeout")
    ],
)
def test_an_index_whose_build_the_server_ends_is_built_by_the_next_run(
    setting: LiteralString,
    ingestion: Ingestion,
    shop_session: Connection,
    beside: ThreadPoolExecutor,
    fault: Fault,
) -> None:
    """A build waits for every transaction on the table, and the shop has one that takes long."""
    ingestion()
    set_on_database(ingestion.url, setting, LOW)

    def build() -> None:
        with open_shop(ingestion.settings) as shop:
            shop.embeddings.create_vector_indexes()

    lock: LiteralString = "LOCK TABLE product_embeddings_v2 IN ROW EXCLUSIVE MODE"
    with _locked(shop_session, lock):
        builder: Future[None] = beside.submit(build)
        time.sleep(LONGER_SECONDS)
    error = builder.exception(DEADLINE_SECONDS)
    if error is not None:
        assert isinstance(error, IngestionError)
        assert setting in str(error)
    set_on_database(ingestion.url, setting, None)
    began = time.monotonic()
    build()
    with open_shop(ingestion.settings) as shop:
        assert [index.valid for index in shop.embeddings.vector_indexes()] == [True] * 3
    ingestion.recovered(fault, began)
