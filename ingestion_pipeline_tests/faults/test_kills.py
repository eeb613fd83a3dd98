"""Workers killed with SIGKILL, at random moments and at each step, and the same command again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ingestion_pipeline_tests.faults.audit import Audit
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.faults.worker import Job, Step
from ingestion_pipeline_tests.faults.worker_shop import LONGEST_BATCH, WorkerShop, worker_shop

SECONDS_A_BATCH = 0.02
SHARES = times(1, 4)
"""Tests among which the kills of a job are divided, so that they can run side by side."""

PRODUCTS = times(24, 48)
MAIN_JOB_KILLS = times(2, 100)
WORK_LOOP_KILLS = times(4, 100)
ABOUT_A_RUN: dict[Job, float] = {"ingest": 5.0, "reingest": 1.0}
"""Seconds; `make faults` measures what the machine needs."""

JOBS_KILLED_AT_STEPS: list[Job] = ["reingest", "ingest"] if thorough() else ["reingest"]
"""The main job takes three seconds to start: `make test` kills the work loop alone."""


@pytest.fixture
def shop(database_url: str, dagster_home: Path, tmp_path: Path) -> WorkerShop:
    """A shop of which nothing is ingested yet."""
    shop = worker_shop(database_url, tmp_path / "worker", dagster_home)
    shop.fill(PRODUCTS)
    return shop


@pytest.mark.fault("kill -9 of the main job at a random moment")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_main_job_killed_at_random_moments_loses_nothing(
    shop: WorkerShop, fault: Fault, share: int
) -> None:
    _kill_at_random(shop, fault, "ingest", kills=MAIN_JOB_KILLS // SHARES, seed=share)


@pytest.mark.fault("kill -9 of the work loop alone at a random moment")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_work_loop_killed_at_random_moments_loses_nothing(
    shop: WorkerShop, fault: Fault, share: int
) -> None:
    _kill_at_random(shop, fault, "reingest", kills=WORK_LOOP_KILLS // SHARES, seed=100 + share)


@pytest.mark.parametrize("job", JOBS_KILLED_AT_STEPS)
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=pytest.mark.fault(f"kill -9, {step}")) for step in Step]
)
def test_a_worker_killed_at_a_step_loses_nothing(
    shop: WorkerShop, fault: Fault, step: Step, job: Job
) -> None:
    # Of the second range, so that something is committed, and something is left.
    nth = {Step.CLAIMED: 2, Step.READ: 2}.get(step, 9)
    with shop.working(job, stop_at=step, nth=nth) as process:
        assert process.wait(60) == -signal.SIGKILL, shop.said()
    assert shop.wrong() == 0
    found = _recovered(shop, fault, kills=1, seconds=shop.finish(job))
    if step in (Step.CLAIMED, Step.READ, Step.AFTER_COMMIT):
        assert found.paid_twice == 0, "no batch was in flight"


def _kill_at_random(shop: WorkerShop, fault: Fault, job: Job, *, kills: int, seed: int) -> None:
    """Kill and start again until the shop is done, then begin anew, until there are enough kills.

    A moment is drawn from the whole length of a run: at first most kills meet a run that has much
    to do, and later ones those that only check and report.
    """
    moments = random.Random(seed)  # noqa: S311 - the same moments each time
    whole = _length_of_a_run(shop, job) if thorough() else ABOUT_A_RUN[job]
    left = kills
    while left:
        shop.reset()
        caused = 0
        while caused < left and _killed(shop, job, moments.uniform(0, whole)):
            caused += 1
            assert shop.wrong() == 0
        _recovered(shop, fault, kills=caused, seconds=shop.finish(job))
        left -= caused


def _recovered(shop: WorkerShop, fault: Fault, *, kills: int, seconds: float) -> Audit:
    """Nothing is lost or wrong, and what a kill undid has left no spend either."""
    found = shop.audit()
    fault.recovered(found, caused=kills, seconds=seconds, allowed_paid_twice=kills * LONGEST_BATCH)
    assert shop.spent() == sum(map(len, shop.sent().values())) - found.paid_twice
    return found


def _length_of_a_run(shop: WorkerShop, job: Job) -> float:
    """Seconds that a run takes which nobody disturbs."""
    with shop.working(job, seconds=SECONDS_A_BATCH) as process:
        shop.wait_until_begun(process)
        began = time.monotonic()
        assert process.wait(120) == 0, shop.said()
        return time.monotonic() - began


def _killed(shop: WorkerShop, job: Job, seconds: float) -> bool:
    """Let a worker work for so long and kill it; False if it was done before."""
    with shop.working(job, seconds=SECONDS_A_BATCH) as process:
        shop.wait_until_begun(process)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait() == -signal.SIGKILL
    assert status == 0, shop.said()
    return False
