"""Searches for products by their own vectors: found or not, through the index or not.

Asks and reads the answers; whether they are good enough is decided in `checks`. The sample is
chosen by a digest of the ids, so that it is spread over the catalogue and the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import bounds
from ingestion_pipeline.database.connection import database_errors
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.ranges import EVERYTHING, ProductId, ProductIdRange

SAMPLE = 20
"""Products searched for by each aspect."""

EF_SEARCH = 200
"""Candidates an index keeps meanwhile: the question is whether a vector is in the index at all."""

TOLERANCE = 1e-6
"""Distances closer than this are equal: identical texts have one vector, in whatever order."""


@dataclass(frozen=True)
class OwnNeighbour:
    """What a search by a product's own vector returned first, in cosine distances."""

    product_id: ProductId
    name: str | None
    own_distance: float
    nearest_id: ProductId | None
    nearest_distance: float | None

    @property
    def found(self) -> bool:
        """Whether it was the product, or a variant at the same distance (the same text)."""
        if self.nearest_distance is None or math.isnan(self.own_distance):
            return False
        return (
            self.nearest_id == self.product_id
            or self.nearest_distance <= self.own_distance + TOLERANCE
        )


@dataclass(frozen=True)
class Search:
    """The searches by one aspect.

    `index` is the valid HNSW index on its column, None without one; `index_works` says that the
    server can answer from it, and `index_is_chosen` that it does so unasked at today's size.
    """

    neighbours: tuple[OwnNeighbour, ...]
    index: str | None
    index_works: bool
    index_is_chosen: bool

    @property
    def found(self) -> int:
        """How many of the products were found."""
        return sum(neighbour.found for neighbour in self.neighbours)


def search_for_own_vectors(
    shop: Shop, aspect: Aspect, range_: ProductIdRange = EVERYTHING, *, sample: int = SAMPLE
) -> Search:
    """Search for up to `sample` products of a range by their own vectors of one aspect.

    Where there is an index, it is used even if the planner would rather read a small table whole.
    Raises what `database_errors` raises.
    """
    index = next(
        (
            index.name
            for index in shop.embeddings.vector_indexes()
            if index.column == aspect.column and index.valid
        ),
        None,
    )
    parameters = {**bounds(range_), "sample": sample}
    column = sql.Identifier(aspect.column)
    explain = shop.queries.compose("explain_own_neighbours", column=column)
    search = shop.queries.compose("own_neighbours", column=column)
    with database_errors(), shop.connection.transaction():
        execute = shop.connection.execute
        chosen = execute(explain, parameters).fetchall()
        execute(shop.queries.compose("prefer_indexes"), {})
        execute(shop.queries.compose("search_thoroughly"), {"candidates": EF_SEARCH})
        forced = execute(explain, parameters).fetchall()
        rows = execute(search, parameters).fetchall()
    return Search(
        neighbours=tuple(OwnNeighbour(*row) for row in rows),
        index=index,
        index_works=index in set(indexes_in(forced[0][0])),
        index_is_chosen=index in set(indexes_in(chosen[0][0])),
    )


def indexes_in(plan: object) -> Iterator[str]:
    """The names of the indexes in a plan as EXPLAIN (FORMAT JSON) gives it."""
    match plan:
        case list():
            for part in plan:
                yield from indexes_in(part)
        case Mapping():
            node: Mapping[str, Any] = plan
            if "Index Name" in node:
                yield str(node["Index Name"])
            yield from indexes_in(list(node.values()))
        case _:
            return
