"""Everything that Dagster loads, by explicit lists.

Loading needs no database, no model and no key: `dagster definitions validate` passes without them.
"""

import dagster as dg

from ingestion_pipeline.orchestration import (
    embedding_assets,
    embedding_checks,
    jobs,
    preflight_assets,
    report_assets,
    schedules,
    sensors,
)
from ingestion_pipeline.orchestration.models import Models
from ingestion_pipeline.orchestration.resources import resources


def definitions(models: Models | None = None) -> dg.Definitions:
    """The pipeline; `models` None: the local models that the settings name."""
    return dg.Definitions(
        assets=[
            embedding_assets.products,
            embedding_assets.product_embeddings,
            preflight_assets.database_connection,
            preflight_assets.embedding_quota,
            preflight_assets.product_count,
            preflight_assets.disk_space,
            preflight_assets.canary,
            embedding_assets.product_id_ranges,
            embedding_assets.product_embeddings_v2,
            embedding_assets.product_embeddings_v2_indexes,
            report_assets.ingestion_report,
        ],
        asset_checks=[embedding_checks.product_embeddings_v2_checks],
        jobs=[jobs.preflight, jobs.reingest, jobs.finish, jobs.verify],
        schedules=[schedules.nightly],
        sensors=[sensors.after_the_ranges, sensors.runs_without_a_process],
        resources=resources(models),
        # A model is loaded once a run, and a step does not cost a process.
        executor=dg.in_process_executor,
    )


defs = definitions()
