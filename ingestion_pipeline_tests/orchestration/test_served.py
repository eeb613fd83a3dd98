"""The real web server and daemon: a failed range, its backfill by GraphQL, and what follows."""

from __future__ import annotations

import dagster as dg
import pytest

from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.runs import PROCESS_TAG
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, SmallShop
from ingestion_pipeline_tests.orchestration.serving import Served, served, until
from ingestion_pipeline_tests.orchestration.test_in_process import REFUSE_PRODUCT_8

PARTITIONS = """{ assetNodeOrError(assetKey: {path: ["product_embeddings_v2"]}) { ... on AssetNode {
  assetPartitionStatuses { ... on DefaultPartitionStatuses {
    failedPartitions materializedPartitions } } } } }"""

LAUNCH = """mutation ($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""

BACKFILL = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status } } }"""


@pytest.mark.usefixtures("settings_file")
def test_a_backfill_of_the_failed_ranges_mends_them_and_the_report_follows(
    small_shop: SmallShop,
) -> None:
    small_shop.ingest(limit=1)
    small_shop.connection.execute(REFUSE_PRODUCT_8)
    small_shop.ingest()
    small_shop.connection.execute("DROP TRIGGER refuse ON product_embeddings_v2")

    with served() as deployment:
        ask = deployment.ask
        statuses = ask(PARTITIONS)["assetNodeOrError"]["assetPartitionStatuses"]
        assert statuses["failedPartitions"] == [KEYS[2]]
        assert sorted(statuses["materializedPartitions"]) == sorted(set(KEYS) - {KEYS[2]})
        launched = ask(
            LAUNCH,
            parameters={
                "assetSelection": [{"path": ["product_embeddings_v2"]}],
                "partitionNames": statuses["failedPartitions"],
            },
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        backfill = launched["backfillId"]

        until(lambda: _status(deployment, backfill) == "COMPLETED_SUCCESS", "the backfill")
        until(lambda: len(_finished(small_shop, backfill)) == 1, "indexes, checks and report")

        statuses = ask(PARTITIONS)["assetNodeOrError"]["assetPartitionStatuses"]
        assert sorted(statuses["materializedPartitions"]) == sorted(KEYS)
    [run] = small_shop.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))
    assert PROCESS_TAG in run.tags
    assert unfinished_ranges(small_shop.instance, KEYS) == {}
    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS
    spend = small_shop.connection.execute(
        "SELECT DISTINCT range_key FROM ingestion.spend WHERE invocation = %s", [backfill]
    )
    assert spend.fetchall() == [(KEYS[2],)]


def _status(deployment: Served, backfill: str) -> str:
    return str(deployment.ask(BACKFILL, id=backfill)["partitionBackfillOrError"]["status"])


def _finished(shop: SmallShop, invocation: str) -> list[dg.DagsterRun]:
    """The successful runs of the job `finish` that belong to an invocation."""
    filters = dg.RunsFilter(
        job_name="finish",
        tags={"ingestion/invocation": invocation},
        statuses=[dg.DagsterRunStatus.SUCCESS],
    )
    return list(shop.instance.get_runs(filters))
