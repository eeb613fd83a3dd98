"""What a Dagster run carries beside its work: whose it is, its process, how it is stopped.

What the runs do stands in the assets.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
import psutil

from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.stopping import interruptible, undisturbed

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

STOPPED = "Stopped. Everything committed is kept."
"""What a run says that was stopped from the terminal."""

_GONE = "The process of this run is gone. Everything it had committed is kept."

_NAMED_WITHIN_SECONDS = 60.0
"""From a run's start to its process tag: a second, as a rule."""

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


def end_orphans(instance: dg.DagsterInstance) -> list[str]:
    """End each run whose process is gone from this machine, and free its pools; returns their ids.

    Dagster's own monitoring sees to a worker that dies while the daemon lives. When the terminal,
    or the whole deployment, is killed, nothing else would ever end its runs.
    """
    orphans = [
        record.dagster_run
        for record in instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED))
        if _is_orphan(record, instance)
    ]
    for run in orphans:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, _GONE)
        else:
            instance.report_run_failed(run, _GONE)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in orphans]


def _is_orphan(record: dg.RunRecord, instance: dg.DagsterInstance) -> bool:
    process = record.dagster_run.tags.get(PROCESS_TAG)
    if process is not None and process != _inherited(record.dagster_run, instance):
        return _is_gone(process)
    # Up to its start Dagster's monitoring counts the time, and then a process puts its name on it.
    started = record.start_time
    return started is not None and time.time() - started > _NAMED_WITHIN_SECONDS


def _inherited(run: dg.DagsterRun, instance: dg.DagsterInstance) -> str | None:
    """The process of the run that this one repeats: Dagster copies its tags to the new run."""
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return parent.tags.get(PROCESS_TAG) if parent else None


def _is_gone(tag: str) -> bool:
    """Whether a process tag names a process of this machine that no longer runs."""
    host, pid, created = tag.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        # A killed process keeps its number until its parent asks: in a container perhaps never.
        is_dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return is_dead or f"{process.create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


@contextmanager
def told_to_dagster(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> Iterator[None]:
    """What stands between Dagster and our code in a step.

    Our errors become failures whose first words are ours, with the error as their cause. A signal
    to stop raises `KeyboardInterrupt`; a run that the terminal started is then canceled.
    """
    try:
        with interruptible():
            yield
    except IngestionError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except KeyboardInterrupt:
        if context.run.tags.get(SOURCE_TAG) == TERMINAL:
            # Dagster holds a run for failed that ends by a signal, unless it is told before.
            with undisturbed():
                context.instance.report_run_canceling(context.run, STOPPED)
        raise
