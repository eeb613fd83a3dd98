"""A request's way through the server: key, form, quota, fault, turn, work, bill, answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from itertools import count
from random import Random

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline_tests.embedding_server import faults, requests
from ingestion_pipeline_tests.embedding_server.answers import Answer, Item, usage_of
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.counters import Counters
from ingestion_pipeline_tests.embedding_server.delivery import Delivery
from ingestion_pipeline_tests.embedding_server.limits import Quota
from ingestion_pipeline_tests.embedding_server.line import Line
from ingestion_pipeline_tests.embedding_server.patience import Patience
from ingestion_pipeline_tests.embedding_server.replies import Manner, Refusal, Reply, error_reply
from ingestion_pipeline_tests.embedding_server.requests import Asked
from ingestion_pipeline_tests.embedding_server.slots import Slots
from ingestion_pipeline_tests.embedding_server.vectors import (
    encoded,
    encoded_vector_of,
    tokens_of,
)

_CLIENT_HUNG_UP = 499


class EmbeddingServer:
    """Everything behind the addresses. `engines`: models that really embed, by their name."""

    def __init__(self, behaviour: Behaviour, engines: Mapping[str, Embedder] | None = None) -> None:
        self.behaviour = behaviour
        self.counters = Counters()
        self._engines = engines or {}
        self._quota = Quota(time.monotonic)
        self._slots = Slots(lambda: self.behaviour.parallelism)
        self._chance = Random(0)  # noqa: S311 - faults need no secrecy, and tests repeat
        self._numbers = count(1)
        self._patience = Patience()
        self._engine_turn = asyncio.Lock()

    def application(self) -> Starlette:
        """The addresses."""
        return Starlette(
            routes=[
                Route("/v1/embeddings", _Endpoint(self), methods=["POST"]),
                Route("/control", self._get_control, methods=["GET"]),
                Route("/control", self._post_control, methods=["POST"]),
                Route("/counters", self._get_counters, methods=["GET"]),
                Route("/counters/reset", self._reset_counters, methods=["POST"]),
            ]
        )

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._patience.lose()

    async def embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request for embeddings."""
        request = Request(scope, receive)
        authorization = dict(request.headers.raw).get(b"authorization")
        self.counters.arrive(authorization)
        try:
            await self._serve(request, Line(scope, receive), send, authorization)
        finally:
            self.counters.in_flight -= 1

    async def _serve(
        self, request: Request, line: Line, send: Send, authorization: bytes | None
    ) -> None:
        billed = 0
        try:
            asked, fault = await self._admitted(request, authorization)
            async with self._slots:
                if line.dead:
                    self.counters.statuses[_CLIENT_HUNG_UP] += 1
                    return
                begun = time.monotonic()
                answer = await self._answer(asked)
                await self._patience.wait(begun + self.behaviour.latency - time.monotonic())
            billed = sum(asked.tokens)
            self.counters.bill(asked.texts, billed)
            reply = _damaged(answer, asked, fault)
        except Refusal as refusal:
            reply = refusal.reply
        except ClientDisconnect:
            self.counters.statuses[_CLIENT_HUNG_UP] += 1
            return
        if reply.manner is not Manner.SILENCE:
            self.counters.statuses[reply.status] += 1
        if line.dead or not reply.tells_usage:
            self.counters.tokens_untold += billed
            billed = 0
        delivery = Delivery(line, send, self.behaviour, self._patience)
        if not await delivery.deliver(reply, self._headers()):
            self.counters.tokens_untold += billed

    async def _admitted(
        self, request: Request, authorization: bytes | None
    ) -> tuple[Asked, Fault | None]:
        """A request that may begin its work, and the fault that awaits it; else `Refusal`."""
        behaviour = self.behaviour
        requests.check_key(authorization, behaviour)
        asked = requests.read(await request.body(), behaviour, self._count_tokens)
        tokens = sum(asked.tokens)
        if excess := self._quota.admit(tokens, behaviour):
            headers = {} if excess.seconds is None else faults.retry_headers(excess.seconds)
            raise Refusal(
                error_reply(
                    429,
                    excess.message,
                    kind=excess.kind,
                    code="rate_limit_exceeded",
                    headers=headers,
                )
            )
        self.counters.admit(tokens)
        fault = faults.struck_by(behaviour, asked.texts, self._chance)
        if fault is not None:
            self.counters.faults[fault.value] += 1
            if refuse := faults.INSTEAD_OF_AN_ANSWER.get(fault):
                raise Refusal(refuse(faults.Struck(asked, authorization, behaviour)))
        await self._patience.wait_while(lambda: behaviour.hold)
        return asked, fault

    def _count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        engine = self._engines.get(model)
        return engine.count_tokens(texts) if engine else [tokens_of(text) for text in texts]

    async def _answer(self, asked: Asked) -> Answer:
        engine = self._engines.get(asked.model)
        if engine is None:
            vectors = [
                encoded_vector_of(text, asked.dimensions, asked.encoding) for text in asked.texts
            ]
        else:
            async with self._engine_turn:
                embedded = await asyncio.to_thread(engine.embed, asked.texts)
            vectors = [encoded(vector, asked.encoding) for vector in embedded.vectors]
        return Answer(
            self.behaviour.model or asked.model,
            [Item(index, vector) for index, vector in enumerate(vectors)],
            usage_of(sum(asked.tokens)),
        )

    def _headers(self) -> dict[str, str]:
        """What stands above every answer."""
        return {
            "x-request-id": f"req_{next(self._numbers)}",
            **self._quota.headers(self.behaviour),
        }

    async def _get_control(self, _: Request) -> Response:
        return _json(self.behaviour.as_json())

    async def _post_control(self, request: Request) -> Response:
        try:
            self.behaviour.change(dict(await request.json()))
        except (ValueError, TypeError) as error:
            return _json({"error": str(error)}, 400)
        return _json(self.behaviour.as_json())

    async def _get_counters(self, _: Request) -> Response:
        return _json(self.counters.as_json())

    async def _reset_counters(self, _: Request) -> Response:
        self.counters.reset()
        return _json(self.counters.as_json())


class _Endpoint:
    """An application of its own to Starlette, which would otherwise make the answer."""

    def __init__(self, server: EmbeddingServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._server.embed(scope, receive, send)


def _damaged(answer: Answer, asked: Asked, fault: Fault | None) -> Reply:
    if fault is None:
        return answer.reply()
    if damage := faults.INSIDE_THE_ANSWER.get(fault):
        damage(answer, asked)
    reply = answer.reply()
    hinder = faults.ON_THE_WAY.get(fault)
    return hinder(reply) if hinder else reply


def _json(value: object, status: int = 200) -> Response:
    # ASCII, as half a surrogate pair in a text has no other form.
    return Response(json.dumps(value), status, media_type="application/json")
