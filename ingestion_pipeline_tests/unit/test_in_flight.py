"""Jobs beside the caller: how many, where, and in which order they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ingestion_pipeline.errors import InterruptedRunError
from ingestion_pipeline.in_flight import LOCAL, Flight, Lane

SECONDS = 10.0


@dataclass(eq=False)
class Job:
    """Ends when it may; says in which thread it was done."""

    may_end: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def do(self) -> None:
        self.thread = threading.current_thread()
        self.may_end.wait(SECONDS)


def flight(
    *, threads: bool, work: Callable[[Job], None] = Job.do, said: list[str] | None = None
) -> Flight[Job]:
    heard = said if said is not None else []
    return Flight(work, threads=threads, say=heard.append)


def ended() -> Job:
    job = Job()
    job.may_end.set()
    return job


def test_without_threads_a_job_is_done_by_the_caller_when_it_is_landed() -> None:
    air = flight(threads=False)
    jobs = [ended(), ended()]
    for job in jobs:
        air.launch(job, LOCAL)
    assert [job.thread for job in jobs] == [None, None]
    assert [air.land(), air.land()] == jobs
    assert {job.thread for job in jobs} == {threading.current_thread()}
    assert len(air) == 0


def test_with_threads_jobs_land_in_the_order_in_which_they_end() -> None:
    air = flight(threads=True)
    first, second = Job(), Job()
    for job in (first, second):
        air.launch(job, LOCAL)
    second.may_end.set()
    assert air.land(SECONDS) is second
    assert len(air) == 1
    first.may_end.set()
    assert air.land(SECONDS) is first
    assert first.thread is not second.thread


def test_landing_gives_up_after_its_time_and_loses_no_job() -> None:
    air = flight(threads=True)
    job = Job()
    air.launch(job, LOCAL)
    began = time.monotonic()
    assert air.land(0.05) is None
    assert time.monotonic() - began < 1
    job.may_end.set()
    assert air.land(SECONDS) is job


def test_a_lane_has_room_up_to_its_limit_which_may_change() -> None:
    limits = {"now": 2}
    lane = Lane("api", lambda: limits["now"], threads=True)
    other = Lane("another api", lambda: 1, threads=True)
    air = flight(threads=True)
    jobs = [Job(), Job()]
    for job in jobs:
        assert air.has_room(lane)
        air.launch(job, lane)
    assert not air.has_room(lane)
    assert air.has_room(other)
    limits["now"] = 3
    assert air.has_room(lane)
    limits["now"] = 2
    jobs[0].may_end.set()
    landed = air.land(SECONDS)
    assert landed is jobs[0]
    assert not air.has_room(lane), "what came of it is not in safety yet"
    air.free(landed)
    assert air.has_room(lane)
    jobs[1].may_end.set()
    air.land(SECONDS)


def test_a_lane_has_room_for_one_whatever_its_limit() -> None:
    assert flight(threads=True).has_room(Lane("api", lambda: 0, threads=True))


def test_what_a_job_says_is_said_in_the_callers_thread_before_it_lands() -> None:
    heard: list[threading.Thread] = []
    air: Flight[Job] = Flight(
        lambda _: air.say("waiting"),
        threads=True,
        say=lambda _: heard.append(threading.current_thread()),
    )
    job = Job()
    air.launch(job, LOCAL)
    assert air.land(SECONDS) is job
    assert heard == [threading.current_thread()]


def test_jobs_that_wait_end_at_once_when_the_flight_is_given_up() -> None:
    raised: list[BaseException] = []

    def work(_: Job) -> None:
        try:
            air.sleep(SECONDS)
        except InterruptedRunError as error:
            raised.append(error)

    air = flight(threads=True, work=work)
    job = Job()
    air.launch(job, LOCAL)
    began = time.monotonic()
    air.give_up()
    assert air.land(SECONDS) is job
    assert time.monotonic() - began < 1
    assert [type(error) for error in raised] == [InterruptedRunError]


def test_jobs_sleep_as_long_as_they_are_told() -> None:
    began = time.monotonic()
    flight(threads=True).sleep(0.05)
    assert time.monotonic() - began >= 0.05


def test_a_job_in_a_thread_does_not_keep_the_process_alive() -> None:
    air = flight(threads=True)
    job = Job()
    air.launch(job, LOCAL)
    while job.thread is None:
        time.sleep(0.001)
    assert job.thread.daemon
    job.may_end.set()
    air.land(SECONDS)


def test_a_job_is_done_by_the_caller_where_there_is_no_thread_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    air = flight(threads=True)
    job = ended()
    air.launch(job, LOCAL)
    assert air.land(SECONDS) is job
    assert job.thread is threading.current_thread()


def test_a_job_that_has_not_begun_is_forgotten_once_the_flight_is_given_up() -> None:
    air = flight(threads=False)
    job = ended()
    air.launch(job, LOCAL)
    air.give_up()
    assert len(air) == 0
    assert air.land(0.0) is None
    assert job.thread is None
    assert air.has_room(LOCAL)
