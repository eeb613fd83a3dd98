"""What follows the ranges when no terminal waits for them: indexes, checks and the report."""

import dagster as dg

from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.jobs import finish
from ingestion_pipeline.orchestration.partitions import is_over_ranges, keys_in_order
from ingestion_pipeline.orchestration.runs import INVOCATION_TAG, SOURCE_TAG, invocation_of


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    request_job=finish,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description=(
        "Runs the job `finish` once the last range of a backfill or of a night is done, so that "
        "v2 is indexed, checked and reported on however the ranges were started."
    ),
)
def after_the_ranges(
    context: dg.RunStatusSensorContext,
) -> dg.SkipReason | dg.RunRequest:
    run = context.dagster_run
    if not is_over_ranges(run):
        return dg.SkipReason("The run was not over ranges.")
    unfinished = unfinished_ranges(context.instance, keys_in_order(context.instance))
    if unfinished:
        return dg.SkipReason(f"{len(unfinished)} ranges are still to do.")
    invocation = invocation_of(run)
    return dg.RunRequest(
        run_key=f"finish {invocation}",
        tags={INVOCATION_TAG: invocation, SOURCE_TAG: run.tags.get(SOURCE_TAG, "dagster")},
    )
