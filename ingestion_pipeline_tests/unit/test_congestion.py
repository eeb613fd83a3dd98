"""How many requests are worth having at once, on a server that is reckoned and not run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from ingestion_pipeline.embedding.congestion import FIRST, RequestsAtOnce

SECONDS = 0.1


@dataclass
class Simulation:
    """A server that has `slots` requests at work; others wait in a line, first come first served.

    `seconds` is how long a request of so many tokens takes there, at a moment. `demand` is the most
    that the client ever has to send at once, `way` the seconds to the server and back.
    """

    slots: int
    seconds: Callable[[Random, int, float], float] = lambda _, __, ___: SECONDS
    sizes: Sequence[int] = (500,)
    demand: int = 1_000
    way: float = 0.0
    most: int = 256
    now: float = 0.0
    answered: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_once = RequestsAtOnce(self.most)
        self._chance = Random(0)  # noqa: S311 - no secret, and tests repeat
        self._free = [0.0] * self.slots
        self._under_way: list[tuple[float, int, float, int]] = []
        self._number = 0

    def run(self, until: float, requests: int | None = None) -> None:
        while self.now < until and (requests is None or self.answered < requests):
            while len(self._under_way) < min(self.at_once.limit, self.demand):
                self._send()
            self.now, _, sent, tokens = heapq.heappop(self._under_way)
            self.at_once.ended()
            self.at_once.answered(self.now - sent, tokens)
            self.answered += 1
            self.limits.append((self.now, self.at_once.limit))

    def _send(self) -> None:
        self.at_once.begun()
        tokens = self._chance.choice(self.sizes)
        start = max(heapq.heappop(self._free), self.now + self.way / 2)
        end = start + self.seconds(self._chance, tokens, start)
        heapq.heappush(self._free, end)
        heapq.heappush(self._under_way, (end + self.way / 2, self._number, self.now, tokens))
        self._number += 1

    def since(self, moment: float) -> list[int]:
        return [limit for when, limit in self.limits if when >= moment]

    def typical(self, since: float) -> float:
        limits = self.since(since)
        return sum(limits) / len(limits)


@pytest.mark.parametrize("slots", [4, 8, 16, 32, 64, 128])
def test_a_servers_parallelism_is_reached_within_a_few_rounds(slots: int) -> None:
    simulation = Simulation(slots)
    simulation.run(until=5 * SECONDS)
    assert max(simulation.since(0)) >= slots


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16, 32, 64, 128])
def test_it_stays_at_a_little_more_than_the_servers_parallelism(slots: int) -> None:
    simulation = Simulation(slots)
    simulation.run(until=60)
    assert slots + 2 <= simulation.typical(since=20) <= 1.15 * slots + 8
    assert simulation.answered >= 0.98 * slots * 60 / SECONDS


@pytest.mark.parametrize(("slots", "requests"), [(4, 157), (8, 313), (16, 313), (32, 1_000)])
def test_a_short_run_loses_little_to_finding_out(slots: int, requests: int) -> None:
    simulation = Simulation(slots)
    simulation.run(until=60, requests=requests)
    assert simulation.now <= 1.1 * -(-requests // slots) * SECONDS


@pytest.mark.parametrize("slots", [4, 16, 64])
def test_answers_that_come_irregularly_are_not_taken_for_a_queue(slots: int) -> None:
    def seconds(chance: Random, _: int, __: float) -> float:
        return SECONDS * chance.lognormvariate(0, 0.5)

    simulation = Simulation(slots, seconds)
    simulation.run(until=60)
    mean = SECONDS * 1.1331  # of this distribution
    assert simulation.answered >= 0.97 * slots * 60 / mean
    assert simulation.typical(since=10) <= 1.5 * slots + 12


@pytest.mark.parametrize("slots", [4, 16, 64])
def test_long_requests_are_not_taken_for_a_queue(slots: int) -> None:
    sizes = (20, 200, 2_000, 20_000)
    simulation = Simulation(slots, lambda _, tokens, __: 0.02 + tokens * 2e-5, sizes=sizes)
    simulation.run(until=60)
    mean = sum(0.02 + size * 2e-5 for size in sizes) / len(sizes)
    assert simulation.answered >= 0.95 * slots * 60 / mean
    assert simulation.typical(since=10) <= 2 * slots + 8


def test_the_way_there_and_back_is_filled_too() -> None:
    # It takes as long as the work: of twice as many requests, half are on their way.
    simulation = Simulation(16, way=SECONDS)
    simulation.run(until=60)
    assert simulation.answered >= 0.97 * 16 * 60 / SECONDS
    assert 32 <= simulation.typical(since=20) <= 1.15 * 32 + 7


def test_it_shrinks_when_the_server_has_less_to_give_and_grows_again() -> None:
    simulation = Simulation(32)
    simulation.run(until=20)
    taken = simulation._free[8:]
    simulation._free = simulation._free[:8]
    simulation.run(until=40)
    assert simulation.typical(since=30) <= 8 * 1.15 + 7
    simulation._free += taken
    simulation.run(until=80)
    assert simulation.typical(since=70) >= 30


def test_a_server_that_takes_longer_for_each_is_still_made_full_use_of() -> None:
    def seconds(_: Random, __: int, now: float) -> float:
        return SECONDS if now < 20 else 4 * SECONDS

    simulation = Simulation(16, seconds)
    simulation.run(until=20)
    before = simulation.answered
    simulation.run(until=220)
    assert simulation.answered - before >= 0.85 * 16 * 200 / (4 * SECONDS)


def test_it_never_grows_beyond_what_is_made_use_of() -> None:
    simulation = Simulation(64, demand=3)
    simulation.run(until=30)
    assert max(simulation.since(0)) <= max(FIRST, 4)


def test_it_never_grows_beyond_the_most() -> None:
    simulation = Simulation(64, most=10)
    simulation.run(until=10)
    assert max(simulation.since(0)) == 10
    assert RequestsAtOnce(1).limit == 1


def test_a_failure_halves_it_and_those_sent_before_tell_nothing_new() -> None:
    at_once = RequestsAtOnce(64)
    at_once.limit = 16
    for _ in range(16):
        at_once.begun()
    for _ in range(16):
        at_once.ended()
        at_once.failed()
    assert at_once.limit == 8
    at_once.begun()
    at_once.ended()
    at_once.failed()
    assert at_once.limit == 4


def test_it_is_never_less_than_one_whatever_fails() -> None:
    at_once = RequestsAtOnce(64)
    for _ in range(20):
        at_once.begun()
        at_once.ended()
        at_once.failed()
    assert at_once.limit == 1


def test_it_recovers_from_a_failure() -> None:
    simulation = Simulation(32)
    simulation.run(until=10)
    simulation.at_once.failed()
    simulation.run(until=30)
    assert simulation.typical(since=20) >= 32
