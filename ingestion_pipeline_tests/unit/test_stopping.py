"""Signals to stop: what raises, what waits, and what is not to be disturbed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from ingestion_pipeline import stopping
from ingestion_pipeline.errors import InterruptedRunError, TerminatedRunError
from ingestion_pipeline.stopping import (
    StopRequest,
    held_back,
    interruptible,
    stop_request,
    undisturbed,
)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    with stop_request() as stop:
        yield stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_raises_what_ctrl_c_raises_and_is_remembered(
    stop: StopRequest, number: signal.Signals
) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)

    assert stop.first == number
    wanted = InterruptedRunError if number == signal.SIGINT else TerminatedRunError
    assert type(stop.error()) is wanted


@pytest.mark.usefixtures("stop")
def test_a_second_signal_breaks_off_a_clean_up_only_if_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleaned_up = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned_up.append("the lease")
            monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.0)
            signal.raise_signal(signal.SIGINT)
            cleaned_up.append("what hangs")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()

    assert cleaned_up == ["the lease"]


@pytest.mark.usefixtures("stop")
def test_what_an_interruption_turns_into_on_its_way_leaves_as_one() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise OSError("the terminal is gone")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()


def test_a_signal_that_comes_where_python_cannot_raise_raises_a_moment_later(
    stop: StopRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Dying()
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interruptible():
        work()

    assert time.monotonic() - began < 10
    assert stop.first == signal.SIGTERM
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("stop")
def test_an_error_that_comes_of_no_interruption_stays_what_it_is() -> None:
    with pytest.raises(OSError, match="another matter"), interruptible():
        raise OSError("another matter")


@pytest.mark.usefixtures("stop")
def test_a_signal_that_is_held_back_raises_at_the_next_place_that_may_be_interrupted() -> None:
    reached = False
    with held_back():
        signal.raise_signal(signal.SIGTERM)
        reached = True
        with pytest.raises(KeyboardInterrupt), interruptible():
            pytest.fail("the block was begun")
        with interruptible():
            pass
    assert reached


@pytest.mark.usefixtures("stop")
def test_what_is_not_to_be_disturbed_is_not() -> None:
    with interruptible():
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("stop")
def test_a_command_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_block_inside_another_shares_what_it_noted(stop: StopRequest) -> None:
    with pytest.raises(KeyboardInterrupt), stop_request() as inner, interruptible():
        signal.raise_signal(signal.SIGTERM)

    assert inner is stop
    assert stop.first == signal.SIGTERM


def test_a_thread_without_signals_works_undisturbed() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_request() as stop, held_back(), interruptible(), undisturbed():
            seen.append(stop.first)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [None]
