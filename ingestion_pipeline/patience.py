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
    EmbeddingServiceError,
    InvalidAnswerError,
    LeaseLostError,
    OutageError,
    RangeFailedError,
    RateLimitedError,
    ServiceUnavailableError,
    TransientError,
)

FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each further attempt."""

LONGEST_PAUSE_SECONDS = 10.0

TOLD_FROM_SECONDS = 1.0
"""A pause of this length is worth a word to whoever watches."""

LONGEST_RATE_LIMIT_SECONDS = 900.0
"""So long a rate limit may keep one request waiting; a longer one is a quota that is used up."""

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
        limited = 0.0
        while True:
            attempts += 1
            try:
                return action()
            except _WITH_A_REMEDY_OF_THEIR_OWN:
                raise
            except RateLimitedError as error:
                # Uses up none of the patience: everybody slows down, and nobody fails.
                wait = max(error.retry_after or 0.0, pause)
                limited += wait
                if limited > LONGEST_RATE_LIMIT_SECONDS:
                    raise _used_up(error, wait) from error
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self.sleep(wait)
                began += wait
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
    if isinstance(error, ServiceUnavailableError):
        return EmbeddingServiceError(
            f"{error} Gave up after {attempts} attempts. What is committed is kept: run the same "
            "command again once it is well."
        )
    return RangeFailedError(f"Gave up after {attempts} attempts. {error}")


def _used_up(error: RateLimitedError, wait: float) -> OutageError:
    until = f" It asks to wait for another {wait / 60:.0f} minutes." if error.retry_after else ""
    return EmbeddingServiceError(
        f"{error}{until} What is committed is kept: run the same command again then."
    )
