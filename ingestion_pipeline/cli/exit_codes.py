"""What the shell is told: one exit code for each kind of outcome."""

from __future__ import annotations

from enum import IntEnum

from ingestion_pipeline.errors import (
    DatabaseRightsError,
    DatabaseUnavailableError,
    IngestionError,
    InputError,
    InterruptedRunError,
    LeaseLostError,
    MappingError,
    OutageError,
    PermanentTextError,
    PreflightError,
    RangeFailedError,
    SettingsError,
    TerminatedRunError,
    TransientError,
)


class ExitCode(IntEnum):
    """Exit codes of `ingest`; they are part of its interface and listed in the documentation."""

    OK = 0
    UNEXPECTED = 1
    WRONG_INPUT = 2  # a setting, an option, the mapping or a file; also Typer's for a wrong option
    DATABASE = 3
    PREFLIGHT = 4
    VERIFICATION = 5
    INCOMPLETE = 6  # finished, but some products or ranges failed
    OUTAGE = 7
    INTERRUPTED = 130  # as the shell gives for Ctrl-C
    TERMINATED = 143  # as it gives for SIGTERM; a closed terminal, too


# The first class that fits, so a subclass stands before its base.
_CODES: tuple[tuple[type[IngestionError], ExitCode], ...] = (
    (SettingsError, ExitCode.WRONG_INPUT),
    (MappingError, ExitCode.WRONG_INPUT),
    (InputError, ExitCode.WRONG_INPUT),
    (PermanentTextError, ExitCode.WRONG_INPUT),
    (DatabaseUnavailableError, ExitCode.DATABASE),
    (DatabaseRightsError, ExitCode.DATABASE),
    (PreflightError, ExitCode.PREFLIGHT),
    (RangeFailedError, ExitCode.INCOMPLETE),
    (LeaseLostError, ExitCode.INCOMPLETE),
    (TerminatedRunError, ExitCode.TERMINATED),
    (InterruptedRunError, ExitCode.INTERRUPTED),
    (OutageError, ExitCode.OUTAGE),
    (TransientError, ExitCode.OUTAGE),
)


def exit_code(error: IngestionError) -> ExitCode:
    """The exit code that says which kind of thing went wrong."""
    fitting = (code for kind, code in _CODES if isinstance(error, kind))
    return next(fitting, ExitCode.UNEXPECTED)
