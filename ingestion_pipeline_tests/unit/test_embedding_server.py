"""The loopback server does what it says, as the `openai` client and bare HTTP see it."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from ingestion_pipeline.embedding import local_models, pinned_models, weights
from ingestion_pipeline.settings import AspectSettings
from ingestion_pipeline_tests.embedding_server import faults
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.counters import Counters, Second, digest_of_key
from ingestion_pipeline_tests.embedding_server.limits import Quota, duration
from ingestion_pipeline_tests.embedding_server.running import (
    ServerInThread,
    running,
    running_process,
)
from ingestion_pipeline_tests.embedding_server.slots import Slots
from ingestion_pipeline_tests.embedding_server.vectors import (
    Encoding,
    encoded,
    encoded_vector_of,
    tokens_of,
    vector_of,
)

SMALL = "text-embedding-3-small"
MPNET = "sentence-transformers/all-mpnet-base-v2"
TEXTS = ["Harbour coat, waxed.", "Brass kettle", "Lampe à LED 🌙", "Ramie rope", "Zinc pail"]
TOKENS = sum(tokens_of(text) for text in TEXTS)
CANARY = "sk-canary-0123456789-abcdefghij"


@pytest.fixture
def server() -> Iterator[ServerInThread]:
    with running() as server:
        yield server


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=20) as client:
        yield client


def client_of(server: ServerInThread, key: str = CANARY) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=server.base_url,
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False, timeout=20),
    )


def ask(
    http: httpx2.Client, server: ServerInThread, texts: object = TEXTS, **more: Any
) -> httpx2.Response:
    body = {"model": MPNET, "input": texts, **more}
    return http.post(
        server.base_url + "/embeddings",
        content=json.dumps(body),
        headers={"authorization": f"Bearer {CANARY}"},
    )


def rows(answer: httpx2.Response) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads(answer.content)["data"]
    return data


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class StoppedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---- vectors and tokens


@pytest.mark.parametrize("dimensions", [1, 2, 3, 384, 768, 769, 1536, 3072])
def test_vectors_have_length_one_and_follow_from_the_text_alone(dimensions: int) -> None:
    vector = vector_of("Brass kettle", dimensions)
    assert vector.dtype == np.float32
    assert vector.shape == (dimensions,)
    assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5
    assert np.array_equal(vector, vector_of("Brass kettle", dimensions))


def test_vectors_are_the_same_on_every_machine() -> None:
    first = [float(f"{number:.6f}") for number in vector_of("Brass kettle", 768)[:4]]
    assert first == [0.0309, -0.040612, -0.048648, -0.015412]


def test_texts_that_differ_point_elsewhere() -> None:
    vectors = np.stack([vector_of(f"text {number}", 384) for number in range(300)])
    cosines = vectors @ vectors.T - np.eye(300)
    assert np.abs(cosines).max() < 0.3


def test_a_shorter_vector_is_the_beginning_of_a_longer_one_scaled() -> None:
    beginning = vector_of("Brass kettle", 1536)[:256]
    scaled = beginning / np.linalg.norm(beginning)
    assert np.allclose(scaled, vector_of("Brass kettle", 256), atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 384, 769])
def test_the_fast_way_of_writing_a_vector_writes_that_vector(
    dimensions: int, encoding: Encoding
) -> None:
    vector = vector_of("Lampe 🌙", dimensions)
    for written in (
        encoded_vector_of("Lampe 🌙", dimensions, encoding),
        encoded(vector, encoding),
    ):
        read = json.loads(written)
        if encoding == "base64":
            read = np.frombuffer(base64.b64decode(read), dtype="<f4")
        assert np.array_equal(np.array(read, dtype=np.float32), vector)


def test_tokens_are_words_and_signs_and_two_special_ones() -> None:
    assert tokens_of("A coat, waxed: 100%") == 7 + 2
    assert tokens_of("") == 2


# ---- the API as the client sees it


@pytest.mark.parametrize("encoding", [openai.omit, "float", "base64"])
def test_the_openai_client_gets_vectors_in_order_and_what_they_cost(
    server: ServerInThread, encoding: Any
) -> None:
    with client_of(server) as client:
        answer = client.embeddings.create(model=MPNET, input=TEXTS, encoding_format=encoding)
    assert [item.index for item in answer.data] == [0, 1, 2, 3, 4]
    for item, text in zip(answer.data, TEXTS, strict=True):
        vector: Any = item.embedding
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), dtype="<f4")
        assert np.array_equal(np.array(vector, dtype=np.float32), vector_of(text, 768))
    assert answer.model == MPNET
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == TOKENS

    assert server.counters.requests == 1
    assert server.counters.tokens_billed == TOKENS
    assert server.counters.texts == dict.fromkeys(TEXTS, 1)
    assert server.counters.statuses == {200: 1}


def test_one_string_is_one_text(server: ServerInThread) -> None:
    with client_of(server) as client:
        answer = client.embeddings.create(model=SMALL, input="Brass kettle", dimensions=256)
    assert len(answer.data) == 1
    assert np.allclose(answer.data[0].embedding, vector_of("Brass kettle", 256))


def test_the_answer_bears_another_name_where_told(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behaviour.model = "served-name"
    assert json.loads(ask(http, server).content)["model"] == "served-name"


def test_half_a_surrogate_pair_passes_through_texts_and_counters(
    server: ServerInThread, http: httpx2.Client
) -> None:
    assert ask(http, server, ["\ud83c coat"]).status_code == 200
    counters = http.get(server.base_url.removesuffix("/v1") + "/counters")
    assert json.loads(counters.content)["texts"] == {"\ud83c coat": 1}


@pytest.mark.parametrize(
    ("request_body", "status", "words"),
    [
        (b"{", 400, "could not parse"),
        (b"[]", 400, "could not parse"),
        ({"input": "a"}, 400, "must provide a model"),
        ({"model": "gpt-5", "input": "a"}, 404, "does not exist"),
        ({"model": MPNET}, 400, "input"),
        ({"model": MPNET, "input": []}, 400, "input"),
        ({"model": MPNET, "input": ["a", ""]}, 400, "empty string"),
        ({"model": MPNET, "input": [1, 2]}, 400, "no arrays of tokens"),
        ({"model": MPNET, "input": [[1, 2], [3]]}, 400, "no arrays of tokens"),
        ({"model": MPNET, "input": ["a"] * 2049}, 400, "at most 2048 items, got 2049"),
        ({"model": MPNET, "input": "a " * 8191}, 400, "maximum context length is 8192 tokens"),
        ({"model": MPNET, "input": ["a " * 7998] * 38}, 400, "Requested 304000 tokens, max 300000"),
        ({"model": MPNET, "input": "a", "dimensions": 256}, 400, "not support specifying"),
        ({"model": SMALL, "input": "a", "dimensions": 1537}, 400, "from 1 to 1536"),
        ({"model": SMALL, "input": "a", "dimensions": True}, 400, "from 1 to 1536"),
        ({"model": MPNET, "input": "a", "encoding_format": "int8"}, 400, "float"),
        ({"model": MPNET, "input": "long" * 200_000}, 413, "size limit"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_openai_refuses_is_refused_and_not_billed(
    http: httpx2.Client, request_body: object, status: int, words: str
) -> None:
    content = request_body if isinstance(request_body, bytes) else json.dumps(request_body)
    with running(Behaviour(bytes_per_request=700_000)) as server:
        answer = http.post(server.base_url + "/embeddings", content=content)
        assert answer.status_code == status
        assert words in json.loads(answer.content)["error"]["message"]
        assert server.counters.tokens_billed == 0
        assert server.counters.statuses == {status: 1}


def test_as_much_as_openai_takes_is_taken(server: ServerInThread, http: httpx2.Client) -> None:
    server.behaviour.dimensions["tiny"] = 1
    assert ask(http, server, ["a"] * 2048, model="tiny").status_code == 200
    assert ask(http, server, "a " * 8190, model="tiny").status_code == 200
    assert ask(http, server, ["a " * 7498] * 40, model="tiny").status_code == 200
    assert server.counters.tokens_billed == 2048 * 3 + 8192 + 300_000


# ---- keys


def test_only_the_right_key_is_let_in(server: ServerInThread, http: httpx2.Client) -> None:
    server.behaviour.key = CANARY
    with client_of(server, "sk-another-key-12345") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.embeddings.create(model=MPNET, input=TEXTS)
        assert refused.value.code == "invalid_api_key"
        assert "sk-a" in refused.value.message
        assert "sk-another-key-12345" not in refused.value.message
    assert http.post(server.base_url + "/embeddings", content="{}").status_code == 401
    with client_of(server) as client:
        client.embeddings.create(model=MPNET, input=TEXTS)
    assert server.counters.statuses == {401: 2, 200: 1}
    assert server.counters.tokens_billed == TOKENS


def test_keys_are_kept_as_digests_only(server: ServerInThread, http: httpx2.Client) -> None:
    server.behaviour.key = CANARY
    ask(http, server)
    assert server.counters.authorizations == {digest_of_key(CANARY): 1}
    outside = server.base_url.removesuffix("/v1")
    for address in ("/counters", "/control"):
        assert CANARY not in http.get(outside + address).text


# ---- quotas


def test_a_quota_refills_continuously_and_saves_up_a_minute() -> None:
    clock = StoppedClock()
    quota = Quota(clock)
    behaviour = Behaviour(requests_per_minute=60)
    assert [quota.admit(1, behaviour) for _ in range(60)] == [None] * 60
    excess = quota.admit(1, behaviour)
    assert excess is not None
    assert excess.kind == "requests"
    assert excess.seconds == pytest.approx(1)
    clock.now += 1
    assert quota.admit(1, behaviour) is None
    assert quota.admit(1, behaviour) is not None
    clock.now += 10_000
    assert sum(quota.admit(1, behaviour) is None for _ in range(200)) == 60


def test_a_quota_saves_up_as_many_seconds_as_told() -> None:
    quota = Quota(StoppedClock())
    behaviour = Behaviour(requests_per_minute=600, burst_seconds=1)
    assert sum(quota.admit(1, behaviour) is None for _ in range(100)) == 10


def test_a_request_that_one_quota_refuses_takes_nothing_from_the_other() -> None:
    clock = StoppedClock()
    quota = Quota(clock)
    behaviour = Behaviour(requests_per_minute=10, tokens_per_minute=100)
    assert quota.admit(90, behaviour) is None
    for _ in range(20):
        excess = quota.admit(90, behaviour)
        assert excess is not None
        assert excess.kind == "tokens"
        assert excess.seconds == pytest.approx(48)
        assert "Limit 100, Used 90, Requested 90. Please try again in 48s" in excess.message
    assert quota.headers(behaviour) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "54s",
    }


def test_a_request_larger_than_the_quota_is_never_let_in() -> None:
    excess = Quota(StoppedClock()).admit(101, Behaviour(tokens_per_minute=100))
    assert excess is not None
    assert excess.seconds is None
    assert "Request too large" in excess.message


def test_a_quota_may_change_while_it_is_used() -> None:
    clock = StoppedClock()
    quota = Quota(clock)
    assert quota.admit(1, Behaviour(requests_per_minute=600)) is None
    # Five are in the smaller bucket, which is full.
    smaller = Behaviour(requests_per_minute=5)
    assert sum(quota.admit(1, smaller) is None for _ in range(9)) == 5
    clock.now += 12
    assert quota.admit(1, smaller) is None
    assert quota.admit(1, smaller) is not None
    assert quota.headers(Behaviour()) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (8.64, "8.64s"),
        (59.9999, "1m0s"), (360, "6m0s"), (90.951, "1m30.951s"), (7200.5, "2h0m0.5s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_request_beyond_the_quota_is_told_when_to_come_again(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(requests_per_minute=120, burst_seconds=0.5)
    first = ask(http, server)
    assert first.headers["x-ratelimit-limit-requests"] == "120"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    refused = ask(http, server)
    assert refused.status_code == 429
    assert json.loads(refused.content)["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "1"
    milliseconds = int(refused.headers["retry-after-ms"])
    assert 0 < milliseconds <= 500
    time.sleep(milliseconds / 1000 + 0.01)
    assert ask(http, server).status_code == 200
    assert server.counters.rate_limited == 1
    assert server.counters.tokens_billed == 2 * TOKENS
    assert server.counters.let_in(0) == Second(2, 2 * TOKENS)


def test_the_openai_client_takes_the_quota_for_a_rate_limit(server: ServerInThread) -> None:
    server.behave(tokens_per_minute=TOKENS)
    with client_of(server) as client:
        client.embeddings.create(model=MPNET, input=TEXTS)
        with pytest.raises(openai.RateLimitError) as refused:
            client.embeddings.create(model=MPNET, input=TEXTS)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.type == "tokens"


# ---- pace


def test_only_so_many_requests_are_at_work_at_once(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(latency=0.2, parallelism=2)
    start = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(http, server), range(6)))
    assert 0.6 <= time.monotonic() - start < 1.1
    assert {answer.status_code for answer in answers} == {200}
    assert server.counters.most_in_flight == 6


def test_without_a_limit_all_are_at_work_at_once(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(latency=0.3)
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(http, server), range(8)))
    assert 0.3 <= time.monotonic() - start < 0.9


def test_slots_are_given_in_the_order_of_asking_and_come_back_from_who_gives_up() -> None:
    served: list[int] = []

    async def work(slots: Slots, number: int) -> None:
        async with slots:
            served.append(number)
            await asyncio.sleep(0.01)

    async def scene() -> None:
        slots = Slots(lambda: 1)
        tasks = [asyncio.create_task(work(slots, number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # One that is cancelled in the very moment of its turn passes it on.
        first = asyncio.create_task(work(slots, 10))
        second = asyncio.create_task(work(slots, 11))
        third = asyncio.create_task(work(slots, 12))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait_for(third, 5)

    asyncio.run(scene())
    assert served == [0, 1, 3, 4, 10, 12]


def test_held_requests_wait_until_they_are_let_go(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behaviour.hold = True
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, http, server) for _ in range(3)]
        until(lambda: server.counters.in_flight == 3)
        assert server.counters.tokens_billed == 0
        server.behaviour.hold = False
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert server.settle().tokens_billed == 3 * TOKENS


def test_a_client_that_hangs_up_at_work_is_billed_and_one_that_waits_is_not(
    server: ServerInThread,
) -> None:
    server.behave(latency=1, parallelism=1)
    body = json.dumps({"model": MPNET, "input": TEXTS}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    port = httpx2.URL(server.base_url).port
    with socket.create_connection(("127.0.0.1", port)) as at_work:
        at_work.sendall(head.encode() + body)
        until(lambda: server.counters.in_flight == 1)
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            waiting.sendall(head.encode() + body)
            until(lambda: server.counters.in_flight == 2)
    counters = server.settle()
    assert counters.tokens_billed == counters.tokens_untold == TOKENS
    assert counters.texts == dict.fromkeys(TEXTS, 1)
    assert counters.statuses == {200: 1, 499: 1}


# ---- faults


def test_every_fault_is_of_one_kind() -> None:
    kinds = [*faults.INSTEAD_OF_AN_ANSWER, *faults.INSIDE_THE_ANSWER, *faults.ON_THE_WAY]
    assert sorted(kinds) == sorted(Fault)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("rate_limit", 429, "rate_limit_exceeded"),
        ("rate_limit_dated", 429, "rate_limit_exceeded"),
        ("rate_limit_bare", 429, "rate_limit_exceeded"),
        ("insufficient_quota", 429, "insufficient_quota"),
        ("bad_request", 400, "content_filter"),
        ("context_length", 400, None),
        ("unauthorized", 401, "invalid_api_key"),
        ("echoed_key", 401, "invalid_api_key"),
        ("forbidden", 403, "insufficient_permissions"),
        ("unknown_model", 404, "model_not_found"),
        ("too_large", 413, None),
        ("server_error", 500, None),
        ("bad_gateway", 502, None),
        ("unavailable", 503, None),
        ("redirect", 307, None),
    ],
)
def test_a_refusing_fault_has_the_status_and_code_of_openai_and_no_bill(
    server: ServerInThread, fault: str, status: int, code: str | None
) -> None:
    server.behaviour.fault = fault
    with client_of(server) as client:
        bare = client.with_options(
            http_client=openai.DefaultHttpxClient(trust_env=False, follow_redirects=False)
        )
        with closing(bare), pytest.raises(openai.APIStatusError) as refused:
            bare.embeddings.create(model=MPNET, input=TEXTS)
    assert refused.value.status_code == status
    assert refused.value.code == code
    assert server.counters.statuses == {status: 1}
    assert server.counters.faults == {fault: 1}
    assert server.counters.tokens_billed == server.counters.tokens_untold == 0
    assert not server.counters.texts


def test_each_refusing_fault_says_when_to_come_again_in_its_own_way(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="rate_limit", retry_after=2.5)
    headers = ask(http, server).headers
    assert headers["retry-after"] == "3"
    assert headers["retry-after-ms"] == "2500"
    assert headers["x-ratelimit-reset-requests"] == "2.5s"
    server.behave(fault="rate_limit_dated", retry_after=30)
    date = parsedate_to_datetime(ask(http, server).headers["retry-after"])
    assert 29 <= date.timestamp() - time.time() <= 31
    server.behave(fault="rate_limit_bare")
    assert "retry-after" not in ask(http, server).headers
    server.behave(fault="unavailable")
    assert ask(http, server).headers["retry-after"] == "30"


def test_the_whole_key_comes_back_only_where_it_is_to_be_echoed(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behaviour.fault = "unauthorized"
    assert CANARY not in ask(http, server).text
    server.behaviour.fault = "echoed_key"
    assert CANARY in ask(http, server).text


def test_a_redirect_leads_to_another_server(http: httpx2.Client, server: ServerInThread) -> None:
    with running() as other:
        server.behave(fault="redirect", redirect_to=other.base_url + "/embeddings")
        answer = ask(http, server)
        assert answer.status_code == 307
        assert other.counters.requests == 0
        answer = http.send(answer.next_request) if answer.next_request else answer
        assert answer.status_code == 200
        assert other.counters.requests == 1


def test_html_and_an_error_may_come_with_status_200(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behaviour.fault = "html"
    answer = ask(http, server)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<html>" in answer.text
    server.behaviour.fault = "error_body"
    answer = ask(http, server)
    assert answer.status_code == 200
    assert set(json.loads(answer.content)) == {"error"}
    assert server.counters.tokens_billed == 0


def _short(data: list[dict[str, Any]]) -> bool:
    # The third text has no vector, and nothing in the answer says so.
    kept = [text for position, text in enumerate(TEXTS) if position != 2]
    return [row["index"] for row in data] == [0, 1, 2, 3] and all(map(_is_of, data, kept))


def _long(data: list[dict[str, Any]]) -> bool:
    return [row["index"] for row in data] == [0, 1, 2, 3, 4, 5]


def _swapped(data: list[dict[str, Any]]) -> bool:
    return [row["index"] for row in data] == [4, 3, 2, 1, 0] and all(
        _is_of(row, TEXTS[row["index"]]) for row in data
    )


def _wrong_index(data: list[dict[str, Any]]) -> bool:
    return [row["index"] for row in data] == [0, 1, 2, 3, 0]


def _no_index(data: list[dict[str, Any]]) -> bool:
    return len(data) == 5 and not any("index" in row for row in data)


def _nan(data: list[dict[str, Any]]) -> bool:
    return [bool(np.isnan(row["embedding"]).any()) for row in data] == [0, 0, 1, 0, 0]


def _zero(data: list[dict[str, Any]]) -> bool:
    return [any(row["embedding"]) for row in data] == [1, 1, 0, 1, 1]


def _wrong_size(data: list[dict[str, Any]]) -> bool:
    return [len(row["embedding"]) for row in data] == [767] * 5


def _is_of(row: dict[str, Any], text: str) -> bool:
    return np.array_equal(np.array(row["embedding"], dtype=np.float32), vector_of(text, 768))


@pytest.mark.parametrize(
    ("fault", "is_damaged_so"),
    [
        ("short", _short), ("long", _long), ("swapped", _swapped), ("wrong_index", _wrong_index),
        ("no_index", _no_index), ("nan", _nan), ("zero", _zero), ("wrong_size", _wrong_size),
    ],
)  # fmt: skip
def test_a_damaged_answer_is_damaged_as_its_name_says_and_billed(
    server: ServerInThread,
    http: httpx2.Client,
    fault: str,
    is_damaged_so: Callable[[list[dict[str, Any]]], bool],
) -> None:
    assert not is_damaged_so(rows(ask(http, server)))
    server.reset()
    server.behaviour.fault = fault
    answer = ask(http, server)
    assert answer.status_code == 200
    assert is_damaged_so(rows(answer))
    assert json.loads(answer.content)["usage"]["prompt_tokens"] == TOKENS
    assert server.counters.tokens_billed == TOKENS
    assert server.counters.tokens_untold == 0
    assert server.counters.texts == dict.fromkeys(TEXTS, 1)


@pytest.mark.parametrize("fault", ["nan", "zero", "wrong_size"])
def test_vectors_are_damaged_in_base64_too(
    server: ServerInThread, http: httpx2.Client, fault: str
) -> None:
    server.behaviour.fault = fault
    data = rows(ask(http, server, encoding_format="base64"))
    vectors = [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in data]
    seen = {
        "nan": [position for position, vector in enumerate(vectors) if np.isnan(vector).any()],
        "zero": [position for position, vector in enumerate(vectors) if not vector.any()],
        "wrong_size": [position for position, vector in enumerate(vectors) if len(vector) == 767],
    }
    assert seen.pop(fault) == ([0, 1, 2, 3, 4] if fault == "wrong_size" else [2])
    assert not any(seen.values())


@pytest.mark.parametrize("fault", sorted(faults.INSIDE_THE_ANSWER))
def test_an_answer_of_one_item_can_be_damaged_too(
    server: ServerInThread, http: httpx2.Client, fault: Fault
) -> None:
    good = json.loads(ask(http, server, "Brass kettle").content)
    server.behaviour.fault = fault
    bad = ask(http, server, "Brass kettle")
    assert bad.status_code == 200
    # Alone it has no place to be swapped with.
    assert (json.loads(bad.content) == good) is (fault is Fault.SWAPPED)


def test_another_model_answers_and_usage_may_be_empty(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behaviour.fault = "other_model"
    assert json.loads(ask(http, server).content)["model"] == "another-model"
    server.behaviour.fault = "empty_usage"
    assert json.loads(ask(http, server).content)["usage"] == {}
    assert server.counters.tokens_billed == 2 * TOKENS
    assert server.counters.tokens_untold == TOKENS


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("timeout", httpx2.ReadTimeout),
        ("cut", httpx2.RemoteProtocolError),
        ("reset", httpx2.ReadError),
        ("cut_in_body", httpx2.RemoteProtocolError),
        ("truncated_json", json.JSONDecodeError),
    ],
)
def test_a_lost_answer_is_billed_and_its_usage_never_told(
    server: ServerInThread, fault: str, error: type[Exception]
) -> None:
    server.behaviour.fault = fault
    with httpx2.Client(trust_env=False, timeout=0.5) as http, pytest.raises(error):
        json.loads(ask(http, server).content)
    counters = server.settle()
    assert counters.tokens_billed == counters.tokens_untold == TOKENS
    assert counters.texts == dict.fromkeys(TEXTS, 1)
    # Nothing was said where nobody was to be answered.
    assert counters.statuses == ({} if fault == "timeout" else {200: 1})


def test_a_dripping_answer_outlives_a_timeout_between_bytes(server: ServerInThread) -> None:
    server.behave(fault="slow_drip", drip_seconds=0.05)
    with (
        httpx2.Client(trust_env=False, timeout=0.5) as http,
        http.stream(
            "POST", server.base_url + "/embeddings", json={"model": MPNET, "input": "Brass kettle"}
        ) as answer,
    ):
        start = time.monotonic()
        pieces = answer.iter_raw()
        read = b""
        while time.monotonic() - start < 1:
            read += next(pieces)
        assert 2 < len(read) < 40
    counters = server.settle()
    assert counters.tokens_billed == counters.tokens_untold == tokens_of("Brass kettle")


def test_a_dripping_answer_is_whole_in_the_end(server: ServerInThread, http: httpx2.Client) -> None:
    server.behave(fault="slow_drip", drip_seconds=0, dimensions={MPNET: 4})
    answer = ask(http, server, "Brass kettle")
    assert np.allclose(rows(answer)[0]["embedding"], vector_of("Brass kettle", 4))
    assert server.settle().tokens_untold == 0


def test_a_huge_answer_is_right_for_whoever_reads_it_all(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="huge_body", huge_body_bytes=8 * 2**20)
    answer = ask(http, server)
    assert len(answer.content) > 8 * 2**20
    assert len(rows(answer)) == len(TEXTS)
    assert server.settle().tokens_untold == 0


def test_a_huge_answer_ends_when_the_client_has_had_enough(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="huge_body", huge_body_bytes=2**40)
    body = {"model": MPNET, "input": TEXTS}
    with http.stream("POST", server.base_url + "/embeddings", json=body) as answer:
        assert len(next(answer.iter_raw())) > 0
    counters = server.settle()
    assert counters.tokens_billed == counters.tokens_untold == TOKENS


def test_a_fault_strikes_so_often_after_so_many_and_then_never_again(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="server_error", fault_after=2, fault_times=3)
    statuses = [ask(http, server).status_code for _ in range(7)]
    assert statuses == [200, 200, 500, 500, 500, 200, 200]
    assert server.behaviour.fault is None


def test_a_fault_strikes_only_who_sends_its_text(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="bad_request", fault_text="kettle", fault_times=1)
    assert ask(http, server, ["Zinc pail"]).status_code == 200
    assert ask(http, server, ["Zinc pail", "Brass kettle"]).status_code == 400
    assert ask(http, server, ["Brass kettle"]).status_code == 200


def test_a_fault_strikes_its_share_of_the_requests(
    server: ServerInThread, http: httpx2.Client
) -> None:
    server.behave(fault="unavailable", fault_probability=0.25)
    struck = sum(ask(http, server, "a").status_code == 503 for _ in range(200))
    assert 30 <= struck <= 70
    assert server.counters.faults == {"unavailable": struck}


def test_a_fault_that_there_is_not_is_refused(server: ServerInThread, http: httpx2.Client) -> None:
    with pytest.raises(ValueError, match="there is no fault 'shorter': expected one of rate_limit"):
        server.behaviour.fault = "shorter"
    with pytest.raises(ValueError, match="there is no fault"):
        server.behave(latency=3, fault="shorter")
    control = server.base_url.removesuffix("/v1") + "/control"
    for wrong in ({"fault": "shorter"}, {"latencies": 1}, {"latency": "soon"}, 3, ["latency"]):
        assert http.post(control, json=wrong).status_code == 400
    assert server.behaviour == Behaviour()


# ---- the server itself


def test_the_server_stops_at_once_though_clients_wait(http: httpx2.Client) -> None:
    with ThreadPoolExecutor(3) as pool:
        with running(Behaviour(latency=60)) as server:
            waiting = [pool.submit(ask, http, server)]
            until(lambda: server.counters.in_flight == 1)
            server.behave(latency=0, fault="timeout")
            waiting.append(pool.submit(ask, http, server))
            until(lambda: server.counters.in_flight == 2)
            server.behave(hold=True)
            waiting.append(pool.submit(ask, http, server))
            until(lambda: server.counters.in_flight == 3)
            start = time.monotonic()
        assert time.monotonic() - start < 2
        for answer in waiting:
            assert isinstance(answer.exception(), httpx2.TransportError)


def test_counters_begin_anew_and_know_what_came_in_which_second() -> None:
    clock = StoppedClock()
    counters = Counters(clock=clock)
    for tokens, later in ((10, 0.5), (20, 0.6), (30, 2.0), (40, 0.0)):
        counters.arrive(None)
        counters.admit(tokens)
        clock.now += later
    assert counters.per_second == [Second(2, 30), Second(1, 30), Second(), Second(1, 40)]
    assert counters.let_in(1) == Second(2, 70)
    assert counters.let_in(0, 2) == Second(3, 60)
    counters.reset()
    assert counters == Counters(in_flight=4, most_in_flight=4)
    clock.now += 5
    counters.admit(7)
    assert counters.per_second == [Second(1, 7)]


def test_a_server_in_a_process_is_like_one_in_a_thread(http: httpx2.Client) -> None:
    behaviour = Behaviour(key=CANARY, latency=0.01, requests_per_minute=1000, resizable={MPNET})
    with running(behaviour) as thread, running_process(behaviour) as process:
        body = {"model": MPNET, "input": TEXTS, "dimensions": 64}
        headers = {"authorization": f"Bearer {CANARY}"}
        answers = [
            http.post(server.base_url + "/embeddings", json=body, headers=headers)
            for server in (thread, process)
        ]
        assert answers[0].status_code == 200
        assert answers[0].content == answers[1].content
        assert process.settle() == thread.settle()
        assert process.counters.authorizations == {digest_of_key(CANARY): 1}

        process.behave(fault="short", latency=0)
        assert process.behaviour.fault == "short"
        assert process.behaviour.resizable == {MPNET}
        with pytest.raises(ValueError, match="there is no fault"):
            process.behave(fault="shorter")
        process.reset()
        assert process.counters == Counters()
    assert process.process.returncode is not None


def test_a_real_model_answers_with_its_own_vectors_and_tokens(http: httpx2.Client) -> None:
    pin = pinned_models.ALL_MINILM_L6_V2
    settings = AspectSettings(
        model=pin.name, revision=pin.revision, dimensions=384, max_tokens=pin.max_tokens
    )
    engine = local_models.load(settings, weights.default_cache(), lambda _: None)
    expected = engine.embed(TEXTS)
    with running(engines={pin.name: engine}) as server:
        answer = ask(http, server, model=pin.name)
        assert server.counters.tokens_billed == sum(expected.tokens)
    vectors = [row["embedding"] for row in rows(answer)]
    assert np.array_equal(np.array(vectors, dtype=np.float32), expected.vectors)
    assert json.loads(answer.content)["usage"]["total_tokens"] == sum(expected.tokens)


def test_help_names_every_fault() -> None:
    command = [sys.executable, "-m", "ingestion_pipeline_tests.embedding_server", "--help"]
    answer = subprocess.run(
        command,
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    for fault in Fault:
        assert f"  {fault} " in answer.stdout
