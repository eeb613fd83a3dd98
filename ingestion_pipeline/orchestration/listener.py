"""Who hears of a run while it goes on, and what is remembered of it.

The terminal listens to the runs that it starts; a run that Dagster starts has nobody but its log.
What is said belongs here, how it is shown does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from ingestion_pipeline.progress import Progress
from ingestion_pipeline.report import Report
from ingestion_pipeline.verdict import Verdict
from ingestion_pipeline.verification.checks import CheckResult


class Listener(Protocol):
    """Told what happens, in the order in which it happens."""

    def stage(self, name: str) -> None:
        """A stage begins: `preflight`, `embedding`, `finishing`."""
        ...

    def line(self, text: str) -> None:
        """Something worth a line."""
        ...

    def progress(self, progress: Progress) -> None:
        """How far the embedding has come, after every commit."""
        ...

    def verdict(self, verdict: Verdict) -> None:
        """A preflight check has come to its verdict."""
        ...

    def check(self, result: CheckResult) -> None:
        """A post-ingestion check has its result."""
        ...


class Nobody:
    """Listens to nothing."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def line(self, text: str) -> None:
        """Ignore it."""

    def progress(self, progress: Progress) -> None:
        """Ignore it."""

    def verdict(self, verdict: Verdict) -> None:
        """Ignore it."""

    def check(self, result: CheckResult) -> None:
        """Ignore it."""


@dataclass
class Recorder:
    """Passes on what assets say, and keeps what an outcome is made of.

    Several runs in a row are shown as one piece of work: `expect` tells how much there is in all,
    `run_over` that what comes next adds to what has been.
    """

    listener: Listener = field(default_factory=Nobody)
    verdicts: list[Verdict] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    last_report: Report | None = None
    _total: int | None = None
    _before: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0.0))
    _now: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0.0))

    def expect(self, products: int) -> None:
        """So many products are to be done by all the runs that follow."""
        self._total = products

    def run_over(self) -> None:
        """The run at hand is over."""
        self._before = self._now

    def line(self, text: str) -> None:
        """Something worth a line."""
        self.listener.line(text)

    def progress(self, progress: Progress) -> None:
        """How far the run at hand has come."""
        before = self._before
        self._now = replace(
            progress,
            done=before.done + progress.done,
            total=progress.total if self._total is None else self._total,
            failed=before.failed + progress.failed,
            seconds=before.seconds + progress.seconds,
            embedded=before.embedded + progress.embedded,
            reused=before.reused + progress.reused,
        )
        self.listener.progress(self._now)

    def verdict(self, verdict: Verdict) -> None:
        """A preflight check has come to its verdict."""
        self.verdicts.append(verdict)
        self.listener.verdict(verdict)

    def check(self, result: CheckResult) -> None:
        """A post-ingestion check has its result."""
        self.checks.append(result)
        self.listener.check(result)

    def report(self, report: Report) -> None:
        """The report is written."""
        self.last_report = report
