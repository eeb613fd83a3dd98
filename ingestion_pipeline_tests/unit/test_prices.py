"""What a model costs, and who says so."""

from __future__ import annotations

import socket
from decimal import Decimal
from importlib.metadata import version

import pytest

from ingestion_pipeline.prices import Price, price_of
from ingestion_pipeline.providers import GEMINI, OPENAI, PROVIDERS

OPENAI_URL = "https://api.openai.com/v1"
LISTED = f"genai-prices {version('genai-prices')}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a price was looked up on the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("model", "dollars"),
    [("text-embedding-3-small", "0.02"), ("text-embedding-3-large", "0.13")],
)
def test_a_hosted_model_has_the_price_of_the_installed_list(model: str, dollars: str) -> None:
    price = price_of(model, provider=OPENAI.price_provider, base_url=OPENAI_URL, override=None)
    assert price == Price(Decimal(dollars), LISTED)


def test_a_service_without_a_row_of_its_own_is_found_by_its_address() -> None:
    price = price_of(
        "mistral-embed", provider=None, base_url="https://api.mistral.ai/v1", override=None
    )
    assert price.version == LISTED
    assert price.per_million_tokens


def test_a_model_that_the_list_lacks_has_no_price_rather_than_a_similar_ones() -> None:
    price = price_of(
        "text-embedding-3-largest", provider="openai", base_url=OPENAI_URL, override=None
    )
    assert price == Price(None, LISTED)
    assert price.of(1_000) is None


@pytest.mark.parametrize("base_url", ["http://localhost:11434/v1", "https://gpu.example.org/v1"])
def test_a_server_of_ones_own_has_no_price_even_for_a_model_that_others_sell(base_url: str) -> None:
    price = price_of("text-embedding-3-small", provider=None, base_url=base_url, override=None)
    assert price == Price(None, "local")


def test_a_price_in_the_settings_wins_over_the_list() -> None:
    price = price_of(
        "text-embedding-3-small", provider="openai", base_url=OPENAI_URL, override=Decimal("0.005")
    )
    assert price == Price(Decimal("0.005"), "settings")


def test_a_price_of_nothing_in_the_settings_is_a_price() -> None:
    price = price_of("bge-m3", provider=None, base_url="http://10.0.0.5", override=Decimal(0))
    assert price.of(1_000_000) == 0


def test_an_amount_is_exact_to_the_token() -> None:
    price = Price(Decimal("0.02"), "settings")
    assert price.of(0) == 0
    assert price.of(1) == Decimal("0.00000002")
    assert price.of(123_456_789) == Decimal("2.46913578")


def test_every_price_list_named_in_the_table_of_providers_exists() -> None:
    import genai_prices.data

    listed = {provider.id for provider in genai_prices.data.providers}
    named = {row.price_provider for row in PROVIDERS.values() if row.price_provider}
    assert named == {OPENAI.price_provider, GEMINI.price_provider}
    assert named <= listed
