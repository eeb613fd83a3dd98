"""One range through the work loop, with what a run is given.

The loop itself is `reingestion`; which ranges there are is planned elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.orchestration.runs import invocation_of
from ingestion_pipeline.ranges import ProductIdRange, key_of
from ingestion_pipeline.reingestion import AspectModel, Pace, RangeResult, RangeStep, reingest
from ingestion_pipeline.stopping import interruptible, undisturbed
from ingestion_pipeline.work import RunIdentity


def reingest_range(
    range_: ProductIdRange,
    *,
    shop: Shop,
    models: Mapping[Aspect, AspectModel],
    run: dg.DagsterRun,
    tokens_per_batch: int | None = None,
    report: Callable[[RangeStep], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> RangeResult:
    """Bring a range up to date in the name of a run. Raises what `reingestion.reingest` does.

    `tokens_per_batch` is what the run's ranges before have left of the settings' budget.
    """
    work = shop.settings.work
    try:
        with interruptible():
            return reingest(
                range_,
                catalogue=shop.catalogue,
                store=shop.embeddings,
                models=models,
                owner=RunIdentity(run.run_id, invocation_of(run), key_of(range_, shop.id_type)),
                pace=Pace(
                    products_per_page=work.products_per_page,
                    tokens_per_batch=tokens_per_batch or work.tokens_per_batch,
                    lease_seconds=work.lease_seconds,
                    retry_seconds=work.retry_seconds,
                    max_failed_products=work.max_failed_products,
                ),
                report=report,
                say=say,
            )
    except KeyboardInterrupt:
        # A claim may be cut off after its commit, and a connection in the middle of a statement.
        # Where the database does not answer, the lease has ended with its session.
        with undisturbed(), suppress(IngestionError):
            shop.connection.close()
            with open_shop(shop.settings) as again:
                again.embeddings.release_all(run.run_id)
        raise
