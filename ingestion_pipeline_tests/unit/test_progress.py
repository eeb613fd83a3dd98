"""The numbers and words of a run's progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.progress import Progress, duration


def test_progress_reads_as_one_line() -> None:
    progress = Progress(done=120, total=330, failed=0, seconds=14.8)
    assert str(progress) == "120/330 products · 36% · 8.1/s · 26 s left · 0 failed"


def test_before_the_first_product_there_is_no_rate_and_no_estimate() -> None:
    progress = Progress(done=0, total=330, failed=0, seconds=3.0)
    assert progress.rate is None
    assert progress.remaining_seconds is None
    assert str(progress) == "0/330 products · 0% · 0 failed"


def test_a_clock_that_has_not_moved_gives_no_rate() -> None:
    assert Progress(done=5, total=10, failed=0, seconds=0.0).rate is None


def test_nothing_to_do_is_all_done() -> None:
    progress = Progress(done=0, total=0, failed=0, seconds=0.0)
    assert progress.share == 1.0
    assert str(progress) == "0/0 products · 100% · 0 failed"


def test_at_the_end_no_time_is_left_and_failed_products_are_said() -> None:
    progress = Progress(done=2766, total=2766, failed=1234, seconds=100.0)
    assert progress.remaining_seconds == 0
    assert str(progress) == "2,766/2,766 products · 100% · 27.7/s · 1,234 failed"


def test_a_hundred_per_cent_is_not_said_while_a_product_is_left() -> None:
    assert "· 99% ·" in str(Progress(done=2765, total=2766, failed=0, seconds=1.0))


def test_products_that_appear_during_the_run_take_the_share_no_further_than_one() -> None:
    progress = Progress(done=12, total=10, failed=0, seconds=6.0)
    assert progress.share == 1.0
    assert progress.remaining_seconds == 0


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_percentage_is_the_share_rounded_down(done: int, total: int) -> None:
    expected = 100 * min(done, total) // total
    assert f"· {expected}% ·" in str(Progress(done, total, failed=0, seconds=1.0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86_399.9, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_said_in_the_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
