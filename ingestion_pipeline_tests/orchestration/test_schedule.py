"""The nightly schedule: runs for stale ranges, for no others, and none where nothing is stale."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, SmallShop
from ingestion_pipeline_tests.shops import Product, add_products

NIGHT = datetime(2026, 5, 4, 2, 0, tzinfo=UTC)


def _tick(shop: SmallShop) -> dg.SkipReason | list[dg.RunRequest]:
    from ingestion_pipeline.orchestration.schedules import nightly

    context = dg.build_schedule_context(instance=shop.instance, scheduled_execution_time=NIGHT)
    asked = nightly(context, shop=ShopAccess(shop.settings))
    assert isinstance(asked, (dg.SkipReason, list))
    return asked


def test_a_night_without_news_is_skipped(ingested_shop: SmallShop) -> None:
    asked = _tick(ingested_shop)

    assert isinstance(asked, dg.SkipReason)


def test_a_night_asks_for_the_stale_ranges_alone_and_its_runs_mend_them(
    ingested_shop: SmallShop,
) -> None:
    ingested_shop.connection.execute("UPDATE products SET name = 'New' WHERE id IN (2, 5, 11)")
    add_products(ingested_shop.connection, [Product(13, "Thirteenth", "new", "new", "new")])

    asked = _tick(ingested_shop)

    assert isinstance(asked, list)
    ranges = [
        (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
        )
        for request in asked
    ]
    assert ranges == [(KEYS[0], KEYS[1]), (KEYS[3], KEYS[3])]
    for request in asked:
        result = defs.resolve_job_def("reingest").execute_in_process(
            instance=ingested_shop.instance,
            tags=request.tags,
            resources={
                "shop": ShopAccess(ingested_shop.settings),
                "models": ingested_shop.models,
                "recorder": Recorder(),
            },
        )
        assert result.success
    assert ingested_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS + 1
    assert isinstance(_tick(ingested_shop), dg.SkipReason)
    assert unfinished_ranges(ingested_shop.instance, KEYS) == {}
