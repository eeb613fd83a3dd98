"""What the daemon sees to: `finish`, once no range is left, and runs whose process was killed."""

from __future__ import annotations

import os

import dagster as dg

from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.partitions import sync
from ingestion_pipeline.orchestration.runs import (
    BACKFILL_TAG,
    INVOCATION_TAG,
    PROCESS_TAG,
    SOURCE_TAG,
    process_tag,
)
from ingestion_pipeline.orchestration.sensors import after_the_ranges, runs_without_a_process
from ingestion_pipeline_tests.orchestration.conftest import KEYS, SmallShop


def _asked(shop: SmallShop, run: dg.DagsterRun) -> dg.SkipReason | dg.RunRequest:
    kind = dg.DagsterEventType.RUN_SUCCESS
    [record] = shop.instance.get_records_for_run(run.run_id, of_type=kind).records
    event = record.event_log_entry.dagster_event
    assert event is not None
    context = dg.build_run_status_sensor_context(
        sensor_name="after_the_ranges",
        dagster_instance=shop.instance,
        dagster_run=run,
        dagster_event=event,
    )
    asked = after_the_ranges(context)
    assert isinstance(asked, (dg.SkipReason, dg.RunRequest))
    return asked


def _run_of_a_backfill(shop: SmallShop) -> dg.DagsterRun:
    [run] = shop.runs("reingest")
    tags = {name: value for name, value in run.tags.items() if name not in OURS}
    return run.with_tags({**tags, BACKFILL_TAG: "abc"})


OURS = (SOURCE_TAG, INVOCATION_TAG)


def test_the_last_range_of_a_backfill_asks_for_the_rest(ingested_shop: SmallShop) -> None:
    asked = _asked(ingested_shop, _run_of_a_backfill(ingested_shop))

    assert isinstance(asked, dg.RunRequest)
    assert asked.run_key == "finish abc"
    assert asked.tags[INVOCATION_TAG] == "abc"


def test_a_range_that_is_left_keeps_the_rest_waiting(ingested_shop: SmallShop) -> None:
    sync(ingested_shop.instance, [*KEYS, "a:new"])

    asked = _asked(ingested_shop, _run_of_a_backfill(ingested_shop))

    assert isinstance(asked, dg.SkipReason)


def test_a_command_sees_to_the_rest_itself(ingested_shop: SmallShop) -> None:
    [run] = ingested_shop.runs("reingest")

    assert isinstance(_asked(ingested_shop, run), dg.SkipReason)


def test_a_run_that_was_not_over_ranges_asks_for_nothing(ingested_shop: SmallShop) -> None:
    [run] = ingested_shop.runs("preflight")

    assert isinstance(_asked(ingested_shop, run), dg.SkipReason)


def test_a_run_whose_process_was_killed_is_ended_while_the_others_go_on(
    ingested_shop: SmallShop,
) -> None:
    job = defs.resolve_job_def("reingest")
    dead = process_tag()[PROCESS_TAG].replace(f"/{os.getpid()}/", "/999999999/")
    killed, living = (
        ingested_shop.instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: process}
        )
        for process in (dead, process_tag()[PROCESS_TAG])
    )

    with dg.build_sensor_context(instance=ingested_shop.instance) as context:
        asked = runs_without_a_process(context)

    assert isinstance(asked, dg.SkipReason)
    assert killed.run_id in str(asked.skip_message)
    statuses = [run.status.value for run in ingested_shop.runs("reingest")]
    assert statuses == ["SUCCESS", "FAILURE", "STARTED"]
    assert living.run_id not in str(asked.skip_message)
