"""Quotas of requests and tokens a minute, as OpenAI keeps them and writes them into headers.

How many requests are at work at once is no quota: that is `slots`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour

Clock = Callable[[], float]
Kind = Literal["requests", "tokens"]

_MINUTE = 60
_SHORT = {"requests": "RPM", "tokens": "TPM"}


@dataclass
class Bucket:
    """Fills continuously and holds what `burst_seconds` bring, or one at the least; full at first.

    `limit` is what a minute brings.
    """

    clock: Clock
    limit: int = 0
    capacity: float = 0
    _level: float | None = None
    _at: float = 0

    def set(self, limit: int, burst_seconds: float) -> None:
        """The limit from now on; what has been saved up stays, if it fits."""
        now = self.clock()
        if self._level is not None:
            self._level += (now - self._at) * self.limit / _MINUTE
        self.limit, self.capacity = limit, max(1.0, limit * burst_seconds / _MINUTE)
        self._level = self.capacity if self._level is None else min(self._level, self.capacity)
        self._at = now

    @property
    def level(self) -> float:
        """What can be taken now."""
        assert self._level is not None, "set() comes first"
        return min(self.capacity, self._level + (self.clock() - self._at) * self.limit / _MINUTE)

    def seconds_until(self, amount: float) -> float:
        """How long until so much can be taken; 0: now."""
        return max(0.0, amount - self.level) * _MINUTE / self.limit

    def take(self, amount: float) -> None:
        """Take it, which must be there."""
        self._level, self._at = self.level - amount, self.clock()


@dataclass(frozen=True)
class Excess:
    """Why a request is refused. `seconds` until it would not be; None: it never can be let in."""

    kind: Kind
    limit: int
    used: int
    requested: int
    seconds: float | None

    @property
    def message(self) -> str:
        """OpenAI's words."""
        of_what = f"on {self.kind} per min ({_SHORT[self.kind]}): Limit {self.limit}"
        if self.seconds is None:
            return (
                f"Request too large {of_what}, Requested {self.requested}. The input or output "
                "tokens must be reduced in order to run successfully."
            )
        return (
            f"Rate limit reached {of_what}, Used {self.used}, Requested {self.requested}. "
            f"Please try again in {duration(self.seconds)}."
        )


@dataclass
class Quota:
    """Both quotas together: a request that one of them refuses takes nothing from the other."""

    clock: Clock
    _buckets: dict[Kind, Bucket] = field(default_factory=dict)

    def admit(self, tokens: int, behaviour: Behaviour) -> Excess | None:
        """Let a request of so many tokens in, or say why not."""
        self._follow(behaviour)
        wanted: dict[Kind, int] = {"requests": 1, "tokens": tokens}
        excesses = [
            _excess(kind, bucket, wanted[kind])
            for kind, bucket in self._buckets.items()
            if bucket.seconds_until(wanted[kind]) > 0
        ]
        if excesses:
            return max(excesses, key=lambda it: math.inf if it.seconds is None else it.seconds)
        for kind, bucket in self._buckets.items():
            bucket.take(wanted[kind])
        return None

    def headers(self, behaviour: Behaviour) -> dict[str, str]:
        """The `x-ratelimit-*` headers, of the quotas that there are."""
        self._follow(behaviour)
        headers = {}
        for kind, bucket in self._buckets.items():
            full_again = duration(bucket.seconds_until(bucket.capacity))
            headers[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(int(bucket.level))
            headers[f"x-ratelimit-reset-{kind}"] = full_again
        return headers

    def _follow(self, behaviour: Behaviour) -> None:
        limits: dict[Kind, int | None] = {
            "requests": behaviour.requests_per_minute,
            "tokens": behaviour.tokens_per_minute,
        }
        for kind, limit in limits.items():
            if limit is None:
                self._buckets.pop(kind, None)
            else:
                bucket = self._buckets.setdefault(kind, Bucket(self.clock))
                bucket.set(limit, behaviour.burst_seconds)


def _excess(kind: Kind, bucket: Bucket, requested: int) -> Excess:
    return Excess(
        kind,
        bucket.limit,
        used=int(bucket.capacity - bucket.level),
        requested=requested,
        seconds=None if requested > bucket.capacity else bucket.seconds_until(requested),
    )


def duration(seconds: float) -> str:
    """As OpenAI writes durations, rounded up to milliseconds: `0s`, `20ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(round(seconds * 1000, 6))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, _MINUTE * 1000)
    hours, minutes = divmod(minutes, _MINUTE)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
