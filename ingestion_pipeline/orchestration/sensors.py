"""What follows the ranges when no terminal waits for them: indexes, checks and the report."""

import dagster as dg

from ingestion_pipeline.orchestration.failures import range_states
from ingestion_pipeline.orchestration.jobs import finish
from ingestion_pipeline.orchestration.partitions import is_over_ranges, keys_in_order
from ingestion_pipeline.orchestration.runs import (
    INVOCATION_TAG,
    SOURCE_TAG,
    TERMINAL,
    invocation_of,
)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    request_job=finish,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=10,
    description=(
        "Runs the job `finish` once the last range of a backfill or of a night is done, so that "
        "v2 is indexed, checked and reported on however the ranges were started."
    ),
)
def after_the_ranges(
    context: dg.RunStatusSensorContext,
) -> dg.SkipReason | dg.RunRequest:
    """Ask for `finish` once no range is left to do."""
    run = context.dagster_run
    if not is_over_ranges(run):
        return dg.SkipReason("The run was not over ranges.")
    if run.tags.get(SOURCE_TAG) == TERMINAL:
        return dg.SkipReason("The command that started the run sees to the rest.")
    states = range_states(context.instance, keys_in_order(context.instance))
    to_do = sum(state != "done" for state in states.values())
    if to_do:
        return dg.SkipReason(f"{to_do} ranges are still to do.")
    invocation = invocation_of(run)
    return dg.RunRequest(
        run_key=f"finish {invocation}",
        tags={INVOCATION_TAG: invocation, SOURCE_TAG: run.tags.get(SOURCE_TAG, "dagster")},
    )
