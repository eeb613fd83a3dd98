"""So many requests at work at once; the others wait their turn in the order they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Slots:
    """An asynchronous context: inside it one has a slot.

    `limit` says how many there are, None without end; it may change at any time, which shows when
    the next slot is given back or asked for.
    """

    def __init__(self, limit: Callable[[], int | None]) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    async def __aexit__(self, *exception: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        limit = self._limit()
        while self._waiting and (limit is None or self._taken < limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
