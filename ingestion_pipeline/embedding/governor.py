"""What keeps the requests of all workers within an endpoint's limits and the budget.

Only the Protocol: what all workers share lies in their database.
"""

from __future__ import annotations

from typing import Protocol

from ingestion_pipeline.rate_limits import RateLimits


class Governor(Protocol):
    """Gives out places in time for requests to one model at one endpoint; thread-safe."""

    def reserve(self, tokens: int) -> float:
        """Take the next place for a request of about so many tokens; seconds until then.

        A place later than `patience.LONGEST_RATE_LIMIT_SECONDS` is only told, and not taken.
        Raises `BudgetReachedError` where no more may be spent.
        """
        ...

    def heard(self, limits: RateLimits, reserved: int, used: int) -> None:
        """What an answer said of the limits, and the tokens that its request really took."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nobody send anything for so long."""
        ...


class Unshared:
    """No governor at all, for a single request before there is anything to share."""

    def reserve(self, _: int) -> float:
        """At once."""
        return 0.0

    def heard(self, limits: RateLimits, reserved: int, used: int) -> None:
        """Nobody else needs to know."""

    def pause(self, seconds: float) -> None:
        """Nobody else needs to wait."""
