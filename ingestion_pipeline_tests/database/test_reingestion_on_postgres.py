"""The work loop on a real database: what lands, what is never done twice, and what a fault leaves.

Every assertion is on rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.inspection import count_facts
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    LeaseLostError,
    RangeFailedError,
)
from ingestion_pipeline.ranges import EVERYTHING, IdType, ProductId, ProductIdRange
from ingestion_pipeline.settings import CatalogueSettings
from ingestion_pipeline.tally import RangeResult
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline.work import AspectResult, KnownVector, Outcome, RunIdentity, Spend
from ingestion_pipeline_tests.shops import (
    DIMENSIONS,
    MODELS,
    PACE,
    KnownEmbedder,
    Product,
    add_products,
    create_products,
    embedders_of,
    prepared_shop,
    product_ids,
    products,
    run,
    settings_for,
    vector_of,
)

ID_TYPES = {
    IdType.INTEGER: "integer",
    IdType.BIGINT: "bigint",
    IdType.UUID: "uuid",
    IdType.TEXT: "text",
}


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    """Ten products of which no two share a text."""
    with connect(database_url) as connection:
        create_products(connection, products(10))
    with prepared_shop(database_url) as shop:
        yield shop


def _rows(shop: Shop, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return shop.connection.execute(query, parameters).fetchall()


def _vectors(shop: Shop) -> dict[tuple[ProductId, Aspect], np.ndarray | None]:
    """What v2 holds."""
    v2 = sql.Identifier(*shop.settings.catalogue.v2.split("."))
    columns = sql.SQL(", ").join(sql.Identifier(aspect.column) for aspect in Aspect)
    query = sql.SQL('SELECT "productId", {} FROM {}').format(columns, v2)
    return {
        (id_, aspect): None if vector is None else vector.to_numpy()
        for id_, *vectors in shop.connection.execute(query)
        for aspect, vector in zip(Aspect, vectors, strict=True)
    }


def _assert_complete(shop: Shop) -> None:
    """v2 holds exactly the right vector for every text of today's catalogue, NULL for none."""
    query = sql.SQL("SELECT product_id, aspect, text FROM ({}\n) AS mapped").format(
        sql.SQL(shop.queries.product_texts())
    )
    ids = [id_ for (id_,) in shop.connection.execute("SELECT id FROM products")]
    expected = {(id_, aspect): "" for id_ in ids for aspect in Aspect} | {
        (id_, Aspect(aspect)): cleaned(text) for id_, aspect, text in shop.connection.execute(query)
    }
    vectors = _vectors(shop)
    assert vectors.keys() == expected.keys()
    for (id_, aspect), text in expected.items():
        vector = vectors[id_, aspect]
        if not text:
            assert vector is None, (id_, aspect)
        else:
            assert vector is not None, (id_, aspect)
            assert np.array_equal(vector, vector_of(text, DIMENSIONS[aspect])), (id_, aspect)


def _states(shop: Shop) -> dict[tuple[str, str], int]:
    counts = shop.catalogue.aspect_counts(shop.settings.fingerprints)
    return {(count.aspect.value, count.state): count.aspects for count in counts}


# What lands


@pytest.mark.parametrize("id_type", IdType)
def test_a_whole_catalogue_lands_and_a_second_run_sends_and_writes_nothing(
    id_type: IdType, database_url: str
) -> None:
    with connect(database_url) as connection:
        create_products(connection, products(10, id_type), id_type=ID_TYPES[id_type])
    with prepared_shop(database_url) as shop:
        assert shop.id_type is id_type
        first = run(shop)
        assert (first.result.products, first.result.embedded) == (10, 30)
        _assert_complete(shop)
        before = _rows(shop, "SELECT * FROM ingestion.embedding_ledger ORDER BY 1, 2")
        again = run(shop, run_id="run-2")
        assert again.texts == []
        assert replace(again.result, seconds=0.0) == RangeResult()
        assert before == _rows(shop, "SELECT * FROM ingestion.embedding_ledger ORDER BY 1, 2")
        assert _rows(shop, "SELECT DISTINCT invocation FROM ingestion.spend") == [("run-1",)]


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("integer", [-(2**31), -7, -1, 0, 1, 2**31 - 1]),
        ("smallint", [-3, 4]),
        ("bigint", [-(2**63), 0, 2**63 - 1]),
        ("text", ["", " ", "a b", "a/b:c", "100%", "...", "*", "line\nbreak", "Käse", "👩‍🍳", "'"]),
        ('text COLLATE "C"', ["b", "B", "a", "Z", "ä", "_", "10", "9"]),
        ('varchar(20) COLLATE "POSIX"', ["b", "B", "a"]),
    ],
)
def test_ids_of_every_shape_land_range_by_range(
    id_type: str, ids: list[ProductId], database_url: str
) -> None:
    rows = [Product(id_, f"Thing {number}", "d", "u", "f") for number, id_ in enumerate(ids)]
    with connect(database_url) as connection:
        create_products(connection, rows, id_type=id_type)
    with prepared_shop(database_url) as shop:
        plan = shop.embeddings.plan_ranges(2)
        assert shop.embeddings.ranges() == plan.ranges
        counted = [run(shop, range_).result.products for _, range_ in plan.ranges]
        assert sum(counted) == len(ids)
        assert max(counted) <= 2
        _assert_complete(shop)


def test_a_text_that_several_products_and_aspects_share_is_embedded_once(
    database_url: str,
) -> None:
    twins = [Product(id_, "Same", "same text", "same text", "same text") for id_ in range(1, 13)]
    with connect(database_url) as connection:
        create_products(connection, twins)
    with prepared_shop(database_url) as shop:
        ranges = [ProductIdRange(None, 7), ProductIdRange(7, None)]
        embedders = embedders_of(shop.settings)
        # All dimensions equal, so that description and usage share a fingerprint.
        results = [run(shop, range_, embedders=embedders).result for range_ in ranges]
        for embedder in embedders.values():
            assert embedder.texts == ["Same. same text"]
        assert [result.embedded for result in results] == [2, 0]
        assert [result.reused for result in results] == [16, 18]
        _assert_complete(shop)


def test_an_edit_makes_just_its_aspect_stale(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("UPDATE products SET usage = 'is used anew' WHERE id = 4")
    assert _states(shop)["usage", "text changed"] == 1
    assert shop.catalogue.texts_to_embed(shop.settings.fingerprints) == {
        shop.settings.fingerprint(Aspect.USAGE): 1
    }
    again = run(shop, run_id="run-2")
    assert again.texts == ["Thing 4. is used anew"]
    _assert_complete(shop)


def test_an_edit_that_does_not_touch_the_texts_makes_nothing_stale(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("ALTER TABLE products ADD price numeric DEFAULT 1")
    shop.connection.execute("UPDATE products SET price = 2")
    assert run(shop).texts == []


def test_an_edit_to_a_text_known_already_reuses_its_vector(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("UPDATE products SET name = 'Thing 1' WHERE id = 2")
    again = run(shop)
    assert again.texts == []
    assert again.result.reused == 3
    _assert_complete(shop)


def test_a_zero_vector_is_never_reused(shop: Shop) -> None:
    run(shop)
    zero = f"[{','.join(['0'] * DIMENSIONS[Aspect.USAGE])}]"
    shop.connection.execute(
        'UPDATE product_embeddings_v2 SET usage_embedding = %s WHERE "productId" = 1', [zero]
    )
    shop.connection.execute(
        "INSERT INTO products SELECT 99, name, NULL, usage, NULL FROM products WHERE id = 1"
    )
    run(shop)
    vector = _vectors(shop)[99, Aspect.USAGE]
    assert vector is not None
    assert np.linalg.norm(vector) > 0.9


def test_a_mapping_that_would_empty_v2_is_counted_before_a_run(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("UPDATE products SET usage = NULL")
    facts = count_facts(shop.connection.live, shop.catalogue, shop.settings)
    assert facts.emptied[Aspect.USAGE] == facts.committed[Aspect.USAGE] > 0
    assert facts.emptied[Aspect.DESCRIPTION] == 0


def test_a_deleted_product_takes_its_vectors_along(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("DELETE FROM products WHERE id = 3")
    assert {id_ for id_, _ in _vectors(shop)} == {1, 2, 4, 5, 6, 7, 8, 9, 10}
    assert run(shop).texts == []
    _assert_complete(shop)


def test_a_product_that_comes_back_gets_its_vectors_back(shop: Shop) -> None:
    run(shop)
    row = products(10)[2]
    shop.connection.execute("DELETE FROM products WHERE id = 3")
    add_products(shop.connection, [row])
    assert _states(shop)["usage", "vector missing"] == 1
    run(shop)
    _assert_complete(shop)


def test_a_vector_that_somebody_removed_is_put_back(shop: Shop) -> None:
    run(shop)
    shop.connection.execute(
        'UPDATE product_embeddings_v2 SET usage_embedding = NULL WHERE "productId" = 5'
    )
    assert _states(shop)["usage", "vector missing"] == 1
    again = run(shop)
    assert again.texts == ["Thing 5. is used"]
    _assert_complete(shop)


@pytest.mark.parametrize("nothing", [None, "", " \n\t", "<p>&nbsp;</p>", "<!-- to do -->"])
def test_a_text_of_nothing_gets_a_row_with_null_and_its_reason_and_is_not_asked_again(
    nothing: str | None, database_url: str, tmp_path: Any
) -> None:
    mapping = tmp_path / "product_texts.sql"
    mapping.write_text(
        "SELECT id AS product_id, unnest(ARRAY['description', 'usage', 'feature']) AS aspect, "
        "unnest(ARRAY[description, usage, features]) AS text FROM products"
    )
    settings = settings_for(database_url, catalogue=CatalogueSettings(product_texts=mapping))
    with connect(database_url) as connection:
        create_products(connection, [Product(1, "Thing", "text", nothing, nothing)])
    with prepared_shop(database_url, settings) as shop:
        result = run(shop).result
        assert (result.products, result.embedded, result.empty, result.failed) == (1, 1, 2, 0)
        _assert_complete(shop)
        assert _rows(
            shop, "SELECT aspect, outcome FROM ingestion.embedding_ledger ORDER BY aspect"
        ) == [("description", "embedded"), ("feature", "empty"), ("usage", "empty")]
        assert _states(shop)["usage", "empty"] == 1
        again = run(shop)
        assert (again.texts, again.result.empty) == ([], 0)


def test_a_product_without_any_text_still_has_its_row(database_url: str) -> None:
    with connect(database_url) as connection:
        create_products(connection, [Product(1, "Thing", None, None, None)])
    with prepared_shop(database_url) as shop:
        run(shop)
        assert _vectors(shop) == dict.fromkeys([(1, aspect) for aspect in Aspect])


def test_the_row_of_a_product_without_any_text_is_put_back_where_it_was_removed(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        create_products(connection, [Product(1, "Thing", None, None, None)])
    with prepared_shop(database_url) as shop:
        run(shop)
        shop.connection.execute("DELETE FROM product_embeddings_v2")
        assert _states(shop)["usage", "vector missing"] == 1
        assert run(shop).result.empty == 3
        _assert_complete(shop)


def test_an_aspect_that_the_mapping_has_no_row_for_is_empty(
    database_url: str, tmp_path: Any
) -> None:
    mapping = tmp_path / "product_texts.sql"
    mapping.write_text("SELECT id AS product_id, 'usage' AS aspect, usage AS text FROM products;")
    settings = settings_for(database_url, catalogue=CatalogueSettings(product_texts=mapping))
    with connect(database_url) as connection:
        create_products(connection, products(2))
    with prepared_shop(database_url, settings) as shop:
        assert run(shop).result.empty == 4
        assert _states(shop) == {
            ("description", "empty"): 2, ("feature", "empty"): 2, ("usage", "done"): 2,
        }  # fmt: skip


def test_a_text_that_is_emptied_later_loses_its_vector(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("UPDATE products SET features = NULL WHERE id = 6")
    assert run(shop).result.empty == 1
    assert _vectors(shop)[6, Aspect.FEATURE] is None
    _assert_complete(shop)


def test_another_model_makes_only_its_own_aspect_stale(shop: Shop, database_url: str) -> None:
    run(shop)
    models = {**MODELS, Aspect.FEATURE: "another"}
    with prepared_shop(database_url, settings_for(database_url, models=models)) as changed:
        assert _states(changed)["feature", "model changed"] == 10
        again = run(changed)
        assert sorted(again.texts) == sorted(f"Thing {id_}. has features" for id_ in range(1, 11))
        assert run(changed).texts == []
        _assert_complete(changed)


# What cannot be embedded


def test_a_refused_text_is_recorded_and_its_neighbours_land(shop: Shop) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 7. is used": "The model refuses this text."}
    result = run(shop, embedders=embedders).result
    assert (result.failed, result.embedded) == (1, 29)
    [failed] = shop.embeddings.failed_products()
    assert (failed.product_id, failed.name, failed.aspect) == (7, "Thing 7", Aspect.USAGE)
    assert (failed.reason, failed.attempts) == ("The model refuses this text.", 1)
    vectors = _vectors(shop)
    assert [key for key, vector in vectors.items() if vector is None] == [(7, Aspect.USAGE)]
    assert run(shop, embedders=embedders_of(shop.settings)).texts == []


def test_a_failed_product_is_tried_again_when_told_and_leaves_the_table_when_mended(
    shop: Shop,
) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 7. is used": "refused"}
    run(shop, embedders=embedders)
    assert shop.embeddings.retry_failed() == 1
    assert shop.embeddings.retry_failed() == 0
    assert _states(shop)["usage", "retry"] == 1
    run(shop, embedders=embedders)
    [failed] = shop.embeddings.failed_products()
    assert failed.attempts == 2
    assert failed.last_failed_at > failed.first_failed_at
    assert shop.embeddings.retry_failed() == 1
    mended = run(shop)
    assert mended.texts == ["Thing 7. is used"]
    assert shop.embeddings.failed_products() == []
    _assert_complete(shop)


@pytest.mark.parametrize("text", ["is used differently", None])
def test_a_failed_product_is_tried_again_when_its_text_changes(
    text: str | None, shop: Shop
) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 7. is used": "refused"}
    run(shop, embedders=embedders)
    shop.connection.execute("UPDATE products SET usage = %s WHERE id = 7", [text])
    run(shop)
    assert shop.embeddings.failed_products() == []
    _assert_complete(shop)


def test_a_text_that_is_edited_into_one_that_is_refused_loses_its_old_vector(shop: Shop) -> None:
    run(shop)
    shop.connection.execute("UPDATE products SET usage = 'poison' WHERE id = 7")
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"poison": "refused"}
    assert run(shop, embedders=embedders).result.failed == 1
    assert _vectors(shop)[7, Aspect.USAGE] is None


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_vector_that_no_index_would_find_is_never_stored(value: float, shop: Shop) -> None:
    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        for position, text in enumerate(texts):
            if text.startswith("Thing 7."):
                right.vectors[position] = value
        return right

    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    assert run(shop, embedders=embedders).result.failed == 3
    vectors = _vectors(shop)
    assert {id_ for (id_, _), vector in vectors.items() if vector is None} == {7}
    assert {failed.product_id for failed in shop.embeddings.failed_products()} == {7}


def _one_short(_: Sequence[str], right: Embeddings) -> Embeddings:
    return Embeddings(right.vectors[:-1], right.tokens[:-1], right.truncated[:-1])


def _too_long(_: Sequence[str], right: Embeddings) -> Embeddings:
    return Embeddings(np.hstack([right.vectors, right.vectors]), right.tokens, right.truncated)


@pytest.mark.parametrize("answer", [_one_short, _too_long])
def test_an_answer_of_the_wrong_shape_leaves_not_a_row_behind(
    answer: Callable[[Sequence[str], Embeddings], Embeddings], shop: Shop
) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    with pytest.raises(RangeFailedError):
        run(shop, embedders=embedders)
    for table in ("product_embeddings_v2", "ingestion.embedding_ledger",
                  "ingestion.failed_products", "ingestion.leases"):  # fmt: skip
        assert _rows(shop, f"TABLE {table}") == []
    requests = sum(len(embedder.requests) for embedder in embedders.values())
    spent = _rows(shop, "SELECT sum(requests), sum(embedded), sum(failed) FROM ingestion.spend")
    assert spent == [(requests, 0, 0)], "what was asked is on record, although nothing came of it"
    run(shop)
    _assert_complete(shop)


def test_a_model_of_another_size_than_the_column_fails_the_range_and_writes_nothing(
    shop: Shop,
) -> None:
    embedders = {
        shop.settings.fingerprint(aspect): KnownEmbedder(dimensions=5) for aspect in Aspect
    }
    with pytest.raises(RangeFailedError, match="dimensions"):
        run(shop, embedders=embedders)
    assert _vectors(shop) == {}
    assert _rows(shop, "SELECT count(*) FROM ingestion.embedding_ledger") == [(0,)]


# Edits while the model works


def _meanwhile(shop: Shop, statement: str) -> dict[str, KnownEmbedder]:
    """Embedders during whose first request somebody else runs a statement."""
    embedders = embedders_of(shop.settings)
    statements = [statement]

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        if statements:
            with connect(_url(shop)) as other:
                other.execute(statements.pop())
        return right

    for embedder in embedders.values():
        embedder.answer = answer
    return embedders


def _url(shop: Shop) -> str:
    assert shop.settings.database_url
    return shop.settings.database_url.get_secret_value()


def test_a_product_edited_while_it_is_embedded_is_done_anew_in_the_same_run(shop: Shop) -> None:
    embedders = _meanwhile(shop, "UPDATE products SET description = 'edited' WHERE id < 3")
    result = run(shop, embedders=embedders).result
    assert (result.products, result.outdated) == (10, 0)
    _assert_complete(shop)
    assert run(shop).texts == []


def test_a_product_deleted_while_it_is_embedded_is_dropped(shop: Shop) -> None:
    embedders = _meanwhile(shop, "DELETE FROM products WHERE id < 3")
    result = run(shop, embedders=embedders).result
    assert result.products == 8
    _assert_complete(shop)
    assert _rows(shop, "SELECT count(*) FROM ingestion.embedding_ledger WHERE product_id < 3") == [
        (0,)
    ]


def test_no_transaction_is_open_while_the_model_works(shop: Shop) -> None:
    seen = []

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        seen.append(shop.connection.live.info.transaction_status.name)
        return right

    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    run(shop, embedders=embedders)
    assert set(seen) == {"IDLE"}


# Leases


def test_a_range_that_a_living_run_holds_is_refused_by_its_name(shop: Shop) -> None:
    with open_shop(shop.settings) as other:
        owner = RunIdentity("run-of-another", "invocation", "0000000004:0000000006")
        lease = other.embeddings.claim(ProductIdRange(4, 6), owner, 300)
        with pytest.raises(LeaseLostError, match="run-of-another"):
            run(shop)
        assert _vectors(shop) == {}
        assert run(shop, ProductIdRange(None, 4)).result.products == 3
        other.embeddings.release(lease)
    assert run(shop).result.products == 7


def test_the_range_of_a_run_that_died_is_free_at_once(shop: Shop) -> None:
    with open_shop(shop.settings) as dead:
        dead.embeddings.claim(EVERYTHING, RunIdentity("dead", "dead", "*:*"), 86_400)
    _wait_until_gone(shop)
    assert run(shop).result.products == 10
    assert _rows(shop, "SELECT count(*) FROM ingestion.leases") == [(0,)]


def _wait_until_gone(shop: Shop) -> None:
    """A server takes a moment to see that a client has gone."""
    deadline = time.monotonic() + 10
    query = "SELECT count(*) FROM ingestion.leases JOIN pg_stat_activity ON pid = backend_pid"
    while _rows(shop, query) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_was_silent_too_long_is_taken_over_and_its_late_write_changes_nothing(
    shop: Shop,
) -> None:
    """The first writer wakes up with an answer in hand after a second run has done everything."""
    taken_over: list[bool] = []

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        if not taken_over:
            taken_over.append(True)
            shop.connection.execute(
                "UPDATE ingestion.leases SET expires_at = now() - interval '1 second'"
            )
            with open_shop(shop.settings) as other:
                run(other, run_id="second")
        right.vectors[:] = 0.5  # what must not be found in v2
        return right

    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    with pytest.raises(LeaseLostError, match="taken over"):
        run(shop, embedders=embedders, run_id="first")
    _assert_complete(shop)
    assert _rows(shop, "SELECT DISTINCT run_id FROM ingestion.embedding_ledger") == [("second",)]
    late = _rows(shop, "SELECT requests, embedded FROM ingestion.spend WHERE run_id = 'first'")
    assert late == [(1, 0)], "its request was paid for, and wrote nothing"


def test_every_write_renews_the_lease(shop: Shop) -> None:
    expiries = []

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        expiries.extend(_rows(shop, "SELECT expires_at FROM ingestion.leases"))
        return right

    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    run(shop, embedders=embedders, pace=replace(PACE, tokens_per_batch=8))
    assert len(expiries) > 3
    assert expiries == sorted(set(expiries))


# Faults


@pytest.mark.parametrize(
    "table", ["ingestion.embedding_ledger", "ingestion.spend", "product_embeddings_v2"]
)
def test_vector_ledger_and_spend_are_written_together_or_not_at_all(table: str, shop: Shop) -> None:
    """A write is refused in the middle of the third commit."""
    shop.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no more'; END $$"
    )
    committed = 2 if table == "ingestion.spend" else 3  # spend is written first
    shop.connection.execute(
        "CREATE FUNCTION enough() RETURNS boolean LANGUAGE sql AS "  # noqa: S608 - a number of ours
        f"$$ SELECT count(*) >= {committed} FROM ingestion.spend $$"
    )
    shop.connection.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW "
        "WHEN (enough()) EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(RangeFailedError, match="no more"):
        run(shop)
    ledger = {
        (id_, Aspect(aspect))
        for id_, aspect in _rows(shop, "SELECT product_id, aspect FROM ingestion.embedding_ledger")
    }
    assert ledger == {key for key, vector in _vectors(shop).items() if vector is not None}
    spent = _rows(shop, "SELECT count(*), sum(embedded) FROM ingestion.spend WHERE embedded > 0")
    assert spent == [(2, len(ledger))]
    assert 0 < len(ledger) < 30
    shop.connection.execute(f"DROP TRIGGER refuse ON {table}")
    rest = run(shop)
    assert len(rest.texts) == 30 - len(ledger)
    _assert_complete(shop)


def test_a_session_that_is_ended_in_the_middle_is_replaced_and_nothing_is_paid_twice(
    shop: Shop,
) -> None:
    calls = []

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        calls.append(True)
        if len(calls) == 3:
            with connect(_url(shop)) as other:
                pid = shop.connection.live.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        return right

    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.answer = answer
    result = run(shop, embedders=embedders)
    assert len(calls) >= 3
    assert len(result.texts) == len(set(result.texts)) == 30
    _assert_complete(shop)
    assert _rows(shop, "SELECT sum(texts) FROM ingestion.spend") == [(30,)]
    assert _rows(shop, "SELECT count(*) FROM ingestion.leases") == [(0,)]


def test_the_same_commit_again_changes_nothing_and_counts_once(shop: Shop) -> None:
    """So it is when the reply to COMMIT was lost."""
    store = shop.embeddings
    lease = store.claim(EVERYTHING, RunIdentity("run", "invocation", "*:*"), 60)
    good, bad, *_ = shop.catalogue.stale_texts(EVERYTHING, shop.settings.fingerprints)
    vector = KnownVector(vector_of("it", DIMENSIONS[good.aspect]), 1, truncated=False)
    results = [
        AspectResult(good, Outcome.EMBEDDED, vector),
        AspectResult(bad, Outcome.FAILED, reason="no"),
    ]
    spend = Spend(good.fingerprint, requests=1, texts=2)
    assert store.commit(lease, results, spend) == results
    queries = (
        "SELECT xmin::text, * FROM ingestion.embedding_ledger ORDER BY product_id, aspect",
        "SELECT xmin::text, * FROM ingestion.failed_products",
        "SELECT xmin::text, * FROM ingestion.spend",
        "SELECT xmin::text, ctid::text FROM product_embeddings_v2",
    )
    before = [_rows(shop, query) for query in queries]
    assert store.commit(lease, results, spend) == results
    assert [_rows(shop, query) for query in queries] == before


# Shops that are not like the sample


def test_v2_with_columns_of_the_shops_own_is_adopted_and_they_are_left_alone(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        create_products(connection, products(3))
        connection.execute(
            'CREATE TABLE product_embeddings_v2 ("productId" integer PRIMARY KEY, note text, '
            "feature_embedding vector(4), usage_embedding vector(8), "
            "description_embedding vector(8), made_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute(
            "INSERT INTO product_embeddings_v2 (\"productId\", note) VALUES (2, 'keep me')"
        )
    with prepared_shop(database_url) as shop:
        run(shop)
        _assert_complete(shop)
        assert _rows(shop, 'SELECT note FROM product_embeddings_v2 WHERE "productId" = 2') == [
            ("keep me",)
        ]


def test_a_view_of_products_works_without_a_foreign_key_and_orphans_are_removed(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        create_products(connection, products(5), table="items")
        connection.execute("CREATE VIEW products AS SELECT * FROM items")
    with prepared_shop(database_url) as shop:
        assert _rows(shop, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(0,)]
        embedders = embedders_of(shop.settings)
        for embedder in embedders.values():
            embedder.refused = {"Thing 2. has": "refused"}
        run(shop, embedders=embedders)
        shop.connection.execute("DELETE FROM items WHERE id <= 2")
        assert shop.embeddings.delete_orphans() == 2
        assert shop.embeddings.delete_orphans() == 0
        _assert_complete(shop)
        assert shop.embeddings.failed_products() == []
        for table in ("embedding_ledger", "failed_products"):
            assert all(row[0] > 2 for row in _rows(shop, f"TABLE ingestion.{table}"))


def test_tables_of_any_name_in_any_schema_are_filled(database_url: str, tmp_path: Any) -> None:
    mapping = tmp_path / "product_texts.sql"
    mapping.write_text(
        "SELECT id AS product_id, 'usage' AS aspect, name || E'.\\n' || usage AS text "
        'FROM "Shop"."Catalog Items"'
    )
    catalogue = CatalogueSettings(
        products="Shop.Catalog Items", v2="Shop.New Vectors", product_texts=mapping
    )
    with connect(database_url) as connection:
        connection.execute('CREATE SCHEMA "Shop"')
        create_products(connection, products(3), table="Shop.Catalog Items")
    with prepared_shop(database_url, settings_for(database_url, catalogue=catalogue)) as shop:
        result = run(shop).result
        assert (result.products, result.embedded, result.empty) == (3, 3, 6)
        shop.connection.execute('DELETE FROM "Shop"."Catalog Items" WHERE id = 1')
        assert {id_ for id_, _ in _vectors(shop)} == {2, 3}


def test_pages_and_batches_of_any_size_come_to_the_same(database_url: str) -> None:
    with connect(database_url) as connection:
        create_products(connection, products(7))
    with prepared_shop(database_url) as shop:
        for size in (1, 3, 7, 8):
            shop.connection.execute("DELETE FROM product_embeddings_v2")
            shop.connection.execute("DELETE FROM ingestion.embedding_ledger")
            pace = replace(PACE, products_per_page=size, tokens_per_batch=size)
            result = run(shop, pace=pace).result
            assert (result.products, result.embedded) == (7, 21)
            _assert_complete(shop)


def test_an_empty_catalogue_is_done_at_once(database_url: str) -> None:
    with connect(database_url) as connection:
        create_products(connection, [])
    with prepared_shop(database_url) as shop:
        assert run(shop).result.products == 0
        assert product_ids(0) == []
