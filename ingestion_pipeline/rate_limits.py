"""What an endpoint says of its limits, in the headers of its answers (pure).

The names are OpenAI's (https://platform.openai.com/docs/guides/rate-limits), which others use too.
What is done about it is the governor's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_WINDOWS = (60.0, 3_600.0, 86_400.0)
_LIKENESS = 0.1

LONGEST_WAIT_SECONDS = 86_400.0
"""No limit comes back later: whoever asks for more patience means something else."""


@dataclass(frozen=True)
class Limit:
    """One limit as it stands now: `reset_seconds` until all of it is there again."""

    limit: float
    remaining: float
    reset_seconds: float | None = None

    @property
    def per_minute(self) -> float:
        """What may be used a minute in the long run.

        The header does not say the limit's window. It is a minute, unless it takes longer than that
        until all is there again. Where what was used comes back bit by bit, the window is what all
        of it would take; where it comes back at once, no shorter than what is left of it.
        """
        used, reset = self.limit - self.remaining, self.reset_seconds or 0.0
        if used <= 0 or reset <= _WINDOWS[0]:
            return self.limit
        refilled = self.limit * reset / used
        window = next(
            (it for it in _WINDOWS if abs(refilled / it - 1) <= _LIKENESS),
            next((it for it in _WINDOWS if it >= reset), _WINDOWS[-1]),
        )
        return self.limit * _WINDOWS[0] / window


@dataclass(frozen=True)
class RateLimits:
    """What an answer says; None: nothing."""

    requests: Limit | None = None
    tokens: Limit | None = None


def rate_limits(headers: Mapping[str, str]) -> RateLimits:
    """The limits in the headers of an answer; header names in lower case."""
    return RateLimits(_limit(headers, "requests"), _limit(headers, "tokens"))


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that an answer asks to wait, a day at the most; None where it does not."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1_000)
    value = headers.get("retry-after")
    if value is None:
        return None
    if (seconds := _number(value)) is not None:
        return _bounded(seconds)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is meant as any date of HTTP is.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _bounded((moment - (now or datetime.now(UTC))).total_seconds())


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def duration(text: str | None) -> float | None:
    """Seconds of `6m0s`, `20ms`, `1.5s` or a bare number; None for anything else."""
    if text is None:
        return None
    if (number := _number(text)) is not None:
        return number
    parts = _PARTS.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _limit(headers: Mapping[str, str], what: str) -> Limit | None:
    limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    if limit is None or limit <= 0 or remaining is None:
        return None
    return Limit(limit, remaining, duration(headers.get(f"x-ratelimit-reset-{what}")))


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None
