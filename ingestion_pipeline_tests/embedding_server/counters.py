"""What the server has served. Keys are kept as digests only."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any


def digest_of_key(key: str) -> str:
    """How a key appears in `Counters.authorizations`."""
    return digest_of_header(f"Bearer {key}".encode())


def digest_of_header(authorization: bytes) -> str:
    """How an Authorization header appears in `Counters.authorizations`."""
    return sha256(authorization).hexdigest()


@dataclass
class Second:
    """What the quotas let in during a second."""

    requests: int = 0
    tokens: int = 0


@dataclass
class Counters:
    """Since the server's start or the last `reset`. A client may see its answer a moment before
    `in_flight` is counted down and `tokens_untold` is up to date: wait until nothing is in flight.

    Attributes:
        requests: that came for embeddings, whatever became of them.
        in_flight: at this moment, those included that wait.
        most_in_flight: at any moment.
        statuses: answers by status, counted before they are sent. 499: the client had hung up
            before the work began, so there was no answer and no bill.
        faults: faults that struck, by name.
        tokens_billed: of every request whose texts were embedded, whatever became of the answer.
        tokens_untold: the part of them whose number cannot have reached the client: the answer was
            lost or held no usage. A client that died while its answer was under way is not known.
        texts: for each text how often it was billed.
        authorizations: requests by the digest of their Authorization header; "" without one.
        per_second: what the quotas let in, for each second since the first.

    """

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    tokens_billed: int = 0
    tokens_untold: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    authorizations: Counter[str] = field(default_factory=Counter)
    per_second: list[Second] = field(default_factory=list)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    _first: float | None = field(default=None, repr=False, compare=False)

    @property
    def rate_limited(self) -> int:
        """Answers with 429 of any cause."""
        return self.statuses[429]

    @property
    def texts_billed(self) -> int:
        """Texts embedded, repeated ones each time."""
        return self.texts.total()

    def let_in(self, start: int, end: int | None = None) -> Second:
        """What the quotas let in from second `start` until before second `end`."""
        seconds = self.per_second[start:end]
        return Second(sum(it.requests for it in seconds), sum(it.tokens for it in seconds))

    def arrive(self, authorization: bytes | None) -> None:
        """A request has come."""
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.authorizations["" if authorization is None else digest_of_header(authorization)] += 1

    def admit(self, tokens: int) -> None:
        """The quotas have let a request in."""
        now = self.clock()
        self._first = now if self._first is None else self._first
        second = int(now - self._first)
        self.per_second += [Second() for _ in range(len(self.per_second), second + 1)]
        self.per_second[second].requests += 1
        self.per_second[second].tokens += tokens

    def bill(self, texts: Iterable[str], tokens: int) -> None:
        """The work for a request is done."""
        self.tokens_billed += tokens
        self.texts.update(texts)

    def reset(self) -> None:
        """Begin anew; what is in flight stays."""
        fresh = Counters(in_flight=self.in_flight, most_in_flight=self.in_flight, clock=self.clock)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def as_json(self) -> dict[str, Any]:
        """For GET /counters."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "statuses": dict(self.statuses),
            "faults": dict(self.faults),
            "tokens_billed": self.tokens_billed,
            "tokens_untold": self.tokens_untold,
            "texts": dict(self.texts),
            "authorizations": dict(self.authorizations),
            "per_second": [asdict(second) for second in self.per_second],
        }


def from_json(counters: Mapping[str, Any]) -> Counters:
    """What `Counters.as_json` has become on its way."""
    statuses = {int(status): times for status, times in counters["statuses"].items()}
    changes = {
        "statuses": Counter(statuses),
        "faults": Counter(counters["faults"]),
        "texts": Counter(counters["texts"]),
        "authorizations": Counter(counters["authorizations"]),
        "per_second": [Second(**second) for second in counters["per_second"]],
    }
    return Counters(**{**counters, **changes})
