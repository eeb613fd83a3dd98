"""The runs that the terminal starts: in this process, on the same Dagster instance as the UI.

A backfill would wait up to half a minute for the daemon; here a run costs half a second, and
progress reaches the terminal as it happens. Every run carries the invocation's name, ends when the
command does, and is seen in the UI like any other. How things look in the terminal is not decided
here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import dagster as dg

from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.disk import full_disk_told
from ingestion_pipeline.errors import (
    IngestionError,
    PreflightError,
)
from ingestion_pipeline.orchestration import partitions
from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.embedding_assets import FAILED_RANGES, HELD_RANGES
from ingestion_pipeline.orchestration.failures import (
    range_states,
    report_up_to_date,
    unfinished_ranges,
)
from ingestion_pipeline.orchestration.listener import Listener, Nobody, Recorder
from ingestion_pipeline.orchestration.models import ConfiguredModels, Models
from ingestion_pipeline.orchestration.preflight_assets import CANARY_PRODUCTS
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import (
    INVOCATION_TAG,
    MAX_RETRIES_TAG,
    REPOSITORY,
    REPOSITORY_TAG,
    SOURCE_TAG,
    STOPPED,
    TERMINAL,
    end_orphans,
    process_tag,
)
from ingestion_pipeline.orchestration.storage import STORAGE_ERRORS, dagster_instance, storage_error
from ingestion_pipeline.report import Report
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.stopping import (
    StopRequest,
    held_back,
    interruptible,
    stop_request,
    undisturbed,
)
from ingestion_pipeline.verdict import Verdict
from ingestion_pipeline.verification.checks import CheckResult

__all__ = ["IngestOutcome", "Listener", "Nobody", "run_ingest", "run_preflight", "run_verify"]

# Dagster prints every event to stderr; in the terminal that is the listener's place. The events are
# stored, and seen in the UI, all the same.
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass(frozen=True)
class IngestOutcome:
    """What one `ingest` came to.

    `report` is None where a limit was set, and only the canary ran, and where ranges are held:
    `failed_ranges` and `held_ranges`, those that other runs work on, are (key, reason).
    `up_to_date` says that there was nothing to do.
    """

    invocation: str
    verdicts: list[Verdict]
    report: Report | None
    checks: list[CheckResult]
    failed_ranges: list[tuple[str, str]]
    held_ranges: list[tuple[str, str]]
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
    the outcome. While another run holds a range, finishing v2 is left to that run. Raises
    `PreflightError` if a check says no, the `OutageError` that stopped everything, or
    `InterruptedRunError`; what was committed is kept in each case.
    """
    with _terminal(settings, listener, models) as terminal:
        terminal.preflight(limit or CANARY_PRODUCTS)
        terminal.refuse_unless_fit()
        if limit is not None:
            terminal.held_ranges |= terminal.held_canary()
            return terminal.outcome(up_to_date=False)
        blocks = terminal.plan(only_unfinished=ranges == "failed")
        if blocks:
            terminal.embed(blocks)
        if not terminal.held_ranges:
            terminal.finish()
        report = terminal.recorder.last_report
        return terminal.outcome(up_to_date=not blocks and (report is None or not report.processed))


def run_verify(settings: Settings, listener: Listener) -> list[CheckResult]:
    """Run every check on the whole table. Raises `InterruptedRunError`."""
    with _terminal(settings, listener, None) as terminal:
        terminal.verify()
        return terminal.recorder.checks


def end_orphaned_runs() -> list[str]:
    """End the runs that a killed deployment left as if at work; returns their ids."""
    with stop_request() as stop, _our_errors(stop), dagster_instance() as instance:
        return end_orphans(instance)


@dataclass
class _Terminal:
    """One invocation: its runs share a name, a recorder and an instance."""

    settings: Settings
    listener: Listener
    instance: dg.DagsterInstance
    stop: StopRequest
    models: Models
    invocation: str
    recorder: Recorder
    failed_ranges: dict[str, str] = field(default_factory=dict)
    held_ranges: dict[str, str] = field(default_factory=dict)

    def preflight(self, products: int) -> None:
        """Run the checks and plan the ranges; what they say is with the recorder."""
        self.listener.stage("preflight")
        # The siblings of a check that says no must speak, too: so nothing is raised.
        result = self._run(
            "preflight",
            config={"ops": {"canary": {"config": {"products": products}}}},
            raise_on_error=False,
        )
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

    def held_canary(self) -> dict[str, str]:
        """Why the first products were not tried, where another run holds them."""
        reasons = [verdict.facts.get("held") for verdict in self.recorder.verdicts]
        held = next(filter(None, reasons), None)
        return {"of the first products": str(held)} if held else {}

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
                self._run("reingest", tags=block.tags)
            except dg.Failure as failure:
                failed, held = _reasons(failure, FAILED_RANGES), _reasons(failure, HELD_RANGES)
                if not failed and not held:
                    raise
                self.failed_ranges |= failed
                self.held_ranges |= held
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
            held_ranges=list(self.held_ranges.items()),
            up_to_date=up_to_date,
        )

    def end_runs(self) -> None:
        """Leave no run of this invocation as if it were still at work, or failed if stopped."""
        stopped = self.stop.first is not None
        for run in self.instance.get_runs(dg.RunsFilter(tags={INVOCATION_TAG: self.invocation})):
            # What Dagster makes of a signal that comes between two steps.
            interrupted = run.tags.get("dagster/failure_reason") == "UNEXPECTED_TERMINATION"
            if stopped and (interrupted or not run.is_finished):
                self.instance.report_run_canceled(run, STOPPED)
            elif not run.is_finished:
                self.instance.report_run_failed(run, "The command ended before the run did.")

    def _run(
        self,
        job: str,
        *,
        config: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        raise_on_error: bool = True,
    ) -> dg.ExecuteInProcessResult:
        with held_back():
            result = defs.resolve_job_def(job).execute_in_process(
                instance=self.instance,
                run_config={"loggers": _QUIET, **(config or {})},
                tags=self._tags() | dict(tags or {}),
                resources=self._resources(),
                raise_on_error=raise_on_error,
            )
        if self.stop.first is not None:
            # A signal outside our steps: Dagster forgets one that comes after the last of them.
            raise KeyboardInterrupt
        return result

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
    with (
        stop_request() as stop,
        _our_errors(stop),
        full_disk_told(settings),
        interruptible(),
        dagster_instance(listener.line) as instance,
    ):
        end_orphans(instance)
        terminal = _Terminal(
            settings=settings,
            listener=listener,
            instance=instance,
            stop=stop,
            models=models or ConfiguredModels(),
            invocation=str(uuid.uuid4()),
            recorder=Recorder(listener),
        )
        try:
            yield terminal
        finally:
            # Without a storage there is nothing to end them in; the next command does it.
            with undisturbed(), suppress(*STORAGE_ERRORS):
                terminal.end_runs()


@contextmanager
def _our_errors(stop: StopRequest) -> Iterator[None]:
    """Let our errors out as they were raised, with nothing of Dagster around them."""
    try:
        yield
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        raise stop.error() from None
    except Exception as error:
        if isinstance(error, dg.Failure) and isinstance(error.__cause__, IngestionError):
            raise error.__cause__ from None
        if (unavailable := storage_error(error)) is not None:
            raise unavailable from None
        raise


def _reasons(failure: dg.Failure, name: str) -> dict[str, str]:
    """By range, the reasons that a failure of the asset carries under a name."""
    value = failure.metadata.get(name)
    if not isinstance(value, dg.JsonMetadataValue) or not isinstance(value.data, Mapping):
        return {}
    return {str(key): str(why) for key, why in value.data.items()}


def _why_it_failed(result: dg.ExecuteInProcessResult) -> Exception:
    """The reason why a run failed that was not told to raise."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    for failure in failures:
        if failure.user_failure_data and failure.user_failure_data.description:
            return PreflightError(failure.user_failure_data.description)
    return RuntimeError("\n".join(failure.error_display_string for failure in failures))
