"""The sample shop: large and varied enough to show the pipeline, and the same on every call."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import pytest

from ingestion_pipeline.sample_catalogue.shop import DELETED_IDS, SampleProduct, sample_products


@pytest.fixture(scope="module")
def products() -> list[SampleProduct]:
    return sample_products()


def _texts(product: SampleProduct) -> list[str]:
    texts = (product.description, product.usage, product.features)
    return [text for text in texts if text is not None]


def test_the_shop_has_hundreds_of_products_over_several_categories(
    products: list[SampleProduct],
) -> None:
    assert len(products) >= 300
    sizes = Counter(product.category for product in products)
    assert len(sizes) >= 7
    assert min(sizes.values()) >= 20


def test_ids_start_at_1001_ascend_and_skip_the_deleted_products(
    products: list[SampleProduct],
) -> None:
    ids = [product.id for product in products]
    assert ids[0] == 1001
    assert all(before < after for before, after in pairwise(ids))
    assert set(range(ids[0], ids[-1] + 1)) - set(ids) == DELETED_IDS


def test_two_calls_give_equal_products() -> None:
    assert sample_products() == sample_products()


def test_more_than_a_hundred_different_products_were_written(
    products: list[SampleProduct],
) -> None:
    assert len({product.name for product in products}) >= 120
    descriptions = {product.name: product.description for product in products}
    assert len(set(descriptions.values())) == len(descriptions)


def test_variants_share_every_text_and_differ_in_variant_and_sku(
    products: list[SampleProduct],
) -> None:
    by_name: dict[str, list[SampleProduct]] = {}
    for product in products:
        by_name.setdefault(product.name, []).append(product)
    families = [family for family in by_name.values() if len(family) > 1]
    assert len(families) >= 50
    for family in families:
        texts = {(p.category, p.description, p.usage, p.features) for p in family}
        assert len(texts) == 1, family[0].name
        assert None not in {p.variant for p in family}, family[0].name
        assert len({p.variant for p in family}) == len(family), family[0].name
    assert any(len({p.price for p in family}) > 1 for family in families)
    assert len({product.sku for product in products}) == len(products)


def test_some_products_lack_usage_and_two_of_them_features_too(
    products: list[SampleProduct],
) -> None:
    without_usage = [product for product in products if product.usage is None]
    assert 6 <= len(without_usage) <= 10
    without_features = [product for product in products if product.features is None]
    assert len(without_features) == 2
    assert all(product.usage is None for product in without_features)


def test_every_product_has_a_name_a_description_and_a_price_in_cents(
    products: list[SampleProduct],
) -> None:
    for product in products:
        assert product.name.strip(), product.id
        assert product.description, product.id
        assert product.price > 0, product.id
        assert product.price == product.price.quantize(Decimal("0.01")), product.id
        assert product.price.as_tuple().exponent == -2, product.id


def test_texts_are_tidy_and_no_longer_than_a_shops_own(products: list[SampleProduct]) -> None:
    for product in products:
        for text in _texts(product):
            assert text == " ".join(text.split()), product.name
            assert 40 <= len(text) <= 1500, product.name


@pytest.mark.parametrize(
    "kept",
    [r"&amp;", r"<b>.+</b>", r"<br>", "Käsespätzle", "Crème", "\N{CLOUD WITH RAIN}", "\u2019"],
)
def test_the_shop_holds_what_real_shops_texts_hold(
    products: list[SampleProduct], kept: str
) -> None:
    assert any(re.search(kept, f"{product.name} {product.description}") for product in products)


def test_a_search_for_a_warm_coat_for_rain_has_something_to_find(
    products: list[SampleProduct],
) -> None:
    found = {
        product.name
        for product in products
        if "coat" in f"{product.name} {product.description}".lower()
        and re.search(r"\b(rain|wet|sleet)", product.description or "")
        and re.search(r"\b(cold|warm|warmest)\b", product.description or "")
    }
    assert len(found) >= 2


def test_reading_the_shop_in_a_fresh_interpreter_loads_nothing_heavy() -> None:
    script = (
        "import sys; from ingestion_pipeline.sample_catalogue.shop import sample_products;"
        "sample_products(); print(sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "ingestion_pipeline" in answer.stdout
    for heavy in ("torch", "numpy", "pandas", "dagster", "psycopg", "sentence_transformers"):
        assert f"'{heavy}'" not in answer.stdout
