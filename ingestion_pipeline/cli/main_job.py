"""`ingest` and `ingest retry`: the main job in this process, on the Dagster instance of the UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.checks import holds
from ingestion_pipeline.cli.environment import prepare, reach
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.errors import PreflightError
from ingestion_pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestion_pipeline.cli.terminal import RunListener
    from ingestion_pipeline.orchestration.in_process import IngestOutcome
    from ingestion_pipeline.report import Report
    from ingestion_pipeline.verdict import Verdict


def ingest(*, limit: int | None, as_json: bool) -> int:
    """Every stale product, or the first `limit` products and no more."""
    return _run(limit=limit, ranges="stale", as_json=as_json)


def retry(*, as_json: bool) -> int:
    """Only the ranges that failed or were never finished."""
    return _run(limit=None, ranges="failed", as_json=as_json)


def _run(*, limit: int | None, ranges: Literal["stale", "failed"], as_json: bool) -> int:
    settings = prepare(dagster=True, report=terminal.note).settings
    reach(settings)
    with terminal.RunListener(as_json=as_json) as listener:
        try:
            outcome = run(settings, listener, limit=limit, ranges=ranges)
        except PreflightError as error:
            if not any(verdict.blocking for verdict in listener.verdicts):
                raise
            return no_go(error, listener.verdicts, as_json=as_json)
    code = code_of(outcome)
    if as_json:
        terminal.print_json(as_dict(outcome) | {"exit_code": code})
        return code
    conclude(outcome, limit=limit)
    return code


def run(
    settings: Settings,
    listener: RunListener,
    *,
    limit: int | None = None,
    ranges: Literal["stale", "failed"] = "stale",
) -> IngestOutcome:
    """Run it, telling `listener` how it goes. Raises PreflightError where a check says no."""
    # Dagster takes seconds to import, so whatever can be wrong before is told before.
    from ingestion_pipeline.orchestration.in_process import run_ingest

    return run_ingest(settings, listener, limit=limit, ranges=ranges)


def no_go(error: PreflightError, verdicts: Sequence[Verdict], *, as_json: bool) -> int:
    """Preflight said no; the listener has told every reason already."""
    if as_json:
        document = {"kind": type(error).__name__, "message": str(error)}
        terminal.print_json(
            {
                "error": document,
                "verdicts": [verdict.as_dict() for verdict in verdicts],
                "exit_code": ExitCode.PREFLIGHT,
            }
        )
    else:
        terminal.say()
        terminal.next_step("No go: do what is said above, then run the same command again.")
    return ExitCode.PREFLIGHT


def code_of(outcome: IngestOutcome) -> ExitCode:
    """The gravest thing that happened; what failed explains what the checks miss."""
    if outcome.failed_ranges or outcome.held_ranges:
        return ExitCode.INCOMPLETE
    if not holds(outcome.checks):
        return ExitCode.VERIFICATION
    if outcome.report is not None and outcome.report.failed_products:
        return ExitCode.INCOMPLETE
    return ExitCode.OK


def as_dict(outcome: IngestOutcome) -> dict[str, Any]:
    """The outcome for JSON."""
    return {
        "invocation": outcome.invocation,
        "nothing_to_do": outcome.up_to_date,
        "up_to_date": outcome.report is not None and not outcome.report.left,
        "report": outcome.report.as_dict() if outcome.report else None,
        "verdicts": [verdict.as_dict() for verdict in outcome.verdicts],
        "checks": [check.as_dict() for check in outcome.checks],
        "failed_ranges": [{"key": key, "reason": why} for key, why in outcome.failed_ranges],
        "held_ranges": [{"key": key, "reason": why} for key, why in outcome.held_ranges],
    }


def conclude(outcome: IngestOutcome, *, limit: int | None = None) -> None:
    """The report, and what to do next."""
    show_outcome(outcome)
    terminal.say()
    for step in _next_steps(outcome, limit):
        terminal.next_step(step)


def show_outcome(outcome: IngestOutcome) -> None:
    """The report, and the ranges that failed or are held by other runs."""
    if outcome.report is not None:
        show_report(outcome.report)
    for key, reason in outcome.failed_ranges:
        terminal.judged("fail", f"range {key}", reason)
    for key, reason in outcome.held_ranges:
        terminal.judged("unknown", f"range {key}", reason)


def show_report(report: Report) -> None:
    """The numbers of one invocation."""
    terminal.say()
    terminal.say("Report", style="bold")
    terminal.say(f"  {report.headline}")
    terminal.say()
    for line in terminal.columns(report.rows(), right={1}):
        terminal.say(f"  {line}")


def _next_steps(outcome: IngestOutcome, limit: int | None) -> list[str]:
    if outcome.held_ranges:
        rest = "`ingest status --watch` shows it, and `ingest` after that sees what is left."
        return [f"Another run holds the rest, and finishes it if it lives: {rest}"]
    if limit is not None:
        return ["`ingest` takes the rest."]
    if outcome.failed_ranges:
        return ["`ingest retry` runs the failed ranges again, once the reasons are mended."]
    if not holds(outcome.checks):
        return ["`ingest status` says what is left; `ingest verify` looks again."]
    if outcome.report is not None and outcome.report.failed_products:
        return ["`ingest failures` says which products failed, and why."]
    return ['`ingest search "..."` searches it; `ingest up` shows it in Dagster.']
