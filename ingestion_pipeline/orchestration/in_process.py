"""The runs that the terminal starts: in this process, on the same Dagster instance as the UI.

A backfill would wait up to half a minute for the daemon; here a run costs half a second, and
progress reaches the terminal as it happens. Every run carries the invocation's name, ends when the
command does, and is seen in the UI like any other. How things look in the terminal is not decided
here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.errors import (
    DatabaseUnavailableError,
    IngestionError,
    InterruptedRunError,
    PreflightError,
    redacted,
)
from ingestion_pipeline.orchestration import partitions
from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.embedding_assets import FAILED_RANGES
from ingestion_pipeline.orchestration.failures import (
    range_states,
    report_up_to_date,
    unfinished_ranges,
)
from ingestion_pipeline.orchestration.listener import Listener, Nobody, Recorder
from ingestion_pipeline.orchestration.preflight_assets import CANARY_PRODUCTS
from ingestion_pipeline.orchestration.resources import LocalModels, Models, ShopAccess
from ingestion_pipeline.orchestration.runs import (
    INVOCATION_TAG,
    MAX_RETRIES_TAG,
    REPOSITORY,
    REPOSITORY_TAG,
    SOURCE_TAG,
    TERMINAL,
    fail_orphaned_runs,
    interruptible,
    process_tag,
)
from ingestion_pipeline.report import Report
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.verdict import Verdict
from ingestion_pipeline.verification.checks import CheckResult

__all__ = ["IngestOutcome", "Listener", "Nobody", "run_ingest", "run_preflight", "run_verify"]

# Dagster prints every event to stderr; in the terminal that is the listener's place. The events are
# stored, and seen in the UI, all the same.
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}

_INTERRUPTED = "UNEXPECTED_TERMINATION"


@dataclass(frozen=True)
class IngestOutcome:
    """What one `ingest` came to.

    `report` is None where a limit was set, and only the canary ran. `failed_ranges` are (key,
    reason). `up_to_date` says that there was nothing to do.
    """

    invocation: str
    verdicts: list[Verdict]
    report: Report | None
    checks: list[CheckResult]
    failed_ranges: list[tuple[str, str]]
    up_to_date: bool


def run_preflight(
    settings: Settings,
    listener: Listener,
    *,
    products: int = CANARY_PRODUCTS,
    models: Models | None = None,
) -> list[Verdict]:
    """Run the five checks, the canary over `products` products, and plan the ranges.

    Returns every verdict, "no" included. Raises `InterruptedRunError`.
    """
    with _terminal(settings, listener, models) as terminal:
        terminal.preflight(products)
        return terminal.recorder.verdicts


def run_ingest(
    settings: Settings,
    listener: Listener,
    *,
    limit: int | None = None,
    ranges: Literal["stale", "failed"] = "stale",
    models: Models | None = None,
) -> IngestOutcome:
    """Preflight, then every range with something stale, then indexes, checks and report.

    With `limit` only that many products go through, as the canary. `ranges="failed"` leaves out
    ranges that Dagster holds for done. Ranges that fail do not stop the others and are listed in
    the outcome. Raises `PreflightError` if a check says no, the `OutageError` that stopped
    everything, or `InterruptedRunError`; what was committed is kept in each case.
    """
    with _terminal(settings, listener, models) as terminal:
        terminal.preflight(limit or CANARY_PRODUCTS)
        terminal.refuse_unless_fit()
        if limit is not None:
            return terminal.outcome(up_to_date=False)
        blocks = terminal.plan(only_unfinished=ranges == "failed")
        if blocks:
            terminal.embed(blocks)
        terminal.finish()
        report = terminal.recorder.last_report
        return terminal.outcome(up_to_date=not blocks and (report is None or not report.processed))


def run_verify(settings: Settings, listener: Listener) -> list[CheckResult]:
    """Run every check on the whole table. Raises `InterruptedRunError`."""
    with _terminal(settings, listener, None) as terminal:
        terminal.verify()
        return terminal.recorder.checks


def end_orphaned_runs() -> list[str]:
    """Mark the runs as failed that a killed deployment left as if at work; returns their ids."""
    with _instance() as instance:
        return fail_orphaned_runs(instance)


@dataclass
class _Terminal:
    """One invocation: its runs share a name, a recorder and an instance."""

    settings: Settings
    listener: Listener
    instance: dg.DagsterInstance
    models: Models
    invocation: str
    recorder: Recorder
    failed_ranges: dict[str, str] = field(default_factory=dict)

    def preflight(self, products: int) -> None:
        """Run the checks and plan the ranges; what they say is with the recorder."""
        self.listener.stage("preflight")
        # The siblings of a check that says no must speak, too: so nothing is raised.
        result = self._job("preflight").execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config={
                "loggers": _QUIET,
                "ops": {"canary": {"config": {"products": products}}},
            },
            tags=self._tags(),
            resources=self._resources(),
        )
        if result.dagster_run.tags.get("dagster/failure_reason") == _INTERRUPTED:
            raise KeyboardInterrupt
        blocked = any(verdict.blocking for verdict in self.recorder.verdicts)
        if not result.success and not blocked:
            raise _why_it_failed(result)

    def refuse_unless_fit(self) -> None:
        """Raise with every reason if a check says no."""
        blocking = [verdict for verdict in self.recorder.verdicts if verdict.blocking]
        if not blocking:
            return
        if self.settings.database_url and any(
            verdict.facts.get("reachable") is False for verdict in blocking
        ):
            # Raises the error that says what kind of unreachable it is, if it still is.
            connect(self.settings.database_url.get_secret_value()).close()
        reasons = [
            str(reason)
            for verdict in blocking
            for reason in verdict.reasons
            if reason.severity == "error"
        ]
        raise PreflightError("\n".join(reasons))

    def plan(self, *, only_unfinished: bool) -> list[partitions.Block]:
        """The blocks of ranges with something to do; makes Dagster's record of the others true."""
        with interruptible(), open_shop(self.settings) as shop:
            ranges = shop.embeddings.ranges()
            progress = shop.catalogue.range_progress(ranges, self.settings.fingerprints)
        stale = {it.key: it.stale_products for it in progress if it.stale_products}
        order = partitions.sync(self.instance, [key for key, _ in ranges])
        states = range_states(self.instance, order)
        report_up_to_date(
            self.instance,
            [key for key in order if key not in stale and states[key] in ("failed", "missing")],
        )
        chosen = (
            [key for key in stale if key in unfinished_ranges(self.instance, order)]
            if only_unfinished
            else list(stale)
        )
        self.recorder.expect(sum(stale[key] for key in chosen))
        return partitions.blocks(chosen, order)

    def embed(self, blocks: list[partitions.Block]) -> None:
        """One run a block; a range that fails does not stop the others, an outage does."""
        self.listener.stage("embedding")
        for block in blocks:
            try:
                self._run("reingest", block.tags)
            except dg.Failure as failure:
                failed = failure.metadata.get(FAILED_RANGES)
                if not isinstance(failed, dg.JsonMetadataValue) or not isinstance(
                    failed.data, Mapping
                ):
                    raise
                self.failed_ranges |= {str(key): str(why) for key, why in failed.data.items()}
            self.recorder.run_over()

    def finish(self) -> None:
        """Indexes, checks, report."""
        self.listener.stage("finishing")
        self._run("finish")

    def verify(self) -> None:
        """The checks alone."""
        self.listener.stage("verification")
        self._run("verify")

    def outcome(self, *, up_to_date: bool) -> IngestOutcome:
        """What has come of it."""
        return IngestOutcome(
            invocation=self.invocation,
            verdicts=self.recorder.verdicts,
            report=self.recorder.last_report,
            checks=self.recorder.checks,
            failed_ranges=list(self.failed_ranges.items()),
            up_to_date=up_to_date,
        )

    def end_runs(self) -> None:
        """Leave no run of this invocation as if it were still at work."""
        unfinished = [
            record.dagster_run
            for record in self.instance.get_run_records(
                dg.RunsFilter(tags={INVOCATION_TAG: self.invocation})
            )
            if not record.dagster_run.is_finished
        ]
        for run in unfinished:
            self.instance.report_run_failed(run, "The command ended before the run did.")

    def _run(self, job: str, tags: Mapping[str, str] | None = None) -> None:
        self._job(job).execute_in_process(
            instance=self.instance,
            run_config={"loggers": _QUIET},
            tags=self._tags() | dict(tags or {}),
            resources=self._resources(),
        )

    def _job(self, name: str) -> dg.JobDefinition:
        return defs.resolve_job_def(name)

    def _tags(self) -> dict[str, str]:
        return {
            INVOCATION_TAG: self.invocation,
            SOURCE_TAG: TERMINAL,
            REPOSITORY_TAG: REPOSITORY,
            # The daemon knows nothing of this command and must not start its runs again.
            MAX_RETRIES_TAG: "0",
            **process_tag(),
        }

    def _resources(self) -> dict[str, object]:
        return {
            "shop": ShopAccess(self.settings),
            "models": self.models,
            "recorder": self.recorder,
        }


@contextmanager
def _terminal(settings: Settings, listener: Listener, models: Models | None) -> Iterator[_Terminal]:
    """One invocation, on the instance of DAGSTER_HOME."""
    with _our_errors(), interruptible(), _instance() as instance:
        fail_orphaned_runs(instance)
        terminal = _Terminal(
            settings=settings,
            listener=listener,
            instance=instance,
            models=models or LocalModels(),
            invocation=str(uuid.uuid4()),
            recorder=Recorder(listener),
        )
        try:
            yield terminal
        finally:
            terminal.end_runs()


@contextmanager
def _our_errors() -> Iterator[None]:
    """Let our errors out as they were raised, with nothing of Dagster around them."""
    try:
        yield
    except dg.Failure as failure:
        if isinstance(failure.__cause__, IngestionError):
            raise failure.__cause__ from None
        raise
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        raise InterruptedRunError(
            "Stopped. Everything committed is kept; the same command carries on from there."
        ) from None


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME."""
    try:
        instance = dg.DagsterInstance.get()
    except SQLAlchemyError as error:
        raise DatabaseUnavailableError(
            f"Dagster's storage cannot be opened: {redacted(str(error))} DAGSTER_PG_URL names it."
        ) from None
    with instance:
        yield instance


def _why_it_failed(result: dg.ExecuteInProcessResult) -> Exception:
    """The reason why a run failed that was not told to raise."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    for failure in failures:
        if failure.user_failure_data and failure.user_failure_data.description:
            return PreflightError(failure.user_failure_data.description)
    return RuntimeError("\n".join(failure.error_display_string for failure in failures))
