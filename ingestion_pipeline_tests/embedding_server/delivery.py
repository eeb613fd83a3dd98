"""Sending a reply in its manner, which may be a bad one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Send

from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour
from ingestion_pipeline_tests.embedding_server.line import Line
from ingestion_pipeline_tests.embedding_server.patience import Patience
from ingestion_pipeline_tests.embedding_server.replies import Manner, Reply

_PADDING = b" " * 2**16


class Delivery:
    """Takes replies to one client."""

    def __init__(self, line: Line, send: Send, behaviour: Behaviour, patience: Patience) -> None:
        self._line = line
        self._send = send
        self._behaviour = behaviour
        self._patience = patience
        self._ways: dict[Manner, Callable[[Reply, Mapping[str, str]], Awaitable[bool]]] = {
            Manner.WHOLE: self._whole,
            Manner.SILENCE: self._silence,
            Manner.DRIP: self._drip,
            Manner.CUT: self._cut,
            Manner.RESET: self._reset,
            Manner.CUT_IN_BODY: self._cut_in_body,
            Manner.PADDED: self._padded,
        }

    async def deliver(self, reply: Reply, headers: Mapping[str, str]) -> bool:
        """Send the reply under these headers and its own; False where not all of it was sent."""
        return await self._ways[reply.manner](reply, headers)

    async def _whole(self, reply: Reply, headers: Mapping[str, str]) -> bool:
        await self._begin(reply, headers)
        await self._piece(reply.body, last=True)
        return True

    async def _silence(self, _: Reply, __: Mapping[str, str]) -> bool:
        await self._patience.wait_while(lambda: not self._line.dead)
        return False

    async def _drip(self, reply: Reply, headers: Mapping[str, str]) -> bool:
        await self._begin(reply, headers)
        for position in range(len(reply.body)):
            if self._line.dead:
                return False
            await self._piece(reply.body[position : position + 1])
            await self._patience.wait(self._behaviour.drip_seconds)
        await self._piece(b"", last=True)
        return True

    async def _cut(self, _: Reply, __: Mapping[str, str]) -> bool:
        await self._line.close()
        return False

    async def _reset(self, _: Reply, __: Mapping[str, str]) -> bool:
        await self._line.reset()
        return False

    async def _cut_in_body(self, reply: Reply, headers: Mapping[str, str]) -> bool:
        await self._begin(reply, headers)
        await self._piece(reply.body[: len(reply.body) // 2])
        await self._line.close()
        return False

    async def _padded(self, reply: Reply, headers: Mapping[str, str]) -> bool:
        await self._begin(reply, headers, chunked=True)
        await self._piece(b"{")
        for _ in range(0, self._behaviour.huge_body_bytes, len(_PADDING)):
            if self._line.dead:
                return False
            await self._piece(_PADDING)
        await self._piece(reply.body.removeprefix(b"{"), last=True)
        return True

    async def _begin(
        self, reply: Reply, headers: Mapping[str, str], *, chunked: bool = False
    ) -> None:
        headers = {"content-type": reply.content_type, **headers, **reply.headers}
        if not chunked:
            headers["content-length"] = str(len(reply.body))
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": reply.status, "headers": raw})

    async def _piece(self, piece: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
