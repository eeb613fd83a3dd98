"""Any endpoint that speaks the OpenAI embeddings API, by the `openai` package.

One request a call: nothing is tried again here, and nothing waited for but the answer. What an
answer or a refusal means is translated into the error tree; bodies and keys are never repeated.
Addresses are judged in `endpoints`, limits in headers read in `rate_limits`.
"""

from __future__ import annotations

import binascii
import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from ingestion_pipeline.embedding.congestion import RequestsAtOnce
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.embedding.governor import Governor
from ingestion_pipeline.embedding.token_counts import TokenCounts
from ingestion_pipeline.endpoints import Endpoint
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    EmbeddingServiceError,
    IngestionError,
    InvalidAnswerError,
    PermanentTextError,
    RateLimitedError,
    ServiceUnavailableError,
    SettingsError,
)
from ingestion_pipeline.rate_limits import RateLimits, rate_limits, retry_after

if TYPE_CHECKING:
    import httpx2
    import numpy as np
    import numpy.typing as npt
    import openai
    from pydantic import SecretStr

CONNECT_SECONDS = 10.0

NO_KEY = "none"
"""Sent where no key is configured: the client insists on one, servers of one's own ignore it."""

_LOUD = ("openai", "httpx2", "httpcore2")
"""They log every request, and some of what was answered."""

_MOST_TOKENS = 2**31
"""An endpoint that counts more for one request counts nonsense."""

_CODE = re.compile(r"[a-z0-9_.-]{1,60}", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_.:/@+-]{1,120}", re.IGNORECASE)
_KEY = re.compile(r"[!-~]+")
_MAY_PASS = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.FAILED_DEPENDENCY,  # text-embeddings-inference, where its model has failed
        HTTPStatus.TOO_EARLY,
    }
)
_OUT_OF_MONEY = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
)
_WRONG_KEY = frozenset({"invalid_api_key", "API_KEY_INVALID"})
"""With a 400 from Gemini."""

_MOST_WORDS = 10_000
# What services say of a text, or of a batch, in words alone. The words go no further.
_TEXT_TOO_LONG = re.compile(
    r"maximum context length|must have less than \d+ tokens|exceeds the (?:maximum )?context"
    r"|is too large to process",
    re.IGNORECASE,
)
_TOO_MUCH_AT_ONCE = re.compile(
    r"tokens per request|array (?:is )?too long|maximum allowed batch size|can be in one batch",
    re.IGNORECASE,
)
_REFUSED_TEXT = frozenset({"content_filter", "content_policy_violation"})

_ALIASES = {"text-embedding-ada-002": "text-embedding-ada-002-v2"}
"""Under which name OpenAI answers for it."""


@dataclass(frozen=True)
class Model:
    """What is asked for, and how.

    Attributes:
        name: as the endpoint knows it.
        dimensions: numbers in each vector.
        sends_dimensions: whether the request says so; else they are the model's own.
        prefix: put before every text.
        normalize: whether vectors are scaled to the norm 1.
        max_tokens: texts are cut to so many, prefix included.
        answers_as: another name that answers may carry.
        base64: whether vectors are asked for as base64 of their bytes, not as lists of numbers.

    """

    name: str
    dimensions: int
    sends_dimensions: bool = False
    prefix: str = ""
    normalize: bool = True
    max_tokens: int = 8_192
    answers_as: str | None = None
    base64: bool = False


class Probe(NamedTuple):
    """What one answer shows: the true length of vectors, limits, and the tokens it took."""

    dimensions: int
    limits: RateLimits
    tokens: int


class OpenAIEmbedder:
    """Embeds by requests to an endpoint; keeps the `Embedder` protocol; for use by many threads.

    Args:
        model: what is asked for.
        endpoint: whom to ask.
        key: sent as a bearer token, to this endpoint alone; None where it wants none.
        private_network: whether the endpoint may be in a private network.
        timeout: seconds until an answer is given up.
        tokens: counts and cuts texts.
        governor: hears what answers say of limits.
        at_once: how many requests are worth having at work; hears how long they take.

    """

    def __init__(
        self,
        model: Model,
        *,
        endpoint: Endpoint,
        key: SecretStr | None,
        private_network: bool,
        timeout: float,
        tokens: TokenCounts,
        governor: Governor,
        at_once: RequestsAtOnce,
    ) -> None:
        self.model = model
        self.endpoint = endpoint
        self.dimensions = model.dimensions
        self.at_once = at_once
        self._tokens = tokens
        self._governor = governor
        self._client = _client(endpoint, key, private_network, timeout, at_once.most)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, prefix included, at most `max_tokens`."""
        counts = self._tokens.count([self.model.prefix + text for text in texts])
        return [min(count, self.model.max_tokens) for count in counts]

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed `texts` in one request; no texts make none.

        Raises:
            PermanentTextError: the endpoint does not take this one text.
            BatchTooLargeError: it does not take so much at once.
            InvalidAnswerError: of its answer, nothing can be believed.
            RateLimitedError: it asks for patience; everybody has been told.
            ServiceUnavailableError: it cannot be reached or is not well.
            EmbeddingServiceError: it refuses the key, the model, or more quota.

        """
        import numpy as np

        if not texts:
            return Embeddings(np.empty((0, self.dimensions), np.float32), [], [])
        counted, truncated, sent = self._prepared(texts)
        self.at_once.begun()
        try:
            answer, headers = self._request(sent, counted)
        finally:
            self.at_once.ended()
        used = self._reported_tokens(answer, counted)
        # Where it cannot be told, the next request meets the same fault: this answer is paid for.
        with contextlib.suppress(IngestionError):
            self._governor.heard(rate_limits(headers), reserved=sum(counted), used=used)
        try:
            return self._read(answer, counted, truncated, used)
        except IngestionError as error:
            error.billed_tokens = used
            raise

    def probe(self, text: str) -> Probe:
        """Ask for one text, to see what is there. Raises what `embed` does."""
        counted = self._tokens.count([text])
        answer, headers = self._request([text], counted)
        used = self._reported_tokens(answer, counted)
        try:
            self._check_name(answer.get("model"))
            dimensions = len(_vector(answer["data"][0]))
        except (IndexError, KeyError, TypeError, ValueError):
            raise self._billed(
                InvalidAnswerError(f"{self._who} answered without a vector."), used
            ) from None
        except IngestionError as error:
            raise self._billed(error, used) from None
        return Probe(dimensions, rate_limits(headers), used)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _prepared(self, texts: Sequence[str]) -> tuple[list[int], list[bool], list[str]]:
        whole = [self.model.prefix + text for text in texts]
        sent = self._tokens.cut(whole, self.model.max_tokens)
        truncated = [len(cut) < len(text) for cut, text in zip(sent, whole, strict=True)]
        counts = [min(count, self.model.max_tokens) for count in self._tokens.count(sent)]
        return counts, truncated, sent

    def _request(
        self, texts: Sequence[str], counted: Sequence[int]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The answer as JSON gives it, and its headers."""
        from ingestion_pipeline.embedding.checked_connections import seconds_since_sent

        tokens = sum(counted)
        answered = self._sent(texts)
        # Raised where no exception of the library is at hand: it would hang on to ours as its
        # context, and holds the key and the body.
        if isinstance(answered, Exception):
            raise self._translated(answered, len(texts), tokens)
        self.at_once.answered(seconds_since_sent(answered), tokens)
        answer = _json(answered.content)
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            unreadable = ServiceUnavailableError(
                f"{self._who} answered with something that is no list of embeddings."
            )
            # A damaged answer is paid for; a page, or an error in its place, is not.
            is_json = "json" in answered.headers.get("content-type", "")
            raise self._billed(unreadable, tokens if is_json and answer is None else 0)
        return answer, _lower(answered.headers)

    def _sent(
        self, texts: Sequence[str]
    ) -> httpx2.Response | openai.OpenAIError | ServiceUnavailableError:
        """The answer, read to its end, or why there is none."""
        import httpx2
        import openai

        asked: dict[str, object] = {
            "input": list(texts),
            "model": self.model.name,
            "encoding_format": "base64" if self.model.base64 else "float",
        }
        if self.model.sends_dimensions:
            asked["dimensions"] = self.dimensions
        try:
            # `embeddings.create` looks at each text several times over, and costs as much again.
            return self._client.post("/embeddings", cast_to=httpx2.Response, body=asked)
        except (openai.OpenAIError, ServiceUnavailableError) as error:
            return error

    def _translated(
        self, error: openai.OpenAIError | ServiceUnavailableError, texts: int, tokens: int
    ) -> IngestionError:
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._refusal(error, texts)
        if isinstance(error, openai.APIConnectionError):
            return self._no_answer(error, tokens)
        if isinstance(error, ServiceUnavailableError):
            return self._billed(error, tokens)
        # Its message may hold what was answered.
        return self._billed(
            ServiceUnavailableError(f"{self._who} gave no answer ({type(error).__name__})."), tokens
        )

    def _read(
        self, answer: Mapping[str, Any], counted: list[int], truncated: list[bool], used: int
    ) -> Embeddings:
        import numpy as np

        self._check_name(answer.get("model"))
        items = answer["data"]
        try:
            indexes = [_index(item) for item in items]
            rows = [_vector(item) for item in items]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InvalidAnswerError(
                f"{self._who} answered with items that are not all an index and a vector"
            ) from None
        if len(items) == 0:
            raise InvalidAnswerError(f"{self._who} answered with no vectors at all")
        if len({len(row) for row in rows}) > 1:
            raise InvalidAnswerError(f"{self._who} answered with vectors of different sizes")
        vectors = np.stack(rows)
        if self.model.normalize:
            with np.errstate(all="ignore"):
                norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
                # What has no direction stays as it is, to be refused.
                scaled = np.where((norms > 0) & np.isfinite(norms), vectors / norms, vectors)
                vectors = scaled.astype(np.float32)
        if sorted(indexes) == list(range(len(counted))):
            # Whose they are is told by the indexes.
            share = _shares(used, counted)
            tokens = [share[row] for row in indexes]
            cut = [truncated[row] for row in indexes]
        else:
            # Nobody will believe it, but it is counted.
            tokens, cut = _shares(used, [1] * len(items)), [False] * len(items)
        return Embeddings(vectors, tokens, cut, indexes)

    def _check_name(self, name: object) -> None:
        """Vectors of another model must not be taken for this one's."""
        ours = self.model.name
        if not isinstance(name, str) or not name:
            return  # some servers do not say
        expected = (ours, self.model.answers_as, _ALIASES.get(ours))
        if any(_is_same_model(name, it) for it in expected if it):
            return
        if not _NAME.fullmatch(name):
            raise EmbeddingServiceError(f"{self._who} answered for another model than {ours}.")
        raise EmbeddingServiceError(
            f"{self._who} answered for the model {name}, not for {ours}. If that is the same "
            f'model, say so: answers_as = "{name}".'
        )

    def _reported_tokens(self, answer: Mapping[str, Any], counted: Sequence[int]) -> int:
        """The tokens that the endpoint has counted; ours where it does not say."""
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        reported = usage.get("prompt_tokens") or usage.get("total_tokens")
        if type(reported) is not int or not 0 < reported < _MOST_TOKENS:
            return sum(counted)
        self._tokens.learn(sum(counted), reported)
        return reported

    @property
    def _who(self) -> str:
        return f"The embedding API at {self.endpoint.host}"

    def _refusal(self, error: openai.APIStatusError, texts: int) -> IngestionError:
        status, code = error.status_code, _code(error)
        said = f"{self._who} answered {status}" + (f" ({code})" if code else "")
        headers = _lower(error.response.headers)
        wait = retry_after(headers)
        if (remedy := self._remedy(status, code)) is not None:
            return EmbeddingServiceError(f"{said}: {remedy}")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._governor.pause(wait if wait is not None else 1.0)
            limits = rate_limits(headers)
            self._governor.heard(limits, reserved=0, used=0)
            if wait is None and limits == RateLimits():
                # No quota, it seems, but too many at once.
                self.at_once.failed()
            return RateLimitedError(f"{said}: too many requests or tokens a minute.", wait)
        words = error.response.text[:_MOST_WORDS]
        if _TEXT_TOO_LONG.search(words):
            return PermanentTextError(
                f"{said}: the text is too long for {self.model.name}. Lower max_tokens, or name "
                "its `tokenizer`, which counts exactly."
            )
        if code in _REFUSED_TEXT:
            return PermanentTextError(f"{said}: the text is refused.")
        is_too_much = status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if is_too_much or _TOO_MUCH_AT_ONCE.search(words):
            if texts > 1:
                return BatchTooLargeError(f"{said}: {texts} texts are too much at once.")
            return PermanentTextError(f"{said}: the text is too large for it.")
        if status in _MAY_PASS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._unwell(f"{said}.", wait)
        # A text that is refused, or all of them: asking for fewer tells.
        return InvalidAnswerError(f"{said}.")

    def _remedy(self, status: int, code: str | None) -> str | None:
        """What somebody has to do before any request can succeed; None where that is not known."""
        if code in _WRONG_KEY:
            status = HTTPStatus.UNAUTHORIZED
        match status:
            case HTTPStatus.UNAUTHORIZED:
                return (
                    "the key is wrong or missing. It is read from the environment; "
                    "`ingest preflight` says from which variable."
                )
            case HTTPStatus.FORBIDDEN:
                return f"the key may not use {self.model.name}. See to its rights."
            case HTTPStatus.NOT_FOUND:
                return (
                    f"there is no model {self.model.name}, or base_url has a wrong path "
                    f"({self.endpoint.base_url})."
                )
            case HTTPStatus.TOO_MANY_REQUESTS if code in _OUT_OF_MONEY:
                return (
                    "no quota is left on this account. Add credit, then run the same command again."
                )
            case _ if 300 <= status < 400:  # noqa: PLR2004
                return "a redirect, which is not followed. base_url must name the place itself."
        return None

    def _unwell(self, message: str, wait: float | None) -> ServiceUnavailableError:
        self.at_once.failed()
        if wait is not None:
            self._governor.pause(wait)
        return ServiceUnavailableError(message)

    def _no_answer(self, error: openai.APIConnectionError, tokens: int) -> IngestionError:
        import httpx2
        import openai

        # Before the whole request was sent, nothing was at work on it.
        unsent = (
            httpx2.ConnectError,
            httpx2.ConnectTimeout,
            httpx2.PoolTimeout,
            httpx2.WriteTimeout,
            httpx2.LocalProtocolError,
        )
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, unsent):
                return ServiceUnavailableError(
                    f"{self._who} cannot be reached ({type(cause).__name__})."
                )
            cause = cause.__cause__ or cause.__context__
        self.at_once.failed()
        how = "in time" if isinstance(error, openai.APITimeoutError) else "before the line was cut"
        # It may have been at work all the same, and charge for it.
        return self._billed(ServiceUnavailableError(f"{self._who} did not answer {how}."), tokens)

    def _billed(self, error: IngestionError, tokens: int) -> IngestionError:
        error.billed_tokens = tokens
        return error


def _client(
    endpoint: Endpoint,
    key: SecretStr | None,
    private_network: bool,  # noqa: FBT001
    timeout: float,
    connections: int,
) -> openai.OpenAI:
    import httpx2
    import openai

    from ingestion_pipeline.embedding.checked_connections import http_client

    secret = key.get_secret_value() if key else NO_KEY
    if not _KEY.fullmatch(secret):
        raise SettingsError(
            f"The key for {endpoint.host} holds a space or a sign that no key has. Export it anew."
        )

    class Client(openai.OpenAI):
        """Sends nothing that it has found in the environment by itself."""

        @property
        def default_headers(self) -> dict[str, str | openai.Omit]:
            return {
                "Accept": "application/json",
                "Authorization": f"Bearer {secret}",
                "Content-Type": "application/json",
                "User-Agent": self.user_agent,
            }

    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)

    http = http_client(
        endpoint,
        private_network=private_network,
        timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
    )
    return Client(
        base_url=endpoint.base_url,
        api_key=secret,
        max_retries=0,
        timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS),
        http_client=http,
    )


def _index(item: Mapping[str, Any]) -> int:
    index = item["index"]
    if not isinstance(index, int) or isinstance(index, bool):
        raise TypeError(index)
    return index


def _vector(item: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """In either form, whichever was asked for: some servers know one only."""
    import numpy as np

    answered = item["embedding"]
    if isinstance(answered, str):
        return np.frombuffer(binascii.a2b_base64(answered, strict_mode=True), dtype="<f4")
    if not isinstance(answered, list):
        raise TypeError(type(answered))
    with np.errstate(over="ignore"):
        vector = np.array(answered, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(vector.shape)
    return vector


def _json(body: bytes) -> Any:
    """None where it is not JSON."""
    # Six times as fast as the standard library's, and there where `openai` is.
    import jiter

    try:
        return jiter.from_json(body)
    except ValueError:
        return None


def _is_same_model(name: str, expected: str) -> bool:
    """Whether two names are surely of one model.

    They are alike but for capitals, the tag that is meant where there is none, and what stands
    before the name: a host's or a publisher's where the other has none, or a folder of files.
    """
    one, other = (it.casefold().removesuffix(":latest") for it in (name, expected))
    if one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"):
        return True
    is_folder = name.startswith(("/", "./", "../")) or expected.startswith(("/", "./", "../"))
    return is_folder and one.rpartition("/")[2] == other.rpartition("/")[2]


def _code(error: openai.APIStatusError) -> str | None:
    """The short name of what is wrong, where the answer has one; never its message."""
    for value in (_found("reason", error.body), error.code, error.type):
        if isinstance(value, str) and _CODE.fullmatch(value):
            return value
    return None


def _found(name: str, body: object) -> object:
    """A value under this name, however deep in a list of details, as Google's are."""
    unread = [body]
    while unread:
        match unread.pop():
            case dict() as table if name in table:
                return table[name]
            case dict() as table:
                unread += table.values()
            case list() as items:
                unread += items
    return None


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _shares(total: int, counted: Sequence[int]) -> list[int]:
    """`total` divided in proportion to what was counted; the shares add up to it."""
    whole = sum(counted)
    if whole <= 0:
        return [total // len(counted)] * len(counted)
    shares, given, passed = [], 0, 0
    for count in counted:
        passed += count
        shares.append(total * passed // whole - given)
        given += shares[-1]
    return shares
