"""Search products by the three vectors of a query.

Candidates come from each aspect's nearest neighbours, through the indexes; then every candidate is
scored exactly by all aspects that it has. A product without text for an aspect has no vector for
it, and is neither helped nor punished: its score is the mean over the others. Making the query's
vectors is the caller's work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pgvector import Vector

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import database_errors
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.ranges import ProductId

QueryVector = Sequence[float] | npt.NDArray[np.float32]

CANDIDATES_PER_HIT = 20  # variants share their texts, so a hit may stand for a dozen rows
FEWEST_CANDIDATES = 100
MOST_CANDIDATES = 1_000  # the largest hnsw.ef_search
_SAME_SCORE = 6  # decimals up to which the scores of variants agree


@dataclass(frozen=True)
class Hit:
    """A product, or several variants of one that share a name and a score.

    `score` is the weighted mean of `parts`, the cosine similarity by each aspect of the query
    (between -1 and 1; None where the product has no vector). `variants` are the ids of the others.
    """

    product_id: ProductId
    name: str
    score: float
    parts: Mapping[Aspect, float | None]
    variants: tuple[ProductId, ...] = ()


def search(
    shop: Shop,
    query_vectors: Mapping[Aspect, QueryVector],
    *,
    limit: int = 5,
    weights: Mapping[Aspect, float] | None = None,
) -> list[Hit]:
    """The `limit` best products for a query, best first.

    `query_vectors` has a vector for each aspect to search by, of the aspect's dimensions.
    `weights` defaults to 1 for each; an aspect that it leaves out weighs 1, too. Variants (same
    name, same score) make one hit, so that a page of hits is not one coat in five sizes.

    Raises `InputError` for a wrong vector, weight or limit, and what `database_errors` raises.
    """
    weighed = {aspect: (weights or {}).get(aspect, 1.0) for aspect in query_vectors}
    _check(shop, query_vectors, weighed, limit)
    candidates = min(max(limit * CANDIDATES_PER_HIT, FEWEST_CANDIDATES), MOST_CANDIDATES)
    parameters = {aspect.value: _vector(query_vectors.get(aspect)) for aspect in Aspect}
    with database_errors(), shop.connection.transaction():
        thoroughly = shop.queries.compose("search_thoroughly")
        shop.connection.execute(thoroughly, {"candidates": candidates})
        nearest = shop.queries.compose("search_by_aspects")
        rows = shop.connection.execute(nearest, {**parameters, "candidates": candidates}).fetchall()
    hits = []
    for product_id, name, *similarities in rows:
        by_aspect = dict(zip(Aspect, similarities, strict=True))
        parts = {aspect: _known(by_aspect[aspect]) for aspect in query_vectors}
        score = weighted_mean(parts, weighed)
        if score is not None:
            hits.append(Hit(product_id, str(name), score, parts))
    return without_repeats(hits)[:limit]


def weighted_mean(
    parts: Mapping[Aspect, float | None], weights: Mapping[Aspect, float]
) -> float | None:
    """The mean of the parts that are there, by weight; None where none is, or none weighs."""
    known = [(weights[aspect], part) for aspect, part in parts.items() if part is not None]
    total = sum(weight for weight, _ in known)
    return sum(weight * part for weight, part in known) / total if total > 0 else None


def without_repeats(hits: Iterable[Hit]) -> list[Hit]:
    """The hits, best first, with those of one name and one score folded into the first of them."""
    folded: dict[tuple[str, float], list[Hit]] = {}
    for hit in hits:
        folded.setdefault((hit.name, round(hit.score, _SAME_SCORE)), []).append(hit)
    merged = [
        Hit(
            first.product_id,
            first.name,
            first.score,
            first.parts,
            tuple(other.product_id for other in others),
        )
        for first, *others in folded.values()
    ]
    return sorted(merged, key=lambda hit: -hit.score)


def _check(
    shop: Shop,
    query_vectors: Mapping[Aspect, QueryVector],
    weights: Mapping[Aspect, float],
    limit: int,
) -> None:
    if limit < 1:
        raise InputError(f"The limit is {limit}; at least 1 product can be searched for.")
    for aspect, vector in query_vectors.items():
        expected = shop.settings.aspects[aspect].dimensions
        if len(vector) != expected:
            raise InputError(
                f"The query's vector for {aspect} has {len(vector)} numbers; expected {expected}."
            )
    if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise InputError("The weights of a search are 0 or more, and at least one is above 0.")


def _vector(numbers: QueryVector | None) -> Vector | None:
    return None if numbers is None else Vector(np.asarray(numbers, dtype=np.float32))


def _known(similarity: float | None) -> float | None:
    # NaN: one of the two is a zero vector, which has no direction.
    return None if similarity is None or math.isnan(similarity) else similarity
