"""What the shop's catalogue says: products, their aspect texts, and which of those are stale.

Every statement here reads; the catalogue is the shop's, and nothing in this project writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import Row, database_errors
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.ranges import EVERYTHING, ProductId, ProductIdRange, split
from ingestion_pipeline.work import StaleText

SETTLED_STATES = ("done", "empty", "failed")
"""States of an aspect that a run leaves alone; every other state is a reason to be stale."""


@dataclass(frozen=True)
class AspectCount:
    """Aspects of all products in one state, and the distinct texts that they hold."""

    aspect: Aspect
    state: str
    aspects: int
    distinct_texts: int

    @property
    def stale(self) -> bool:
        """Whether a run would work on them."""
        return self.state not in SETTLED_STATES


@dataclass(frozen=True)
class ChangedAspects:
    """Aspects on record whose text or model is another today, all for the same reason.

    `state` is "text changed" or "model changed". `parts` is what the fingerprint on record stands
    for, None where that is not known; `remapped` says that the mapping has changed since, too.
    """

    aspect: Aspect
    state: str
    parts: Mapping[str, object] | None
    remapped: bool
    aspects: int


@dataclass(frozen=True)
class RangeProgress:
    """How far one range has come, in products."""

    key: str
    range: ProductIdRange
    products: int
    stale_products: int
    failed_products: int


class Catalogue:
    """Reads one shop's products and texts."""

    def __init__(self, session: Session, queries: Queries) -> None:
        self._session = session
        self._queries = queries

    def count(self, range_: ProductIdRange = EVERYTHING) -> int:
        """Products in a range."""
        rows = self._rows("products_in_range", **bounds(range_))
        return int(rows[0][0])

    def first_products(self, number: int) -> ProductIdRange:
        """The range of the first `number` products of the catalogue."""
        return ProductIdRange(None, self._after(EVERYTHING, number))

    def page(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str], products: int
    ) -> tuple[list[StaleText], ProductIdRange | None]:
        """The stale texts of the first `products` products of a range, and the rest of the range.

        The texts are in the order of ids, and there may be none; no rest is None.
        """
        end = self._after(range_, products)
        if end is None:
            return self.stale_texts(range_, fingerprints), None
        page = ProductIdRange(range_.first, end)
        return self.stale_texts(page, fingerprints), ProductIdRange(end, range_.end)

    def stale_texts(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str]
    ) -> list[StaleText]:
        """The aspect texts of a range whose vector is missing or out of date."""
        rows = self._rows("stale_texts", **_wanted(fingerprints), **bounds(range_))
        return [
            StaleText(product_id, Aspect(str(aspect)), fingerprint, text, bytes(digest))
            for product_id, aspect, fingerprint, text, digest in rows
        ]

    def aspect_counts(
        self, fingerprints: Mapping[Aspect, str], range_: ProductIdRange = EVERYTHING
    ) -> list[AspectCount]:
        """How many aspects are in which state, over the whole range at once."""
        rows = self._rows("aspect_counts", **_wanted(fingerprints), **bounds(range_))
        return [
            AspectCount(Aspect(str(aspect)), str(state), aspects, texts)
            for aspect, state, aspects, texts in rows
        ]

    def texts_to_embed(
        self, fingerprints: Mapping[Aspect, str], range_: ProductIdRange = EVERYTHING
    ) -> dict[str, int]:
        """Distinct texts by fingerprint that must go to a model: no vector in v2 serves yet."""
        rows = self._rows("texts_to_embed", **_wanted(fingerprints), **bounds(range_))
        return {str(fingerprint): texts for fingerprint, texts in rows}

    def emptied_aspects(self, fingerprints: Mapping[Aspect, str]) -> dict[Aspect, tuple[int, int]]:
        """By aspect: vectors that a run would remove, their text being empty now, of how many."""
        rows = self._rows("emptied_aspects", **_wanted(fingerprints), **bounds(EVERYTHING))
        return {Aspect(aspect): (emptied, committed) for aspect, committed, emptied in rows}

    def changed_aspects(self, fingerprints: Mapping[Aspect, str]) -> list[ChangedAspects]:
        """The aspects on record that have changed since, by what was behind them."""
        rows = self._rows("changed_aspects", **_wanted(fingerprints), **bounds(EVERYTHING))
        return [ChangedAspects(Aspect(str(aspect)), *rest) for aspect, *rest in rows]

    def range_progress(
        self,
        ranges: Sequence[tuple[str, ProductIdRange]],
        fingerprints: Mapping[Aspect, str],
    ) -> list[RangeProgress]:
        """How far each range has come; each of `ranges` begins where the one before it ends."""
        boundaries = [range_.first for _, range_ in ranges[1:]]
        whole = ProductIdRange(ranges[0][1].first, ranges[-1][1].end) if ranges else EVERYTHING
        rows = self._rows(
            "range_progress",
            **_wanted(fingerprints),
            **bounds(whole),
            boundaries=sql_ids(boundaries),
        )
        counts = {position: list(rest) for position, *rest in rows}
        return [
            RangeProgress(key, range_, *counts.get(position, (0, 0, 0)))
            for position, (key, range_) in enumerate(ranges)
        ]

    def products_per_range(self, ranges: Sequence[ProductIdRange]) -> list[int]:
        """Products in each of some ranges that tile the id space, in the order of ids."""
        boundaries = sql_ids([range_.first for range_ in ranges[1:]])
        rows = self._rows("products_per_range", boundaries=boundaries)
        counts: dict[int, int] = dict(rows)
        return [counts.get(position, 0) for position in range(len(ranges))]

    def divided(self, range_: ProductIdRange, products: int) -> list[ProductIdRange]:
        """The range cut into ranges of `products` products each; the last may have fewer."""
        rows = self._rows("product_boundaries", **bounds(range_), every=products)
        return split(range_, [row[0] for row in rows])

    def names(self, ids: Sequence[ProductId]) -> dict[ProductId, str]:
        """The names of some products."""
        rows = self._rows("product_names", ids=sql_ids(ids))
        return {id_: str(name) for id_, name in rows}

    def _after(self, range_: ProductIdRange, products: int) -> ProductId | None:
        rows = self._rows("product_after", **bounds(range_), offset=products)
        return rows[0][0] if rows else None

    def _rows(self, name: str, **parameters: object) -> list[Row]:
        with database_errors():
            return self._session.execute(self._queries.compose(name), parameters).fetchall()


def bounds(range_: ProductIdRange) -> dict[str, object]:
    """The parameters `first` and `end` of a statement over a range."""
    return {"first": sql_id(range_.first), "end": sql_id(range_.end)}


def _wanted(fingerprints: Mapping[Aspect, str]) -> dict[str, object]:
    return {
        "aspects": [aspect.value for aspect in fingerprints],
        "fingerprints": list(fingerprints.values()),
    }


def sql_id(id_: ProductId | None) -> str | None:
    """An id as text, which the statements cast to the id's type, whatever that is."""
    return None if id_ is None else str(id_)


def sql_ids(ids: Sequence[ProductId | None]) -> list[str | None]:
    """Several ids as `sql_id` gives them."""
    return [sql_id(id_) for id_ in ids]
