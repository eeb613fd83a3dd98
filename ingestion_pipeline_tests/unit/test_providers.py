"""The table of known embedding APIs."""

from __future__ import annotations

import pytest

from ingestion_pipeline.endpoints import parsed
from ingestion_pipeline.providers import GEMINI, OLLAMA, OPENAI, PROVIDERS, provider_at


def test_every_provider_of_the_issue_has_a_row_under_its_name() -> None:
    assert set(PROVIDERS) == {
        "openai", "gemini", "text-embeddings-inference", "vllm", "ollama", "other",
    }  # fmt: skip
    assert all(row.name == name for name, row in PROVIDERS.items())


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://API.OpenAI.com./v1/", "openai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "gemini"),
        ("https://api.openai.com.example.org/v1", "other"),
        ("https://evil-api.openai.com.example.org/v1", "other"),
        ("http://localhost:11434/v1", "other"),
        ("http://127.0.0.1:8080", "other"),
    ],
)
def test_a_provider_is_known_by_its_host_and_by_no_other(base_url: str, name: str) -> None:
    assert provider_at(parsed(base_url).host).name == name


@pytest.mark.parametrize("row", [row for row in PROVIDERS.values() if row.base_url])
def test_a_default_address_is_in_its_one_spelling(row: object) -> None:
    base_url = getattr(row, "base_url", "")
    assert parsed(base_url).base_url == base_url


def test_hosted_providers_are_found_at_their_own_address() -> None:
    for row in (OPENAI, GEMINI):
        assert row.base_url
        assert provider_at(parsed(row.base_url).host) is row


def test_only_hosted_providers_need_a_key_and_have_one_of_their_own() -> None:
    needing = {row.name: row.key_variable for row in PROVIDERS.values() if row.needs_key}
    assert needing == {"openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
    others = {row.key_variable for row in PROVIDERS.values() if not row.needs_key}
    assert others == {"EMBEDDING_API_KEY"}


def test_a_stranger_gets_no_larger_requests_than_any_known_provider_takes() -> None:
    other = PROVIDERS["other"].limits
    assert other.texts_per_request == min(
        row.limits.texts_per_request for row in PROVIDERS.values()
    )
    known = [row.limits.bytes_per_request for row in PROVIDERS.values()]
    assert other.bytes_per_request == min(size for size in known if size is not None)


def test_dimensions_are_sent_only_to_models_that_are_known_to_take_them() -> None:
    assert OPENAI.sends_dimensions_for("text-embedding-3-small")
    assert not OPENAI.sends_dimensions_for("text-embedding-ada-002")
    assert GEMINI.sends_dimensions_for("gemini-embedding-001")
    assert not OLLAMA.sends_dimensions_for("all-minilm")


def test_base64_is_asked_for_only_where_it_is_known_to_be_understood() -> None:
    taking = {row.name for row in PROVIDERS.values() if row.takes_base64}
    assert taking == {"openai", "text-embeddings-inference", "vllm"}
