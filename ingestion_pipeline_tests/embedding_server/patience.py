"""Waiting that ends when the server is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

_GLANCE = 0.01
"""Seconds between two looks at what may have changed."""


class Patience:
    """What all requests of a server wait with."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    def lose(self) -> None:
        """From now on nobody waits."""
        self._over.set()

    async def wait(self, seconds: float) -> None:
        """Let so much time pass."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()

    async def wait_while(self, condition: Callable[[], bool]) -> None:
        """Look again and again."""
        while condition() and not self._over.is_set():
            await self.wait(_GLANCE)
