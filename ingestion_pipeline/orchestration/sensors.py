"""What the daemon sees to: what follows the ranges, and runs whose process was killed."""

import dagster as dg

from ingestion_pipeline.orchestration.failures import range_states
from ingestion_pipeline.orchestration.jobs import finish
from ingestion_pipeline.orchestration.partitions import is_over_ranges, keys_in_order
from ingestion_pipeline.orchestration.runs import (
    INVOCATION_TAG,
    SOURCE_TAG,
    TERMINAL,
    end_orphans,
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


@dg.sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=60,
    description=(
        "Ends runs whose process was killed, a command's in a terminal among them: they would keep "
        "their place in the pool of the models for ever, and those behind them waiting."
    ),
)
def runs_without_a_process(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Ask for nothing; end what nobody works on."""
    ended = end_orphans(context.instance)
    if ended:
        return dg.SkipReason(f"Ended, since their process is gone: {', '.join(ended)}.")
    return dg.SkipReason("Every run at work has its process.")
