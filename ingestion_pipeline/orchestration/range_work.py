"""Ranges through the work loop, with what a run is given.

The loop itself is `reingestion`; which ranges there are is planned elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.orchestration.runs import invocation_of
from ingestion_pipeline.ranges import ProductIdRange, key_of
from ingestion_pipeline.reingestion import AspectModel, Pace, RangeEnd, reingest_ranges
from ingestion_pipeline.stopping import interruptible, undisturbed
from ingestion_pipeline.tally import RangeStep
from ingestion_pipeline.work import RunIdentity


def work_on(
    ranges: Sequence[ProductIdRange],
    *,
    shop: Shop,
    models: Mapping[Aspect, AspectModel],
    run: dg.DagsterRun,
    report: Callable[[RangeStep], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[RangeEnd]:
    """Bring ranges up to date in the name of a run; yields each as it ends.

    Raises what `reingestion.reingest_ranges` does.
    """
    work = shop.settings.work
    invocation = invocation_of(run)
    ends = reingest_ranges(
        ranges,
        catalogue=shop.catalogue,
        store=shop.embeddings,
        models=models,
        owner=lambda range_: RunIdentity(run.run_id, invocation, key_of(range_, shop.id_type)),
        pace=Pace(
            products_per_page=work.products_per_page,
            tokens_per_batch=work.tokens_per_batch,
            lease_seconds=work.lease_seconds,
            retry_seconds=work.retry_seconds,
            max_failed_products=work.max_failed_products,
            ranges_at_once=work.ranges_at_once,
        ),
        report=report,
        say=say,
    )
    try:
        while True:
            # Not around the `yield`: what the caller does there is not for us to cut short.
            with interruptible():
                end = next(ends, None)
            if end is None:
                return
            yield end
    except KeyboardInterrupt:
        # A claim may be cut off after its commit, and a connection in the middle of a statement.
        # Where the database does not answer, the lease has ended with its session.
        with undisturbed(), suppress(IngestionError):
            shop.connection.close()
            with open_shop(shop.settings) as again:
                again.embeddings.release_all(run.run_id)
        raise
    finally:
        for model in models.values():
            model.close()
