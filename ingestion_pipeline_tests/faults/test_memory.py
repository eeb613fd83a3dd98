"""Processes that really run out of memory: in the model, and beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline_tests.faults import tight_memory
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault
from ingestion_pipeline_tests.shops import DIMENSIONS, Product, create_products

REPOSITORY = Path(__file__).parents[2]
WORDS = 200
"""In each text, which is then cut nowhere; sixteen of them at once want 100 MB."""

PRODUCTS = 24
TOKENS_PER_BATCH = 16_000
"""Enough for all texts of one aspect at once."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a shop with small vectors, for this process and for others."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("INGESTION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INGESTION_SETTINGS", str(tmp_path / "ingestion.toml"))
    return _written(products_per_page=250)


@pytest.mark.fault("memory for a small batch only (real model, RLIMIT_AS)")
def test_a_model_without_memory_for_a_batch_is_asked_in_smaller_ones(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    words = "soft " * WORDS
    with connect(_url(settings)) as connection:
        create_products(
            connection,
            [Product(id_, f"Thing {id_}", words, words, words) for id_ in range(1, PRODUCTS + 1)],
        )
    monkeypatch.setenv(tight_memory.NOTES, str(tmp_path / "notes.json"))
    began = time.monotonic()
    done = _run("model", 80)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - began

    notes = json.loads((tmp_path / "notes.json").read_text(encoding="utf-8"))
    assert notes["largest"] < PRODUCTS
    told = re.findall(r"at most ([0-9,]+) tokens a batch", " ".join(notes["said"]))
    assert told, "whoever watches hears what is left of it"
    assert 0 < int(told[-1].replace(",", "")) <= TOKENS_PER_BATCH // 2
    with open_shop(settings) as shop:
        fault.recovered(audit(shop, notes["answered"]), seconds=seconds)


@pytest.mark.fault("no memory for a page of texts of 1 MB each (RLIMIT_AS)")
@pytest.mark.usefixtures("dagster_home")
def test_a_page_that_does_not_fit_ends_the_command_in_a_sentence_and_smaller_pages_finish_it(
    settings: Settings, fault: Fault
) -> None:
    with connect(_url(settings)) as connection:
        create_products(connection, [])
        connection.execute(
            "INSERT INTO products SELECT id, 'Thing ' || id, text || 'a', text || 'b', text || 'c' "
            "FROM generate_series(1, 14) AS id, "
            # The canary's five fit.
            "repeat('x', CASE WHEN id > 5 THEN 1000000 ELSE 1 END) AS text"
        )
    done = _run("command", 60)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert "no memory" in done.stderr
    assert "work.products_per_page" in done.stderr
    settings = _written(products_per_page=1)
    began = time.monotonic()
    done = _run("command", 60)
    assert done.returncode == 0, done.stderr + done.stdout
    seconds = time.monotonic() - began

    with open_shop(settings) as shop:
        fault.recovered(audit(shop), seconds=seconds)


def _run(what: str, megabytes: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", tight_memory.__name__, what, str(megabytes)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def _written(*, products_per_page: int) -> Settings:
    """The settings file that the environment names, as it is then read."""
    aspects = "".join(
        f'[aspects.{aspect}]\nmodel = "known"\ndimensions = {DIMENSIONS[aspect]}\n'
        "max_tokens = 256\n"
        for aspect in Aspect
    )
    work = f"[work]\nproducts_per_page = {products_per_page}\ntokens_per_batch = {TOKENS_PER_BATCH}"
    Path(os.environ["INGESTION_SETTINGS"]).write_text(f"{work}\n{aspects}", encoding="utf-8")
    return load_settings()


def _url(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()
