"""`ingest status`: right before anything is there, and brief however much is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import status
from ingestion_pipeline.cli.status import Status
from ingestion_pipeline.database.catalogue import AspectCount, RangeProgress
from ingestion_pipeline.database.embeddings import FailedProduct, SpendSummary
from ingestion_pipeline.preflight_services import Estimate
from ingestion_pipeline.ranges import EVERYTHING
from ingestion_pipeline.settings import load_settings
from ingestion_pipeline_tests.cli.conftest import Ingest

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
LATEST = SpendSummary("i", NOW, NOW, 3, 40, 40, 2, 1, 0, 900, None, 8.0)


def _range(number: int, *, stale: int = 0, failed: int = 0) -> RangeProgress:
    return RangeProgress(f"{number:010d}:{number + 1:010d}", EVERYTHING, 10, stale, failed)


@pytest.mark.usefixtures("shop_url")
def test_without_a_products_table_it_says_so_and_what_to_do(ingest: Ingest) -> None:
    answer = ingest("status")
    assert answer.code == 0
    assert "There is no table products" in answer.out
    assert "→ `ingest load FILE`" in answer.out
    assert ingest("status", "--json").document["products"] is None


@pytest.mark.usefixtures("shop_url")
def test_before_anything_was_prepared_it_says_so_and_what_to_do(
    ingest: Ingest, catalogue: Path
) -> None:
    ingest("load", catalogue)
    answer = ingest("status")
    assert answer.code == 0
    assert "products has 12 products, and nothing was prepared yet" in answer.out
    assert "→ `ingest preflight`" in answer.out
    document = ingest("status", "--json").document
    assert (document["products"], document["prepared"]) == (12, False)


def test_watching_and_one_json_document_exclude_each_other(ingest: Ingest) -> None:
    answer = ingest("status", "--watch", "--json")
    assert answer.code == 2
    assert "--watch and --json" in answer.err


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (Status(products=None), "ingest load FILE"),
        (Status(products=0, prepared=True), "ingest load FILE"),
        (Status(products=5), "ingest preflight"),
        (Status(10, prepared=True, ranges=(_range(1, stale=9),)), "`ingest` does what is left"),
        (
            Status(10, prepared=True, ranges=(_range(1, stale=9),), working=("k",)),
            "status --watch",
        ),
        (
            Status(
                10,
                prepared=True,
                ranges=(_range(1, failed=1),),
                failed=(FailedProduct(1, "x", Aspect.USAGE, "why", 1, NOW, NOW),),
            ),
            "ingest failures --retry",
        ),
        (Status(10, prepared=True, ranges=(_range(1),)), "ingest verify"),
    ],
)
def test_the_next_step_follows_from_what_is_there(seen: Status, step: str) -> None:
    assert step in seen.next_steps()[0]


@pytest.mark.usefixtures("environment")
def test_of_many_ranges_the_unfinished_are_shown_and_all_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranges = tuple(
        _range(number, stale=4 if number in (17, 30) else 0, failed=int(number == 30))
        for number in range(40)
    )
    seen = Status(
        400,
        prepared=True,
        aspects=(AspectCount(Aspect.USAGE, "text changed", 8, 8),),
        ranges=ranges,
        working=("0000000017:0000000018",),
        latest=LATEST,
        remaining_texts=8,
        remaining=Estimate(160, None, 95.0, "the model's answers"),
    )
    status._show(seen, load_settings())
    shown = capsys.readouterr().out
    assert "391 of 400 products done (97%)" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["0000000017:0000000018", "10", "6", "4", "0", "at", "work"] in lines
    assert ["0000000030:0000000031", "10", "5", "4", "1"] in lines
    assert ["28", "more", "ranges,", "all", "done"] in lines
    assert ["in", "all", "400", "391", "8", "1"] in lines
    assert "8 text changed" in shown
    assert "2026-03-01 12:30 UTC: 40 embedded, 2 reused" in shown
    assert "8 texts to embed, about 1 min 35 s" in shown


@pytest.mark.usefixtures("environment")
def test_a_share_is_not_rounded_up_to_all(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Status(
        100_000,
        prepared=True,
        ranges=(RangeProgress("*:*", EVERYTHING, 100_000, 1, 0),),
        remaining=Estimate(160, None, None, "the model's answers"),
    )
    status._show(seen, load_settings())
    shown = capsys.readouterr().out
    assert "99,999 of 100,000 products done (99%)" in shown
    assert "time not known yet" in shown
