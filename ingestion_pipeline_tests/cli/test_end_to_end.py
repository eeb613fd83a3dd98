"""The main job as a user runs it, on real models: little, all, nothing more, and mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingestion_pipeline_tests.cli.conftest import Ingest, execute

COUNTS = """SELECT count(*), count(description_embedding), count(usage_embedding),
    count(feature_embedding) FROM product_embeddings_v2"""
PRODUCTS = 12
DISTINCT_TEXTS = 11 + 10 + 11  # one product repeats another's texts, one has no usage


def _verdict(document: Any, check: str) -> Any:
    [verdict] = [verdict for verdict in document["verdicts"] if verdict["check"] == check]
    return verdict


@pytest.mark.usefixtures("dagster")
def test_five_products_then_all_then_nothing_and_a_lost_row_is_found_and_mended(
    ingest: Ingest, program: Ingest, shop_url: str, catalogue: Path
) -> None:
    assert ingest("load", catalogue).code == 0

    # Five, in the real program: the seed of it all.
    five = program("--limit", "5", "--json")
    assert five.code == 0, five.err
    assert five.document["report"] is None
    assert _verdict(five.document, "canary")["status"] == "pass"
    assert execute(shop_url, COUNTS) == [(5, 5, 5, 5)]
    seen = ingest("status", "--json").document
    assert (seen["done_products"], seen["stale_products"]) == (5, 7)
    assert seen["latest"]["embedded"] == 15

    # All of them: progress on stderr, a line at a time as this is no terminal; result on stdout.
    everything = program()
    assert everything.code == 0, everything.err
    assert "7/7 products · 100%" in everything.err
    assert "\nReport\n" in everything.out
    assert "✓ v2_count" in everything.out
    assert "→ `ingest search" in everything.out.splitlines()[-1]
    assert execute(shop_url, COUNTS) == [(PRODUCTS, PRODUCTS, PRODUCTS - 1, PRODUCTS)]
    embedded = "SELECT sum(embedded), sum(empty) FROM ingestion.spend"
    assert execute(shop_url, embedded) == [(DISTINCT_TEXTS, 1)]

    # Again: nothing is embedded twice, and it says so.
    again = ingest("--json")
    assert again.code == again.document["exit_code"] == 0
    assert again.document["up_to_date"] is True
    assert again.document["report"]["embedded"] == 0
    assert {check["status"] for check in again.document["checks"]} <= {"pass", "unknown"}
    assert execute(shop_url, embedded) == [(DISTINCT_TEXTS, 1)]
    assert "`ingest verify`" in ingest("status").out.splitlines()[-1]
    assert ingest("failures").out == "No product has failed.\n"

    # It can be searched.
    found = ingest("search", "something to boil water in", "--limit", "3", "--json").document
    assert found["hits"][0]["name"] == "A kettle"
    assert len(found["hits"]) == 3
    assert "A coat +1 variant " in ingest("search", "a coat").out

    # A row that got lost is named, and mended from the twin with the same texts.
    execute(shop_url, 'DELETE FROM product_embeddings_v2 WHERE "productId" = 12')
    damaged = ingest("verify")
    assert damaged.code == 5
    assert "✗ every_product_has_embeddings" in damaged.out
    assert "    12 A coat" in damaged.out
    assert "→ `ingest status`" in damaged.out
    assert ingest("verify", "--json").document["holds"] is False
    mended = ingest("--json")
    assert mended.code == 0
    assert mended.document["report"]["embedded"] == 0
    assert mended.document["report"]["reused"] == 3
    assert ingest("verify").code == 0


@pytest.mark.usefixtures("dagster")
def test_a_range_that_fails_is_told_with_its_reason_and_retried_alone(
    ingest: Ingest, shop_url: str, catalogue: Path, environment: Path
) -> None:
    (environment / "ingestion.toml").write_text("[ranges]\nproducts_per_range = 6\n")
    ingest("load", catalogue)
    execute(
        shop_url,
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'product 9 is cursed'; END $$""",
    )
    assert ingest("--limit", "5").code == 0
    execute(
        shop_url,
        """CREATE TRIGGER cursed BEFORE INSERT OR UPDATE ON product_embeddings_v2
            FOR EACH ROW WHEN (NEW."productId" = 9) EXECUTE FUNCTION refuse()""",
    )
    failed = ingest()
    assert failed.code == 6
    assert "✗ range 0000000007:*" in failed.out
    assert "product 9 is cursed" in failed.out
    assert "→ `ingest retry`" in failed.out

    execute(shop_url, "DROP TRIGGER cursed ON product_embeddings_v2")
    retried = ingest("retry", "--json")
    assert retried.code == 0, retried.err
    assert retried.document["failed_ranges"] == []
    assert execute(shop_url, COUNTS) == [(PRODUCTS, PRODUCTS, PRODUCTS - 1, PRODUCTS)]
    assert execute(shop_url, "SELECT sum(embedded) FROM ingestion.spend") == [(DISTINCT_TEXTS,)]


@pytest.mark.usefixtures("dagster")
def test_failed_products_are_listed_with_reasons_and_tried_again_when_asked(
    ingest: Ingest, shop_url: str, catalogue: Path
) -> None:
    ingest("load", catalogue)
    assert ingest().code == 0
    execute(
        shop_url,
        "UPDATE ingestion.embedding_ledger SET outcome = 'failed' WHERE product_id = 3 "
        "AND aspect = 'usage'",
        'UPDATE product_embeddings_v2 SET usage_embedding = NULL WHERE "productId" = 3',
        "INSERT INTO ingestion.failed_products (product_id, aspect, reason) "
        "VALUES (3, 'usage', 'the model says no')",
    )
    listed = ingest("failures")
    assert listed.code == 0
    assert "A tent" in listed.out
    assert "the model says no" in listed.out
    assert "ingest failures --retry" in listed.out
    [failure] = ingest("failures", "--json").document["failed"]
    assert (failure["product_id"], failure["aspect"]) == (3, "usage")
    assert "ingest failures" in ingest("status").out
    assert ingest().code == 6  # finished, and not everything is there

    assert ingest("failures", "--retry").code == 0
    assert ingest("failures", "--json").document["failed"] == []
    assert execute(shop_url, COUNTS) == [(PRODUCTS, PRODUCTS, PRODUCTS - 1, PRODUCTS)]
