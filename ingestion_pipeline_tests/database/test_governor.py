"""One pace and one budget for all who ask: places in time, limits, pauses, and what is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.governor import SHARE, Budget, Pace, SharedGovernor
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import (
    BudgetReachedError,
    ConnectionLostError,
    DatabaseUnavailableError,
    SettingsError,
)
from ingestion_pipeline.patience import LONGEST_RATE_LIMIT_SECONDS, Patience
from ingestion_pipeline.prices import Price
from ingestion_pipeline.rate_limits import Limit, RateLimits
from ingestion_pipeline.work import RunIdentity, Spend
from ingestion_pipeline_tests.shops import create_products, prepared_shop

ENDPOINT = "https://models.example/v1 a-model"
LOCAL = Price(None, "local")
SLACK_SECONDS = 0.7
"""For a statement and its answer on a busy machine: nobody waits here, so gaps can be long."""

Make = Callable[..., SharedGovernor]


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    """A shop without products."""
    with connect(database_url) as connection:
        create_products(connection, [])
    with prepared_shop(database_url) as shop:
        yield shop


@pytest.fixture
def make(shop: Shop, database_url: str) -> Iterator[Make]:
    """Makes governors, each with a session of its own, as every worker has one."""
    with ExitStack() as stack:

        def governor(
            requests: float | None = None,
            tokens: float | None = None,
            *,
            endpoint: str = ENDPOINT,
            fingerprint: str = "f",
            budget: Budget | None = None,
        ) -> SharedGovernor:
            made = SharedGovernor(
                lambda: Session(database_url),
                endpoint,
                fingerprint,
                pace=Pace(requests, tokens),
                budget=budget or Budget({"f": LOCAL}),
            )
            stack.callback(made.close)
            return made

        assert shop.is_prepared()
        yield governor


def _moments(governor: SharedGovernor, count: int, tokens: int = 1) -> list[float]:
    """When the requests of so many reservations may be sent, on this machine's clock."""
    moments = []
    for _ in range(count):
        seconds = governor.reserve(tokens)
        moments.append(time.monotonic() + seconds)
    return moments


def _gaps(moments: Sequence[float]) -> list[float]:
    ordered = sorted(moments)
    return [later - earlier for earlier, later in pairwise(ordered)]


def _row(shop: Shop, *columns: str) -> Any:
    query = f"SELECT {', '.join(columns)} FROM ingestion.rate_limits"  # noqa: S608 - of this test
    return shop.connection.execute(query.encode()).fetchone()  # type: ignore[arg-type]


def _limits(requests: float | None = None, tokens: float | None = None) -> RateLimits:
    return RateLimits(
        Limit(requests, requests) if requests else None, Limit(tokens, tokens) if tokens else None
    )


# Places in time


def test_places_are_spread_evenly_over_all_who_ask_none_early_and_none_lost(make: Make) -> None:
    per_minute, workers, threads, each = 12.0, 4, 3, 8
    governors = [make(per_minute) for _ in range(workers)]
    began = time.monotonic()
    with ThreadPoolExecutor(workers * threads) as pool:
        asked = [
            pool.submit(_moments, governor, each) for governor in governors for _ in range(threads)
        ]
        moments = sorted(moment for it in asked for moment in it.result())
    gap = 60 / (per_minute * SHARE)
    count = workers * threads * each
    assert len(moments) == count
    # What is seen of a place here is late by the time that the reply took, never early.
    for number, moment in enumerate(moments):
        assert moment - began >= number * gap - 0.001
    assert _gaps(moments) == pytest.approx([gap] * (count - 1), abs=SLACK_SECONDS)
    after = make(per_minute).reserve(1)
    assert time.monotonic() + after - began == pytest.approx(count * gap, abs=SLACK_SECONDS)


def test_every_worker_gets_its_turn(make: Make) -> None:
    one, other = make(6), make(6)
    waits = [governor.reserve(1) for governor in (one, other, other, one)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(30 / SHARE, abs=SLACK_SECONDS)


def test_what_was_not_used_in_the_past_is_no_credit(make: Make, shop: Shop) -> None:
    governor = make(6)
    governor.reserve(1)
    shop.connection.execute(
        "UPDATE ingestion.rate_limits SET next_request_at = next_request_at - interval '1 hour'"
    )
    assert governor.reserve(1) == 0
    assert governor.reserve(1) == pytest.approx(10 / SHARE, abs=SLACK_SECONDS)


def test_without_a_limit_every_place_is_now(make: Make) -> None:
    governor = make()
    assert [governor.reserve(1_000_000) for _ in range(20)] == [0] * 20


@pytest.mark.parametrize(
    ("requests", "tokens", "gap"),
    [(12, None, 5.0), (None, 600, 10.0), (12, 600, 10.0), (3, 600, 20.0)],
)
def test_the_later_of_both_limits_counts(
    requests: float | None, tokens: float | None, gap: float, make: Make
) -> None:
    gaps = _gaps(_moments(make(requests, tokens), 6, tokens=100))
    assert gaps == pytest.approx([gap / SHARE] * 5, abs=SLACK_SECONDS)


def test_small_and_large_requests_in_turn_use_both_limits_up(make: Make) -> None:
    """A small one does not wait out what a large one leaves of the quota of requests."""
    governor = make(60, 600)
    moments = [_moments(governor, 1, tokens)[0] for tokens in [100, 1] * 10]
    # 1,010 tokens take 101 s; the last request waits for none of its own.
    assert max(moments) - min(moments) == pytest.approx(100.9 / SHARE, abs=1.5)


@pytest.mark.parametrize(("first", "then", "gap"), [(1, 200, 20), (400, 1, 10)])
def test_requests_that_wait_for_one_limit_save_up_next_to_nothing_of_the_other(
    first: int, then: int, gap: float, make: Make
) -> None:
    """Else all that had waited for the quota of requests would send their tokens at once."""
    governor = make(6, 600)
    _moments(governor, 10, tokens=first)
    late = _moments(governor, 10, tokens=then)
    assert min(_gaps(late)[1:]) == pytest.approx(gap / SHARE, abs=SLACK_SECONDS)


def test_models_of_other_endpoints_do_not_wait_for_each_other(make: Make) -> None:
    _moments(make(1), 3)
    assert make(1, endpoint="another").reserve(1) == 0


def test_a_place_that_nobody_would_wait_for_is_told_and_not_taken(make: Make) -> None:
    governor = make(1)
    taken = [governor.reserve(1) for _ in range(40)]
    places = [it for it in taken if it <= LONGEST_RATE_LIMIT_SECONDS]
    assert len(places) == 1 + int(LONGEST_RATE_LIMIT_SECONDS * SHARE / 60)
    told = taken[len(places) :]
    assert told == pytest.approx([told[0]] * len(told), abs=1)


def test_a_mistyped_limit_does_not_keep_everybody_waiting_once_it_is_mended(make: Make) -> None:
    make(None, 1e-200).reserve(1_000_000)
    assert make(None, 6_000).reserve(100) <= 3_600


def test_a_row_that_is_gone_is_made_again(make: Make, shop: Shop) -> None:
    governor = make(6)
    governor.reserve(1)
    shop.connection.execute("DELETE FROM ingestion.rate_limits")
    waits = [governor.reserve(1) for _ in range(3)]
    assert waits == pytest.approx([0, 10 / SHARE, 20 / SHARE], abs=SLACK_SECONDS)


# Limits


def test_a_limit_that_one_worker_hears_of_is_everybodys(make: Make, shop: Shop) -> None:
    one, other = make(), make()
    one.reserve(100)
    one.heard(_limits(requests=60, tokens=600), reserved=100, used=100)
    assert _row(shop, "requests_per_minute", "tokens_per_minute") == (60, 600)
    assert _gaps(_moments(other, 4, tokens=200)) == pytest.approx([20 / SHARE] * 3, abs=1)


def test_a_limit_of_the_settings_wins_over_the_one_that_is_heard(make: Make) -> None:
    governor = make(6, 60_000)
    governor.reserve(1)
    governor.heard(_limits(requests=1, tokens=1), reserved=1, used=1)
    assert _gaps(_moments(governor, 4, tokens=1)) == pytest.approx([10 / SHARE] * 3, abs=1)


def test_what_an_answer_does_not_say_stays_as_it_was_heard(make: Make, shop: Shop) -> None:
    governor = make()
    governor.reserve(1)
    governor.heard(_limits(requests=60), reserved=1, used=1)
    governor.heard(RateLimits(), reserved=1, used=1)
    governor.heard(_limits(tokens=900), reserved=1, used=1)
    assert _row(shop, "requests_per_minute", "tokens_per_minute") == (60, 900)


def test_a_limit_that_is_raised_is_heard(make: Make) -> None:
    governor = make()
    governor.reserve(1)
    for requests in (1, 6):
        governor.heard(_limits(requests=requests), reserved=1, used=1)
    assert _gaps(_moments(governor, 4)) == pytest.approx([10 / SHARE] * 3, abs=1)


# Corrections


@pytest.mark.parametrize(("reserved", "used"), [(100, 300), (300, 100), (100, 100)])
def test_the_true_number_of_tokens_moves_the_next_place(
    reserved: int, used: int, make: Make
) -> None:
    governor = make(None, 600)
    began = time.monotonic()
    governor.reserve(reserved)
    governor.heard(RateLimits(), reserved=reserved, used=used)
    [place] = _moments(governor, 1)
    assert place - began == pytest.approx(used / 10 / SHARE, abs=SLACK_SECONDS)


def test_a_correction_by_a_limit_that_is_heard_with_it_counts(make: Make) -> None:
    governor = make()
    began = time.monotonic()
    governor.reserve(100)
    governor.heard(_limits(tokens=600), reserved=100, used=300)
    [place] = _moments(governor, 1)
    assert place - began == pytest.approx(20 / SHARE, abs=SLACK_SECONDS)


def test_tokens_that_nobody_limits_move_nothing(make: Make) -> None:
    governor = make(6_000)
    governor.reserve(100)
    governor.heard(RateLimits(), reserved=100, used=1_000_000)
    assert governor.reserve(100) < SLACK_SECONDS


# Pauses


def test_a_pause_moves_everybodys_next_place(make: Make) -> None:
    one, other = make(6), make(6)
    one.reserve(1)
    one.pause(20.0)
    began = time.monotonic()
    moments = [*_moments(other, 3), *_moments(one, 3)]
    assert min(moments) - began == pytest.approx(20.0, abs=SLACK_SECONDS)
    assert _gaps(moments) == pytest.approx([10 / SHARE] * 5, abs=1)


def test_a_shorter_pause_does_not_end_a_longer_one(make: Make) -> None:
    governor = make()
    governor.reserve(1)
    governor.pause(50.0)
    governor.pause(0.1)
    assert governor.reserve(1) == pytest.approx(50.0, abs=SLACK_SECONDS)


def test_a_pause_holds_where_no_limit_is_known(make: Make) -> None:
    governor = make()
    governor.reserve(1)
    governor.pause(30.0)
    assert [governor.reserve(1) for _ in range(3)] == pytest.approx([30.0] * 3, abs=SLACK_SECONDS)


# A database that goes away


@contextmanager
def _ended(shop: Shop) -> Iterator[None]:
    """Every session but the shop's is ended."""
    shop.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    yield


ASK: dict[str, Callable[[SharedGovernor], object]] = {
    "reserve": lambda governor: governor.reserve(100),
    "heard": lambda governor: governor.heard(_limits(requests=60), reserved=1, used=2),
    "pause": lambda governor: governor.pause(1.0),
}


@pytest.mark.parametrize("what", ASK)
def test_a_session_that_is_lost_is_a_fault_that_passes(what: str, make: Make, shop: Shop) -> None:
    governor = make(60)
    governor.reserve(1)
    with _ended(shop), pytest.raises(ConnectionLostError):
        ASK[what](governor)
    ASK[what](governor)
    assert governor.reserve(1) > 0


def test_patience_gets_over_a_session_that_is_lost(make: Make, shop: Shop) -> None:
    governor = make(6)
    governor.reserve(1)
    with _ended(shop):
        wait = Patience(5.0, sleep=lambda _: None)(lambda: governor.reserve(1))
    assert wait == pytest.approx(10 / SHARE, abs=SLACK_SECONDS)


def test_a_server_that_is_away_when_the_first_place_is_asked_for_is_waited_for(
    shop: Shop, database_url: str
) -> None:
    assert shop.is_prepared()
    away = [DatabaseUnavailableError("the server starts")] * 2

    def open_session() -> Session:
        if away:
            raise away.pop()
        return Session(database_url)

    governor = SharedGovernor(
        open_session, ENDPOINT, "f", pace=Pace(6), budget=Budget({"f": LOCAL})
    )
    try:
        with pytest.raises(ConnectionLostError):
            governor.reserve(1)
        waits = [Patience(5.0, sleep=lambda _: None)(lambda: governor.reserve(1)) for _ in "ab"]
        assert waits == pytest.approx([0, 10 / SHARE], abs=SLACK_SECONDS)
    finally:
        governor.close()


# The budget


def _spend(shop: Shop, fingerprint: str, tokens: int, price: Price = LOCAL) -> None:
    shop.embeddings.record(
        RunIdentity("run", "run", "*:*"),
        Spend(
            fingerprint,
            requests=1,
            tokens=tokens,
            cost=price.of(tokens),
            price_version=price.version,
        ),
    )


def test_a_budget_of_tokens_is_exact_at_its_edge(make: Make, shop: Shop) -> None:
    governor = make(budget=Budget({"f": LOCAL}, tokens=1_000))
    _spend(shop, "f", 900)
    assert governor.reserve(100) == 0
    with pytest.raises(BudgetReachedError, match=r"900 tokens .* budget.tokens = 1,000"):
        governor.reserve(101)
    _spend(shop, "f", 100)
    assert governor.reserve(0) == 0
    with pytest.raises(BudgetReachedError):
        governor.reserve(1)


def test_a_budget_of_dollars_is_exact_at_its_edge(make: Make, shop: Shop) -> None:
    price = Price(Decimal("0.02"), "settings")
    governor = make(budget=Budget({"f": price}, cost=Decimal("0.00001")))
    _spend(shop, "f", 400, price)
    assert governor.reserve(100) == 0
    with pytest.raises(BudgetReachedError, match=r"budget.dollars = 0.00001"):
        governor.reserve(101)


def test_a_budget_counts_all_models_of_the_settings_and_no_others(make: Make, shop: Shop) -> None:
    cheap, dear = Price(Decimal(1), "settings"), Price(Decimal(10), "settings")
    budget = Budget({"cheap": cheap, "dear": dear}, tokens=1_000, cost=Decimal("0.005"))
    _spend(shop, "of yesterday", 1_000_000, dear)
    _spend(shop, "cheap", 400, cheap)
    _spend(shop, "dear", 400, dear)  # $0.0044 in all
    for_cheap = make(fingerprint="cheap", budget=budget)
    for_dear = make(fingerprint="dear", budget=budget, endpoint="another")
    assert for_cheap.reserve(200) == 0
    with pytest.raises(BudgetReachedError, match="tokens"):
        for_cheap.reserve(201)
    assert for_dear.reserve(60) == 0
    with pytest.raises(BudgetReachedError, match="dollars"):
        for_dear.reserve(61)


def test_what_is_refused_for_the_budget_takes_no_place(make: Make) -> None:
    budget = Budget({"f": LOCAL}, tokens=10)
    governor = make(60, budget=budget)
    for _ in range(5):
        with pytest.raises(BudgetReachedError):
            governor.reserve(11)
    assert governor.reserve(10) == 0


def test_a_budget_of_dollars_without_a_price_is_refused_and_not_passed_over(make: Make) -> None:
    unknown = Price(None, "genai-prices 1.0")
    with pytest.raises(SettingsError, match="dollars_per_million_tokens"):
        make(budget=Budget({"f": unknown}, cost=Decimal(1))).reserve(1)
    # What runs on servers of one's own costs nothing, and is asked for nothing.
    assert make(budget=Budget({"f": LOCAL}, cost=Decimal(1))).reserve(1) == 0
