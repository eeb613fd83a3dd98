"""What is read of a shop's catalogue: ranges, pages, states and counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import AspectCount
from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.ranges import EVERYTHING, ProductId, ProductIdRange, key_of
from ingestion_pipeline.texts import text_digest
from ingestion_pipeline.work import StaleText
from ingestion_pipeline_tests.shops import (
    Product,
    create_products,
    embedders_of,
    prepared_shop,
    products,
    run,
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url) as connection:
        yield connection


@pytest.fixture
def shop(database_url: str, connection: Connection) -> Iterator[Shop]:
    """Ten products with the ids 1 to 10."""
    create_products(connection, products(10))
    with prepared_shop(database_url) as shop:
        yield shop


def _ids(shop: Shop, range_: ProductIdRange) -> list[ProductId]:
    stale = shop.catalogue.stale_texts(range_, shop.settings.fingerprints)
    return list(dict.fromkeys(text.product_id for text in stale))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.none())
def test_the_digest_of_a_text_is_the_one_that_postgresql_computes(
    text: str | None, connection: Connection
) -> None:
    row = connection.execute(
        "SELECT sha256(convert_to(coalesce(%s::text, ''), 'UTF8'))", [text]
    ).fetchone()
    assert row == (text_digest(text),)


def test_a_stale_text_comes_with_the_digest_of_exactly_that_text(shop: Shop) -> None:
    stale = shop.catalogue.stale_texts(EVERYTHING, shop.settings.fingerprints)
    assert len(stale) == 30
    for text in stale:
        assert text.digest == text_digest(text.text)
        assert text.fingerprint == shop.settings.fingerprint(text.aspect)
    assert stale[0].text == "Thing 1.\nis described"


def test_counts_are_of_the_range_that_is_asked_about(shop: Shop) -> None:
    catalogue = shop.catalogue
    assert catalogue.count() == 10
    assert catalogue.count(ProductIdRange(3, 7)) == 4
    assert catalogue.count(ProductIdRange(None, 3)) == 2
    assert catalogue.count(ProductIdRange(9, None)) == 2
    assert catalogue.count(ProductIdRange(5, 5)) == 0


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (5, 5), (9, 9), (10, 10), (99, 10)])
def test_the_first_products_are_a_range_of_just_as_many(
    number: int, expected: int, shop: Shop
) -> None:
    range_ = shop.catalogue.first_products(number)
    assert range_.first is None
    assert shop.catalogue.count(range_) == expected
    assert (range_.end is None) == (expected == 10)


def _pages(shop: Shop, range_: ProductIdRange, size: int) -> Iterator[list[StaleText]]:
    rest: ProductIdRange | None = range_
    while rest is not None:
        page, rest = shop.catalogue.page(rest, shop.settings.fingerprints, size)
        yield page


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
def test_pages_hold_every_product_once_in_order(size: int, shop: Shop) -> None:
    pages = list(_pages(shop, EVERYTHING, size))
    ids = [list(dict.fromkeys(text.product_id for text in page)) for page in pages]
    assert [id_ for page in ids for id_ in page] == list(range(1, 11))
    assert all(len(page) == size for page in ids[:-1])


def test_pages_keep_to_their_range_and_skip_what_is_done(shop: Shop) -> None:
    run(shop, ProductIdRange(4, 6))
    pages = _pages(shop, ProductIdRange(3, 8), 2)
    assert [[text.product_id for text in page] for page in pages] == [[3] * 3, [6] * 3, [7] * 3]


def test_products_that_come_and_go_between_pages_neither_stop_nor_repeat_the_reading(
    shop: Shop, connection: Connection
) -> None:
    pages = _pages(shop, EVERYTHING, 3)
    seen = [text.product_id for text in next(pages)]
    connection.execute("DELETE FROM products WHERE id IN (2, 4)")
    connection.execute("INSERT INTO products VALUES (0, 'New'), (11, 'New')")
    seen += [text.product_id for page in pages for text in page]
    assert list(dict.fromkeys(seen)) == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 9, 10, 11])
def test_a_range_is_divided_into_ranges_of_as_many_products_as_wanted(
    every: int, shop: Shop
) -> None:
    ranges = shop.catalogue.divided(EVERYTHING, every)
    sizes = shop.catalogue.products_per_range(ranges)
    assert sizes == [len(range(start, min(start + every, 10))) for start in range(0, 10, every)]
    assert (ranges[0].first, ranges[-1].end) == (None, None)
    assert all(low.end == high.first for low, high in pairwise(ranges))


def test_dividing_a_bounded_range_keeps_its_bounds(shop: Shop) -> None:
    ranges = shop.catalogue.divided(ProductIdRange(3, 9), 4)
    assert ranges == [ProductIdRange(3, 7), ProductIdRange(7, 9)]


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("integer", [-(2**31), -5, -1, 0, 3, 2**31 - 1]),
        ("bigint", [-(2**63), 0, 2**63 - 1]),
        ("uuid", [UUID(int=0), UUID(int=5), UUID(int=2**128 - 1)]),
        ("text", ["", " ", "%", "*", "B", "a", "ä", "é", "字", "👩‍🍳"]),
        ('text COLLATE "POSIX"', ["B", "a", "b"]),
        ("varchar(40)", ["B", "a", "b"]),
    ],
)
def test_ranges_of_one_product_hold_exactly_their_own_and_a_count_agrees(
    id_type: str, ids: list[ProductId], database_url: str, connection: Connection
) -> None:
    rows = [Product(id_, "Thing", "d", "u", "f") for id_ in ids]
    create_products(connection, rows, id_type=id_type)
    with prepared_shop(database_url) as shop:
        ranges = shop.catalogue.divided(EVERYTHING, 1)
        assert [_ids(shop, range_) for range_ in ranges] == [[id_] for id_ in ids]
        assert shop.catalogue.products_per_range(ranges) == [1] * len(ids)
        keys = [(key_of(range_, shop.id_type), range_) for range_ in ranges]
        progress = shop.catalogue.range_progress(keys, shop.settings.fingerprints)
        assert [(entry.products, entry.stale_products) for entry in progress] == [(1, 1)] * len(ids)
        assert shop.catalogue.names(ids) == dict.fromkeys(ids, "Thing")


def test_an_id_between_the_boundaries_that_appears_later_is_in_exactly_one_range(
    shop: Shop, connection: Connection
) -> None:
    ranges = shop.catalogue.divided(EVERYTHING, 4)
    connection.execute("DELETE FROM products WHERE id IN (4, 5)")
    connection.execute("INSERT INTO products SELECT n, 'New' FROM unnest(ARRAY[-9, 5, 99]) AS n")
    holding = {
        id_: [range_ for range_ in ranges if id_ in _ids(shop, range_)] for id_ in (-9, 5, 99)
    }
    assert holding == {-9: [ranges[0]], 5: [ranges[1]], 99: [ranges[-1]]}


def test_states_count_aspects_and_distinct_texts_and_say_which_are_stale(
    shop: Shop, connection: Connection
) -> None:
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 2. has features": "refused"}
    connection.execute("UPDATE products SET usage = NULL WHERE id = 1")
    run(shop, ProductIdRange(None, 6), embedders=embedders)
    connection.execute("UPDATE products SET name = 'Twin' WHERE id IN (9, 10)")
    connection.execute("UPDATE products SET description = 'anew' WHERE id = 3")
    counts = shop.catalogue.aspect_counts(shop.settings.fingerprints)
    assert counts == [
        AspectCount(Aspect.DESCRIPTION, "done", 4, 4),
        AspectCount(Aspect.DESCRIPTION, "new", 5, 4),
        AspectCount(Aspect.DESCRIPTION, "text changed", 1, 1),
        AspectCount(Aspect.FEATURE, "done", 4, 4),
        AspectCount(Aspect.FEATURE, "failed", 1, 1),
        AspectCount(Aspect.FEATURE, "new", 5, 4),
        AspectCount(Aspect.USAGE, "done", 4, 4),
        AspectCount(Aspect.USAGE, "empty", 1, 1),
        AspectCount(Aspect.USAGE, "new", 5, 4),
    ]
    assert {count.state for count in counts if count.stale} == {"new", "text changed"}


def test_texts_to_embed_are_distinct_and_not_those_whose_vector_is_known(
    shop: Shop, connection: Connection
) -> None:
    large = shop.settings.fingerprint(Aspect.USAGE)
    small = shop.settings.fingerprint(Aspect.FEATURE)
    assert shop.catalogue.texts_to_embed(shop.settings.fingerprints) == {large: 20, small: 10}
    run(shop)
    assert shop.catalogue.texts_to_embed(shop.settings.fingerprints) == {}
    twins = "INSERT INTO products SELECT id + 20, name, description, usage FROM products"
    connection.execute(twins)  # the same texts, and no features
    assert shop.catalogue.texts_to_embed(shop.settings.fingerprints) == {}
    connection.execute("UPDATE products SET usage = 'new' WHERE id IN (21, 22)")
    connection.execute("UPDATE products SET name = 'Thing 21' WHERE id = 22")
    connection.execute("UPDATE products SET name = 'Thing 21' WHERE id = 21")
    assert shop.catalogue.texts_to_embed(shop.settings.fingerprints) == {large: 2}


def test_progress_counts_products_once_however_many_of_their_aspects_are_stale(
    shop: Shop, connection: Connection
) -> None:
    plan = shop.embeddings.plan_ranges(4)
    embedders = embedders_of(shop.settings)
    for embedder in embedders.values():
        embedder.refused = {"Thing 6.": "refused"}
    run(shop, embedders=embedders)
    connection.execute("UPDATE products SET description = 'x', usage = 'y' WHERE id = 2")
    connection.execute("DELETE FROM products WHERE id > 8")
    progress = shop.catalogue.range_progress(plan.ranges, shop.settings.fingerprints)
    assert [(p.key, p.products, p.stale_products, p.failed_products) for p in progress] == [
        ("*:0000000005", 4, 1, 0),
        ("0000000005:0000000009", 4, 0, 1),
        ("0000000009:*", 0, 0, 0),
    ]


def test_names_of_products_that_are_gone_are_left_out(shop: Shop) -> None:
    assert shop.catalogue.names([1, 99]) == {1: "Thing 1"}
    assert shop.catalogue.names([]) == {}


def test_an_id_that_looks_like_sql_is_a_value(database_url: str, connection: Connection) -> None:
    evil: Any = "'; DROP TABLE products; --"
    create_products(connection, [Product(evil, "Thing", "d", "u", "f")], id_type="text")
    with prepared_shop(database_url) as shop:
        assert shop.catalogue.count(ProductIdRange(evil, None)) == 1
        assert shop.catalogue.names([evil]) == {evil: "Thing"}


def test_the_catalogue_is_only_read(shop: Shop, connection: Connection) -> None:
    """Everything above works where not a row may be written."""
    before = connection.execute("SELECT * FROM products ORDER BY id").fetchall()
    shop.connection.execute("SET default_transaction_read_only = on")
    ranges = [("*:*", EVERYTHING)]
    fingerprints = shop.settings.fingerprints
    shop.catalogue.count()
    shop.catalogue.first_products(3)
    list(_pages(shop, EVERYTHING, 3))
    shop.catalogue.aspect_counts(fingerprints)
    shop.catalogue.texts_to_embed(fingerprints)
    shop.catalogue.range_progress(ranges, fingerprints)
    shop.catalogue.divided(EVERYTHING, 3)
    shop.catalogue.names([1])
    assert connection.execute("SELECT * FROM products ORDER BY id").fetchall() == before
