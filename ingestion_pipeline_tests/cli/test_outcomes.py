"""What an `ingest` came to, as an exit code and a next step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ingestion_pipeline.cli import main_job
from ingestion_pipeline.cli.checks import holds
from ingestion_pipeline.orchestration.in_process import IngestOutcome
from ingestion_pipeline.report import Report
from ingestion_pipeline.verification.checks import CheckResult

REPORT = Report(
    invocation="i",
    products=12,
    processed=12,
    left=0,
    embedded=30,
    reused=5,
    empty=1,
    failed=0,
    failed_products=0,
    requests=3,
    tokens=900,
    seconds=9.0,
    model_seconds=6.0,
    cost=None,
    table_bytes=10_000,
    index_bytes=4_000,
    checks=(),
)
GOOD = CheckResult("up_to_date", "pass", "")
DONE = IngestOutcome("i", [], REPORT, [GOOD], [], [], up_to_date=False)
BAD = CheckResult("up_to_date", "fail", "3 are stale", 3)


@pytest.mark.parametrize(
    ("outcome", "code", "step"),
    [
        (DONE, 0, "ingest search"),
        (replace(DONE, checks=[BAD]), 5, "ingest status"),
        (replace(DONE, failed_ranges=[("*:*", "why")], checks=[BAD]), 6, "ingest retry"),
        (replace(DONE, held_ranges=[("*:*", "why")], checks=[]), 6, "ingest status --watch"),
        (replace(DONE, report=replace(REPORT, failed_products=2)), 6, "ingest failures"),
    ],
)
def test_code_and_next_step_say_the_gravest_that_happened(
    outcome: IngestOutcome, code: int, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_job.code_of(outcome) == code
    main_job.conclude(outcome)
    shown = capsys.readouterr().out
    assert step in shown.splitlines()[-1]
    for key, reason in outcome.failed_ranges:
        assert f"range {key}" in shown
        assert reason in shown


def test_after_a_limit_the_rest_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    main_job.conclude(replace(DONE, report=None, checks=[]), limit=5)
    assert capsys.readouterr().out.splitlines()[-1] == "→ `ingest` takes the rest."


def test_what_could_not_be_looked_at_proves_nothing_unless_it_is_v1() -> None:
    assert holds([GOOD, CheckResult("v1_against_v2", "unknown", "there is no v1")])
    assert holds([GOOD, CheckResult("failed_products", "warn", "1 has failed", 1)])
    assert not holds([GOOD, CheckResult("searchable", "unknown", "nothing to search")])
    assert not holds([GOOD, BAD])
