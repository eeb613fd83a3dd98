"""One range through the work loop, with what a run is given.

The loop itself is `reingestion`; which ranges there are is planned elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.orchestration.runs import interruptible, invocation_of
from ingestion_pipeline.ranges import ProductIdRange, key_of
from ingestion_pipeline.reingestion import AspectModel, Pace, RangeResult, RangeStep, reingest
from ingestion_pipeline.work import RunIdentity


def reingest_range(
    range_: ProductIdRange,
    *,
    shop: Shop,
    models: Mapping[Aspect, AspectModel],
    run: dg.DagsterRun,
    report: Callable[[RangeStep], None] = lambda _: None,
) -> RangeResult:
    """Bring a range up to date in the name of a run. Raises what `reingestion.reingest` does."""
    work = shop.settings.work
    with interruptible():
        return reingest(
            range_,
            catalogue=shop.catalogue,
            store=shop.embeddings,
            models=models,
            owner=RunIdentity(run.run_id, invocation_of(run), key_of(range_, shop.id_type)),
            pace=Pace(
                products_per_page=work.products_per_page,
                tokens_per_batch=work.tokens_per_batch,
                lease_seconds=work.lease_seconds,
            ),
            report=report,
        )
