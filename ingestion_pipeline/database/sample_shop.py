"""The sample shop in a database: its products, and v1 with one vector a product.

Its products are written in `sample_catalogue`; the model is handed in. Nothing here touches a
catalogue that is not marked as the sample shop's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ingestion_pipeline.database.catalogue_file import Column
from ingestion_pipeline.database.connection import Connection, database_errors
from ingestion_pipeline.database.products_table import ProductsTable
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.sample_catalogue.shop import sample_products

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MARK = "The sample shop of ingestion_pipeline."
TEXTS_PER_BATCH = 16  # interrupted, at most these are embedded again

_COLUMNS = (
    Column("id", "integer"),
    Column("sku", "text NOT NULL UNIQUE"),
    Column("name", "text NOT NULL"),
    Column("variant", "text"),
    Column("category", "text NOT NULL"),
    Column("price", "numeric NOT NULL"),
    Column("description", "text"),
    Column("usage", "text"),
    Column("features", "text"),
)


class SampleShop:
    """The sample shop, made where it is not there and left alone where it is."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries
        self._table = ProductsTable(connection, queries)

    def create(self) -> int:
        """Make products and an empty v1 in one transaction; returns the products made.

        Returns 0 where the shop is there. Raises InputError where another catalogue is.
        """
        comment = self._table.comment()
        if comment == MARK:
            self._table.create_sample_v1()
            return 0
        if self._table.exists():
            raise InputError(
                f"{self._table.name} holds a catalogue that is not the sample shop, and the demo "
                "leaves it alone.\n→ `ingest` re-ingests it; `ingest status` says where it stands."
            )
        products = sample_products()
        rows = [tuple(getattr(product, column.name) for column in _COLUMNS) for product in products]
        self._table.create_sample(_COLUMNS, rows, MARK)
        return len(products)

    def texts_without_v1(self) -> list[tuple[str, list[int]]]:
        """The distinct texts that v1 lacks, each with the ids of the products that share it."""
        with database_errors():
            query = self._queries.compose("products_without_v1")
            rows = cast("list[tuple[int, str]]", self._connection.execute(query).fetchall())
        texts: dict[str, list[int]] = {}
        for product_id, text in rows:
            texts.setdefault(text, []).append(product_id)
        return list(texts.items())

    def fill_v1(
        self,
        texts: Sequence[tuple[str, list[int]]],
        embed: Callable[[list[str]], npt.NDArray[np.float32]],
        report: Callable[[int], None],
    ) -> None:
        """Embed each text once and write the vectors of its products, a batch a transaction.

        `embed` gives float32 (n, 384) for n texts. `report` is told the products done so far.
        """
        done = 0
        query = self._queries.compose("insert_v1")
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            batch = texts[start : start + TEXTS_PER_BATCH]
            vectors = embed([text for text, _ in batch])
            rows = [
                {"product_id": product_id, "embedding": vector}
                for (_, ids), vector in zip(batch, vectors, strict=True)
                for product_id in ids
            ]
            with database_errors(), self._connection.transaction():
                self._connection.cursor().executemany(query, rows)
            done += len(rows)
            report(done)
