"""One pace and one budget for all workers, of all processes and hosts: a row in the database.

Each request takes a place in time there before it is sent, so that limits are kept ahead of them
and a wait that an endpoint asks for is everybody's. How limits are read from an answer is
`rate_limits`.

Why not a library: the well-kept one with a PostgreSQL bucket (pyrate-limiter 4.5) stores a row for
each unit, 150,000 a minute for as many tokens, and turns callers away while another holds its lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from ingestion_pipeline.database import queries
from ingestion_pipeline.database.connection import Row, database_errors
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.errors import (
    BudgetReachedError,
    ConnectionLostError,
    DatabaseUnavailableError,
    SettingsError,
)
from ingestion_pipeline.patience import LONGEST_RATE_LIMIT_SECONDS
from ingestion_pipeline.prices import Price
from ingestion_pipeline.progress import dollars
from ingestion_pipeline.rate_limits import RateLimits

if TYPE_CHECKING:
    import psycopg

SHARE = 0.98
"""Of a limit: neither clocks nor lines are even, and a request too soon is turned away."""

LONGEST_GAP_SECONDS = 3_600.0
"""Between two requests, whatever a limit that was mistyped or misread comes to."""


@dataclass(frozen=True)
class Pace:
    """Requests and tokens a minute from the settings; None: as the endpoint says, if it does."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class Budget:
    """What may be spent, ever, on vectors of some fingerprints; None: any amount.

    `prices` are those of the fingerprints' models; `cost` is in their currency, US dollars.
    """

    prices: Mapping[str, Price]
    tokens: int | None = None
    cost: Decimal | None = None


class SharedGovernor:
    """The governor of one model at one endpoint; keeps the `Governor` protocol.

    Args:
        open_session: gives a session of the governor's own, when it is first needed.
        endpoint: names the model and where it is; workers that share a limit share this.
        fingerprint: of the vectors that are asked for.
        pace: limits from the settings.
        budget: over all models.

    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        endpoint: str,
        fingerprint: str,
        *,
        pace: Pace,
        budget: Budget,
    ) -> None:
        self._open_session = open_session
        self._endpoint = endpoint
        self._fingerprint = fingerprint
        self._pace = pace
        self._budget = budget
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._learnt: tuple[float | None, float | None] = (None, None)

    def reserve(self, tokens: int) -> float:
        """Take the next place for a request of about so many tokens; seconds until then.

        One that is later than anybody waits is only told. Raises `BudgetReachedError` where the
        request would go beyond the budget, `ConnectionLostError` where the database is away.
        """
        with self._lock, database_errors():
            self._keep_to_budget(tokens)
            while (row := self._place(tokens)) is None:
                self._execute("insert_rate_limit")
        return max(0.0, float(row[0]))

    def heard(self, limits: RateLimits, reserved: int, used: int) -> None:
        """Correct the pace by what an answer said of the limits and of its own tokens."""
        learnt = (
            limits.requests.per_minute if limits.requests else None,
            limits.tokens.per_minute if limits.tokens else None,
        )
        with self._lock:
            if learnt in ((None, None), self._learnt) and used == reserved:
                return
            with database_errors():
                self._execute(
                    "hear_rate_limits",
                    requests_per_minute=learnt[0],
                    tokens_per_minute=learnt[1],
                    tokens_set=self._pace.tokens_per_minute,
                    tokens_more=used - reserved,
                    share=SHARE,
                    longest_gap=LONGEST_GAP_SECONDS,
                )
            self._learnt = learnt

    def pause(self, seconds: float) -> None:
        """Let nobody send anything for so long."""
        with self._lock, database_errors():
            self._execute("pause_requests", seconds=seconds)

    def close(self) -> None:
        """Give the session back; the next call opens another."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def _place(self, tokens: int) -> Row | None:
        return self._execute(
            "reserve_request",
            tokens=tokens,
            requests_per_minute=self._pace.requests_per_minute,
            tokens_per_minute=self._pace.tokens_per_minute,
            share=SHARE,
            longest_gap=LONGEST_GAP_SECONDS,
            longest_wait=LONGEST_RATE_LIMIT_SECONDS,
        ).fetchone()

    def _keep_to_budget(self, tokens: int) -> None:
        budget = self._budget
        if budget.tokens is None and budget.cost is None:
            return
        row = self._execute("spent", fingerprints=list(budget.prices)).fetchone()
        spent_tokens, spent_cost = (row[0], row[1] or Decimal(0)) if row else (0, Decimal(0))
        if budget.tokens is not None and spent_tokens + tokens > budget.tokens:
            raise BudgetReachedError(
                f"{spent_tokens:,} tokens are spent, and the next request would take about "
                f"{tokens:,} more: beyond budget.tokens = {budget.tokens:,}. "
                f"{_RAISE_IT}"
            )
        if budget.cost is None:
            return
        price = budget.prices[self._fingerprint]
        cost = price.of(tokens)
        if cost is None and price.version != "local":
            raise SettingsError(
                "budget.dollars cannot be kept to where a price is not known. Set "
                "dollars_per_million_tokens for each such model in ingestion.toml."
            )
        cost = cost or Decimal(0)
        if spent_cost + cost > budget.cost:
            raise BudgetReachedError(
                f"{dollars(spent_cost)} are spent, and the next request of about {dollars(cost)} "
                f"would go beyond budget.dollars = {budget.cost}. {_RAISE_IT}"
            )

    def _execute(self, name: str, **parameters: object) -> psycopg.Cursor[Row]:
        if self._session is None:
            try:
                self._session = self._open_session()
            except DatabaseUnavailableError as error:
                # The loop has a session already, so this is a server that restarts, say.
                raise ConnectionLostError(str(error)) from error
        return self._session.execute(queries.text(name), {"endpoint": self._endpoint, **parameters})


_RAISE_IT = "What is committed is kept: raise it in ingestion.toml, and the same command goes on."
