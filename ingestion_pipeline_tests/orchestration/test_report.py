"""The report's words and numbers (pure)."""

from __future__ import annotations

import json
from decimal import Decimal

from ingestion_pipeline.report import CheckVerdict, Report

REPORT = Report(
    invocation="a",
    products=1_000,
    processed=400,
    left=50,
    embedded=900,
    reused=280,
    empty=20,
    failed=0,
    failed_products=0,
    requests=60,
    tokens=45_000,
    seconds=75.0,
    model_seconds=60.0,
    cost=None,
    table_bytes=12_345_678,
    index_bytes=999,
    checks=(CheckVerdict("v2_count", "pass", "1,000 rows"),),
)


def test_a_report_says_what_was_done_and_what_was_left_alone() -> None:
    assert REPORT.skipped == 550
    assert REPORT.embeddings_per_second == 15.0
    assert "400 of 1,000 products in 1 min 15 s" in REPORT.headline
    rows = dict(REPORT.rows())
    assert rows["Embeddings a second"] == "15.0"
    assert (rows["Table"], rows["Indexes"]) == ("12.3 MB", "999 B")
    assert "Cost" not in rows


def test_a_report_of_nothing_says_that_nothing_was_embedded() -> None:
    idle = Report(**{**vars(REPORT), "processed": 0, "left": 0, "embedded": 0})

    assert "nothing was embedded" in idle.headline
    assert idle.embeddings_per_second is None


def test_a_report_does_not_call_a_catalogue_up_to_date_that_is_not() -> None:
    stuck = Report(**{**vars(REPORT), "processed": 0, "left": 1_000, "embedded": 0})

    assert "up to date" not in stuck.headline
    assert "1,000 products are left to do" in stuck.headline


def test_names_of_products_cannot_break_the_markdown() -> None:
    nasty = CheckVerdict("dimensions", "fail", "<img src=x>| **bold**\n# title [a](b)")
    markdown = Report(**{**vars(REPORT), "checks": (nasty,)}).as_markdown()

    line = next(line for line in markdown.splitlines() if "dimensions" in line)
    assert "<img" not in line.replace("\\<", "")
    assert "\\| \\*\\*bold\\*\\* \\# title" in line


def test_a_report_is_json_with_exact_money() -> None:
    paid = Report(**{**vars(REPORT), "cost": Decimal("1.230000000001")})

    read = json.loads(json.dumps(paid.as_dict()))

    assert read["cost"] == "1.230000000001"
    assert (read["skipped"], read["checks"][0]["status"]) == (550, "pass")
    assert dict(paid.rows())["Cost"] == "$1.23"
