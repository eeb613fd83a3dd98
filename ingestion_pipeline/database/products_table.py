"""Making a products table from a catalogue, for trying the pipeline on a shop's own products.

The pipeline itself only reads `products`; the one thing that writes it is here. A load is one
transaction: all of it, or nothing. What a replacement takes along is said before, exactly. Reading
files belongs to `catalogue_file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import psycopg
from psycopg import errors as pg
from psycopg import sql

from ingestion_pipeline.database.catalogue_file import ID, CatalogueFile, Column
from ingestion_pipeline.database.connection import Connection, Row, database_errors
from ingestion_pipeline.database.queries import Queries, identifier
from ingestion_pipeline.errors import InputError

_REFUSALS = (
    psycopg.DataError,
    pg.DuplicateColumn,  # also a column called as one of PostgreSQL's own: ctid, xmin...
    pg.TooManyColumns,
    pg.ProgramLimitExceeded,
    pg.InvalidSchemaName,
)

V1 = "product_embeddings"
V2 = "product_embeddings_v2"


@dataclass(frozen=True)
class Present:
    """What stands in the way of a load.

    Attributes:
        products: rows in the table of products.
        losses: what replacing it by the catalogue would take, one phrase each, largest first.
        same_ids: whether the new ids are of the type of the old; then vectors of the products that
            stay are kept, and re-embedded only where their text changes.

    """

    products: int
    losses: tuple[str, ...]
    same_ids: bool


@dataclass(frozen=True)
class _ForeignKey:
    holds_vectors: bool
    table: sql.Identifier
    name: sql.Identifier
    definition: sql.SQL


class ProductsTable:
    """The shop's table of products, seen as something that can be made or replaced."""

    def __init__(
        self, connection: Connection, queries: Queries, *, of_the_shop: bool = True
    ) -> None:
        """Not `of_the_shop`: another table, of whose products v1 and v2 know nothing."""
        self._connection = connection
        self._queries = queries
        self._of_the_shop = of_the_shop
        self._tables = {
            "products_table": queries.regclass("products"),
            "v1_table": queries.regclass(V1) if of_the_shop else None,
            "v2_table": queries.regclass(V2) if of_the_shop else None,
        }

    @property
    def name(self) -> str:
        """The table's name as the settings give it."""
        return self._queries.tables["products"]

    def exists(self) -> bool:
        """Whether anything stands under the table's name."""
        return self._facts() is not None

    def comment(self) -> str | None:
        """The table's comment; None where it has none or does not exist."""
        row = self._facts()
        return cast("str | None", row[1]) if row else None

    def present(self, catalogue: CatalogueFile) -> Present | None:
        """What a load of `catalogue` would replace; None where the name is free.

        Raises InputError where it is not a table, or where another table than v1 and v2 references
        it: such a catalogue is in use and is not replaced.
        """
        row = self._facts()
        if row is None:
            return None
        if not row[0]:
            raise InputError(
                f"{self.name} is a view, and a load makes a table.\n→ Name another with --table."
            )
        strangers = [key for key in self._foreign_keys() if not key.holds_vectors]
        if strangers:
            named = ", ".join(sorted({key.table.as_string(None) for key in strangers}))
            raise InputError(
                f"{self.name} is referenced by {named}, so it is not replaced.\n"
                "→ Load into another table with --table."
            )
        products = self._count("count_rows", table=identifier(self.name))
        same_ids = self._id_type() == catalogue.id_type
        losses = self._losses(catalogue, products, same_ids=same_ids)
        return Present(products, tuple(losses), same_ids)

    def load(self, catalogue: CatalogueFile, present: Present | None) -> None:
        """Make the table from `catalogue`, replacing what `present` says; all of it or nothing.

        Raises InputError where PostgreSQL refuses a value or a column.
        """
        with database_errors():
            try:
                with self._connection.transaction():
                    self._replace(catalogue, present)
            except _REFUSALS as error:
                raise InputError(f"PostgreSQL refuses {catalogue.path}: {_said(error)}.") from error
            except pg.DependentObjectsStillExist as error:
                raise InputError(
                    f"{self.name} is not replaced: {_said(error)}.\n"
                    "→ Load into another table with --table."
                ) from error

    def create_sample(
        self, columns: Sequence[Column], rows: Iterable[Sequence[object]], comment: str
    ) -> None:
        """Make the sample shop: products, marked by `comment`, and an empty v1; all or nothing."""
        with database_errors(), self._connection.transaction():
            self._create(columns, rows)
            self._execute("comment_on_products", comment=sql.Literal(comment))
            self._execute("create_sample_v1")

    def create_sample_v1(self) -> None:
        """Make the sample shop's v1, empty, where it is missing."""
        with database_errors():
            self._connection.execute("SET client_min_messages = warning")  # it mostly is there
            self._execute("create_sample_v1")

    def _facts(self) -> tuple[object, ...] | None:
        with database_errors():
            query = self._queries.compose("products_table")
            return self._connection.execute(query, self._tables).fetchone()

    def _count(
        self, name: str, parameters: dict[str, object] | None = None, **literals: sql.Composable
    ) -> int:
        with database_errors():
            query = self._queries.compose(name, **literals)
            row = self._connection.execute(query, parameters or {}).fetchone()
        return cast("int", row[0]) if row else 0

    def _id_type(self) -> str | None:
        """In the words of `CatalogueFile.id_type`; None for anything else."""
        with database_errors():
            query = self._queries.compose("product_id_type")
            row = self._connection.execute(query, self._tables).fetchone()
        names = {"int4": "integer", "int8": "bigint", "uuid": "uuid", "text": "text"}
        return names.get(row[0]) if row else None

    def _foreign_keys(self) -> list[_ForeignKey]:
        with database_errors():
            query = self._queries.compose("keys_on_products")
            rows = self._connection.execute(query, self._tables).fetchall()
        return [
            _ForeignKey(
                bool(holds_vectors),
                sql.Identifier(schema, table),
                sql.Identifier(name),
                # PostgreSQL's own words for its own constraint.
                sql.SQL(definition),
            )
            for holds_vectors, schema, table, name, definition in rows
        ]

    def _vector_tables(self) -> list[sql.Identifier]:
        exists = self._dependents()[:2]
        names = [self._queries.tables[table] for table in (V1, V2)]
        return [identifier(name) for name, is_there in zip(names, exists, strict=True) if is_there]

    def _has_bookkeeping(self) -> bool:
        return self._of_the_shop and bool(self._dependents()[2])

    def _dependents(self) -> Row:
        """Whether v1, v2 and the bookkeeping exist."""
        with database_errors():
            query = self._queries.compose("vector_tables")
            return self._connection.execute(query, self._tables).fetchone() or (False,) * 3

    def _losses(self, catalogue: CatalogueFile, products: int, *, same_ids: bool) -> Iterable[str]:
        yield f"{products:,} products in {self.name}"
        for table in self._vector_tables():
            if same_ids:
                rows = self._count(
                    "count_vectors_of_other_products",
                    {"ids": catalogue.frame[ID].tolist()},
                    vectors=table,
                    new_id_type=sql.SQL(catalogue.id_type),
                )
            else:
                rows = self._count("count_rows", table=table)
            if rows:
                yield f"{rows:,} rows of vectors in {table.as_string(None)}"
        if not same_ids and self._has_bookkeeping():
            yield "the bookkeeping in the schema ingestion, as the ids are of another type"

    def _replace(self, catalogue: CatalogueFile, present: Present | None) -> None:
        keys = self._make_way(present) if present else []
        self._create(catalogue.columns, catalogue.rows())
        for table in self._vector_tables() if present else []:
            self._execute("delete_vectors_of_other_products", vectors=table)
        for key in keys:
            self._execute(
                "add_foreign_key",
                vectors=key.table,
                foreign_key=key.name,
                definition=key.definition,
            )

    def _make_way(self, present: Present) -> list[_ForeignKey]:
        """Drop the old table; returns the foreign keys to put back."""
        self._connection.execute("SET LOCAL lock_timeout = '10s'")
        self._execute("lock_products")
        keys = self._foreign_keys()
        if present.same_ids:
            for key in keys:
                self._execute("drop_foreign_key", vectors=key.table, foreign_key=key.name)
        else:
            keys = []
            for table in self._vector_tables():
                self._execute("drop_vectors", vectors=table)
            if self._has_bookkeeping():
                self._execute("drop_bookkeeping")
        self._execute("drop_products")
        return keys

    def _create(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        names = [sql.Identifier(column.name) for column in columns]
        types = [sql.SQL(column.type) for column in columns]
        definitions = [sql.SQL(" ").join(pair) for pair in zip(names, types, strict=True)]
        self._execute("create_products", columns=sql.SQL(", ").join(definitions))
        statement = self._queries.compose("copy_products", columns=sql.SQL(", ").join(names))
        with self._connection.cursor().copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
        self._execute("analyze_products")

    def _execute(self, name: str, **literals: sql.Composable) -> None:
        # Without parameters, so that a percent sign in a column's name is one.
        self._connection.execute(self._queries.compose(name, **literals))


def _said(error: psycopg.Error) -> str:
    """The server's words: these are about the user's own file, so details help."""
    parts = (
        error.diag.message_primary or str(error),
        error.diag.message_detail,
        error.diag.context,
    )
    return "; ".join(" ".join(part.split()) for part in parts if part)
