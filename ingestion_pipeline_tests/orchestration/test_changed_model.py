"""A changed setting through the whole main job: said before the run, and just that made again."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.orchestration.in_process import run_preflight
from ingestion_pipeline_tests.orchestration.conftest import PRODUCTS, SmallShop

REASON = "its model's prefix changed from '' to 'passage: '"


def _with_prefix(shop: SmallShop) -> SmallShop:
    usage = shop.settings.aspects[Aspect.USAGE].model_copy(update={"prefix": "passage: "})
    aspects = {**shop.settings.aspects, Aspect.USAGE: usage}
    return replace(shop, settings=shop.settings.model_copy(update={"aspects": aspects}))


def test_a_changed_prefix_is_said_in_terminal_and_dagster_and_only_its_aspect_is_embedded(
    ingested_shop: SmallShop,
) -> None:
    shop = _with_prefix(ingested_shop)

    outcome = shop.ingest()

    [count] = [verdict for verdict in outcome.verdicts if verdict.check == "product_count"]
    assert count.details == (f"usage: {PRODUCTS} stale: {REASON}",)
    assert sorted(shop.models.texts) == sorted(
        f"Thing {number}. is used" for number in range(1, PRODUCTS + 1)
    )
    assert outcome.report is not None
    assert outcome.report.embedded == PRODUCTS
    checks = {check.name: check.status for check in outcome.checks}
    assert checks["one_model_a_column"] == checks["up_to_date"] == "pass"
    key = dg.AssetKey("product_count")
    records = shop.instance.fetch_materializations(key, limit=1).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    because = materialization.metadata["stale_because"].value
    assert because == {"description": {}, "usage": {REASON: PRODUCTS}, "feature": {}}


def test_after_a_preflight_the_reason_is_still_said_to_the_run(ingested_shop: SmallShop) -> None:
    shop = _with_prefix(ingested_shop)
    run_preflight(shop.settings, shop.heard, models=shop.models)

    # The canary took the first five.
    outcome = shop.ingest()

    [count] = [verdict for verdict in outcome.verdicts if verdict.check == "product_count"]
    assert count.details == (f"usage: {PRODUCTS - 5} stale: {REASON}",)
    assert len(shop.models.texts) == PRODUCTS
