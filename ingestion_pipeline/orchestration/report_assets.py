"""The report of an invocation, as an asset whose Markdown the UI shows.

What a report says is `report`; here its numbers are gathered from the shop and from Dagster.
"""

import time

import dagster as dg

from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.orchestration.embedding_assets import (
    OWNERS,
    product_embeddings_v2_indexes,
)
from ingestion_pipeline.orchestration.embedding_checks import WHOLE_TABLE_CHECKS
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import (
    INVOCATION_TAG,
    invocation_of,
    runs_of,
    told_to_dagster,
)
from ingestion_pipeline.ranges import EVERYTHING
from ingestion_pipeline.report import CheckVerdict, Report


@dg.asset(
    deps=[product_embeddings_v2_indexes],
    group_name="report",
    kinds={"markdown"},
    owners=OWNERS,
    # Indexes and checks are ready to run at the same time as this; it reads what the checks say.
    op_tags={"dagster/priority": "-1"},
)
def ingestion_report(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    """What the last ingestion did: products, embedded, reused, failed, time, rate, tokens, bytes,
    and what the checks say.
    """
    with told_to_dagster(context), shop.open() as opened:
        report = gathered(opened, context.instance, context.run)
    recorder.report(report)
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.md(report.as_markdown()),
            "products": report.products,
            "embedded": report.embedded,
            "reused": report.reused,
            "failed products": report.failed_products,
            "seconds": round(report.seconds, 1),
        }
    )


def gathered(shop: Shop, instance: dg.DagsterInstance, run: dg.DagsterRun) -> Report:
    """The report of the run's invocation; of the latest one for a run that stands alone."""
    part_of_one = INVOCATION_TAG in run.tags
    spend = shop.embeddings.spend(invocation_of(run) if part_of_one else None)
    invocation = spend.invocation if spend else invocation_of(run)
    table_bytes, index_bytes = shop.embeddings.bytes()
    return Report(
        invocation=invocation,
        products=shop.catalogue.count(),
        processed=shop.embeddings.products_of(invocation),
        left=_stale_products(shop),
        embedded=spend.embedded if spend else 0,
        reused=spend.reused if spend else 0,
        empty=spend.empty if spend else 0,
        failed=spend.failed if spend else 0,
        failed_products=len({failed.product_id for failed in shop.embeddings.failed_products()}),
        requests=spend.requests if spend else 0,
        tokens=spend.tokens if spend else 0,
        seconds=_seconds(instance, invocation),
        model_seconds=spend.seconds if spend else 0.0,
        cost=spend.cost if spend else None,
        table_bytes=table_bytes,
        index_bytes=index_bytes,
        checks=_latest_checks(instance),
    )


def _stale_products(shop: Shop) -> int:
    ranges = [("", EVERYTHING)]
    [catalogue] = shop.catalogue.range_progress(ranges, shop.settings.fingerprints)
    return catalogue.stale_products


def _seconds(instance: dg.DagsterInstance, invocation: str) -> float:
    """From the start of the invocation's first run to the end of its last, or to now."""
    records = runs_of(instance, invocation)
    starts = [record.start_time for record in records if record.start_time]
    if not starts:
        return 0.0
    ends = [record.end_time or time.time() for record in records]
    return max(0.0, max(ends) - min(starts))


def _latest_checks(instance: dg.DagsterInstance) -> tuple[CheckVerdict, ...]:
    """What each check on the whole table said last; "unknown" where it has not been run."""
    verdicts = []
    for key in WHOLE_TABLE_CHECKS:
        record = instance.get_latest_asset_check_evaluation_record(key)
        event = record.event.dagster_event if record and record.event else None
        if event is None or event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            verdicts.append(CheckVerdict(key.name, "unknown", "Not run yet: `ingest verify`."))
            continue
        evaluation = event.asset_check_evaluation_data
        status = str(evaluation.metadata["status"].value)
        verdicts.append(CheckVerdict(key.name, status, evaluation.description or ""))
    return tuple(verdicts)
