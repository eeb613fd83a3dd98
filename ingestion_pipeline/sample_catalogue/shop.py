"""The sample shop's products: the written texts of `products.jsonl`, one product a variant.

As in a real shop, the variants of a product share its texts and differ in SKU and often in price;
some products lack a usage text, two lack features as well; deleted products left gaps in the ids.
Nothing here is random or asks the clock: every call gives the same products. Tables, SQL and
embeddings do not belong here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from itertools import count
from typing import NotRequired, TypedDict, cast

FIRST_ID = 1001

# Single products withdrawn, and two whole ranges of goods: the gaps that a real table of ids has.
DELETED_IDS = frozenset(
    {1009, 1023, 1024, 1057, *range(1102, 1109), 1140, 1188, 1231, 1232, 1277, *range(1310, 1316)}
)


@dataclass(frozen=True)
class SampleProduct:
    """One row of the sample shop's `products` table.

    `variant` is None where a product comes in one version only. `price` has two decimal places
    and no currency. A text that the shop never wrote is None, never an empty string.
    """

    id: int
    sku: str
    name: str
    variant: str | None
    category: str
    description: str | None
    usage: str | None
    features: str | None
    price: Decimal


class _Variant(TypedDict):
    variant: str | None
    price_difference: NotRequired[str]


class _WrittenProduct(TypedDict):
    """A line of `products.jsonl`; no variants means that there is one version, without a name."""

    name: str
    category: str
    description: str | None
    usage: str | None
    features: str | None
    price: str
    variants: list[_Variant]


_ONLY_VERSION: _Variant = {"variant": None}


def sample_products() -> list[SampleProduct]:
    """Return every product of the sample shop, ids ascending from 1001 with gaps."""
    ids = (product_id for product_id in count(FIRST_ID) if product_id not in DELETED_IDS)
    return [
        SampleProduct(
            id=next(ids),
            sku=f"{number:04d}-{version:02d}",
            name=written["name"],
            variant=variant["variant"],
            category=written["category"],
            description=written["description"],
            usage=written["usage"],
            features=written["features"],
            price=Decimal(written["price"]) + Decimal(variant.get("price_difference", "0.00")),
        )
        for number, written in enumerate(_written_products(), start=1)
        for version, variant in enumerate(written["variants"] or [_ONLY_VERSION], start=1)
    ]


def _written_products() -> Iterator[_WrittenProduct]:
    source = files("ingestion_pipeline.sample_catalogue").joinpath("products.jsonl")
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            yield cast("_WrittenProduct", json.loads(line))
