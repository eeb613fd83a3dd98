"""What a check before a run says: pass, warn, unknown or fail, with every reason and what to do.

The form of a verdict, for terminal, log and Dagster alike. What is judged, and how, is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Severity: TypeAlias = Literal["error", "warning", "unknown"]
Status: TypeAlias = Literal["pass", "warn", "unknown", "fail"]


@dataclass(frozen=True)
class Reason:
    """One thing that is wrong, could go wrong, or cannot be known, and what to do about it."""

    check: str
    severity: Severity
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """What one check says: every reason, and what a person wants to see either way.

    `summary` is a line, `details` are more of them, and `facts` are for machines.
    """

    check: str
    reasons: tuple[Reason, ...]
    facts: Mapping[str, JSON] = field(default_factory=dict)
    summary: str = ""
    details: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """The gravest of the reasons; `pass` only where there is none."""
        severities = {reason.severity for reason in self.reasons}
        if "error" in severities:
            return "fail"
        if "unknown" in severities:
            return "unknown"
        return "warn" if severities else "pass"

    @property
    def passed(self) -> bool:
        """Whether everything was looked at and nothing was found."""
        return self.status == "pass"

    @property
    def blocking(self) -> bool:
        """Whether a run must not begin."""
        return self.status == "fail"

    def lines(self) -> list[str]:
        """The verdict for people: first what was seen, then a line for each reason."""
        head = f"{self.check}: {self.status}"
        words = {"error": "✗", "warning": "!", "unknown": "?"}
        return [
            f"{head} · {self.summary}" if self.summary else head,
            *self.details,
            *(f"{words[reason.severity]} {reason}" for reason in self.reasons),
        ]

    def as_dict(self) -> dict[str, JSON]:
        """The verdict as JSON takes it."""
        return {
            "check": self.check,
            "status": self.status,
            "blocking": self.blocking,
            "summary": self.summary,
            "details": list(self.details),
            "reasons": [
                {"severity": reason.severity, "message": reason.message, "remedy": reason.remedy}
                for reason in self.reasons
            ],
            "facts": dict(self.facts),
        }


class Reasons:
    """Collects the reasons of one check."""

    def __init__(self, check: str) -> None:
        self.check = check
        self._reasons: list[Reason] = []

    def error(self, message: str, remedy: str) -> None:
        """Add a reason for which a run must not begin."""
        self._reasons.append(Reason(self.check, "error", message, remedy))

    def warning(self, message: str, remedy: str) -> None:
        """Add something to know before a run, which may begin."""
        self._reasons.append(Reason(self.check, "warning", message, remedy))

    def unknown(self, message: str, remedy: str) -> None:
        """Add something that could not be looked at, and so is never a pass."""
        self._reasons.append(Reason(self.check, "unknown", message, remedy))

    def verdict(
        self, facts: Mapping[str, JSON], summary: str = "", details: Sequence[str] = ()
    ) -> Verdict:
        """All of them, with what was seen."""
        return Verdict(self.check, tuple(self._reasons), facts, summary, tuple(details))


def failed_to_look(check: str, reason: str) -> Verdict:
    """The verdict of a check that could not gather its facts; it blocks, since nothing was seen."""
    return Verdict(
        check,
        (Reason(check, "error", f"This could not be looked at: {reason}", ""),),
        summary="not looked at",
    )
