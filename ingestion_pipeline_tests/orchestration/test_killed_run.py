"""A main job killed with SIGKILL in the middle of a range, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline_tests.orchestration import known_models
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, REPOSITORY, SmallShop

COMMAND = [sys.executable, "-m", "ingestion_pipeline_tests.orchestration.ingest_slowly"]
ASPECTS = 3 * PRODUCTS
LONGEST_BATCH = 5  # texts: 16 tokens a batch, and no text has fewer than 3


@pytest.mark.usefixtures("settings_file")
def test_a_killed_run_is_carried_on_by_the_same_command_and_nothing_is_paid_twice(
    small_shop: SmallShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "sent"
    monkeypatch.setenv(known_models.RECORD, str(record))
    monkeypatch.setenv(known_models.SECONDS, "0.25")
    with subprocess.Popen(COMMAND, cwd=REPOSITORY) as first:
        _wait_until_the_second_range_is_half_done(small_shop, first)
        os.kill(first.pid, signal.SIGKILL)
    committed = small_shop.value("SELECT count(*) FROM ingestion.embedding_ledger")
    assert isinstance(committed, int)
    assert 0 < committed < ASPECTS
    [left] = small_shop.runs("reingest")
    assert left.status == dg.DagsterRunStatus.STARTED
    monkeypatch.setenv(known_models.SECONDS, "0")

    subprocess.run(COMMAND, cwd=REPOSITORY, check=True, timeout=120)

    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS
    assert unfinished_ranges(small_shop.instance, KEYS) == {}
    sent = record.read_text().splitlines()
    assert len(set(sent)) == ASPECTS
    assert len(sent) <= ASPECTS + LONGEST_BATCH
    statuses = [run.status for run in small_shop.runs("reingest")]
    assert statuses == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]


def _wait_until_the_second_range_is_half_done(
    shop: SmallShop, process: subprocess.Popen[bytes]
) -> None:
    """Until something of products 7 to 9 is committed, and not all of it."""
    deadline = time.monotonic() + 60
    query = "SELECT count(*) FROM ingestion.embedding_ledger WHERE product_id BETWEEN 7 AND 9"
    while time.monotonic() < deadline:
        assert process.poll() is None, "the main job ended before it could be killed"
        begun = shop.value("SELECT to_regclass('ingestion.embedding_ledger') IS NOT NULL")
        if begun and 0 < int(str(shop.value(query))) < 9:
            return
        time.sleep(0.02)
    pytest.fail("the range was never begun")
