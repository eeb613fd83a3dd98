"""Products inserted, edited and deleted by others all through a run, and at exact moments of it.

No text that is gone ever comes back here, so each is to be sent to its model once at most.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.embeddings import EmbeddingStore
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.orchestration.in_process import Nobody, run_ingest
from ingestion_pipeline.reingestion import TextKey
from ingestion_pipeline.settings import RangeSettings, Settings, WorkSettings
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline.work import KnownVector
from ingestion_pipeline_tests.faults.audit import TOLERANCE, audit
from ingestion_pipeline_tests.faults.record import Fault, times
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import (
    KnownEmbedder,
    create_products,
    embedders_of,
    products,
    run,
    settings_for,
    vector_of,
)

DEADLINE_SECONDS = 60.0

DONE = """
SELECT state.product_id, state.aspect, state.text, CASE state.aspect
    WHEN 'description' THEN v2.description_embedding
    WHEN 'usage' THEN v2.usage_embedding
    WHEN 'feature' THEN v2.feature_embedding
END
FROM ({}) AS state
JOIN product_embeddings_v2 AS v2 ON v2."productId" = state.product_id
WHERE state.state = 'done'
"""
"""Every aspect that counts as done, with today's text and its vector, in one snapshot."""

V2_WITHOUT_FOREIGN_KEY = """
CREATE TABLE product_embeddings_v2 (
    "productId" integer PRIMARY KEY,
    description_embedding vector(8), usage_embedding vector(8), feature_embedding vector(4)
)
"""

REMEMBER = """
CREATE TABLE every_text (text text);
CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO every_text
    SELECT NEW.name || E'.\\n' || it
    FROM unnest(ARRAY[NEW.description, NEW.usage, NEW.features]) AS it
    WHERE it ~ '\\S';
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE ON products
    FOR EACH ROW EXECUTE FUNCTION remember();
"""
"""Every aspect text that there has ever been."""

HOLD_OPEN = """
CREATE FUNCTION hold_open() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;
CREATE TRIGGER hold_open AFTER INSERT ON ingestion.embedding_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION hold_open();
"""
"""Each commit waits for a lock after its last look at the texts."""
HELD_OPEN = "SELECT pg_advisory_xact_lock(77)"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def marked_done_and_wrong(shop: Shop) -> list[tuple[object, str]]:
    """Aspects that count as done by today's text, and have the vector of another."""
    wanted = shop.settings.fingerprints
    rows = shop.connection.execute(
        sql.SQL(DONE).format(shop.queries.compose("aspect_states")),
        {
            "aspects": [aspect.value for aspect in wanted],
            "fingerprints": list(wanted.values()),
            "first": None,
            "end": None,
        },
    ).fetchall()
    return [
        (product_id, aspect)
        for product_id, aspect, text, vector in rows
        if not np.allclose(
            vector.to_numpy(),
            vector_of(cleaned(text), shop.settings.aspects[Aspect(aspect)].dimensions),
            rtol=0,
            atol=TOLERANCE,
        )
    ]


def states(shop: Shop) -> set[str]:
    return {it.state for it in shop.catalogue.aspect_counts(shop.settings.fingerprints)}


def url_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


# All through a run

PRODUCTS = 40
EDITORS = 3
IDS = range(-20, 500)
"""Products come and go anywhere among these, before the first range and behind the last, too."""


FOREIGN_KEYS = [
    pytest.param(True, marks=pytest.mark.fault("products changed by others all through a run")),
    pytest.param(False, marks=pytest.mark.fault("the same, where v2 has no foreign key")),
][: times(1, 2)]
"""Of v2 on products; in `make test` the exact moments below stand for the other kind."""


class Occasions:
    """Each step of a run, which it hears of as a listener, lets the editors make some changes.

    So they keep pace with it, however fast the machine is, and do not replace the whole catalogue
    while a slow one builds an index.
    """

    def __init__(self) -> None:
        self._left = threading.Semaphore(0)

    def wait(self) -> bool:
        """Whether there has been another one."""
        return self._left.acquire(timeout=0.05)

    def __call__(self, *_: object) -> None:
        """A request to a model, or a word to the listener."""
        self._left.release(EDITORS)

    stage = line = progress = verdict = check = __call__


class Editor:
    """Changes the catalogue until it is told to stop, each time to texts that never were before."""

    def __init__(self, url: str, seed: int, numbers: count[int], occasions: Occasions) -> None:
        self._url = url
        self._random = random.Random(seed)  # noqa: S311 - the same changes every time
        self._numbers = numbers
        self._occasions = occasions

    def work(self, stop: threading.Event) -> int:
        """The number of changes made."""
        kinds = [self._insert, self._edit, self._edit, self._rename, self._delete, self._replace]
        changes = 0
        with connect(self._url) as connection:
            while not stop.is_set():
                if self._occasions.wait():
                    self._random.choice(kinds)(connection)
                    changes += 1
        return changes

    def _insert(self, connection: Connection) -> None:
        row = [self._random.choice(IDS), self._new(), self._new(), self._new(), self._new()]
        insert = "INSERT INTO products VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
        connection.execute(insert, row)

    def _edit(self, connection: Connection) -> None:
        column = self._random.choice(["description", "usage", "features"])
        # Preflight would refuse a mapping that takes the texts of most products away.
        text = self._random.choice([None, " ", *6 * [self._new()]])
        update = sql.SQL("UPDATE products SET {} = %s WHERE id = %s")
        connection.execute(update.format(sql.Identifier(column)), [text, self._one(connection)])

    def _rename(self, connection: Connection) -> None:
        rename = "UPDATE products SET name = %s WHERE id = %s"
        connection.execute(rename, [self._new(), self._one(connection)])

    def _delete(self, connection: Connection) -> None:
        connection.execute("DELETE FROM products WHERE id = %s", [self._one(connection)])

    def _replace(self, connection: Connection) -> None:
        id_ = self._one(connection)
        with connection.transaction():
            deleted = connection.execute("DELETE FROM products WHERE id = %s", [id_])
            if deleted.rowcount:
                row = [id_, self._new(), self._new(), self._new(), self._new()]
                connection.execute("INSERT INTO products VALUES (%s, %s, %s, %s, %s)", row)

    def _one(self, connection: Connection) -> int | None:
        """A product that is there, at least until another editor comes."""
        rows = connection.execute("SELECT id FROM products").fetchall()
        return self._random.choice([id_ for (id_,) in rows]) if rows else None

    def _new(self) -> str:
        return f"text {next(self._numbers)}"


@pytest.mark.usefixtures("dagster_home")
@pytest.mark.parametrize("seed", range(times(1, 6)))
@pytest.mark.parametrize("foreign_key", FOREIGN_KEYS)
def test_a_catalogue_that_changes_all_through_a_run_is_right_meanwhile_and_complete_afterwards(
    foreign_key: bool,  # noqa: FBT001 - a parameter of the test
    seed: int,
    database_url: str,
    fault: Fault,
) -> None:
    settings = settings_for(database_url).model_copy(
        update={
            "ranges": RangeSettings(products_per_range=8),
            "work": WorkSettings(tokens_per_batch=16, products_per_page=5),
        }
    )
    with connect(database_url) as connection:
        create_products(connection, [])
        connection.execute(REMEMBER)
        rows = [(it.id * 10, it.name, "of old", "of old", "of old") for it in products(PRODUCTS)]  # type: ignore[operator]
        insert = "INSERT INTO products VALUES (%s, %s, %s, %s, %s)"
        connection.cursor().executemany(insert, rows)
        if not foreign_key:
            connection.execute(V2_WITHOUT_FOREIGN_KEY)
    occasions = Occasions()

    def before(texts: Sequence[str]) -> None:
        occasions(texts)
        time.sleep(0.02)

    models = KnownModels(before=before)
    with _edited(database_url, occasions, seed) as changes, _watched(settings) as wrong:
        run_ingest(settings, occasions, models=models)
    assert sum(changes) > 50
    assert wrong == []

    began = time.monotonic()
    outcome = run_ingest(settings, Nobody(), models=models)
    assert (outcome.failed_ranges, outcome.held_ranges) == ([], [])
    sent = {fingerprint: embedder.texts for fingerprint, embedder in models.embedders.items()}
    with open_shop(settings) as shop:
        assert states(shop) <= {"done", "empty"}
        assert marked_done_and_wrong(shop) == []
        ever = shop.connection.execute("SELECT DISTINCT text FROM every_text").fetchall()
        assert set(models.texts) <= {cleaned(text) for (text,) in ever}
        fault.recovered(audit(shop, sent), caused=sum(changes), seconds=time.monotonic() - began)
        gone = shop.connection.execute(
            "SELECT product_id FROM ingestion.embedding_ledger EXCEPT SELECT id FROM products"
        )
        assert gone.fetchall() == []


@contextmanager
def _edited(url: str, occasions: Occasions, seed: int) -> Iterator[list[int]]:
    """Several editors at work for the length of a `with` block; then how much each has changed."""
    stop, numbers = threading.Event(), count(1)
    changes: list[int] = []
    with ThreadPoolExecutor(EDITORS) as pool:
        editors = [Editor(url, 100 * seed + each, numbers, occasions) for each in range(EDITORS)]
        at_work = [pool.submit(editor.work, stop) for editor in editors]
        try:
            yield changes
        finally:
            stop.set()
        changes += [work.result(DEADLINE_SECONDS) for work in at_work]


@contextmanager
def _watched(settings: Settings) -> Iterator[list[tuple[object, str]]]:
    """What was ever done and wrong during a `with` block, looked at again and again."""
    stop = threading.Event()
    found: list[tuple[object, str]] = []

    def watch() -> int:
        looks = 0
        with open_shop(settings) as shop:
            while not stop.is_set():
                if shop.is_prepared():
                    found.extend(marked_done_and_wrong(shop))
                    looks += 1
                stop.wait(0.05)
        return looks

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            yield found
        finally:
            stop.set()
        assert watcher.result(DEADLINE_SECONDS) > 10


# At exact moments


@dataclass(frozen=True)
class Change:
    """What the shop does to products 2 and 3 of six. `left` are the states that the run leaves.

    A product that was not there when its page was read waits for the next run.
    """

    statements: Sequence[str]
    left: frozenset[str] = frozenset({"done"})


CHANGES = {
    "edited": Change(["UPDATE products SET usage = 'is edited' WHERE id IN (2, 3)"]),
    "renamed": Change(["UPDATE products SET name = 'New name ' || id WHERE id IN (2, 3)"]),
    "emptied": Change(
        ["UPDATE products SET usage = NULL WHERE id IN (2, 3)"], frozenset({"done", "empty"})
    ),
    "deleted": Change(["DELETE FROM products WHERE id IN (2, 3)"]),
    "replaced": Change(
        [
            "DELETE FROM products WHERE id IN (2, 3)",
            "INSERT INTO products VALUES (2, 'Other', 'a', 'b', 'c'), (3, 'Third', 'a', 'b', 'c')",
        ]
    ),
    "inserted": Change(
        ["INSERT INTO products VALUES (0, 'First', 'a', 'b', 'c'), (9, 'Last', 'a', 'b', 'c')"],
        frozenset({"done", "new"}),
    ),
}


@pytest.fixture(params=[True, False], ids=["with foreign key", "without"])
def shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    """Six products, of which the first three have other texts than their vectors are of."""
    with connect(database_url) as connection:
        create_products(connection, products(6))
        if not request.param:
            connection.execute(V2_WITHOUT_FOREIGN_KEY)
    with open_shop(settings_for(database_url)) as shop:
        shop.prepare()
        run(shop)
        shop.connection.execute("UPDATE products SET name = 'Edited ' || id WHERE id <= 3")
        # Of product 3 the row is to be inserted, of the others it is updated.
        shop.connection.execute('DELETE FROM product_embeddings_v2 WHERE "productId" = 3')
        yield shop


def changed_by_another(shop: Shop, change: Change) -> None:
    """A change in one transaction of another session."""
    with connect(url_of(shop.settings)) as other, other.transaction():
        for statement in change.statements:
            other.execute(statement)


@pytest.mark.fault("a product changed between the reading of its text and the answer")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_while_it_is_embedded_is_done_in_the_same_run(
    change: str, shop: Shop, fault: Fault
) -> None:
    embedders = embedders_of(shop.settings)
    once = _once(lambda: changed_by_another(shop, CHANGES[change]))

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        once()
        return right

    for embedder in embedders.values():
        embedder.answer = answer
    began = time.monotonic()
    run(shop, embedders=embedders)
    _assert_recovered(shop, CHANGES[change], embedders, fault, began)


@pytest.mark.fault("a product changed between the look-up of known vectors and their use")
@pytest.mark.parametrize("change", CHANGES)
def test_a_vector_that_is_reused_is_that_of_the_text_it_was_looked_up_for(
    change: str, shop: Shop, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products 2 and 3 have the texts of 4 and 5, which are gone, too, before the vectors are."""
    shop.connection.execute("UPDATE products SET name = 'Thing ' || id + 2 WHERE id IN (2, 3)")
    known_vectors = EmbeddingStore.known_vectors

    def change_it() -> None:
        changed_by_another(shop, CHANGES[change])
        changed_by_another(shop, Change(["DELETE FROM products WHERE id = 4"]))
        changed_by_another(shop, Change(["UPDATE products SET name = 'New' WHERE id = 5"]))

    once = _once(change_it)

    def looked_up(store: EmbeddingStore, texts: Sequence[TextKey]) -> dict[TextKey, KnownVector]:
        found = known_vectors(store, texts)
        assert found or not texts or once.over
        once()
        return found

    monkeypatch.setattr(EmbeddingStore, "known_vectors", looked_up)
    embedders = embedders_of(shop.settings)
    began = time.monotonic()
    run(shop, embedders=embedders)
    left = CHANGES[change].left | {"text changed"}  # product 5, if its page had been read before
    _assert_recovered(shop, Change([], frozenset(left)), embedders, fault, began)


@pytest.mark.fault("a product changed between the last look at its text and COMMIT")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_middle_of_a_commit_is_stale_and_done_by_the_next_run(
    change: str, shop: Shop, fault: Fault
) -> None:
    shop.connection.execute(HOLD_OPEN)
    embedders = embedders_of(shop.settings)
    with ExitStack() as stack:
        other = stack.enter_context(connect(url_of(shop.settings)))
        observer = stack.enter_context(connect(url_of(shop.settings)))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        with other.transaction():
            other.execute(HELD_OPEN)
            writer = pool.submit(run, shop, embedders=embedders)
            _until(lambda: observer.execute(WAITING).fetchall() == [(1,)])
            # A deletion waits for the commit where v2 refers to the product; an edit does not.
            editor = pool.submit(changed_by_another, shop, CHANGES[change])
            blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'"
            _until(lambda: editor.done() or observer.execute(blocked).fetchall() != [(0,)])
        writer.result(DEADLINE_SECONDS)
        editor.result(DEADLINE_SECONDS)
    began = time.monotonic()
    left = CHANGES[change].left | {"text changed", "new", "vector missing"}
    _assert_recovered(shop, Change([], frozenset(left)), embedders, fault, began)


class _once:  # noqa: N801 - used like a function
    """Does something the first time that it is called."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self.over = False

    def __call__(self) -> None:
        if not self.over:
            self.over = True
            self._action()


def _assert_recovered(
    shop: Shop, change: Change, embedders: dict[str, KnownEmbedder], fault: Fault, began: float
) -> None:
    """The run has left nothing wrong and no more than it may; the next one does the rest."""
    assert marked_done_and_wrong(shop) == []
    assert states(shop) <= change.left
    shop.embeddings.delete_orphans()  # as every run does before it plans its ranges
    for embedder in embedders.values():
        embedder.answer = lambda _, right: right
    run(shop, embedders=embedders, run_id="next")
    assert states(shop) <= {"done", "empty"}
    sent = {fingerprint: embedder.texts for fingerprint, embedder in embedders.items()}
    fault.recovered(audit(shop, sent), seconds=time.monotonic() - began)


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
