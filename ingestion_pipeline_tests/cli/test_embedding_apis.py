"""Embedding by an API as a user meets it: two lines, a key, a dry run, a budget, a search.

The API is the tests' own server over loopback; only its address stands in the settings beside the
two lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestion_pipeline_tests.cli.conftest import Ingest, execute
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.running import ServerInThread, running
from ingestion_pipeline_tests.embedding_server.vectors import vector_of

KEY = "sk-canary-0123456789"
DISTINCT_TEXTS = 11 + 10 + 11  # one product repeats another's texts, one has no usage

TWO_LINES = '[embedding]\nprovider = "openai"\n'


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerInThread]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running(Behaviour(key=KEY)) as running_server:
        yield running_server


@pytest.fixture
def settings(environment: Path, api: ServerInThread) -> Path:
    """OpenAI in two lines, and two more for where it is in this test."""
    file = environment / "ingestion.toml"
    file.write_text(f'{TWO_LINES}service = "openai"\nbase_url = "{api.base_url}"\n')
    return file


@pytest.fixture
def loaded(ingest: Ingest, shop_url: str, catalogue: Path, settings: Path) -> str:  # noqa: ARG001
    assert ingest("load", catalogue).code == 0
    return shop_url


def test_a_dry_run_shows_texts_batches_tokens_and_cost_and_sends_nothing(
    ingest: Ingest, loaded: str, api: ServerInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")

    planned = ingest("--dry-run", "--json")

    assert planned.code == 0, planned.err
    texts = planned.document["texts"]
    assert len(texts) == len({(it["fingerprint"], it["text"]) for it in texts}) == DISTINCT_TEXTS
    assert texts[0]["text"].startswith("A coat")
    assert [(it["texts"], it["batches"]) for it in planned.document["models"]] == [(21, 1), (11, 1)]
    for model in planned.document["models"]:
        assert model["tokens"] == sum(
            it["tokens"] for it in texts if it["fingerprint"] == model["fingerprint"]
        )
        assert float(model["dollars"]) == pytest.approx(model["tokens"] * 0.02 / 1e6)
    shown = ingest("--dry-run", "--limit", "1").out
    assert "A coat. This coat was made to last" in shown
    assert "Nothing was sent" in shown
    assert api.counters.requests == 0
    assert execute(loaded, "SELECT count(*) FROM ingestion.spend") == [(0,)]


@pytest.mark.usefixtures("dagster")
def test_two_lines_and_a_key_embed_a_catalogue_and_every_token_is_on_record(
    ingest: Ingest, loaded: str, api: ServerInThread
) -> None:
    go = ingest("preflight", "--json")
    assert go.code == 0, go.out
    done = ingest("--json")
    assert done.code == 0, done.out + done.err

    counters = api.settle(10)
    spent = "SELECT sum(requests), sum(tokens), sum(texts) FROM ingestion.spend"
    # Each of the two commands asked one text of each model first.
    assert execute(loaded, spent) == [(counters.requests, counters.tokens_billed, DISTINCT_TEXTS)]
    assert max(counters.texts.values()) <= 4, "but for the probes, a text goes there once"
    assert float(done.document["report"]["cost"]) > 0
    rows = execute(
        loaded,
        "SELECT name, description, description_embedding::text FROM products JOIN "
        'product_embeddings_v2 ON id = "productId" ORDER BY id LIMIT 3',
    )
    for name, description, embedding in rows:
        right = vector_of(f"{name}. {description}", 768)
        numbers = [float(number) for number in embedding.strip("[]").split(",")]
        assert right @ numbers == pytest.approx(1, abs=1e-5)

    found = ingest("search", "A coat", "--json")
    assert found.code == 0, found.err
    assert len(found.document["hits"]) == 5

    status = ingest("status").out
    assert "Spent     $0.0000" in status
    again = ingest("--json").document
    assert again["nothing_to_do"] is True
    assert api.settle(10).requests <= counters.requests + 2 + 2  # a search, and two probes


@pytest.mark.usefixtures("dagster")
def test_a_budget_stops_the_run_before_it_is_exceeded_and_raised_the_same_command_finishes(
    ingest: Ingest, loaded: str, api: ServerInThread, settings: Path
) -> None:
    sizes = [it["tokens"] for it in ingest("--dry-run", "--json").document["texts"]]
    whole, request = sum(sizes), 2 * max(sizes)
    few = "texts_per_request = 2\n"
    settings.write_text(f"{settings.read_text()}{few}[budget]\ntokens = {whole // 2}\n")

    stopped = ingest("--json")

    assert stopped.code in (4, 7), stopped.out
    assert "budget.tokens" in stopped.out
    [(tokens,)] = execute(loaded, "SELECT sum(tokens) FROM ingestion.spend")
    assert 0 < tokens <= whole // 2 + api.counters.most_in_flight * request
    assert tokens == api.settle(10).tokens_billed
    assert execute(loaded, "SELECT count(*) FROM ingestion.failed_products") == [(0,)]

    settings.write_text(settings.read_text().replace(f"tokens = {whole // 2}", "dollars = 1"))
    assert ingest("--json").code == 0
    assert execute(loaded, "SELECT count(*) FROM product_embeddings_v2") == [(12,)]
    paid = api.settle(10).texts_billed
    assert paid <= DISTINCT_TEXTS + 4, "nothing but the probes is paid twice"


@pytest.mark.usefixtures("dagster")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.UNAUTHORIZED, "the key is wrong or missing"),
        (Fault.UNKNOWN_MODEL, "there is no model text-embedding-3-small"),
        (Fault.INSUFFICIENT_QUOTA, "no quota is left on this account"),
    ],
)
def test_a_service_that_refuses_is_a_no_go_before_anything_is_embedded(
    ingest: Ingest, loaded: str, api: ServerInThread, fault: Fault, said: str
) -> None:
    api.behave(fault=fault, fault_probability=1.0)

    refused = ingest("--json")

    assert refused.code == 4
    assert said in refused.out
    assert KEY not in refused.out + refused.err
    assert api.counters.requests == 2
    assert execute(loaded, "SELECT count(*) FROM product_embeddings_v2") == [(0,)]


def test_without_its_key_the_variable_is_named(
    ingest: Ingest, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded
    monkeypatch.delenv("OPENAI_API_KEY")
    shown = ingest("models")
    assert shown.code == 7
    assert "OPENAI_API_KEY is not set" in shown.out
