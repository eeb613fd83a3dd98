"""One shop's database, opened: the session and everything that reads and writes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql
from psycopg.types.json import Jsonb

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import Catalogue
from ingestion_pipeline.database.connection import database_errors
from ingestion_pipeline.database.embeddings import EmbeddingStore
from ingestion_pipeline.database.full_disk import full_disk_located, open_session
from ingestion_pipeline.database.queries import Queries, names
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.errors import DatabaseUnavailableError, InputError
from ingestion_pipeline.memory import memory_errors
from ingestion_pipeline.ranges import IdType
from ingestion_pipeline.settings import Settings

_ID_TYPES = {
    "int2": IdType.INTEGER,
    "int4": IdType.INTEGER,
    "int8": IdType.BIGINT,
    "uuid": IdType.UUID,
    "text": IdType.TEXT,
    "varchar": IdType.TEXT,
}


@dataclass(frozen=True)
class Shop:
    """A connection to the shop's database, with what reads and writes through it.

    `id_type` is that of `products.id`, which the bookkeeping copies.
    """

    settings: Settings
    connection: Session
    queries: Queries
    id_type: IdType

    @property
    def catalogue(self) -> Catalogue:
        """The shop's products, read only."""
        return Catalogue(self.connection, self.queries)

    @property
    def embeddings(self) -> EmbeddingStore:
        """v2 and the bookkeeping."""
        return EmbeddingStore(self.connection, self.queries, self.id_type)

    def is_prepared(self) -> bool:
        """Whether v2 and the bookkeeping exist, so that a status can be read."""
        row = self._reference()
        if row is None or not (row[2] and row[3]) or self._missing_migrations():
            return False
        self._check_described_table()
        return True

    def prepare(self) -> None:
        """Create what is missing of v2 and the bookkeeping; change nothing that is there."""
        with database_errors(), self.connection.transaction():
            self._run("lock_migrations")
            reference = self._reference()
            if reference is None:
                raise missing_products(self.settings)
            id_column_type, may_be_referenced, v2_exists, _, schema_exists = reference
            if not schema_exists:
                self._run("create_schema")
            self._run("create_migrations")
            for name in self._missing_migrations():
                self._run(name)
                self.connection.execute(self.queries.compose("record_migration"), {"name": name})
            if not v2_exists:
                create = "create_v2" if may_be_referenced else "create_v2_without_reference"
                dimensions = {
                    f"{aspect.value}_dimensions": sql.Literal(
                        self.settings.aspects[aspect].dimensions
                    )
                    for aspect in Aspect
                }
                self._run(create, id_column_type=_type(id_column_type), **dimensions)
            self._record_origins()
            if not self._check_described_table():
                self.connection.execute(
                    self.queries.compose("record_described_table"), self._v2_table()
                )

    def _record_origins(self) -> None:
        """Note what the settings' fingerprints stand for, and the mapping that is in use."""
        for aspect in Aspect:
            self.connection.execute(
                self.queries.compose("record_fingerprint"),
                {
                    "fingerprint": self.settings.fingerprint(aspect),
                    "parts": Jsonb(self.settings.fingerprint_parts(aspect)),
                },
            )
        mapping = {"mapping": self.queries.product_texts()}
        self.connection.execute(self.queries.compose("record_mapping"), mapping)

    def _missing_migrations(self) -> list[str]:
        with database_errors():
            rows = self.connection.execute(self.queries.compose("applied_migrations"), {})
            applied = {name for (name,) in rows}
        return [name for name in names() if name.startswith("migration_") and name not in applied]

    def _check_described_table(self) -> bool:
        """Whether the ledger is known to describe v2; `InputError` if it describes another table.

        A ledger of another table would call vectors up to date that it has never seen.
        """
        with database_errors():
            query = self.queries.compose("described_table")
            row = self.connection.execute(query, self._v2_table()).fetchone()
        described, named = row or (None, None)
        if described is not None and described != named:
            raise InputError(
                f"The bookkeeping in schema ingestion describes {described}, and catalogue.v2 "
                f"names {named}. One database keeps one v2: set catalogue.v2 = {described!r}, or "
                "give up that one's bookkeeping with DROP SCHEMA ingestion CASCADE."
            )
        return described is not None

    def _v2_table(self) -> dict[str, str]:
        return {"v2_table": self.queries.regclass("product_embeddings_v2")}

    def _reference(self) -> tuple[str, bool, bool, bool, bool] | None:
        with database_errors():
            return self.connection.execute(
                self.queries.compose("product_reference"),
                {
                    "products_table": self.queries.regclass("products"),
                    "v2_table": self.queries.regclass("product_embeddings_v2"),
                },
            ).fetchone()

    def _run(self, name: str, **literals: sql.Composable) -> None:
        self.connection.execute(self.queries.compose(name, **literals), {})


@contextmanager
def open_shop(settings: Settings) -> Iterator[Shop]:
    """Connect to the shop that the settings name, for the length of a `with` block.

    Raises `DatabaseUnavailableError`, `DatabaseRightsError`, or `InputError` where there is no
    products table with a usable id. In the block, a full disk of the server is told with its place,
    and a `MemoryError` becomes `OutOfMemoryError`.
    """
    if settings.database_url is None:
        raise DatabaseUnavailableError(
            "DATABASE_URL is not set, so there is no shop to work on. Run `ingest`, which starts "
            'an embedded database, or `eval "$(ingest env)"` to work on that one by hand.'
        )
    with open_session(settings, settings.database_url.get_secret_value()) as session:
        shop = shop_on(session, settings)
        with (
            full_disk_located(session, settings, shop.embeddings.vector_indexes),
            memory_errors(_less_memory(settings)),
        ):
            yield shop


def _less_memory(settings: Settings) -> str:
    products = settings.work.products_per_page
    return (
        "Let other programs give some back, or read fewer products at a time: "
        f"work.products_per_page in ingestion.toml is {products}."
    )


def shop_on(session: Session, settings: Settings) -> Shop:
    """The shop behind an open session; `InputError` where products.id cannot be used."""
    tables = {
        "products": settings.catalogue.products,
        "product_embeddings": settings.catalogue.v1,
        "product_embeddings_v2": settings.catalogue.v2,
    }
    texts = settings.catalogue.product_texts
    untyped = Queries(tables=tables, product_texts=texts)
    with database_errors():
        row = session.execute(
            untyped.compose("product_id_type"), {"products_table": untyped.regclass("products")}
        ).fetchone()
    if row is None:
        raise missing_products(settings)
    type_name, collation_name, collation_schema = row
    if type_name not in _ID_TYPES:
        raise InputError(
            f"{settings.catalogue.products}.id has the type {type_name}; expected integer, bigint, "
            "uuid or text. A view that casts it to text, named in the settings as "
            "catalogue.products, is a way round."
        )
    id_type = _ID_TYPES[type_name]
    collation = (
        sql.SQL("COLLATE {}").format(sql.Identifier(collation_schema, collation_name))
        if collation_name
        else sql.SQL("")
    )
    queries = Queries(
        tables=tables,
        literals={"id_type": _type(id_type.value), "collation": collation},
        product_texts=texts,
    )
    return Shop(settings, session, queries, id_type)


def missing_products(settings: Settings) -> InputError:
    """There is no products table, or it has no id."""
    return InputError(
        f"There is no table {settings.catalogue.products} with a column id in this database. "
        "catalogue.products in ingestion.toml names the table; `ingest load FILE` makes one from "
        "a file, `ingest demo` a small shop."
    )


def _type(name: str) -> sql.SQL:
    # A type's name from the server's own catalogue or from IdType, never from a user.
    return sql.SQL(name)
