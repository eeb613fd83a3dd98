"""`ingest preflight` and `ingest verify`: looking before a run, and looking at its result."""

from __future__ import annotations

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare
from ingestion_pipeline.cli.exit_codes import ExitCode


def preflight(*, as_json: bool) -> int:
    """Every check before a run, the canary too, and the verdict."""
    settings = prepare(dagster=True, report=terminal.note).settings
    from ingestion_pipeline.orchestration.in_process import run_preflight

    with terminal.RunListener(as_json=as_json) as listener:
        verdicts = run_preflight(settings, listener)
    go = not any(verdict.blocking for verdict in verdicts)
    code = ExitCode.OK if go else ExitCode.PREFLIGHT
    if as_json:
        terminal.print_json({"go": go, "verdicts": [verdict.as_dict() for verdict in verdicts]})
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
    from ingestion_pipeline.orchestration.in_process import run_verify

    with terminal.RunListener(as_json=as_json) as listener:
        results = run_verify(settings, listener)
    good = not any(result.status == "fail" for result in results)
    code = ExitCode.OK if good else ExitCode.VERIFICATION
    if as_json:
        terminal.print_json(
            {"good": good, "checks": [terminal.check_as_dict(result) for result in results]}
        )
        return code
    terminal.say()
    if good:
        terminal.next_step('`ingest search "..."` searches it.')
    else:
        terminal.next_step("`ingest status` says what is left to do; `ingest` does it.")
    return code
