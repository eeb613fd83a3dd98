"""How long, and with which pauses, something that failed is tried again.

Which errors are worth another try is said by the error tree; what is tried stands elsewhere.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ingestion_pipeline.errors import (
    BatchTooLargeError,
    ConnectionLostError,
    DatabaseUnavailableError,
    InvalidAnswerError,
    LeaseLostError,
    OutageError,
    RangeFailedError,
    TransientError,
)

FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each further attempt."""

LONGEST_PAUSE_SECONDS = 10.0

TOLD_FROM_SECONDS = 1.0
"""A pause of this length is worth a word to whoever watches."""

_WITH_A_REMEDY_OF_THEIR_OWN = (LeaseLostError, InvalidAnswerError, BatchTooLargeError)

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Tries again after transient errors, for `seconds` in all and with growing pauses.

    A pause is a random half to whole of its length, so that workers that failed together do not
    come back together. `say` hears, once, that there is waiting.
    """

    seconds: float
    say: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, action: Callable[[], T]) -> T:
        """Do `action` until it succeeds.

        Raises what is not transient, or has a remedy of its own, as it is. Once time is up:
        `DatabaseUnavailableError` where there is no connection, else `RangeFailedError`.
        """
        began = self.clock()
        pause, paused, told = FIRST_PAUSE_SECONDS, 0.0, False
        attempts = 0
        while True:
            attempts += 1
            try:
                return action()
            except _WITH_A_REMEDY_OF_THEIR_OWN:
                raise
            except TransientError as error:
                left = self.seconds - max(self.clock() - began, paused)
                if left <= 0:
                    raise _given_up(error, attempts) from error
                if pause >= TOLD_FROM_SECONDS and not told:
                    told = True
                    self.say(f"{error} Trying again for up to {left:.0f} s.")
            # Not a matter of secrets.
            waited = min(pause * random.uniform(0.5, 1.0), left)  # noqa: S311
            self.sleep(waited)
            paused += waited
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _given_up(error: TransientError, attempts: int) -> OutageError:
    if isinstance(error, ConnectionLostError):
        return DatabaseUnavailableError(str(error))
    return RangeFailedError(f"Gave up after {attempts} attempts. {error}")
