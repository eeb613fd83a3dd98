"""What each fault does. One that refuses is not billed; the others come after the work.

Three kinds, by what they touch: instead of an answer, inside it, or on its way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import numpy as np

from ingestion_pipeline_tests.embedding_server.answers import Answer, Item
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.limits import duration
from ingestion_pipeline_tests.embedding_server.replies import Manner, Reply, error_reply
from ingestion_pipeline_tests.embedding_server.requests import (
    Asked,
    too_long,
    too_many_bytes,
    unknown_model,
    wrong_key,
)
from ingestion_pipeline_tests.embedding_server.vectors import encoded, vector_of


@dataclass(frozen=True)
class Struck:
    """What a refusal may need to know."""

    asked: Asked
    authorization: bytes | None
    behaviour: Behaviour


def struck_by(behaviour: Behaviour, texts: Sequence[str], chance: Random) -> Fault | None:
    """The fault that befalls a request with these texts, if any; counts `behaviour` down."""
    fault = behaviour.fault
    marked = behaviour.fault_text
    if fault is None or (marked is not None and not any(marked in text for text in texts)):
        return None
    if behaviour.fault_after > 0:
        behaviour.fault_after -= 1
        return None
    if chance.random() >= behaviour.fault_probability:
        return None
    if behaviour.fault_times is not None:
        behaviour.fault_times -= 1
        if behaviour.fault_times <= 0:
            behaviour.fault = behaviour.fault_times = None
    return Fault.named(fault)


def retry_headers(seconds: float) -> dict[str, str]:
    """As OpenAI says when to come again: in whole seconds, and exactly."""
    return {
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),
    }


def _rate_limit(struck: Struck) -> Reply:
    seconds = struck.behaviour.retry_after
    return _limited(
        seconds,
        {
            **retry_headers(seconds),
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": duration(seconds),
        },
    )


def _rate_limit_dated(struck: Struck) -> Reply:
    seconds = struck.behaviour.retry_after
    # A date has whole seconds, so it is rounded up.
    then = datetime.now(UTC) + timedelta(seconds=seconds + 1, microseconds=-1)
    return _limited(seconds, {"retry-after": format_datetime(then, usegmt=True)})


def _rate_limit_bare(struck: Struck) -> Reply:
    return _limited(struck.behaviour.retry_after, {})


def _limited(seconds: float, headers: Mapping[str, str]) -> Reply:
    return error_reply(
        429,
        f"Rate limit reached on requests per min (RPM). Please try again in {duration(seconds)}.",
        kind="requests",
        code="rate_limit_exceeded",
        headers=headers,
    )


def _insufficient_quota(_: Struck) -> Reply:
    return error_reply(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        kind="insufficient_quota",
        code="insufficient_quota",
    )


def _bad_request(_: Struck) -> Reply:
    return error_reply(
        400,
        "The input was refused by the content filter.",
        code="content_filter",
        param="input",
    )


def _context_length(struck: Struck) -> Reply:
    limit = struck.behaviour.tokens_per_text
    return too_long(max(limit + 1, *struck.asked.tokens), limit)


def _echoed_key(struck: Struck) -> Reply:
    header = (struck.authorization or b"").decode("latin-1")
    return error_reply(401, f"Not valid here: Authorization: {header}", code="invalid_api_key")


def _forbidden(_: Struck) -> Reply:
    return error_reply(
        403,
        "You have insufficient permissions for this operation.",
        code="insufficient_permissions",
    )


def _server_error(_: Struck) -> Reply:
    return error_reply(
        500, "The server had an error while processing your request.", kind="server_error"
    )


def _unavailable(struck: Struck) -> Reply:
    return error_reply(
        503,
        "The engine is currently overloaded, please try again later.",
        kind="overloaded_error",
        headers={"retry-after": str(math.ceil(struck.behaviour.retry_after))},
    )


def _redirect(struck: Struck) -> Reply:
    return Reply(307, b"", {"location": struck.behaviour.redirect_to})


def _html(status: int, title: str) -> Reply:
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return Reply(status, page.encode(), content_type="text/html")


def _error_body(_: Struck) -> Reply:
    error = {"message": "Internal error", "type": "server_error", "param": None, "code": None}
    return Reply(200, json.dumps({"error": error}).encode())


INSTEAD_OF_AN_ANSWER: Mapping[Fault, Callable[[Struck], Reply]] = {
    Fault.RATE_LIMIT: _rate_limit,
    Fault.RATE_LIMIT_DATED: _rate_limit_dated,
    Fault.RATE_LIMIT_BARE: _rate_limit_bare,
    Fault.INSUFFICIENT_QUOTA: _insufficient_quota,
    Fault.BAD_REQUEST: _bad_request,
    Fault.CONTEXT_LENGTH: _context_length,
    Fault.UNAUTHORIZED: lambda struck: wrong_key(struck.authorization),
    Fault.ECHOED_KEY: _echoed_key,
    Fault.FORBIDDEN: _forbidden,
    Fault.UNKNOWN_MODEL: lambda struck: unknown_model(struck.asked.model),
    Fault.TOO_LARGE: lambda _: too_many_bytes(),
    Fault.SERVER_ERROR: _server_error,
    Fault.BAD_GATEWAY: lambda _: _html(502, "502 Bad Gateway"),
    Fault.UNAVAILABLE: _unavailable,
    Fault.REDIRECT: _redirect,
    Fault.HTML: lambda _: _html(200, "Down for maintenance"),
    Fault.ERROR_BODY: _error_body,
}


def middle(count: int) -> int:
    """The position of the item that is damaged where it is only one."""
    return count // 2


def _short(answer: Answer, _: Asked) -> None:
    del answer.items[middle(len(answer.items))]
    for index, item in enumerate(answer.items):
        item.index = index


def _long(answer: Answer, _: Asked) -> None:
    answer.items.append(Item(len(answer.items), answer.items[-1].embedding))


def _swapped(answer: Answer, _: Asked) -> None:
    answer.items.reverse()


def _wrong_index(answer: Answer, _: Asked) -> None:
    # A single item has no other to take the index of.
    answer.items[-1].index = 0 if len(answer.items) > 1 else 1


def _no_index(answer: Answer, _: Asked) -> None:
    for item in answer.items:
        item.index = None


def _nan(answer: Answer, asked: Asked) -> None:
    position = middle(len(answer.items))
    vector = vector_of(asked.texts[position], asked.dimensions)
    vector[middle(len(vector))] = np.nan
    answer.items[position].embedding = encoded(vector, asked.encoding)


def _zero(answer: Answer, asked: Asked) -> None:
    vector = np.zeros(asked.dimensions, dtype=np.float32)
    answer.items[middle(len(answer.items))].embedding = encoded(vector, asked.encoding)


def _wrong_size(answer: Answer, asked: Asked) -> None:
    for item, text in zip(answer.items, asked.texts, strict=True):
        vector = vector_of(text, asked.dimensions)[:-1]
        item.embedding = encoded(vector, asked.encoding)


def _other_model(answer: Answer, _: Asked) -> None:
    answer.model = "another-model"


def _empty_usage(answer: Answer, _: Asked) -> None:
    answer.usage = {}


INSIDE_THE_ANSWER: Mapping[Fault, Callable[[Answer, Asked], None]] = {
    Fault.SHORT: _short,
    Fault.LONG: _long,
    Fault.SWAPPED: _swapped,
    Fault.WRONG_INDEX: _wrong_index,
    Fault.NO_INDEX: _no_index,
    Fault.NAN: _nan,
    Fault.ZERO: _zero,
    Fault.WRONG_SIZE: _wrong_size,
    Fault.OTHER_MODEL: _other_model,
    Fault.EMPTY_USAGE: _empty_usage,
}


def _lost(manner: Manner) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, manner=manner, tells_usage=False)


def _late(manner: Manner) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, manner=manner)


def _truncated(reply: Reply) -> Reply:
    return replace(reply, body=reply.body[: len(reply.body) // 2], tells_usage=False)


ON_THE_WAY: Mapping[Fault, Callable[[Reply], Reply]] = {
    Fault.TRUNCATED_JSON: _truncated,
    Fault.TIMEOUT: _lost(Manner.SILENCE),
    Fault.SLOW_DRIP: _late(Manner.DRIP),
    Fault.CUT: _lost(Manner.CUT),
    Fault.RESET: _lost(Manner.RESET),
    Fault.CUT_IN_BODY: _lost(Manner.CUT_IN_BODY),
    Fault.HUGE_BODY: _late(Manner.PADDED),
}
