"""How this process is asked to stop: Ctrl-C, SIGTERM, or a terminal that is closed.

In our code each of them raises `KeyboardInterrupt`, as Ctrl-C does in any Python program: psycopg
then cancels the statement at hand, and every `finally` runs. What is cleaned up there, and what is
told, is not decided here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from ingestion_pipeline.errors import InterruptedRunError, TerminatedRunError

PATIENCE_SECONDS = 10.0
"""For so long after a signal has raised, whatever comes next is taken for impatience, and cleaning
up goes on; later it is taken to hang, and may be broken off."""

_MOMENT_SECONDS = 0.05

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], None]


@dataclass
class _Interruption:
    """When a signal last raised, on the monotonic clock, and whether one is held back."""

    at: float | None = None
    held_back: bool = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self.is_under_way():
            self.begin()

    def begin(self) -> None:
        self.at, self.held_back = time.monotonic(), False
        raise KeyboardInterrupt

    def is_under_way(self) -> bool:
        return self.at is not None and time.monotonic() - self.at < PATIENCE_SECONDS

    def hold_back(self, _number: int, _frame: FrameType | None) -> None:
        self.held_back = True


_interrupt = _Interruption()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let every signal to stop raise `KeyboardInterrupt`, the first of several only.

    Needed anew inside what Dagster runs: it raises an exception of its own, on which psycopg does
    not cancel the statement at hand, and the connection could not even give its lease back. What
    was held back before raises at once. Whatever an interruption turns into on its way out of the
    block, it leaves as `KeyboardInterrupt`.
    """
    with _handled_by(_interrupt), _raised_again_where_swallowed():
        if _interrupt.held_back:
            _interrupt.begin()
        try:
            yield
        except Exception:
            if _interrupt.is_under_way():
                raise KeyboardInterrupt from None
            raise


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals to stop wait for the next `interruptible` inside, or for whoever asks after them.

    For code of others that may leave half of something behind where it is cut off.
    """
    with _handled_by(_interrupt.hold_back):
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

    def __init__(self, reader: int | None = None) -> None:
        """`reader` gives the numbers of signals as they come; None where none will."""
        self._reader = reader
        self._first: signal.Signals | None = None

    @property
    def first(self) -> signal.Signals | None:
        """The first signal to stop; None if there was none."""
        with suppress(BlockingIOError):
            for number in os.read(self._reader, 64) if self._reader is not None else ():
                if number in (*_SIGNALS, signal.SIGHUP):
                    self._first = self._first or signal.Signals(number)
        return self._first

    def error(self) -> InterruptedRunError:
        """What to raise for it."""
        kept = "Everything committed is kept; the same command carries on from there."
        if self.first in (None, signal.SIGINT):
            return InterruptedRunError(f"Stopped. {kept}")
        return TerminatedRunError(f"Told to stop. {kept}")


_open_requests: list[StopRequest] = []


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note the signals to stop that come during the block; a block inside another shares its notes.

    Only the main thread sees signals.
    """
    if not _in_main_thread():
        yield StopRequest()
        return
    if _open_requests:
        yield _open_requests[0]
        return
    _interrupt.at, _interrupt.held_back = None, False
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    # Python writes the number of each signal there before any handler is called.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _open_requests.append(StopRequest(reader))
    try:
        yield _open_requests[0]
    finally:
        _open_requests.clear()
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    """Have `handler` called for the signals to stop; in other threads than the main one nothing."""
    if not _in_main_thread():
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


@contextmanager
def _raised_again_where_swallowed() -> Iterator[None]:
    """See to an interruption that comes where Python cannot raise, as in a destructor."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            before(unraisable)
            return
        _interrupt.at = None
        threading.Timer(_MOMENT_SECONDS, os.kill, [os.getpid(), signal.SIGINT]).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """A terminal that is closed tells its programs to end: whoever handles that shall do so."""
    signal.raise_signal(signal.SIGTERM)
