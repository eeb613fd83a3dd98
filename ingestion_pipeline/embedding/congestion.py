"""How many requests to an endpoint are worth having at work at once: found out by trying (pure).

After TCP Vegas (Brakmo and Peterson, 1995): where requests take longer than they do when the server
is calm, the difference is time in a queue, and (requests at once) x (1 - calm / now) of them wait
in it. A few should, so that the server is never idle; more only wait. Unlike packets, requests take
very different times anyway, so what is compared is means, of requests of like size, and only what
cannot be chance counts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

FIRST = 4
FEWEST_IN_QUEUE, MOST_IN_QUEUE = 2.0, 5.0
ROUNDS_UNTIL_CALM = 30
"""So many rounds of answers, then one with fewer requests: what is calm now may be so no more."""

_GROWTH = 0.125
_STANDARD_ERRORS = 2.0


@dataclass
class _Times:
    """How long some requests took: their number, the sum of seconds and of their squares."""

    count: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self.squares += seconds * seconds

    def merged(self, later: _Times, share: float) -> _Times:
        """Together with later ones; these count only in part."""
        return _Times(
            self.count * share + later.count,
            self.seconds * share + later.seconds,
            self.squares * share + later.squares,
        )

    @property
    def mean(self) -> float:
        return self.seconds / self.count

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.count - self.mean**2)


@dataclass
class RequestsAtOnce:
    """The number of requests that may be at work, between 1 and `most`; for use by many threads.

    `limit` doubles with each round of answers until requests begin to queue up, and is corrected
    from then on, once a round. It grows only while it is made use of.
    """

    most: int
    limit: int = field(init=False)
    _at_work: int = 0
    _peak: int = 0
    _is_starting: bool = True
    _after_probe: int | None = None
    _rounds: int = 0
    # Answers that are still to come from before the limit changed, and to be heard after that.
    _stale: int = 0
    _unheard: int = FIRST
    _level: int = FIRST
    _calm: dict[int, _Times] = field(default_factory=dict)
    _now: dict[int, _Times] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Begin carefully."""
        self.limit = self._level = self._unheard = min(FIRST, self.most)

    def begun(self) -> None:
        """A request is sent."""
        with self._lock:
            self._at_work += 1
            self._peak = max(self._peak, self._at_work)

    def ended(self) -> None:
        """A request is over, with whatever outcome."""
        with self._lock:
            self._at_work -= 1

    def answered(self, seconds: float, tokens: int) -> None:
        """A request of so many tokens has been answered after so many seconds."""
        with self._lock:
            if self._stale > 0:
                self._stale -= 1
                return
            # Of like size only: a long request takes longer without any queue.
            self._now.setdefault(tokens.bit_length(), _Times()).add(max(seconds, 1e-6))
            self._unheard -= 1
            if self._unheard <= 0:
                self._judge()
                self._now = {}

    def failed(self) -> None:
        """The server could not keep up, or is not well: half as many.

        What was sent before that tells nothing new.
        """
        with self._lock:
            if self._stale > 0:
                self._stale -= 1
                return
            self._is_starting = False
            self._now = {}
            self._set(self.limit // 2)

    def _judge(self) -> None:
        """A round of answers is complete."""
        waiting = self._level * _queued_share(self._calm, self._now)
        if self._is_starting and waiting <= FEWEST_IN_QUEUE:
            self._learn_calm(share=1.0)
            # The answers of the next round are to what is at work now.
            self._level = self._unheard = max(1, self._at_work)
            if self._peak >= self.limit:
                self.limit = min(self.limit * 2, self.most)
            self._peak = self._at_work
        elif self._is_starting:
            self._is_starting = False
            self._probe(self._level - waiting + MOST_IN_QUEUE)
        elif self._after_probe is not None:
            self._learn_calm(share=0.5)
            self._set(self._after_probe)
        else:
            self._correct(waiting)

    def _correct(self, waiting: float) -> None:
        self._rounds += 1
        if waiting > MOST_IN_QUEUE:
            self._set(self.limit - waiting + FEWEST_IN_QUEUE)
        elif self._rounds % ROUNDS_UNTIL_CALM == 0:
            self._probe(self.limit)
        elif waiting < FEWEST_IN_QUEUE and self._peak >= self.limit:
            self._set(self.limit + max(1.0, self.limit * _GROWTH))
        else:
            self._unheard = self.limit
            self._peak = self._at_work

    def _probe(self, limit: float) -> None:
        """Go on with `limit` after a round without a queue, if there is not more than usual."""
        self._set(max(limit / 2, min(0.75 * limit, limit - 2 * MOST_IN_QUEUE)))
        self._after_probe = round(limit)

    def _learn_calm(self, share: float) -> None:
        for size, times in self._now.items():
            known = self._calm.get(size, _Times())
            # A former calm counts for no more than the present one.
            most = times.count / known.count if known.count else 1.0
            self._calm[size] = known.merged(
                times, share if share == 1.0 else min(1.0, most) * share
            )

    def _set(self, limit: float) -> None:
        self.limit = self._level = max(1, min(round(limit), self.most))
        self._after_probe = None
        self._stale = self._at_work
        self._unheard = self.limit
        self._peak = 0


def _queued_share(calm: Mapping[int, _Times], now: Mapping[int, _Times]) -> float:
    """The part of their time that requests spend in a queue, as far as it cannot be chance."""
    sizes = calm.keys() & now.keys()
    expected = sum(now[size].count * calm[size].mean for size in sizes)
    if not expected:
        return 0.0
    seconds = sum(now[size].seconds for size in sizes)
    doubt = sum(
        now[size].count * now[size].variance
        + now[size].count ** 2 * calm[size].variance / calm[size].count
        for size in sizes
    )
    surely = seconds - _STANDARD_ERRORS * math.sqrt(doubt)
    return max(0.0, 1 - expected / surely) if surely > expected else 0.0
