"""What a Dagster run carries beside its work: whose it is, its process, how it is stopped.

What the runs do stands in the assets.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
import psutil

from ingestion_pipeline.errors import IngestionError

INVOCATION_TAG = "ingestion/invocation"
SOURCE_TAG = "ingestion/source"
PROCESS_TAG = "ingestion/process"
BACKFILL_TAG = "dagster/backfill"
REPOSITORY_TAG = ".dagster/repository"
REPOSITORY = "__repository__@ingestion_pipeline"
"""With this tag, the page of a job lists the runs that the terminal started."""
MAX_RETRIES_TAG = "dagster/max_retries"

TERMINAL = "terminal"
"""The source of a run that a command started, and waits for."""

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def invocation_of(run: dg.DagsterRun) -> str:
    """What the run is part of: one command, one backfill, or just itself."""
    return run.tags.get(INVOCATION_TAG) or run.tags.get(BACKFILL_TAG) or run.run_id


def runs_of(instance: dg.DagsterInstance, invocation: str) -> list[dg.RunRecord]:
    """Every run of an invocation, in whichever way it carries its name."""
    named = [
        instance.get_run_records(dg.RunsFilter(tags={tag: invocation}))
        for tag in (INVOCATION_TAG, BACKFILL_TAG)
    ]
    itself = instance.get_run_records(dg.RunsFilter(run_ids=[invocation]))
    records = [record for records in (*named, itself) for record in records]
    return list({record.dagster_run.run_id: record for record in records}.values())


def process_tag() -> Mapping[str, str]:
    """A tag that names this process so that nothing else, now or later, has the same name."""
    process = psutil.Process()
    return {PROCESS_TAG: f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"}


def fail_orphaned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed each run whose process is gone from this machine; returns their ids.

    Dagster's own monitoring sees to a worker that dies while the daemon lives. When the terminal,
    or the whole deployment, is killed, nothing else would ever end its runs.
    """
    orphans = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
        if _is_gone(run.tags.get(PROCESS_TAG))
    ]
    for run in orphans:
        instance.report_run_failed(
            run, "The process of this run is gone. Everything it had committed is kept."
        )
    return [run.run_id for run in orphans]


def _is_gone(process: str | None) -> bool:
    """Whether a process tag names a process of this machine that no longer runs."""
    if process is None:
        return False
    host, pid, created = process.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


@contextmanager
def told_to_dagster() -> Iterator[None]:
    """Turn our errors into failures whose first words are ours, with the error as their cause."""
    try:
        yield
    except IngestionError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise `KeyboardInterrupt`, as in any Python program.

    Dagster raises an exception of its own, on which psycopg does not cancel the statement at hand:
    the connection could then not even give its lease back. Dagster takes both alike.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
