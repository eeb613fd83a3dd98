"""What is drawn, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.terminal import RunListener
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.verdict import Reason, Verdict
from ingestion_pipeline.verification.checks import CheckResult


def _at(done: int) -> Progress:
    return Progress(done, 100, 0, 2.0 * done)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of eighty columns is sent."""
    sent = io.StringIO()
    drawn = Console(
        file=sent, force_terminal=True, width=80, highlight=False, markup=False, soft_wrap=True
    )
    monkeypatch.setattr(terminal, "console", lambda **_: drawn)
    return sent


def test_without_a_terminal_progress_is_a_line_every_few_seconds_and_the_last_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    with RunListener(clock=lambda: now) as listener:
        listener.stage("embedding")
        for done in range(1, 13):
            listener.progress(_at(done))
            now += 1.0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in err.splitlines()] == ["1/100", "6/100", "11/100", "12/100"]
    assert out.split() == ["Embedding"]


def test_on_a_terminal_progress_is_a_bar_that_leaves_its_last_word(screen: io.StringIO) -> None:
    with RunListener() as listener:
        listener.progress(_at(40))
        listener.progress(_at(100))
        listener.line("done [bold]so far[/bold]")
    sent = screen.getvalue()
    assert "━" in sent
    assert f"  {_at(100)}\n" in sent
    assert "done [bold]so far[/bold]" in sent


def test_with_json_nothing_but_the_document_goes_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = Reason("disk_space", "error", "No space is left.", "Free 2 GB.")
    with RunListener(as_json=True) as listener:
        listener.stage("preflight")
        listener.verdict(Verdict("disk_space", (reason,), summary="none free"))
        listener.line("a line")
        listener.progress(_at(1))
        listener.check(CheckResult("dimensions", "pass", "all right"))
    terminal.print_json({"done": True})
    out, err = capsys.readouterr()
    assert out == '{\n  "done": true\n}\n'
    for word in ("Preflight", "disk_space", "→ Free 2 GB.", "a line", "1/100", "dimensions"):
        assert word in err


def test_a_verdict_shows_what_was_seen_and_every_reason_with_what_to_do_about_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = (
        Reason("disk_space", "warning", "It is tight.", "Watch it."),
        Reason("disk_space", "unknown", "It is far away.", ""),
    )
    with RunListener() as listener:
        details = ("2 folders", "1 disk")
        listener.verdict(Verdict("disk_space", reasons, summary="looked at", details=details))
        assert [verdict.check for verdict in listener.verdicts] == ["disk_space"]
    assert capsys.readouterr().out.splitlines() == [
        "? disk_space                   looked at",
        "    2 folders",
        "    1 disk",
        "    It is tight.",
        "    → Watch it.",
        "    It is far away.",
    ]


def test_a_check_names_its_sample_and_counts_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with RunListener() as listener:
        listener.check(CheckResult("null_vectors", "fail", "12 are null", 12, ("1 (Coat)",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "✗ null_vectors                 12 are null",
        "    1 (Coat)",
        "    and 11 more",
    ]


def test_long_reasons_are_indented_where_a_terminal_would_break_them(screen: io.StringIO) -> None:
    terminal.judged("fail", "disk_space", "none\n" + "word " * 40)
    lines = screen.getvalue().splitlines()[1:]
    assert len(lines) > 2
    assert all(line.startswith("    word") and len(line) <= 80 for line in lines)


def test_columns_are_aligned_by_the_width_that_a_terminal_shows() -> None:
    lines = terminal.columns([("寿司", 1, "a"), ("rice", 10, "b")], right={1})
    assert lines == ["寿司   1  a", "rice  10  b"]


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 products"), (1, "1 product"), (2766, "2,766 products")]
)
def test_numbers_and_nouns_agree(number: int, said: str) -> None:
    assert terminal.counted(number, "product") == said
