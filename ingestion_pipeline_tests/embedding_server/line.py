"""The connection under a request: hanging up on the client, and noticing that it has."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_EXTENSION = "embedding_server.transport"
_RESET = struct.pack("ii", 1, 0)


class Protocol(HttpToolsProtocol):
    """uvicorn's own, but the application can get at the connection."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: self.transport}  # type: ignore[dict-item]


class Line:
    """The connection of one request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._transport: asyncio.Transport = scope["extensions"][_EXTENSION]
        self._receive = receive

    @property
    def dead(self) -> bool:
        """Whether the client has hung up, as far as is known."""
        return self._transport.is_closing()

    async def close(self) -> None:
        """Hang up once everything is sent."""
        self._transport.close()
        await self._until_closed()

    async def reset(self) -> None:
        """Hang up in such a way that the client sees an error."""
        # The socket that the event loop hands out may not take options.
        own = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        with own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()
        await self._until_closed()

    async def _until_closed(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
