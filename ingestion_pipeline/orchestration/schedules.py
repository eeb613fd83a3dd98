"""The nightly re-ingestion, off until somebody switches it on."""

import dagster as dg

from ingestion_pipeline.orchestration import partitions
from ingestion_pipeline.orchestration.jobs import reingest
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import INVOCATION_TAG, SOURCE_TAG
from ingestion_pipeline.settings import load_settings


@dg.schedule(
    job=reingest,
    cron_schedule=load_settings().schedule.cron,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        "Plans ranges for new products and re-ingests those ranges that hold something stale, and "
        "no others. The time is schedule.cron in ingestion.toml."
    ),
)
def nightly(
    context: dg.ScheduleEvaluationContext, shop: dg.ResourceParam[ShopAccess]
) -> dg.SkipReason | list[dg.RunRequest]:
    """One run for each few neighbouring ranges with something stale."""
    with shop.open() as opened:
        opened.prepare()
        settings = opened.settings
        plan = opened.embeddings.plan_ranges(settings.ranges.products_per_range)
        opened.embeddings.delete_orphans()
        progress = opened.catalogue.range_progress(plan.ranges, settings.fingerprints)
    order = partitions.sync(context.instance, [key for key, _ in plan.ranges])
    stale = [range_.key for range_ in progress if range_.stale_products]
    if not stale:
        return dg.SkipReason("No product is stale.")
    invocation = f"nightly {context.scheduled_execution_time:%Y-%m-%d %H:%M}"
    return [
        dg.RunRequest(
            run_key=f"{invocation} {block.keys[0]}",
            tags={**block.tags, INVOCATION_TAG: invocation, SOURCE_TAG: "schedule"},
        )
        for block in partitions.blocks(stale, order, at_most=partitions.RANGES_PER_RUN)
    ]
