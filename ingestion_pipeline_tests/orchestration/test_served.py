"""The real web server and daemon: a failed range, its backfill by GraphQL, and what follows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.runs import PROCESS_TAG
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, REPOSITORY, SmallShop
from ingestion_pipeline_tests.orchestration.test_in_process import REFUSE_PRODUCT_8

MODULE = "ingestion_pipeline_tests.orchestration.served_definitions"

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

    with _served() as ask:
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

        _until(lambda: _status(ask, backfill) == "COMPLETED_SUCCESS", "the backfill")
        _until(lambda: len(_finished(small_shop, backfill)) == 1, "indexes, checks and report")

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


def _status(ask: Callable[..., Any], backfill: str) -> str:
    return str(ask(BACKFILL, id=backfill)["partitionBackfillOrError"]["status"])


def _finished(shop: SmallShop, invocation: str) -> list[dg.DagsterRun]:
    """The successful runs of the job `finish` that belong to an invocation."""
    filters = dg.RunsFilter(
        job_name="finish",
        tags={"ingestion/invocation": invocation},
        statuses=[dg.DagsterRunStatus.SUCCESS],
    )
    return list(shop.instance.get_runs(filters))


def _until(done: Callable[[], bool], what: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.5)


@contextmanager
def _served() -> Iterator[Callable[..., Any]]:
    """The web server on a free port and the daemon; gives what asks the server."""
    port = _free_port()
    binaries = Path(sys.executable).parent
    location = ["-m", MODULE, "-d", str(REPOSITORY)]
    commands: list[list[str | Path]] = [
        [binaries / "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), *location],
        [binaries / "dagster-daemon", "run", *location],
    ]

    def ask(query: str, **variables: object) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def is_up() -> bool:
        try:
            return bool(ask("{ version }"))
        except OSError:
            return False

    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        _until(is_up, "the web server", 60)
        yield ask
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
