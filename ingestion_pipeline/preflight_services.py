"""What preflight makes of an embedding API that has answered one text, or has not (pure).

Asking is the caller's work. How long a run takes at an API's pace is reckoned here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.prices import Price
from ingestion_pipeline.rate_limits import Limit, RateLimits
from ingestion_pipeline.verdict import JSON, Reasons


@dataclass(frozen=True)
class ServiceFacts:
    """A model behind an API, and what it said to one text.

    `problem` is why there was no answer. `dimensions` is the true length of its vectors, to be
    compared with that in the settings; `tokens` is what the answer took.
    """

    model: str
    aspects: tuple[Aspect, ...]
    host: str
    expected_dimensions: int
    price: Price
    problem: str | None = None
    dimensions: int | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    tokens: int = 0


def judge(service: ServiceFacts, reasons: Reasons, *, needs_price: bool) -> None:
    """Add every reason why an API is not fit to embed with; a budget in dollars needs a price."""
    aspects = " and ".join(service.aspects)
    if service.problem:
        reasons.error(service.problem, f"It is the model of {aspects}.")
        return
    if service.dimensions != service.expected_dimensions:
        reasons.error(
            f"{service.model} at {service.host} gives vectors of {service.dimensions} numbers, and "
            f"{aspects} want {service.expected_dimensions}.",
            f"Set dimensions = {service.dimensions}, or send_dimensions = true where the model can "
            "shorten its vectors.",
        )
    for what, limit in _named(service.limits):
        if limit is not None and limit.remaining <= 0:
            reasons.warning(
                f"{service.host} has no {what} left for now{_until(limit)}.",
                "The run waits for its limits by itself.",
            )
    if service.price.per_million_tokens is None and service.price.version != "local":
        say = reasons.error if needs_price else reasons.warning
        say(
            f"The price of {service.model} is not known, so its cost is not counted.",
            "Set dollars_per_million_tokens beside it.",
        )


def described(service: ServiceFacts) -> str:
    """An API in a line: what is asked for, where, and how much of it there is."""
    if service.problem:
        return f"{service.model} at {service.host} does not answer"
    quotas = [
        f"{limit.per_minute:,.0f} {what} a minute ({limit.remaining:,.0f} left)"
        for what, limit in _named(service.limits)
        if limit is not None
    ]
    quota = f", {' and '.join(quotas)}" if quotas else ", no limit said"
    return f"{service.model} at {service.host}: {service.dimensions} dimensions{quota}"


def as_facts(service: ServiceFacts) -> dict[str, JSON]:
    """What was found, for people and machines."""
    price = service.price.per_million_tokens
    return {
        "aspects": [aspect.value for aspect in service.aspects],
        "host": service.host,
        "dimensions": service.dimensions,
        "dollars_per_million_tokens": None if price is None else str(price),
        "price_version": service.price.version,
        "requests": _limit(service.limits.requests),
        "tokens": _limit(service.limits.tokens),
    }


def _named(limits: RateLimits) -> tuple[tuple[str, Limit | None], ...]:
    return ("requests", limits.requests), ("tokens", limits.tokens)


def _limit(limit: Limit | None) -> dict[str, JSON] | None:
    if limit is None:
        return None
    return {
        "limit": limit.limit,
        "remaining": limit.remaining,
        "reset_seconds": limit.reset_seconds,
        "a_minute": limit.per_minute,
    }


def _until(limit: Limit) -> str:
    return f"; all of it is back in {limit.reset_seconds:.0f} s" if limit.reset_seconds else ""


@dataclass(frozen=True)
class Work:
    """What is left for one model: distinct texts, and what a text takes.

    `texts_per_second` is the rate of late; None where there was none. `requests_per_minute` and
    `tokens_per_minute` are the quota; None where there is none, or none is known.
    """

    texts: int
    tokens_per_text: float
    texts_per_request: float
    texts_per_second: float | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    price: Price


@dataclass(frozen=True)
class Estimate:
    """What is left, in tokens, US dollars and seconds; `bound_by` says what takes the time."""

    tokens: int
    cost: Decimal | None
    seconds: float | None
    bound_by: str


NOTHING_LEFT = Estimate(0, None, 0.0, "nothing")


def estimate(work: Mapping[str, Work]) -> Estimate:
    """What the texts left take, models one after the other; None where it cannot be known."""
    tokens, cost, seconds = 0, Decimal(0), 0.0
    is_known, has_price = True, False
    slowest, bound_by = 0.0, "the model"
    for it in work.values():
        if not it.texts:
            continue
        taken = round(it.texts * it.tokens_per_text)
        tokens += taken
        if (price := it.price.of(taken)) is not None:
            cost, has_price = cost + price, True
        bounds = {
            "the model's answers": it.texts / it.texts_per_second if it.texts_per_second else None,
            "the quota of requests": it.texts
            / max(it.texts_per_request, 1)
            / it.requests_per_minute
            * 60
            if it.requests_per_minute
            else None,
            "the quota of tokens": taken / it.tokens_per_minute * 60
            if it.tokens_per_minute
            else None,
        }
        known = {name: bound for name, bound in bounds.items() if bound is not None}
        if bounds["the model's answers"] is None:
            is_known = False
        if known:
            name = max(known, key=lambda it: known[it])
            seconds += known[name]
            if known[name] > slowest:
                slowest, bound_by = known[name], name
    return Estimate(tokens, cost if has_price else None, seconds if is_known else None, bound_by)
