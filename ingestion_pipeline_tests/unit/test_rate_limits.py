"""What headers say of limits, and of waiting."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.rate_limits import (
    LONGEST_WAIT_SECONDS,
    Limit,
    RateLimits,
    duration,
    rate_limits,
    retry_after,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
OPENAI = {
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-limit-tokens": "1000000",
    "x-ratelimit-remaining-tokens": "999992",
    "x-ratelimit-reset-tokens": "0s",
}


def test_both_limits_are_read_from_the_headers_of_openai() -> None:
    limits = rate_limits(OPENAI)
    assert limits == RateLimits(Limit(5000, 4999, 0.012), Limit(1_000_000, 999_992, 0.0))
    assert limits.requests
    assert limits.requests.per_minute == 5000
    assert limits.tokens
    assert limits.tokens.per_minute == 1_000_000


def test_an_answer_that_says_nothing_of_limits_has_none() -> None:
    assert rate_limits({"content-type": "application/json"}) == RateLimits()


@pytest.mark.parametrize("missing", ["limit", "remaining"])
@pytest.mark.parametrize("broken", [None, "", "many", "nan", "inf"])
def test_half_a_limit_is_none(missing: str, broken: str | None) -> None:
    headers = {name: value for name, value in OPENAI.items() if "tokens" in name}
    headers.pop(f"x-ratelimit-{missing}-tokens")
    if broken is not None:
        headers[f"x-ratelimit-{missing}-tokens"] = broken
    assert rate_limits(headers) == RateLimits()


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "per_minute"),
    [
        # Untouched, or no word of when.
        (3_000, 3_000, 0.0, 3_000),
        (3_000, 2_000, None, 3_000),
        # A minute, refilled bit by bit; one that is used up.
        (3_000, 1_500, 30.0, 3_000),
        (3_000, 0, 60.0, 3_000),
        # A minute that is rounded: up to a millisecond, up to a second.
        (10_000_000, 9_999_992, 0.001, 10_000_000),
        (500, 499, 1.0, 500),
        # A minute that begins anew all at once.
        (100, 99, 59.0, 100),
        (100, 10, 3.0, 100),
        # A day, bit by bit: known as soon as it takes more than a minute.
        (86_400, 86_300, 100.0, 60),
        (200, 199, 432.0, 200 / 1_440),
        (10_000, 9_990, 86.4, 10_000 / 1_440),
        # An hour, bit by bit; an hour and a day that begin anew all at once.
        (3_600, 3_000, 600.0, 60),
        (1_000, 990, 3_500.0, 1_000 / 60),
        (1_000, 990, 40_000.0, 1_000 / 1_440),
        # Longer than anything known: the longest.
        (1_000, 999, 1e9, 1_000 / 1_440),
    ],
)
def test_the_pace_follows_from_when_all_is_there_again(
    limit: float, remaining: float, reset: float | None, per_minute: float
) -> None:
    assert Limit(limit, remaining, reset).per_minute == pytest.approx(per_minute)


@given(
    limit=st.floats(1, 1e12),
    remaining=st.floats(-1e12, 1e12),
    reset=st.none() | st.floats(-1e12, 1e12),
)
def test_no_headers_stop_everything_or_allow_more_than_the_limit(
    limit: float, remaining: float, reset: float | None
) -> None:
    assert limit / 1_440 <= Limit(limit, remaining, reset).per_minute * 1.0001
    assert Limit(limit, remaining, reset).per_minute <= limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1h2m3s", 3_723),
        ("1d", 86_400),
        ("7", 7),
        ("0s", 0),
        ("", None),
        ("soon", None),
        ("6m of it", None),
        ("m6", None),
        (None, None),
    ],
)
def test_durations_are_read_as_openai_writes_them(text: str | None, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1),
        ({"retry-after": "Wed, 02 Jan 2030 03:04:35 GMT"}, 30),
        ({"retry-after": "Wed, 02 Jan 2030 03:04:35 -0000"}, 30),
        ({"retry-after": "Wed, 02 Jan 2030 03:04:35"}, 30),
        ({"retry-after": "Tue, 01 Jan 2030 03:04:35 GMT"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after-ms": "-5"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e300"}, LONGEST_WAIT_SECONDS),
        ({"retry-after": "Wed, 02 Jan 2999 03:04:35 GMT"}, LONGEST_WAIT_SECONDS),
    ],
)
def test_waiting_is_read_in_seconds_milliseconds_and_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOW) == seconds


@given(st.text())
def test_no_header_is_too_strange_to_be_read(text: str) -> None:
    duration(text)
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after({name: text}, NOW)
        assert wait is None or 0 <= wait <= LONGEST_WAIT_SECONDS
    rate_limits(dict.fromkeys(OPENAI, text))
