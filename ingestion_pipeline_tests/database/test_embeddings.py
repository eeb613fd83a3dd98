"""What is written: vectors with their ledger, leases, ranges, failed products, spend, indexes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.embeddings import ModelRate
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import LeaseLostError, RangeFailedError
from ingestion_pipeline.ranges import EVERYTHING, IdType, ProductIdRange, key_of
from ingestion_pipeline.work import (
    AspectResult,
    KnownVector,
    Lease,
    Outcome,
    RunIdentity,
    Spend,
    StaleText,
)
from ingestion_pipeline_tests.shops import (
    PACE,
    add_products,
    create_products,
    embedders_of,
    prepared_shop,
    products,
    run,
    vector_of,
)

OWNER = RunIdentity("run-1", "invocation-1", "*:*")


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    """Ten products with the ids 1 to 10."""
    with connect(database_url) as connection:
        create_products(connection, products(10))
    with prepared_shop(database_url) as shop:
        yield shop


def _rows(shop: Shop, query: str) -> list[tuple[Any, ...]]:
    return shop.connection.execute(query).fetchall()


def _stale(shop: Shop) -> list[StaleText]:
    return shop.catalogue.stale_texts(EVERYTHING, shop.settings.fingerprints)


def _embedded(stale: StaleText, vector: object = None) -> AspectResult:
    dimensions = 4 if stale.aspect is Aspect.FEATURE else 8
    made = vector_of(stale.text or "", dimensions) if vector is None else vector
    known = KnownVector(np.asarray(made, np.float32), tokens=3, truncated=True)
    return AspectResult(stale, Outcome.EMBEDDED, known)


# Commits


def test_a_commit_writes_vector_ledger_and_spend_and_says_what_it_wrote(shop: Shop) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    results = [_embedded(stale) for stale in _stale(shop)[:2]]
    spend = Spend(results[0].stale.fingerprint, requests=1, texts=2, tokens=6, seconds=0.5)
    assert store.commit(lease, results, spend) == results
    assert _rows(
        shop,
        "SELECT product_id, aspect, fingerprint, outcome, tokens, truncated, run_id "
        "FROM ingestion.embedding_ledger ORDER BY aspect",
    ) == [
        (1, result.stale.aspect.value, result.stale.fingerprint, "embedded", 3, True, "run-1")
        for result in results
    ]
    assert _rows(
        shop, "SELECT invocation, range_key, requests, texts, embedded, tokens FROM ingestion.spend"
    ) == [("invocation-1", "*:*", 1, 2, 2, 6)]
    assert _rows(shop, "SELECT count(*) FROM product_embeddings_v2") == [(1,)]
    store.release(lease)
    assert _rows(shop, "SELECT count(*) FROM ingestion.leases") == [(0,)]


def test_a_vector_arrives_bit_for_bit(shop: Shop) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    numbers = np.array([1 / 3, -1e-30, 3e38, 1e-45, 0, -0.0, 2**-126, 1], np.float32)
    [stale] = [text for text in _stale(shop) if text.aspect is Aspect.USAGE][:1]
    store.commit(lease, [_embedded(stale, numbers)], Spend())
    [(stored,)] = _rows(shop, "SELECT usage_embedding FROM product_embeddings_v2")
    assert stored.to_numpy().tobytes() == numbers.tobytes()
    known = store.known_vectors([(stale.digest, stale.fingerprint)])
    assert known[stale.digest, stale.fingerprint].vector.tobytes() == numbers.tobytes()
    assert known[stale.digest, stale.fingerprint].truncated


def test_results_whose_text_has_changed_or_whose_product_is_gone_are_not_written(
    shop: Shop,
) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    results = [_embedded(stale) for stale in _stale(shop) if stale.aspect is Aspect.USAGE]
    shop.connection.execute("UPDATE products SET usage = 'edited' WHERE id = 2")
    shop.connection.execute("DELETE FROM products WHERE id = 3")
    written = store.commit(lease, results, Spend())
    assert [result.stale.product_id for result in written] == [1, 4, 5, 6, 7, 8, 9, 10]
    assert _rows(shop, "SELECT count(*) FROM product_embeddings_v2") == [(8,)]
    assert _rows(shop, "SELECT count(*) FROM ingestion.embedding_ledger") == [(8,)]


def test_a_commit_that_the_server_refuses_writes_nothing_and_the_next_one_works(
    shop: Shop,
) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    good, bad = [_embedded(stale) for stale in _stale(shop) if stale.aspect is Aspect.USAGE][:2]
    short = _embedded(bad.stale, [1.0, 2.0])
    nan = _embedded(bad.stale, [float("nan")] * 8)
    for refused in (short, nan):
        with pytest.raises(RangeFailedError):
            store.commit(lease, [good, refused], Spend())
        for table in ("product_embeddings_v2", "ingestion.embedding_ledger", "ingestion.spend"):
            assert _rows(shop, f"TABLE {table}") == []
    assert store.commit(lease, [good, bad], Spend()) == [good, bad]


def test_a_failed_and_an_empty_aspect_are_in_the_ledger_with_a_null_vector(shop: Shop) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    first, second = _stale(shop)[:2]
    store.commit(
        lease,
        [
            AspectResult(first, Outcome.FAILED, reason="no\nmore"),
            AspectResult(second, Outcome.EMPTY),
        ],
        Spend(),
    )
    assert _rows(shop, "SELECT * FROM product_embeddings_v2") == [(1, None, None, None)]
    assert _rows(shop, "SELECT reason, attempts FROM ingestion.failed_products") == [
        ("no\nmore", 1)
    ]
    assert _rows(shop, "SELECT failed, empty FROM ingestion.spend") == [(1, 1)]


def test_a_commit_of_nothing_is_only_spend(shop: Shop) -> None:
    store = shop.embeddings
    lease = store.claim(EVERYTHING, OWNER, 60)
    assert store.commit(lease, [], Spend(requests=1)) == []
    assert _rows(shop, "SELECT requests FROM ingestion.spend") == [(1,)]


def test_two_writers_of_neighbouring_ranges_do_not_wait_for_each_other(shop: Shop) -> None:
    with open_shop(shop.settings) as other:
        low, high = ProductIdRange(None, 6), ProductIdRange(6, None)
        mine = shop.embeddings.claim(low, RunIdentity("a", "i", "*:0000000006"), 60)
        theirs = other.embeddings.claim(high, RunIdentity("b", "i", "0000000006:*"), 60)
        assert theirs.fence > mine.fence
        stale = _stale(shop)
        for lease, store, ids in (
            (mine, shop.embeddings, range(1, 6)),
            (theirs, other.embeddings, range(6, 11)),
        ):
            results = [_embedded(text) for text in stale if text.product_id in ids]
            assert len(store.commit(lease, results, Spend())) == 15
        assert _rows(shop, "SELECT count(*) FROM product_embeddings_v2") == [(10,)]


def test_known_vectors_are_found_by_text_and_fingerprint_and_only_where_there_is_one(
    shop: Shop,
) -> None:
    run(shop, ProductIdRange(None, 3))
    wanted = [(text.digest, text.fingerprint) for text in _stale(shop)]
    assert shop.embeddings.known_vectors(wanted) == {}
    assert shop.embeddings.known_vectors([]) == {}
    done = _rows(shop, "SELECT text_digest, fingerprint FROM ingestion.embedding_ledger")
    keys = [(bytes(digest), str(fingerprint)) for digest, fingerprint in done]
    assert shop.embeddings.known_vectors(keys).keys() == set(keys)
    others = [(digest, "another") for digest, _ in keys]
    assert shop.embeddings.known_vectors(others) == {}
    shop.connection.execute("UPDATE product_embeddings_v2 SET usage_embedding = NULL")
    assert len(shop.embeddings.known_vectors(keys)) == 4


# Leases


@pytest.mark.parametrize(
    ("first", "end", "free"),
    [
        (None, None, False), (None, 4, True), (None, 5, False), (6, None, True), (5, None, False),
        (4, 6, False), (3, 4, True), (6, 7, True), (5, 6, False), (4, 5, False),
    ],
)  # fmt: skip
def test_a_lease_keeps_others_off_its_own_ids_and_no_others(
    first: int | None, end: int | None, *, free: bool, shop: Shop
) -> None:
    with open_shop(shop.settings) as other:
        holder = RunIdentity("holder", "i", "0000000004:0000000006")
        other.embeddings.claim(ProductIdRange(4, 6), holder, 60)
        range_ = ProductIdRange(first, end)
        owner = replace(OWNER, range_key=key_of(range_, IdType.INTEGER))
        if free:
            shop.embeddings.claim(range_, owner, 60)
        else:
            with pytest.raises(LeaseLostError, match="held by run holder") as refused:
                shop.embeddings.claim(range_, owner, 60)
            assert "UTC" in str(refused.value)


def test_fences_only_grow_and_a_lease_of_the_past_can_neither_write_nor_release(
    shop: Shop,
) -> None:
    store = shop.embeddings
    past = store.claim(EVERYTHING, OWNER, 60)
    store.release(past)
    present = store.claim(EVERYTHING, replace(OWNER, run_id="run-2"), 60)
    assert present.fence > past.fence
    result = _embedded(_stale(shop)[0])
    with pytest.raises(LeaseLostError, match="taken over"):
        store.commit(past, [result], Spend())
    assert _rows(shop, "SELECT count(*) FROM ingestion.embedding_ledger") == [(0,)]
    store.release(past)
    assert store.commit(present, [result], Spend()) == [result]


def test_an_expired_lease_is_anybodys_and_a_commit_before_that_renews_it(shop: Shop) -> None:
    with open_shop(shop.settings) as other:
        lease = other.embeddings.claim(EVERYTHING, OWNER, 60)
        _expire(shop)
        result = _embedded(_stale(shop)[0])
        assert other.embeddings.commit(lease, [result], Spend()) == [result]
        with pytest.raises(LeaseLostError):
            shop.embeddings.claim(EVERYTHING, replace(OWNER, run_id="run-2"), 60)
        _expire(shop)
        shop.embeddings.claim(EVERYTHING, replace(OWNER, run_id="run-2"), 60)
        with pytest.raises(LeaseLostError):
            other.embeddings.commit(lease, [result], Spend())


def _expire(shop: Shop) -> None:
    shop.connection.execute("UPDATE ingestion.leases SET expires_at = now() - interval '1 s'")


def test_a_lease_runs_on_the_databases_clock(shop: Shop) -> None:
    lease = shop.embeddings.claim(EVERYTHING, OWNER, 3600)
    [(now,)] = _rows(shop, "SELECT now()")
    assert isinstance(now, datetime)
    assert timedelta(minutes=59) < lease.expires_at - now <= timedelta(hours=1)


def test_giving_back_over_a_closed_connection_is_no_error(shop: Shop) -> None:
    with open_shop(shop.settings) as other:
        lease = other.embeddings.claim(EVERYTHING, OWNER, 60)
    other.embeddings.release(lease)
    assert isinstance(lease, Lease)


# Ranges


def test_a_first_plan_tiles_the_catalogue(shop: Shop) -> None:
    plan = shop.embeddings.plan_ranges(4)
    assert [key for key, _ in plan.ranges] == [
        "*:0000000005", "0000000005:0000000009", "0000000009:*",
    ]  # fmt: skip
    assert plan.added == [key for key, _ in plan.ranges]
    assert plan.removed == []
    assert shop.embeddings.ranges() == plan.ranges


def test_a_plan_for_an_empty_catalogue_is_one_range_that_grows_into_several(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        create_products(connection, [])
    with prepared_shop(database_url) as shop:
        assert shop.embeddings.plan_ranges(4).added == ["*:*"]
        add_products(shop.connection, products(8))
        assert shop.embeddings.plan_ranges(4).added == []
        add_products(shop.connection, [replace(product, id=99) for product in products(1)])
        plan = shop.embeddings.plan_ranges(4)
        assert plan.removed == ["*:*"]
        assert len(plan.added) == 3


def test_a_plan_that_is_made_again_keeps_every_key(shop: Shop) -> None:
    first = shop.embeddings.plan_ranges(3)
    again = shop.embeddings.plan_ranges(3)
    assert (again.ranges, again.added, again.removed) == (first.ranges, [], [])
    smaller = shop.embeddings.plan_ranges(2)
    assert (smaller.added, smaller.removed) == ([], [])  # three are not more than twice two


def test_a_range_is_split_only_past_twice_the_size_and_only_it_changes_its_key(
    shop: Shop,
) -> None:
    before = shop.embeddings.plan_ranges(4)
    new = [replace(product, id=100 + number) for number, product in enumerate(products(6))]
    add_products(shop.connection, new)
    assert shop.embeddings.plan_ranges(4).added == []  # 8 products in the last range
    add_products(shop.connection, [replace(new[0], id=50)])
    after = shop.embeddings.plan_ranges(4)
    assert after.removed == ["0000000009:*"]
    assert after.added == ["0000000009:0000000101", "0000000101:0000000105", "0000000105:*"]
    assert [key for key, _ in after.ranges] == [
        *[key for key, _ in before.ranges[:-1]],
        *after.added,
    ]
    assert shop.catalogue.products_per_range([range_ for _, range_ in after.ranges]) == [
        4,
        4,
        4,
        4,
        1,
    ]


def test_after_any_growth_every_id_is_in_exactly_one_range(shop: Shop) -> None:
    for start in (1000, -1000, 20, 500):
        add_products(
            shop.connection,
            [replace(product, id=start + number) for number, product in enumerate(products(10))],
        )
        ranges = [range_ for _, range_ in shop.embeddings.plan_ranges(3).ranges]
        assert (ranges[0].first, ranges[-1].end) == (None, None)
        assert all(low.end == high.first for low, high in pairwise(ranges))
        counted = [shop.catalogue.count(range_) for range_ in ranges]
        assert sum(counted) == shop.catalogue.count()
        assert counted == shop.catalogue.products_per_range(ranges)
        assert max(counted) <= 6


def test_ranges_of_one_product_can_be_had(shop: Shop) -> None:
    assert len(shop.embeddings.plan_ranges(1).ranges) == 10


def test_ranges_come_in_the_order_of_ids_negative_ones_too(database_url: str) -> None:
    with connect(database_url) as connection:
        create_products(connection, [replace(products(1)[0], id=id_) for id_ in (-30, -4, 0, 9)])
    with prepared_shop(database_url) as shop:
        shop.embeddings.plan_ranges(1)
        assert [range_.first for _, range_ in shop.embeddings.ranges()] == [None, -4, 0, 9]


# Bookkeeping


def test_spend_is_summed_for_an_invocation_and_the_latest_is_the_default(shop: Shop) -> None:
    assert shop.embeddings.spend() is None
    run(shop, ProductIdRange(None, 6), run_id="first")
    run(shop, ProductIdRange(6, None), run_id="second")
    latest = shop.embeddings.spend()
    assert latest is not None
    assert (latest.invocation, latest.embedded, latest.texts, latest.failed) == (
        "second",
        15,
        15,
        0,
    )
    first = shop.embeddings.spend("first")
    assert first is not None
    assert (first.embedded, first.reused, first.empty) == (15, 0, 0)
    assert first.tokens == sum(len(text.split()) for text in _texts_of(range(1, 6)))
    assert first.started_at <= first.finished_at <= datetime.now(UTC)
    assert shop.embeddings.spend("nobody") is None


def _texts_of(ids: range) -> list[str]:
    return [
        f"Thing {id_}. {what}"
        for id_ in ids
        for what in ("is described", "is used", "has features")
    ]


def test_rates_are_texts_a_second_of_each_model(shop: Shop) -> None:
    assert shop.embeddings.model_rates() == {}
    lease = shop.embeddings.claim(EVERYTHING, OWNER, 60)
    results = [_embedded(stale) for stale in _stale(shop)[:4]]
    shop.embeddings.commit(lease, results, Spend("model", texts=4, tokens=12, seconds=2.0))
    shop.embeddings.commit(lease, [], Spend("idle", seconds=2.0))
    assert shop.embeddings.model_rates() == {
        "model": ModelRate(texts_per_second=2.0, tokens_per_text=3.0)
    }


def test_failed_products_are_listed_by_reason_and_id(shop: Shop) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 7. is used": "too long", "Thing 2. is used": "refused",
                            "Thing 9. is used": "refused"}  # fmt: skip
    run(shop, embedders=embedders)
    failed = shop.embeddings.failed_products()
    assert [(entry.reason, entry.product_id, entry.name) for entry in failed] == [
        ("refused", 2, "Thing 2"), ("refused", 9, "Thing 9"), ("too long", 7, "Thing 7"),
    ]  # fmt: skip
    assert all(entry.first_failed_at.utcoffset() == timedelta(0) for entry in failed)


# Indexes


def test_each_column_gets_one_index_and_a_second_call_builds_none(shop: Shop) -> None:
    run(shop)
    told: list[str] = []
    names = [f"product_embeddings_v2_{aspect.value}_hnsw" for aspect in Aspect]
    assert shop.embeddings.create_vector_indexes(told.append) == names
    assert [name in line for name, line in zip(names, told, strict=True)] == [True] * 3
    indexes = shop.embeddings.vector_indexes()
    assert {index.column: index.name for index in indexes} == dict(
        zip([aspect.column for aspect in Aspect], names, strict=True)
    )
    assert all(index.valid and index.bytes > 0 for index in indexes)
    assert shop.embeddings.create_vector_indexes() == []
    table_bytes, index_bytes = shop.embeddings.bytes()
    assert table_bytes > 0
    assert index_bytes >= sum(index.bytes for index in indexes)
    again = run(shop, pace=PACE)
    assert again.texts == []


def test_an_index_of_the_shops_own_counts_and_a_broken_one_is_built_again(shop: Shop) -> None:
    hnsw = "CREATE INDEX {} ON product_embeddings_v2 USING hnsw ({} vector_cosine_ops)"
    shop.connection.execute(hnsw.format("own", "usage_embedding"))
    broken = "product_embeddings_v2_feature_hnsw"
    shop.connection.execute(hnsw.format(broken, "feature_embedding"))
    shop.connection.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [broken]
    )
    assert [index.valid for index in shop.embeddings.vector_indexes()] == [False, True]
    assert shop.embeddings.create_vector_indexes() == [
        "product_embeddings_v2_description_hnsw", broken,
    ]  # fmt: skip
    indexes = shop.embeddings.vector_indexes()
    assert [index.name for index in indexes if index.valid] == [
        "product_embeddings_v2_description_hnsw", broken, "own",
    ]  # fmt: skip
