"""The engine for APIs, against the real server: what each answer and each fault becomes."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from ingestion_pipeline.embedding import checked_connections
from ingestion_pipeline.embedding.congestion import RequestsAtOnce
from ingestion_pipeline.embedding.embedder import in_order, validate
from ingestion_pipeline.embedding.openai_api import Model, OpenAIEmbedder
from ingestion_pipeline.embedding.token_counts import TokenCounts, token_counts
from ingestion_pipeline.endpoints import parsed
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    ConnectionLostError,
    EmbeddingServiceError,
    IngestionError,
    InvalidAnswerError,
    PermanentTextError,
    RateLimitedError,
    ServiceUnavailableError,
    SettingsError,
)
from ingestion_pipeline.rate_limits import RateLimits
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.counters import digest_of_key
from ingestion_pipeline_tests.embedding_server.running import ServerInThread, running
from ingestion_pipeline_tests.embedding_server.vectors import tokens_of, vector_of

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSIONS = 384
TEXTS = ["Harbour coat, waxed.", "Brass kettle", "Lampe à LED 🌙", "Ramie rope canarytext7"]
TOKENS = sum(tokens_of(text) for text in TEXTS)
KEY = "sk-canary-0123456789-abcdefghij"
SECRETS = (KEY, KEY[3:-4], "canarytext7", "Harbour coat")


class Exact:
    """Counts as the server does."""

    def count(self, texts: Any) -> list[int]:
        return [tokens_of(text) for text in texts]

    def cut(self, texts: Any, tokens: int) -> list[str]:
        return [" ".join(text.split()[: tokens - 2]) for text in texts]

    def learn(self, counted: int, reported: int) -> None:
        pass


@dataclass
class Heard:
    """A governor that writes down what it hears."""

    paused: list[float] = field(default_factory=list)
    limits: list[RateLimits] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)

    def reserve(self, _: int) -> float:
        return 0.0

    def heard(self, limits: RateLimits, reserved: int, used: int) -> None:
        self.limits.append(limits)
        self.tokens.append((reserved, used))

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)


@pytest.fixture
def server() -> Iterator[ServerInThread]:
    with running(Behaviour(key=KEY)) as server:
        yield server


OPEN: list[OpenAIEmbedder] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever a test has made is closed after it."""
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def governor() -> Heard:
    return Heard()


def engine(
    base_url: str,
    governor: Heard | None = None,
    *,
    key: str | None = KEY,
    timeout: float = 10.0,
    tokens: TokenCounts | None = None,
    at_once: RequestsAtOnce | None = None,
    **model: Any,
) -> OpenAIEmbedder:
    made = OpenAIEmbedder(
        replace(Model(MODEL, DIMENSIONS), **model),
        endpoint=parsed(base_url),
        key=SecretStr(key) if key else None,
        private_network=False,
        timeout=timeout,
        tokens=tokens or Exact(),
        governor=governor or Heard(),
        at_once=at_once or RequestsAtOnce(8),
    )
    OPEN.append(made)
    return made


SEEN: list[dict[str, str]] = []
"""The headers of requests to `answering`, oldest first."""


@contextmanager
def answering(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server that gives this answer to whatever it is asked; its base_url."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", "content-length": str(len(content))}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            SEEN.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in {**sent, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def vectors_of(texts: list[str], dimensions: int = DIMENSIONS) -> Any:
    return np.array([vector_of(text, dimensions) for text in texts])


# What is asked, and what comes of it


@pytest.mark.parametrize("base64", [False, True])
def test_texts_get_their_vectors_in_either_encoding(
    server: ServerInThread, governor: Heard, *, base64: bool
) -> None:
    answer = engine(server.base_url, governor, base64=base64).embed(TEXTS)
    np.testing.assert_allclose(answer.vectors, vectors_of(TEXTS), atol=1e-6)
    assert answer.vectors.dtype == np.float32
    assert answer.tokens == [tokens_of(text) for text in TEXTS]
    assert answer.truncated == [False] * len(TEXTS)
    assert governor.tokens == [(TOKENS, TOKENS)]
    assert server.settle().authorizations == {digest_of_key(KEY): 1}


def test_no_texts_make_no_request(server: ServerInThread) -> None:
    answer = engine(server.base_url).embed([])
    assert answer.vectors.shape == (0, DIMENSIONS)
    assert server.counters.requests == 0


def test_dimensions_are_sent_only_where_that_is_configured(server: ServerInThread) -> None:
    small = engine(
        server.base_url, name="text-embedding-3-small", dimensions=256, sends_dimensions=True
    )
    assert small.embed(TEXTS).vectors.shape == (4, 256)
    # The server refuses the parameter for this model.
    assert engine(server.base_url).embed(TEXTS).vectors.shape == (4, DIMENSIONS)


def test_vectors_are_scaled_to_length_1_unless_that_is_not_wanted() -> None:
    items = [{"index": 0, "embedding": [3.0, 4.0]}]
    with answering({"data": items}) as url:
        scaled = engine(url, dimensions=2).embed(["a"])
        as_is = engine(url, dimensions=2, normalize=False).embed(["a"])
    np.testing.assert_allclose(scaled.vectors, [[0.6, 0.8]])
    np.testing.assert_allclose(as_is.vectors, [[3.0, 4.0]])


def test_the_prefix_is_embedded_and_counted(server: ServerInThread) -> None:
    model = engine(server.base_url, prefix="query: ")
    answer = model.embed(["Brass kettle"])
    np.testing.assert_allclose(answer.vectors, vectors_of(["query: Brass kettle"]), atol=1e-6)
    assert answer.tokens == model.count_tokens(["Brass kettle"]) == [6]


def test_a_long_text_is_cut_and_says_so(server: ServerInThread) -> None:
    answer = engine(server.base_url, max_tokens=4).embed(["one two three four", "one two"])
    np.testing.assert_allclose(answer.vectors, vectors_of(["one two", "one two"]), atol=1e-6)
    assert answer.truncated == [True, False]
    assert answer.tokens == [4, 4]


def test_how_a_text_is_cut_does_not_change_with_what_is_learnt(server: ServerInThread) -> None:
    text = "waxed coat " * 300
    model = engine(server.base_url, max_tokens=100, tokens=token_counts(None))
    first = model.embed([text, "short"])
    for _ in range(20):
        model.embed(TEXTS)
    second = model.embed([text, "short"])
    assert first.truncated == second.truncated == [True, False]
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_the_estimate_comes_near_to_what_the_server_counts(server: ServerInThread) -> None:
    model = engine(server.base_url, tokens=token_counts(None))
    for _ in range(30):
        model.embed(TEXTS)
    assert sum(model.count_tokens(TEXTS)) == pytest.approx(TOKENS, rel=0.2)


def test_a_probe_shows_the_true_length_of_vectors_and_the_limits(server: ServerInThread) -> None:
    server.behave(requests_per_minute=300, tokens_per_minute=150_000)
    for form in (False, True):
        probe = engine(server.base_url, dimensions=99, base64=form).probe("A plain cup")
        assert probe.dimensions == DIMENSIONS
        assert probe.tokens == tokens_of("A plain cup")
        assert probe.limits.requests
        assert probe.limits.tokens
        assert probe.limits.requests.limit == 300
        assert probe.limits.tokens.per_minute == 150_000


def test_a_probe_tells_another_model_and_what_it_cost(server: ServerInThread) -> None:
    server.behave(fault=Fault.OTHER_MODEL)
    with pytest.raises(EmbeddingServiceError, match="another-model") as raised:
        engine(server.base_url).probe("A plain cup")
    assert raised.value.billed_tokens == tokens_of("A plain cup")


# Every fault


@dataclass(frozen=True)
class Expected:
    """`billed` says whether the error's tokens are those of the request."""

    error: type[IngestionError]
    message: str
    billed: bool = False
    paused: tuple[float, ...] = ()


REFUSALS = {
    Fault.RATE_LIMIT: Expected(RateLimitedError, "429 .*too many", paused=(0.25,)),
    Fault.RATE_LIMIT_BARE: Expected(RateLimitedError, "429 .*too many", paused=(1.0,)),
    Fault.INSUFFICIENT_QUOTA: Expected(EmbeddingServiceError, "no quota is left.*Add credit"),
    Fault.BAD_REQUEST: Expected(PermanentTextError, "400 .*the text is refused"),
    Fault.CONTEXT_LENGTH: Expected(PermanentTextError, "400.*too long for .*max_tokens"),
    Fault.UNAUTHORIZED: Expected(EmbeddingServiceError, "401 .*key is wrong or missing"),
    Fault.ECHOED_KEY: Expected(EmbeddingServiceError, "401 .*key is wrong or missing"),
    Fault.FORBIDDEN: Expected(EmbeddingServiceError, "403 .*may not use"),
    Fault.UNKNOWN_MODEL: Expected(EmbeddingServiceError, f"404 .*no model {MODEL}"),
    Fault.TOO_LARGE: Expected(BatchTooLargeError, "413.*4 texts are too much at once"),
    Fault.SERVER_ERROR: Expected(ServiceUnavailableError, "answered 500"),
    Fault.BAD_GATEWAY: Expected(ServiceUnavailableError, "answered 502"),
    Fault.UNAVAILABLE: Expected(ServiceUnavailableError, "answered 503", paused=(1.0,)),
    Fault.REDIRECT: Expected(EmbeddingServiceError, "307: a redirect, which is not followed"),
    Fault.HTML: Expected(ServiceUnavailableError, "no list of embeddings"),
    Fault.ERROR_BODY: Expected(ServiceUnavailableError, "no list of embeddings"),
}
BILLED = {
    Fault.OTHER_MODEL: Expected(EmbeddingServiceError, "model another-model", billed=True),
    Fault.NO_INDEX: Expected(InvalidAnswerError, "not all an index and a vector", billed=True),
    Fault.TRUNCATED_JSON: Expected(ServiceUnavailableError, "no list of embeddings", billed=True),
    Fault.TIMEOUT: Expected(ServiceUnavailableError, "did not answer in time", billed=True),
    Fault.SLOW_DRIP: Expected(ServiceUnavailableError, "did not answer in time", billed=True),
    Fault.CUT: Expected(ServiceUnavailableError, "before the line was cut", billed=True),
    Fault.RESET: Expected(ServiceUnavailableError, "before the line was cut", billed=True),
    Fault.CUT_IN_BODY: Expected(ServiceUnavailableError, "before the line was cut", billed=True),
    Fault.HUGE_BODY: Expected(ServiceUnavailableError, "more than 1 MiB", billed=True),
}
DAMAGED = {Fault.SHORT, Fault.LONG, Fault.WRONG_INDEX, Fault.WRONG_SIZE}
"""Answers that are handed on, and refused by the tests of every answer."""
BAD_VECTORS = {Fault.NAN, Fault.ZERO}
HARMLESS = {Fault.SWAPPED, Fault.EMPTY_USAGE}


def test_each_fault_of_the_server_is_looked_at_here() -> None:
    dated = {Fault.RATE_LIMIT_DATED}
    assert {*REFUSALS, *BILLED, *DAMAGED, *BAD_VECTORS, *HARMLESS, *dated} == set(Fault)


@pytest.mark.parametrize("fault", [*REFUSALS, *BILLED])
@pytest.mark.parametrize("base64", [False, True])
def test_a_fault_becomes_the_error_that_says_what_to_do(
    fault: Fault,
    server: ServerInThread,
    governor: Heard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    base64: bool,
) -> None:
    expected = (REFUSALS | BILLED)[fault]
    monkeypatch.setattr(checked_connections, "LARGEST_ANSWER_BYTES", 2**20)
    server.behave(fault=fault, retry_after=0.25, drip_seconds=0.01)
    slow = fault in (Fault.TIMEOUT, Fault.SLOW_DRIP)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    model = engine(server.base_url, governor, timeout=0.5 if slow else 10, base64=base64)
    with pytest.raises(expected.error, match=expected.message) as raised:
        model.embed(TEXTS)
    assert type(raised.value) is expected.error
    assert raised.value.billed_tokens == (TOKENS if expected.billed else 0)
    assert (server.settle().tokens_billed == TOKENS) == expected.billed
    assert governor.paused == list(expected.paused)
    assert_nothing_shows(raised.value, caplog.text)


def assert_nothing_shows(error: BaseException, log: str) -> None:
    """Neither key nor text, in whatever prints the error and all that hangs on it."""
    seen: list[BaseException] = []
    unread: list[BaseException | None] = [error]
    while unread:
        if (each := unread.pop()) is not None and each not in seen:
            seen.append(each)
            unread += [each.__cause__, each.__context__]
    shown = "".join(traceback.format_exception(error)) + log
    shown += "".join(f"{each!s} {each!r} {each.__dict__} {each.args}" for each in seen)
    assert not [secret for secret in SECRETS if secret in shown]
    # Whoever prints contexts that are suppressed finds none of the library's.
    assert not [each for each in seen if type(each).__module__.startswith(("openai", "httpx"))]


def test_a_date_in_retry_after_is_read(server: ServerInThread, governor: Heard) -> None:
    server.behave(fault=Fault.RATE_LIMIT_DATED, retry_after=3.0)
    with pytest.raises(RateLimitedError) as raised:
        engine(server.base_url, governor).embed(TEXTS)
    assert raised.value.retry_after == pytest.approx(3.5, abs=1.0)
    assert governor.paused == [raised.value.retry_after]


@pytest.mark.parametrize("fault", sorted(DAMAGED))
@pytest.mark.parametrize("base64", [False, True])
def test_a_damaged_answer_is_counted_and_not_believed(
    fault: Fault, server: ServerInThread, *, base64: bool
) -> None:
    server.behave(fault=fault)
    answer = engine(server.base_url, base64=base64).embed(TEXTS)
    assert sum(answer.tokens) == TOKENS
    with pytest.raises(InvalidAnswerError):
        validate(in_order(answer, 4), expected_count=4, dimensions=DIMENSIONS)


@pytest.mark.parametrize("fault", sorted(BAD_VECTORS))
@pytest.mark.parametrize("base64", [False, True])
def test_a_bad_vector_is_found_and_its_neighbours_are_kept(
    fault: Fault, server: ServerInThread, *, base64: bool
) -> None:
    server.behave(fault=fault)
    answer = in_order(engine(server.base_url, base64=base64).embed(TEXTS), 4)
    assert validate(answer, expected_count=4, dimensions=DIMENSIONS) == [2]
    rest = [0, 1, 3]
    np.testing.assert_allclose(answer.vectors[rest], vectors_of(TEXTS)[rest], atol=1e-6)


def test_items_in_another_order_reach_their_texts_with_their_tokens(
    server: ServerInThread,
) -> None:
    server.behave(fault=Fault.SWAPPED)
    answer = in_order(
        engine(server.base_url, max_tokens=4).embed(["one two three four", "one", "two three"]), 3
    )
    np.testing.assert_allclose(
        answer.vectors, vectors_of(["one two", "one", "two three"]), atol=1e-6
    )
    assert answer.truncated == [True, False, False]
    assert answer.tokens == [4, 3, 4]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, TOKENS),
        (None, TOKENS),
        ("many", TOKENS),
        ({"prompt_tokens": 0, "total_tokens": 0}, TOKENS),
        ({"prompt_tokens": -3}, TOKENS),
        ({"prompt_tokens": True}, TOKENS),
        ({"prompt_tokens": 10**30}, TOKENS),
        ({"total_tokens": 41}, 41),
        ({"prompt_tokens": 40, "total_tokens": 41}, 40),
    ],
)
def test_what_the_server_does_not_count_is_counted_here(usage: object, tokens: int) -> None:
    items = [{"index": row, "embedding": [1.0, float(row)]} for row in range(4)]
    with answering({"data": items, "usage": usage}) as url:
        answer = engine(url, dimensions=2).embed(TEXTS)
    assert sum(answer.tokens) == tokens


def test_one_text_that_is_too_large_is_to_blame_itself(server: ServerInThread) -> None:
    server.behave(fault=Fault.TOO_LARGE)
    with pytest.raises(PermanentTextError, match="too large"):
        engine(server.base_url).embed(TEXTS[:1])


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": {"message": "Requested 9 tokens, max 8 tokens per request"}}, "batch"),
        (400, {"error": {"message": "array too long. Expected at most 2048"}}, "batch"),
        (400, [{"error": {"message": "at most 100 requests can be in one batch"}}], "batch"),
        (422, {"error": "batch size 64 > maximum allowed batch size 32"}, "batch"),
        (413, {"error": "`inputs` must have less than 512 tokens. Given: 534"}, "text"),
        (400, {"message": "This model's maximum context length is 512 tokens."}, "text"),
        (400, {"error": {"message": "the input length exceeds the context length"}}, "text"),
        (500, {"error": {"message": "input (600 tokens) is too large to process"}}, "text"),
        (400, {"error": {"message": "something else"}}, "answer"),
        (424, {"error": "the backend failed"}, "unwell"),
        (429, {"error": "Model is overloaded", "error_type": "Overloaded"}, "patience"),
        (
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "API key not valid.",
                        "details": [{"@type": "ErrorInfo", "reason": "API_KEY_INVALID"}],
                    }
                }
            ],
            "key",
        ),
    ],
)
def test_what_other_servers_say_is_understood(status: int, body: object, error: str) -> None:
    errors: dict[str, type[IngestionError]] = {
        "batch": BatchTooLargeError,
        "text": PermanentTextError,
        "answer": InvalidAnswerError,
        "unwell": ServiceUnavailableError,
        "patience": RateLimitedError,
        "key": EmbeddingServiceError,
    }
    with answering(body, status=status) as url, pytest.raises(errors[error]) as raised:
        engine(url).embed(TEXTS)
    assert type(raised.value) is errors[error]
    assert raised.value.billed_tokens == 0


def test_an_endpoint_that_is_not_there_costs_nothing() -> None:
    with running() as server:
        gone = server.base_url
    with pytest.raises(ServiceUnavailableError, match=r"cannot be reached \(ConnectError\)") as it:
        engine(gone).embed(TEXTS)
    assert it.value.billed_tokens == 0
    assert_nothing_shows(it.value, "")


def test_an_answer_is_kept_although_the_governor_cannot_be_told(server: ServerInThread) -> None:
    class Deaf(Heard):
        def heard(self, *_: object, **__: object) -> None:
            raise ConnectionLostError("The database is gone.")

    assert engine(server.base_url, Deaf()).embed(TEXTS).vectors.shape == (4, DIMENSIONS)


def test_a_429_without_any_limit_means_fewer_at_once(server: ServerInThread) -> None:
    at_once = RequestsAtOnce(8)
    before = at_once.limit
    server.behave(fault=Fault.RATE_LIMIT)
    with pytest.raises(RateLimitedError):
        engine(server.base_url, at_once=at_once).embed(TEXTS)
    assert at_once.limit == before
    server.behave(fault=Fault.RATE_LIMIT_BARE)
    with pytest.raises(RateLimitedError):
        engine(server.base_url, at_once=at_once).embed(TEXTS)
    assert at_once.limit < before


# Models' names


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("gemini-embedding-001", "models/gemini-embedding-001"),
        ("BAAI/bge-m3", "baai/bge-m3"),
        ("nomic-embed-text", "nomic-embed-text:latest"),
        ("BAAI/bge-m3", "/data/models/bge-m3"),
        ("text-embedding-ada-002", "text-embedding-ada-002-v2"),
        ("mine", ""),
        ("mine", None),
        ("mine", 7),
    ],
)
def test_a_name_that_is_surely_the_same_is_taken(asked: str, answered: object) -> None:
    items = [{"index": 0, "embedding": [1.0, 0.0]}]
    with answering({"data": items, "model": answered}) as url:
        assert len(engine(url, name=asked, dimensions=2).embed(["a"]).vectors) == 1


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("text-embedding-3-small", "text-embedding-3-large"),
        ("all-mpnet-base", "all-mpnet-base-v2"),
        ("one/bge-m3", "another/bge-m3"),
        ("nomic-embed-text:v1", "nomic-embed-text:v1.5"),
        ("nomic-embed-text:v1.5", "nomic-embed-text"),
        ("m3", "bge-m3"),
        ("BAAI/bge-m3", "/data/models/bge-small"),
    ],
)
def test_another_models_vectors_are_refused(asked: str, answered: str) -> None:
    items = [{"index": 0, "embedding": [1.0, 0.0]}]
    with answering({"data": items, "model": answered}) as url:
        with pytest.raises(EmbeddingServiceError, match="answers_as") as raised:
            engine(url, name=asked, dimensions=2).embed(["a"])
        assert answered in str(raised.value)
        agreed = engine(url, name=asked, dimensions=2, answers_as=answered).embed(["a"])
    assert len(agreed.vectors) == 1


def test_a_name_that_is_no_name_is_not_repeated() -> None:
    items = [{"index": 0, "embedding": [1.0, 0.0]}]
    with (
        answering({"data": items, "model": f"Bearer {KEY}\nand more"}) as url,
        pytest.raises(EmbeddingServiceError, match="another model than") as raised,
    ):
        engine(url, dimensions=2).embed(["a"])
    assert_nothing_shows(raised.value, "")


# Answers of a strange form


@pytest.mark.parametrize(
    "items",
    [
        [],
        [None],
        ["a"],
        [{"index": 0}],
        [{"index": 0, "embedding": 3}],
        [{"index": 0, "embedding": None}],
        [{"index": 0, "embedding": [[1.0]]}],
        [{"index": 0, "embedding": ["a", "b"]}],
        [{"index": 0, "embedding": {"0": 1.0}}],
        [{"index": 0, "embedding": "no base64!"}],
        [{"index": 0, "embedding": base64.b64encode(b"12345").decode()}],
        [{"index": "0", "embedding": [1.0, 0.0]}],
        [{"index": True, "embedding": [1.0, 0.0]}],
        [{"index": 0.0, "embedding": [1.0, 0.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 0.0]}],
    ],
)
def test_items_of_any_form_are_refused_in_words_and_counted(items: object) -> None:
    with (
        answering({"data": items, "usage": {"prompt_tokens": 5}}) as url,
        pytest.raises(InvalidAnswerError) as raised,
    ):
        engine(url, dimensions=2).embed(["a", "b"])
    assert raised.value.billed_tokens == 5


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b'{"data": 3}', b"[" * 5_000])
def test_a_body_that_is_no_answer_is_refused_in_words(body: bytes) -> None:
    with answering(body) as url, pytest.raises(ServiceUnavailableError, match="no list"):
        engine(url).embed(TEXTS)


def test_numbers_beyond_single_precision_are_a_bad_vector() -> None:
    with answering({"data": [{"index": 0, "embedding": [1e300, 1.0]}]}) as url:
        answer = engine(url, dimensions=2).embed(["a"])
    assert validate(answer, expected_count=1, dimensions=2) == [0]


def test_an_answer_that_unpacks_to_too_much_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(checked_connections, "LARGEST_ANSWER_BYTES", 2**20)
    bomb = gzip.compress(b" " * 2**24)
    assert len(bomb) < 2**16
    with (
        answering(bomb, headers={"content-encoding": "gzip"}) as url,
        pytest.raises(ServiceUnavailableError, match="more than 1 MiB"),
    ):
        engine(url).embed(TEXTS)


# Keys and the environment


def test_nothing_in_the_environment_changes_what_is_sent_or_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    SEEN.clear()
    with answering({"data": []}) as url, answering({"data": []}) as other:
        with pytest.raises(InvalidAnswerError):
            engine(url, dimensions=2).embed(["a"])
        environment = {
            "OPENAI_API_KEY": "sk-environment-key-000000",
            "OPENAI_ADMIN_KEY": "sk-environment-admin-0000",
            "OPENAI_ORG_ID": "org-environment",
            "OPENAI_PROJECT_ID": "proj-environment",
            "OPENAI_WEBHOOK_SECRET": "whsec-environment",
            "OPENAI_BASE_URL": other,
            "OPENAI_CUSTOM_HEADERS": (
                "Authorization: Bearer sk-environment\nX-Environment: 1\nUser-Agent: environment"
            ),
            "HTTP_PROXY": other,
            "ALL_PROXY": other,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InvalidAnswerError):
            engine(url, dimensions=2).embed(["a"])
    # Both went to the first server, as it stands in the header `host`.
    before, after = SEEN
    assert after == before
    assert before["authorization"] == f"Bearer {KEY}"
    assert before["host"] in url


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nX-Evil: 1", "sk-ä", "sk-\u2026", ""])
def test_a_key_that_is_none_is_refused_and_not_repeated(key: str, server: ServerInThread) -> None:
    if not key:
        with pytest.raises(EmbeddingServiceError, match="wrong or missing"):
            engine(server.base_url, key=key).embed(TEXTS)
        return
    with pytest.raises(SettingsError, match=r"The key for 127\.0\.0\.1") as raised:
        engine(server.base_url, key=key)
    assert key not in "".join(traceback.format_exception(raised.value))


def test_what_dagster_keeps_of_an_error_shows_neither_key_nor_text(
    server: ServerInThread,
) -> None:
    import dagster

    server.behave(fault=Fault.ECHOED_KEY)
    model = engine(server.base_url)

    @dagster.op
    def embed() -> None:
        model.embed(TEXTS)

    @dagster.job
    def embedding() -> None:
        embed()

    with dagster.DagsterInstance.ephemeral() as instance:
        run = embedding.execute_in_process(instance=instance, raise_on_error=False)
        kept = "".join(dagster.serialize_value(each) for each in instance.all_logs(run.run_id))
    assert "key is wrong or missing" in kept
    assert not [secret for secret in SECRETS if secret in kept]


def test_a_refused_address_is_said_in_words() -> None:
    refused = engine("http://169.254.169.254/v1")
    with pytest.raises(SettingsError, match="link-local") as raised:
        refused.embed(TEXTS)
    assert_nothing_shows(raised.value, "")


def test_libraries_log_nothing_below_a_warning(
    server: ServerInThread, caplog: pytest.LogCaptureFixture
) -> None:
    model = engine(server.base_url)
    with caplog.at_level(logging.DEBUG):
        model.embed(TEXTS)
    assert not [
        each for each in caplog.records if each.name.startswith(("openai", "httpx2", "httpcore2"))
    ]


# Many at once


def test_waiting_for_a_connection_is_not_taken_for_the_servers_time(
    server: ServerInThread,
) -> None:
    class Slow(RequestsAtOnce):
        def answered(self, seconds: float, tokens: int) -> None:
            taken.append(seconds)
            super().answered(seconds, tokens)

    taken: list[float] = []
    server.behave(latency=0.1)
    model = engine(server.base_url, at_once=Slow(1))
    threads = [threading.Thread(target=model.embed, args=(TEXTS,)) for _ in range(5)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One connection, so one after the other.
    assert time.monotonic() - began >= 0.5
    assert len(taken) == 5
    assert max(taken) < 0.25
    assert min(taken) >= 0.1


def test_the_time_to_answer_begins_anew_with_each_request_of_a_connection(
    server: ServerInThread,
) -> None:
    model = engine(server.base_url, timeout=0.5)
    server.behave(latency=0.2)
    for _ in range(4):
        model.embed(TEXTS)
        time.sleep(0.1)
    assert server.settle().requests == 4
