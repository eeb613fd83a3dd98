"""A line between clients and the server that can be slow, cut or dead.

Bytes pass from a TCP port of this machine to the server's socket and back. Of PostgreSQL's protocol
just enough is read to know the moment: what the client is saying, and when the server's reply to a
COMMIT is whole.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer

_CHUNK = 1 << 16
_REPLY_IS_WHOLE = re.compile(rb"Z\x00\x00\x00\x05[ITE]\Z")
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing a socket resets its connection."""
_SECONDS = 10.0

End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Moment(Enum):
    """What is passing over a line."""

    CLAIMING = auto()
    READING = auto()
    COPYING = auto()
    COMMITTING = auto()
    """The COMMIT of a transaction with a COPY: what befalls the line then, it never arrives."""
    COMMITTED = auto()
    """The reply to that COMMIT, which has arrived: the client never hears of it."""
    RELEASING = auto()
    BEGINNING = auto()
    """The first words of a session."""
    ASKING = auto()
    """Whether the server is still at work for a session that has heard nothing."""
    ENDING = auto()
    """A session has the one before it ended."""


_STATEMENTS = {
    Moment.CLAIMING: b"INSERT INTO ingestion.leases",
    Moment.READING: b"SELECT product_id, aspect, fingerprint, text, text_digest",
    Moment.RELEASING: b"DELETE FROM ingestion.leases WHERE range_key = ",
    Moment.BEGINNING: b"to_regtype('vector') IS NOT NULL AS knows_vectors",
    Moment.ASKING: b"AND wait_event_type IS DISTINCT FROM 'Client'",
    Moment.ENDING: b"SELECT pg_terminate_backend(",
}


class Act(Enum):
    """What befalls a line."""

    CUT = auto()
    """Both ends hear at once that the other is gone."""
    BLACK_HOLE = auto()
    """From now on everything is swallowed, and neither end is told anything."""


@dataclass
class Trap:
    """Lets `act` befall the line on which a moment comes for the `nth` time."""

    moment: Moment
    act: Act
    nth: int = 1
    sprung_at: float | None = None
    """On the clock of `time.monotonic`."""

    def springs(self, moment: Moment | None) -> bool:
        """Whether this is the time."""
        if moment is not self.moment:
            return False
        self.nth -= 1
        if self.nth == 0:
            self.sprung_at = time.monotonic()
        return self.nth == 0


class Proxy:
    """Passes everything on until it is told otherwise, which any thread may do.

    `delay` is in seconds, for each piece that comes through. While `swallows_new_lines` holds, who
    connects is never answered.
    """

    def __init__(self, server: LocalServer) -> None:
        """Not a line is open before `serve`."""
        self.delay = 0.0
        self.swallows_new_lines = False
        self.traps: list[Trap] = []
        self._far_end = server.socket_directory / f".s.PGSQL.{local_server.PORT}"
        self._lines: set[_Line] = set()
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def url(self, database: str) -> str:
        """Connection string of a database at the far end."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}?sslmode=disable"

    def set_trap(self, moment: Moment, act: Act, nth: int = 1) -> Trap:
        """Lie in wait for a moment."""
        trap = Trap(moment, act, nth)
        self.traps.append(trap)
        return trap

    def befall(self, act: Act) -> int:
        """Let something befall every line that is alive; returns how many there were."""

        async def all_lines() -> int:
            lines = [line for line in self._lines if not line.dead]
            for line in lines:
                line.befall(act)
            return len(lines)

        return asyncio.run_coroutine_threadsafe(all_lines(), self._loop).result(_SECONDS)

    def serve(self, ready: threading.Event) -> None:
        """Take clients until `close`."""

        async def until_closed() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._over.wait()
            server.close()
            for line in self._lines:
                line.befall(Act.CUT)
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(until_closed())

    def close(self) -> None:
        """Cut every line and take no more clients."""
        self._loop.call_soon_threadsafe(self._over.set)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = (reader, writer)
        if self.swallows_new_lines:
            line = _Line(self, client, client, dead=True)
            self._lines.add(line)
            await line.pass_on_from_client()
            return
        try:
            line = _Line(self, client, await asyncio.open_unix_connection(self._far_end))
        except OSError:
            writer.transport.abort()
            return
        self._lines.add(line)
        await asyncio.gather(line.pass_on_from_client(), line.pass_on_from_server())


@dataclass(eq=False)
class _Line:
    """One connection of a client, and its connection to the server; `dead` lines swallow."""

    proxy: Proxy
    client: End
    server: End
    dead: bool = False
    copied: bool = False
    instead_of_the_reply: Act | None = None

    def befall(self, act: Act) -> None:
        self.dead = True
        if act is Act.CUT:
            for _, writer in (self.client, self.server):
                end = writer.get_extra_info("socket")
                if end.family != socket.AF_UNIX and not writer.transport.is_closing():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    async def pass_on_from_client(self) -> None:
        """Message by message, unless a trap springs on one."""
        unread = b""
        started = False
        while piece := await self._piece(self.client):
            unread += piece
            passed = b""
            while message := _first_message(unread, typed=started):
                unread = unread[len(message) :]
                started = True
                self._meet_traps(message)
                passed += b"" if self.dead else message
            await self._pass_on(passed, self.server)
        self._hang_up(self.server)

    async def pass_on_from_server(self) -> None:
        """Piece by piece, except for a reply that is not to arrive."""
        reply = b""
        while piece := await self._piece(self.server):
            if self.instead_of_the_reply:
                reply += piece
                if _REPLY_IS_WHOLE.search(reply):
                    self.befall(self.instead_of_the_reply)
            else:
                await self._pass_on(piece, self.client)
        self._hang_up(self.client)

    def _meet_traps(self, message: bytes) -> None:
        moment = self._moment(message)
        for trap in self.proxy.traps:
            if trap.springs(moment):
                self.befall(trap.act)
        if moment is Moment.COMMITTING:
            for trap in self.proxy.traps:
                if trap.springs(Moment.COMMITTED):
                    self.instead_of_the_reply = trap.act

    def _moment(self, message: bytes) -> Moment | None:
        kind, words = message[:1], message[5:]
        if kind == b"d":
            self.copied = True
            return Moment.COPYING
        if kind == b"Q" and words in (b"COMMIT\x00", b"ROLLBACK\x00"):
            copied, self.copied = self.copied, False
            return Moment.COMMITTING if copied and words == b"COMMIT\x00" else None
        return next((it for it, text in _STATEMENTS.items() if text in words), None)

    async def _piece(self, end: End) -> bytes:
        with suppress(ConnectionError):
            piece = await end[0].read(_CHUNK)
            await asyncio.sleep(self.proxy.delay)
            return piece
        return b""

    async def _pass_on(self, piece: bytes, end: End) -> None:
        if piece and not self.dead:
            with suppress(ConnectionError):
                end[1].write(piece)
                await end[1].drain()

    def _hang_up(self, end: End) -> None:
        """Tell the other end that this one has left, once it has got everything."""
        if not self.dead:
            self.dead = True
            end[1].close()


def _first_message(data: bytes, *, typed: bool) -> bytes:
    """The first whole message of what a client has sent; only its very first has no type."""
    prefix = int(typed)
    if len(data) < prefix + 4:
        return b""
    length = prefix + int.from_bytes(data[prefix : prefix + 4], "big")
    return data[:length] if len(data) >= length else b""


@contextmanager
def proxy_to(server: LocalServer) -> Iterator[Proxy]:
    """A proxy in front of a server, closed after the block."""
    proxy = Proxy(server)
    ready = threading.Event()
    thread = threading.Thread(target=proxy.serve, args=(ready,))
    thread.start()
    assert ready.wait(_SECONDS)
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
