"""A changed model or mapping on a real database: seen with its reason, and just that made anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import queries
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.inspection import count_facts
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.preflight import product_count
from ingestion_pipeline.settings import CatalogueSettings, Settings
from ingestion_pipeline.verification.checks import run_checks
from ingestion_pipeline_tests.shops import (
    KnownEmbedder,
    create_products,
    embedders_of,
    prepared_shop,
    products,
    run,
    settings_for,
)

PRODUCTS = 6


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    """Six products, ingested, with a mapping of their own in a file that a test may edit."""
    mapping = tmp_path / "product_texts.sql"
    mapping.write_text(queries.text("product_texts"), encoding="utf-8")
    settings = settings_for(database_url, catalogue=CatalogueSettings(product_texts=mapping))
    with connect(database_url) as connection:
        create_products(connection, products(PRODUCTS))
    with prepared_shop(database_url, settings) as shop:
        run(shop)
        yield shop


def changed(settings: Settings, aspect: Aspect, **values: object) -> Settings:
    """The settings with other values for one aspect."""
    model = settings.aspects[aspect].model_copy(update=values)
    return settings.model_copy(update={"aspects": {**settings.aspects, aspect: model}})


def edit_mapping(shop: Shop, before: str, after: str) -> None:
    file = shop.settings.catalogue.product_texts
    assert file is not None
    mapping = file.read_text(encoding="utf-8")
    assert before in mapping
    file.write_text(mapping.replace(before, after), encoding="utf-8")


def told(settings: Settings) -> tuple[str, ...]:
    """What preflight says of the count, once it has prepared the shop as it does."""
    with open_shop(settings) as shop:
        shop.prepare()
        facts = count_facts(shop.connection.live, shop.catalogue, settings)
        return product_count(facts, settings).details


def ingested(settings: Settings) -> Mapping[str, KnownEmbedder]:
    """Run with these settings; the embedders, by fingerprint, with what was sent to them."""
    embedders = embedders_of(settings)
    with prepared_shop(settings.database_url.get_secret_value(), settings) as shop:  # type: ignore[union-attr]
        run(shop, embedders=embedders, run_id="run-2")
    return embedders


def rows(shop: Shop, query: str) -> list[tuple[Any, ...]]:
    return shop.connection.execute(query.encode()).fetchall()  # type: ignore[arg-type]


LEDGER = """SELECT product_id, aspect, fingerprint, run_id FROM ingestion.embedding_ledger
    ORDER BY 1, 2"""


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prefix": "passage: "}, "its model's prefix changed from '' to 'passage: '"),
        ({"max_tokens": 32}, "its model's max_tokens changed from 64 to 32"),
        ({"normalize": False}, "its model's normalize changed from true to false"),
        ({"revision": "abc"}, "its model's revision changed from none to 'abc'"),
        ({"model": "other"}, "its model changed from 'large' to 'other'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_setting_of_one_aspect_is_told_and_just_that_aspect_is_embedded_again(
    shop: Shop, values: dict[str, object], reason: str
) -> None:
    settings = changed(shop.settings, Aspect.USAGE, **values)
    before = rows(shop, LEDGER)

    assert told(settings) == (f"usage: {PRODUCTS} stale: {reason}",)

    embedders = ingested(settings)
    sent = {fingerprint: embedder.texts for fingerprint, embedder in embedders.items()}
    usage = settings.fingerprint(Aspect.USAGE)
    assert sorted(sent.pop(usage)) == [f"Thing {n}. is used" for n in range(1, PRODUCTS + 1)]
    assert [texts for texts in sent.values() if texts] == []
    after = rows(shop, LEDGER)
    others = [row for row in before if row[1] != "usage"]
    assert [row for row in after if row[1] != "usage"] == others
    assert {row[2:] for row in after if row[1] == "usage"} == {(usage, "run-2")}
    assert told(settings) == ()
    with open_shop(settings) as shop_now:
        [result] = run_checks(shop_now, ["one_model_a_column"])
    assert result.status == "pass", result.summary


def test_other_dimensions_are_told_by_both_numbers(shop: Shop) -> None:
    settings = changed(shop.settings, Aspect.FEATURE, dimensions=8)

    assert told(settings) == (
        f"feature: {PRODUCTS} stale: its model's dimensions changed from 4 to 8",
    )


def test_an_edited_text_a_new_product_and_a_changed_model_are_told_apart(shop: Shop) -> None:
    settings = changed(shop.settings, Aspect.USAGE, prefix="x")
    shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id <= 2")
    shop.connection.execute("INSERT INTO products VALUES (7, 'Mug', 'Holds tea', 'Daily', 'Clay')")

    assert told(settings) == (
        "description: 1 new",
        "usage: 7 stale: its model's prefix changed from '' to 'x' (4); text changed (2); new (1)",
        "feature: 1 new",
    )


def test_a_mapping_that_has_changed_is_told_with_the_aspects_that_it_may_have_changed(
    shop: Shop,
) -> None:
    file = shop.settings.catalogue.product_texts
    edit_mapping(shop, "products.features)", "products.features || '!')")

    expected = (
        f"feature: {PRODUCTS} stale: text changed",
        f"mapping: {file} has changed since {PRODUCTS} of these were ingested",
    )
    assert told(shop.settings) == expected
    assert told(shop.settings) == expected, "a second look says what the first one said"

    embedders = ingested(shop.settings)
    sent = [text for embedder in embedders.values() for text in embedder.texts]
    assert sorted(sent) == [f"Thing {n}. has features!" for n in range(1, PRODUCTS + 1)]
    assert told(shop.settings) == ()


def test_an_edited_text_under_the_same_mapping_says_nothing_of_the_mapping(shop: Shop) -> None:
    edit_mapping(shop, "-- Rows of", "-- All rows of")
    assert told(shop.settings) == ()
    ingested(shop.settings)
    edit_mapping(shop, "-- All rows of", "-- Rows of")
    shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id = 2")

    # The mapping that was in use when product 2 was ingested is in use again.
    assert told(shop.settings) == ("usage: 1 stale: text changed",)
    assert rows(shop, "SELECT count(*) FROM ingestion.mappings") == [(3,)]


def test_what_was_ingested_before_the_record_began_is_not_claimed_to_have_another_mapping(
    shop: Shop,
) -> None:
    settings = changed(shop.settings, Aspect.FEATURE, prefix="it ")
    shop.connection.execute("DELETE FROM ingestion.mappings")
    shop.connection.execute("DELETE FROM ingestion.fingerprints")
    shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id = 2")

    assert told(settings) == (
        "usage: 1 stale: text changed",
        f"feature: {PRODUCTS} stale: its model changed, from one that is not on record",
    )


def test_each_fingerprint_is_recorded_once_with_what_it_stands_for(shop: Shop) -> None:
    recorded = dict(rows(shop, "SELECT fingerprint, parts FROM ingestion.fingerprints"))
    assert recorded == {
        shop.settings.fingerprint(aspect): shop.settings.fingerprint_parts(aspect)
        for aspect in Aspect
    }
    query = "SELECT xmin, * FROM ingestion.fingerprints ORDER BY fingerprint"
    before = rows(shop, query)
    shop.prepare()
    assert rows(shop, query) == before
    assert rows(shop, "SELECT count(*) FROM ingestion.mappings") == [(1,)]
