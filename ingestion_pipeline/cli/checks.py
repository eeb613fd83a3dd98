"""`ingest preflight` and `ingest verify`: looking before a run, and looking at its result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare, reach
from ingestion_pipeline.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from ingestion_pipeline.verification.checks import CheckResult


def preflight(*, as_json: bool) -> int:
    """Every check before a run, the canary too, and the verdict."""
    settings = prepare(dagster=True, report=terminal.note).settings
    reach(settings)
    from ingestion_pipeline.orchestration.in_process import run_preflight

    with terminal.RunListener(as_json=as_json) as listener:
        verdicts = run_preflight(settings, listener)
    go = not any(verdict.blocking for verdict in verdicts)
    code = ExitCode.OK if go else ExitCode.PREFLIGHT
    if as_json:
        verdict_documents = [verdict.as_dict() for verdict in verdicts]
        terminal.print_json({"go": go, "verdicts": verdict_documents, "exit_code": code})
        return code
    terminal.say()
    if go:
        terminal.next_step("Go: `ingest` embeds what is stale.")
    else:
        terminal.next_step("No go: do what is said above, then `ingest preflight` again.")
    return code


def verify(*, as_json: bool) -> int:
    """Every check of the result, over the whole table."""
    settings = prepare(dagster=True, report=terminal.note).settings
    reach(settings)
    from ingestion_pipeline.orchestration.in_process import run_verify

    with terminal.RunListener(as_json=as_json) as listener:
        results = run_verify(settings, listener)
    good = holds(results)
    code = ExitCode.OK if good else ExitCode.VERIFICATION
    if as_json:
        checks = [result.as_dict() for result in results]
        terminal.print_json({"holds": good, "checks": checks, "exit_code": code})
        return code
    terminal.say()
    if good:
        terminal.next_step('`ingest search "..."` searches it.')
    else:
        terminal.next_step("`ingest status` says what is left to do; `ingest` does it.")
    return code


def holds(results: Iterable[CheckResult]) -> bool:
    """Whether the result is proven: nothing failed, and nothing grave could not be looked at."""
    from ingestion_pipeline.verification.checks import CHECKS

    grave = {name for name, check in CHECKS.items() if check.severity == "error"}
    return not any(
        result.status == "fail" or (result.status == "unknown" and result.name in grave)
        for result in results
    )
