"""What people see: lines, aligned columns, marks, a progress bar; and the one JSON document.

Results go to stdout, progress to stderr, so that a redirected result is only the result. Where
stderr is no terminal, the bar becomes a line every few seconds. Nothing is decided here. Rich is
imported when something is drawn.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from ingestion_pipeline.progress import Progress
    from ingestion_pipeline.verdict import Verdict
    from ingestion_pipeline.verification.checks import CheckResult

SECONDS_BETWEEN_LINES = 5.0

_MARKS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "unknown": ("?", "yellow"),
    "fail": ("✗", "red"),
}


@cache
def console(*, stderr: bool = False) -> Console:
    """Rich's console, plain: a name may hold brackets, and a path is not to be wrapped."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str = "", *, style: str | None = None, stderr: bool = False) -> None:
    """A line; as it is, whatever it holds."""
    console(stderr=stderr).print(text, style=style)


def note(text: str) -> None:
    """Something that takes a moment, on stderr."""
    say(f"  {text}", style="dim", stderr=True)


def next_step(text: str) -> None:
    """What to do next."""
    say(f"→ {text}")


def program() -> str:
    """How this program is called from where the user stands: `ingest`, or with its folder."""
    called = Path(sys.argv[0])
    on_path = shutil.which(called.name)
    if on_path and Path(on_path).resolve() == called.resolve():
        return called.name
    return os.path.relpath(called)


def clear() -> None:
    """An empty screen where there is one, else a blank line."""
    if console().is_terminal:
        console().clear()
    else:
        say()


def print_json(document: object) -> None:
    """The command's result as one JSON document on stdout."""
    # Not through Rich, which would colour it.
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def counted(number: int, noun: str) -> str:
    """`1 product`, `2,766 products`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def columns(rows: Iterable[Sequence[object]], *, right: Collection[int] = ()) -> list[str]:
    """Rows as lines of aligned columns, two spaces apart; those in `right` are flush right."""
    from rich.cells import cell_len

    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]

    def padded(position: int, cell: str) -> str:
        space = " " * (widths[position] - cell_len(cell))
        return space + cell if position in right else cell + space

    return ["  ".join(padded(i, cell) for i, cell in enumerate(row)).rstrip() for row in cells]


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[int] = ()
) -> None:
    """Aligned columns under a dim header, indented."""
    head, *lines = columns([header, *rows], right=right)
    say(f"  {head}", style="dim")
    for line in lines:
        say(f"  {line}")


def judged(status: str, name: str, text: str, *, stderr: bool = False) -> None:
    """A line with a mark for pass, warn, unknown or fail; further lines of `text` are indented."""
    from rich.text import Text

    mark, style = _MARKS[status]
    first, *others = text.splitlines() or [""]
    line = Text.assemble((mark, style), f" {name:<28} ", first)
    console(stderr=stderr).print(line)
    for other in others:
        for part in _wrapped(other, console(stderr=stderr), indent=4):
            say(part, stderr=stderr)


def _wrapped(text: str, to: Console, *, indent: int) -> list[str]:
    """Indented lines, broken where a terminal would break them; elsewhere one line is one line."""
    space = " " * indent
    if not to.is_terminal:
        return [space + text]
    return textwrap.wrap(text, to.width, initial_indent=space, subsequent_indent=space) or [""]


class RunListener:
    """Tells how a run goes while it runs; to be used as a context manager.

    With `as_json`, stdout is left to the document and all lines go to stderr.
    """

    def __init__(
        self, *, as_json: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.verdicts: list[Verdict] = []
        self._stderr = as_json
        self._clock = clock
        self._bar: Bar | None = None
        self._latest: Progress | None = None
        self._said_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_bar()

    def stage(self, name: str) -> None:
        """A part of the run begins."""
        self._end_bar()
        say(stderr=self._stderr)
        say(name.capitalize(), style="bold", stderr=self._stderr)

    def line(self, text: str) -> None:
        """Something worth knowing."""
        self._end_bar()
        say(f"  {text}", style="dim", stderr=self._stderr)

    def verdict(self, verdict: Verdict) -> None:
        """A preflight check has come to its verdict: what was seen, and every reason."""
        self._end_bar()
        self.verdicts.append(verdict)
        lines = [verdict.summary, *verdict.details]
        for reason in verdict.reasons:
            lines += [reason.message, *([f"→ {reason.remedy}"] if reason.remedy else [])]
        judged(verdict.status, verdict.check, "\n".join(lines), stderr=self._stderr)

    def check(self, result: CheckResult) -> None:
        """A check of the result: what it found, and a sample of the products it is about."""
        self._end_bar()
        lines = [result.summary, *result.sample]
        if result.sample and result.count > len(result.sample):
            lines.append(f"and {result.count - len(result.sample):,} more")
        judged(result.status, result.name, "\n".join(lines), stderr=self._stderr)

    def progress(self, progress: Progress) -> None:
        """How far it has come."""
        self._latest = progress
        stderr = console(stderr=True)
        if stderr.is_terminal and not stderr.is_dumb_terminal:
            self._draw(progress)
        elif self._said_at is None or self._clock() - self._said_at >= SECONDS_BETWEEN_LINES:
            self._said_at = self._clock()
            say(f"  {progress}", stderr=True)
            self._latest = None

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                SpinnerColumn(style="cyan"),
                BarColumn(bar_width=30, complete_style="cyan", finished_style="cyan"),
                TextColumn("{task.fields[said]}", markup=False),
                console=console(stderr=True),
                transient=True,
            )
            self._bar.add_task("", total=1.0, said="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=progress.share, said=str(progress))

    def _end_bar(self) -> None:
        """Take the bar away and leave its last word as a line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._latest is not None:
            say(f"  {self._latest}", stderr=True)
        self._latest = self._said_at = None
