"""What goes back to the client, and in which manner it goes over the line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Manner(Enum):
    """How a reply goes over the line."""

    WHOLE = auto()
    SILENCE = auto()
    """Nothing at all, until the client hangs up."""
    DRIP = auto()
    CUT = auto()
    RESET = auto()
    CUT_IN_BODY = auto()
    PADDED = auto()
    """After a great deal of padding, in chunks."""


@dataclass(frozen=True)
class Reply:
    """A status with a body. `tells_usage`: the client learns from it what it has been billed."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    manner: Manner = Manner.WHOLE
    tells_usage: bool = True


class Refusal(Exception):  # noqa: N818 - no error of this program
    """A request that is answered without being served, and not billed."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def error_reply(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """An error in OpenAI's form."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Reply(status, json.dumps({"error": error}, indent=2).encode(), headers or {})
