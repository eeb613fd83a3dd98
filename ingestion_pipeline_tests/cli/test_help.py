"""What the command line says of itself, and how fast."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ingestion_pipeline_tests.cli.conftest import PROGRAM, Ingest

COMMANDS = (
    *("preflight", "status", "verify", "failures", "retry", "search"),
    *("load", "models", "env", "up", "down", "demo"),
)
HEAVY = (
    *("dagster", "torch", "transformers", "sentence_transformers", "pandas", "pyarrow", "numpy"),
    *("psycopg", "sqlalchemy", "rich", "pydantic"),
)


def test_help_names_every_command_and_says_how_to_begin(ingest: Ingest) -> None:
    answer = ingest("--help")
    assert answer.code == 0
    for command in COMMANDS:
        assert f"\n  {command}" in answer.out
    assert "ingest --limit 5" in answer.out
    assert "DATABASE_URL" in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(ingest: Ingest, command: str) -> None:
    answer = ingest(command, "--help")
    assert answer.code == 0
    assert f"Usage: ingest {command}" in answer.out
    assert "--settings" in answer.out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from ingestion_pipeline.cli import app; app.run(['--help']);"
        f"print('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_help_answers_well_under_a_second() -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([PROGRAM, "--help"], capture_output=True, timeout=60, check=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.8, seconds


def test_an_option_before_the_command_that_it_belongs_to_is_refused(ingest: Ingest) -> None:
    for option in (["--json"], ["--limit", "5"]):
        answer = ingest(*option, "status")
        assert answer.code == 2
        assert f"{option[0]} goes after status" in answer.err


def test_an_unknown_command_is_a_usage_error(ingest: Ingest) -> None:
    answer = ingest("embiggen")
    assert answer.code == 2
    assert "embiggen" in answer.err
    assert "→ ingest --help" in answer.err
