"""The jobs: what a person or the terminal starts, in the order in which they are run."""

import dagster as dg

from ingestion_pipeline.orchestration import preflight_assets
from ingestion_pipeline.orchestration.embedding_assets import (
    RANGES_COMPLETE,
    product_embeddings_v2,
    product_embeddings_v2_indexes,
    product_id_ranges,
)
from ingestion_pipeline.orchestration.embedding_checks import WHOLE_TABLE_CHECKS
from ingestion_pipeline.orchestration.report_assets import ingestion_report

_CHECKS = dg.AssetSelection.checks(*WHOLE_TABLE_CHECKS)

preflight = dg.define_asset_job(
    "preflight",
    selection=dg.AssetSelection.assets(
        preflight_assets.database_connection,
        preflight_assets.embedding_quota,
        preflight_assets.product_count,
        preflight_assets.disk_space,
        preflight_assets.canary,
        product_id_ranges,
    ),
    description=(
        "1. May a run begin? Five checks, the last of which takes the first products through the "
        "whole path; then the ranges are planned."
    ),
)

reingest = dg.define_asset_job(
    "reingest",
    selection=(
        dg.AssetSelection.assets(product_embeddings_v2).without_checks()
        | dg.AssetSelection.checks(RANGES_COMPLETE)
    ),
    description="2. Embed what is stale in the chosen ranges. Running it again carries on.",
)

finish = dg.define_asset_job(
    "finish",
    selection=(dg.AssetSelection.assets(product_embeddings_v2_indexes, ingestion_report) | _CHECKS),
    description="3. Build the indexes, run every check on the whole table, write the report.",
)

verify = dg.define_asset_job(
    "verify",
    selection=_CHECKS,
    description="Run every check on the whole table, at any time. Writes nothing.",
)
