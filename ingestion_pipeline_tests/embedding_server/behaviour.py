"""What the server can be told to be: slow, narrow, metered, locked or faulty.

Only the words are here. What a fault does is in `faults`, what a quota refuses in `limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter


class Fault(StrEnum):
    """What can befall a request."""

    explanation: str

    def __new__(cls, name: str, explanation: str) -> Self:
        """A fault is its name; the explanation is for --help."""
        fault = str.__new__(cls, name)
        fault._value_ = name
        fault.explanation = explanation
        return fault

    @classmethod
    def named(cls, name: str) -> Fault:
        """The fault of this name; `ValueError` if there is none."""
        for fault in cls:
            if fault == name:
                return fault
        raise ValueError(f"there is no fault {name!r}: expected one of {', '.join(cls)}")

    # Refused, and not billed.
    RATE_LIMIT = "rate_limit", "429 with Retry-After"
    RATE_LIMIT_DATED = "rate_limit_dated", "429 with a date in Retry-After"
    RATE_LIMIT_BARE = "rate_limit_bare", "429 that does not say for how long"
    INSUFFICIENT_QUOTA = "insufficient_quota", "429: the account has no money left"
    BAD_REQUEST = "bad_request", "400: a content filter refuses the input"
    CONTEXT_LENGTH = "context_length", "400: a text is too long"
    UNAUTHORIZED = "unauthorized", "401 with most of the key masked"
    ECHOED_KEY = "echoed_key", "401 that repeats the whole Authorization header"
    FORBIDDEN = "forbidden", "403"
    UNKNOWN_MODEL = "unknown_model", "404"
    TOO_LARGE = "too_large", "413"
    SERVER_ERROR = "server_error", "500"
    BAD_GATEWAY = "bad_gateway", "502 with HTML"
    UNAVAILABLE = "unavailable", "503 with Retry-After"
    REDIRECT = "redirect", "307 to `redirect_to`"
    HTML = "html", "200 with HTML"
    ERROR_BODY = "error_body", "200 with an error in the body"

    # Embedded and billed, and the answer is wrong.
    SHORT = "short", "one item is left out, and the others close the gap"
    LONG = "long", "one item too many"
    SWAPPED = "swapped", "items in another order, with true indexes, which is legal"
    WRONG_INDEX = "wrong_index", "an index twice, and another never"
    NO_INDEX = "no_index", "items without indexes"
    NAN = "nan", "a vector that holds NaN"
    ZERO = "zero", "a vector of zeros"
    WRONG_SIZE = "wrong_size", "vectors one number short"
    OTHER_MODEL = "other_model", "another model's name"
    EMPTY_USAGE = "empty_usage", "nothing in `usage`"
    TRUNCATED_JSON = "truncated_json", "half of the JSON, as if that were all"

    # Embedded and billed, and the line is bad.
    TIMEOUT = "timeout", "no answer, and the line stays open"
    SLOW_DRIP = "slow_drip", "a byte every `drip_seconds`"
    CUT = "cut", "the line is closed before a byte"
    RESET = "reset", "the line is reset before a byte"
    CUT_IN_BODY = "cut_in_body", "the line is closed in the middle of the body"
    HUGE_BODY = "huge_body", "`huge_body_bytes` of padding before the answer"


def _dimensions() -> dict[str, int]:
    return {
        "text-embedding-3-small": 1536,
        "text-embedding-3-large": 3072,
        "text-embedding-ada-002": 1536,
        "sentence-transformers/all-mpnet-base-v2": 768,
        "sentence-transformers/all-MiniLM-L6-v2": 384,
    }


@dataclass
class Behaviour:
    """May be changed at any time; the next request is treated accordingly.

    Attributes:
        latency: seconds that a request is at work at the least, after any wait for its turn.
        parallelism: requests at work at once, others wait; None: any number.
        hold: let no request begin its work until this is False again.
        requests_per_minute: the quota; it refills continuously. None: no quota.
        tokens_per_minute: likewise.
        burst_seconds: how many seconds of a quota can be saved up.
        fault: what befalls requests; None: nothing.
        fault_probability: the share of them, from 0 to 1.
        fault_times: so often, then `fault` is None again. None: always.
        fault_after: so many requests before the first are spared.
        fault_text: only requests with this in one of their texts.
        retry_after: seconds that the faults with 429 and 503 ask for.
        drip_seconds: between two bytes of the fault `slow_drip`.
        huge_body_bytes: size of the fault `huge_body`.
        redirect_to: where the fault `redirect` sends the client.
        key: the only key that is let in; None: whoever comes.
        model: the name that answers give; None: the one asked for.
        dimensions: the models there are, and the numbers in their vectors.
        resizable: the models that take `dimensions` in a request.
        texts_per_request: more are refused with 400, as are more tokens.
        tokens_per_request: of all texts together.
        tokens_per_text: of each text.
        bytes_per_request: of the request's body; more are refused with 413. None: no limit.

    """

    latency: float = 0.0
    parallelism: int | None = None
    hold: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_seconds: float = 60.0
    fault: str | None = None
    fault_probability: float = 1.0
    fault_times: int | None = None
    fault_after: int = 0
    fault_text: str | None = None
    retry_after: float = 1.0
    drip_seconds: float = 0.5
    huge_body_bytes: int = 256 * 2**20
    redirect_to: str = "http://127.0.0.1:9/v1/embeddings"
    key: str | None = None
    model: str | None = None
    dimensions: dict[str, int] = field(default_factory=_dimensions)
    resizable: set[str] = field(
        default_factory=lambda: {"text-embedding-3-small", "text-embedding-3-large"}
    )
    texts_per_request: int = 2048
    tokens_per_request: int = 300_000
    tokens_per_text: int = 8192
    bytes_per_request: int | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __setattr__(self, name: str, value: object) -> None:
        """A fault that there is not would never happen, so it is refused at once (ValueError)."""
        if name == "fault" and value is not None:
            value = Fault.named(str(value))
        object.__setattr__(self, name, value)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change some fields, all or none.

        Raises:
            ValueError: a field that there is not, or a value that does not suit it.

        """
        whole = {each.name: getattr(self, each.name) for each in fields(self)}
        # Made once more, as pydantic goes round `__setattr__`.
        changed = replace(TypeAdapter(Behaviour).validate_python({**whole, **changes}))
        for name in changes:
            setattr(self, name, getattr(changed, name))

    def as_json(self) -> dict[str, Any]:
        """Every field, for GET /control; the key only as to whether there is one."""
        return asdict(self) | {
            "resizable": sorted(self.resizable),
            "key": None if self.key is None else "(set)",
        }
