"""How this process is asked to stop: Ctrl-C, SIGTERM, or a terminal that is closed.

In our code each of them raises `KeyboardInterrupt`, as Ctrl-C does in any Python program: psycopg
then cancels the statement at hand, and every `finally` runs. What is cleaned up there, and what is
told, is not decided here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ingestion_pipeline.errors import InterruptedRunError, TerminatedRunError

PATIENCE_SECONDS = 10.0
"""For so long after a signal has raised, whatever comes next is taken for impatience, and cleaning
up goes on; later it is taken to hang, and may be broken off."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], None]


@dataclass
class _Interruption:
    """When a signal last raised, on the monotonic clock."""

    at: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.at is None or now - self.at > PATIENCE_SECONDS:
            self.at = now
            raise KeyboardInterrupt


_interrupt = _Interruption()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let every signal to stop raise `KeyboardInterrupt`, the first of several only.

    Needed anew inside what Dagster runs: it raises an exception of its own, on which psycopg does
    not cancel the statement at hand, and the connection could not even give its lease back.
    """
    with _handled_by(_interrupt):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal to stop break what is brought to its end now, unless that hangs."""
    before, _interrupt.at = _interrupt.at, time.monotonic()
    try:
        with _handled_by(_interrupt):
            yield
    finally:
        _interrupt.at = before


def ignore() -> None:
    """Ignore signals to stop from now on: the process is about to end."""
    for number in (*_SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Whether this process has been asked to stop, whoever handled the signal.

    Between our steps Dagster handles signals, takes one for the other, and forgets the late ones.
    """

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._first: signal.Signals | None = None

    @property
    def first(self) -> signal.Signals | None:
        """The first signal to stop; None if there was none."""
        try:
            numbers = os.read(self._reader, 64)
        except BlockingIOError:
            numbers = b""
        asked = (number for number in numbers if number in (*_SIGNALS, signal.SIGHUP))
        for number in asked:
            self._first = self._first or signal.Signals(number)
        return self._first

    def error(self) -> InterruptedRunError:
        """What to raise for it."""
        kept = "Everything committed is kept; the same command carries on from there."
        if self.first in (None, signal.SIGINT):
            return InterruptedRunError(f"Stopped. {kept}")
        return TerminatedRunError(f"Told to stop. {kept}")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note the signals to stop that come during the block; needs the main thread to see any."""
    _interrupt.at = None
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Python writes the number of each signal there before any handler is called.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False) if in_main_thread else -1
    try:
        yield StopRequest(reader)
    finally:
        if in_main_thread:
            signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    """Have `handler` called for the signals to stop; in other threads than the main one nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[signal.Signals, _Handler] = dict.fromkeys(_SIGNALS, handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks for
        handlers[signal.SIGHUP] = _hang_up
    before = {number: signal.signal(number, new) for number, new in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """A terminal that is closed tells its programs to end: whoever handles that shall do so."""
    signal.raise_signal(signal.SIGTERM)
