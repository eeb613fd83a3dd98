"""What is lost, wrong or paid twice in a shop whose models are known.

The catalogue is asked for today's texts through the shop's own mapping, and every vector is
computed anew: the ledger, which a fault may have falsified, is never believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.queries import identifier
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.ranges import ProductId
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline_tests.shops import vector_of

TOLERANCE = 1e-6

Key = tuple[ProductId, Aspect]
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Audit:
    """What a shop came to.

    `lost` and `wrong` are aspects of products: without a vector that they should have, and with a
    vector that is not that of today's text. `orphans` are rows of v2 without a product.
    `paid_twice` are texts sent to a model beyond the first time each.
    """

    lost: int
    wrong: int
    orphans: int
    paid_twice: int


def audit(
    shop: Shop,
    sent: Mapping[str, Sequence[str]] | Sequence[str] = (),
    right: Callable[[str, int], Vector] = vector_of,
) -> Audit:
    """Look at every aspect of every product, and at what was `sent`: all texts by model.

    A plain sequence is what one model was sent. A blank text must have no vector; a failed product
    on record need not have one. `right` gives the vector of a text in so many dimensions.
    """
    ids = _product_ids(shop)
    texts = _texts(shop)
    vectors = _vectors(shop)
    failed = _failed(shop)
    lost = wrong = 0
    for key in ((product_id, aspect) for product_id in ids for aspect in Aspect):
        text, vector = cleaned(texts.get(key)), vectors.get(key)
        if vector is None:
            lost += bool(text) and key not in failed
        else:
            wanted = right(text, shop.settings.aspects[key[1]].dimensions)
            wrong += not text or not _is_same(vector, wanted)
    return Audit(
        lost=lost,
        wrong=wrong,
        orphans=len({product_id for product_id, _ in vectors} - ids),
        paid_twice=paid_twice(sent),
    )


def paid_twice(sent: Mapping[str, Sequence[str]] | Sequence[str]) -> int:
    """Texts sent to a model beyond the first time each."""
    by_model = sent.values() if isinstance(sent, Mapping) else [sent]
    return sum(Counter(texts).total() - len(set(texts)) for texts in by_model)


def _is_same(vector: Vector, right: Vector) -> bool:
    return vector.shape == right.shape and bool(np.allclose(vector, right, rtol=0, atol=TOLERANCE))


def _product_ids(shop: Shop) -> set[ProductId]:
    query = sql.SQL("SELECT id FROM {}").format(identifier(shop.queries.tables["products"]))
    return {id_ for (id_,) in shop.connection.execute(query).fetchall()}


def _texts(shop: Shop) -> dict[Key, str | None]:
    mapping = sql.SQL(shop.queries.product_texts())
    query = sql.SQL("SELECT product_id, aspect, text FROM ({}\n) AS mapped").format(mapping)
    rows = shop.connection.execute(query).fetchall()
    return {(product_id, Aspect(aspect)): text for product_id, aspect, text in rows}


def _vectors(shop: Shop) -> dict[Key, Vector | None]:
    """Every vector of v2, NULL ones too: an orphan without a vector is an orphan."""
    query = sql.SQL('SELECT "productId", {} FROM {}').format(
        sql.SQL(", ").join(sql.Identifier(aspect.column) for aspect in Aspect),
        identifier(shop.queries.tables["product_embeddings_v2"]),
    )
    return {
        (product_id, aspect): None if value is None else np.asarray(value.to_numpy(), np.float32)
        for product_id, *values in shop.connection.execute(query).fetchall()
        for aspect, value in zip(Aspect, values, strict=True)
    }


def _failed(shop: Shop) -> set[Key]:
    query = "SELECT product_id, aspect FROM ingestion.failed_products"
    return {(id_, Aspect(aspect)) for id_, aspect in shop.connection.execute(query).fetchall()}
