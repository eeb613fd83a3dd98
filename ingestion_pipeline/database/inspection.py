"""Facts about the shop's database that decide whether a run may begin.

Server, tables, rights, mapping, counts and disk. Only looking happens here, and the first look
works on a database on which nothing else would: without the extension, without the tables, without
the rights. What the facts mean is decided in `preflight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage
from typing import Any

import psycopg
from psycopg.rows import dict_row

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import AspectCount, Catalogue, ChangedAspects
from ingestion_pipeline.database.connection import Connection, connect, database_errors
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.errors import (
    DatabaseRightsError,
    DatabaseUnavailableError,
    MappingError,
    redacted,
)
from ingestion_pipeline.ranges import EVERYTHING, IdType
from ingestion_pipeline.settings import Settings

BOOKKEEPING_SCHEMA = "ingestion"

_ID_TYPES = {
    "smallint": IdType.INTEGER,
    "integer": IdType.INTEGER,
    "bigint": IdType.BIGINT,
    "uuid": IdType.UUID,
    "text": IdType.TEXT,
    "character varying": IdType.TEXT,
    "character": IdType.TEXT,
}
_PRODUCTS_LOOKED_AT_TWICE = 20
_MOST_LOOKS = 4
_LOOPBACK = ("127.", "::1")
_CLOCK_TOLERANCE_SECONDS = 2  # the server writes its pid file right after it notes its start


@dataclass(frozen=True)
class ServerFacts:
    """The server, and what the role may do in the database as a whole."""

    version_number: int  # 180004 for 18.4
    version: str
    database: str
    role: str
    search_path: str
    is_replica: bool
    is_read_only: bool
    may_create_schema: bool
    may_create_temporary_table: bool
    vector_version: str | None  # of the extension in this database
    vector_is_visible: bool  # its schema is on the search_path
    vector_schema: str | None
    vector_available: str | None  # of the package on the server


@dataclass(frozen=True)
class SchemaFacts:
    """A schema that exists, and what the role may do in it."""

    name: str
    may_use: bool
    may_create: bool
    closed_tables: tuple[str, ...] = ()  # those whose rows the role may not read and write


@dataclass(frozen=True)
class ColumnFacts:
    """A column; `type` without its modifier, which for a vector is the number of dimensions."""

    type: str
    type_modifier: int | None
    is_required: bool  # NOT NULL and nothing fills it in
    may_select: bool
    is_key: bool  # a unique index on it alone, fit for ON CONFLICT

    @property
    def id_type(self) -> IdType | None:
        """What the column is as a product id; None where it cannot be one."""
        return id_type_of(self.type)


@dataclass(frozen=True)
class TableFacts:
    """A table or view that exists, and what the role may do with it."""

    schema: str
    name: str
    kind: str  # pg_class.relkind: r table, p partitioned, v view, m materialized view, f foreign
    may_use_schema: bool
    is_owner: bool
    may_select: bool
    may_insert: bool
    may_update: bool
    may_delete: bool
    may_reference: bool
    hides_rows: bool  # row-level security applies to this role
    columns: Mapping[str, ColumnFacts]

    @property
    def is_table(self) -> bool:
        """Whether a foreign key may refer to it."""
        return self.kind in ("r", "p")


@dataclass(frozen=True)
class MappedAspect:
    """What the mapping gives for one value of its column `aspect`."""

    rows: int
    empty_rows: int
    without_product: int
    repeated: int  # products with more than one row
    repeated_sample: tuple[str, ...]


@dataclass(frozen=True)
class MappingFacts:
    """`product_texts.sql` against the server: why it cannot run, or what it gives."""

    file: str
    refusal: str | None = None
    column_types: Mapping[str, str] = field(default_factory=dict)
    aspects: Mapping[str | None, MappedAspect] | None = None  # None: not looked at
    clocks: tuple[str, ...] = ()  # what in it changes with time
    unsteady: tuple[str, ...] = ()  # "usage of 103": other texts each time they are asked for


@dataclass(frozen=True)
class IdFacts:
    """The ids of a catalogue that no key guards."""

    rows: int
    with_id: int
    distinct: int


@dataclass(frozen=True)
class DatabaseFacts:
    """Everything that `preflight.database_connection` judges; None is for what is not there."""

    unreachable: str | None = None
    server: ServerFacts | None = None
    bookkeeping: SchemaFacts | None = None
    v2_home: SchemaFacts | None = None  # the schema that v2 is in, or would be created in
    products: TableFacts | None = None
    v1: TableFacts | None = None
    v2: TableFacts | None = None
    similar_tables: tuple[str, ...] = ()  # like products, where products is missing
    mapping: MappingFacts | None = None  # None where products cannot be read
    ids: IdFacts | None = None  # None where a key guards them, or they cannot be read


@dataclass(frozen=True)
class CountFacts:
    """What of the catalogue is done and what is left, in products, aspects and texts."""

    products: int
    stale_products: int
    failed_products: int
    aspects: tuple[AspectCount, ...]
    texts_to_embed: Mapping[str, int]  # fingerprint -> distinct texts
    empty_texts: Mapping[Aspect, int]  # products without text for the aspect
    ranges: int  # how many there are planned already
    emptied: Mapping[Aspect, int] = field(default_factory=dict)  # vectors that would go
    committed: Mapping[Aspect, int] = field(default_factory=dict)  # of so many on record
    changed: tuple[ChangedAspects, ...] = ()


@dataclass(frozen=True)
class DiskFacts:
    """Where the server's data lies and how much is free there.

    `free_bytes` is the least that any file system in use has left; None where that is not known,
    and then `why_unknown` says why.
    """

    free_bytes: int | None
    why_unknown: str | None
    places: Mapping[str, int]  # folder -> free bytes
    indexed: frozenset[Aspect]  # those whose vectors are in an HNSW index already
    max_wal_bytes: int
    keeps_wal_for_replicas: bool


def id_type_of(type_: str) -> IdType | None:
    """What a type, by its SQL name, is as that of a product id; None where it cannot be one."""
    return _ID_TYPES.get(type_)


def database_facts(settings: Settings) -> DatabaseFacts:
    """Connect as the settings say and look at everything; being refused is a fact, too."""
    if settings.database_url is None:
        return DatabaseFacts(
            unreachable="There is no DATABASE_URL. `ingest env` prints that of the embedded server."
        )
    try:
        connection = connect(settings.database_url.get_secret_value())
    except (DatabaseUnavailableError, DatabaseRightsError) as error:
        return DatabaseFacts(unreachable=str(error))
    with connection:
        return inspect(connection, settings)


def inspect(connection: Connection, settings: Settings) -> DatabaseFacts:
    """Look at server, schemas, tables, ids and mapping; reads the whole mapping once."""
    look = _Inspector(connection, _queries(settings))
    catalogue = settings.catalogue
    products = look.table(catalogue.products)
    v2 = look.table(catalogue.v2)
    readable = products is not None and products.may_use_schema and "id" in products.columns
    guarded = readable and products is not None and products.columns["id"].is_key
    return DatabaseFacts(
        server=look.server(),
        bookkeeping=look.schema(BOOKKEEPING_SCHEMA),
        v2_home=look.schema(v2.schema if v2 else _schema_and_table(catalogue.v2)[0]),
        products=products,
        v1=look.table(catalogue.v1),
        v2=v2,
        similar_tables=() if products else look.similar_tables(catalogue.products),
        mapping=look.mapping() if readable else None,
        ids=look.ids() if readable and not guarded else None,
    )


def count_facts(
    connection: Connection, catalogue: Catalogue, settings: Settings, *, ranges: int = 0
) -> CountFacts:
    """Count products, states and texts, set-wise in the database, which must be prepared.

    Raises what `database_errors` raises.
    """
    fingerprints = settings.fingerprints
    [whole] = catalogue.range_progress([("", EVERYTHING)], fingerprints)
    look = _Inspector(connection, _queries(settings))
    texts = {row["aspect"]: row["texts"] for row in look.rows("inspect_texts")}
    emptied = catalogue.emptied_aspects(fingerprints)
    aspects = tuple(catalogue.aspect_counts(fingerprints))
    # A look at the whole catalogue, which only something that has changed is worth.
    has_changed = any(counted.state.endswith("changed") for counted in aspects)
    return CountFacts(
        products=whole.products,
        stale_products=whole.stale_products,
        failed_products=whole.failed_products,
        aspects=aspects,
        texts_to_embed=catalogue.texts_to_embed(fingerprints),
        empty_texts={aspect: whole.products - texts.get(aspect, 0) for aspect in Aspect},
        ranges=ranges,
        emptied={aspect: gone for aspect, (gone, _) in emptied.items()},
        committed={aspect: committed for aspect, (_, committed) in emptied.items()},
        changed=tuple(catalogue.changed_aspects(fingerprints)) if has_changed else (),
    )


def disk_facts(connection: Connection, settings: Settings) -> DiskFacts:
    """How much space is left where the server's data lies.

    The server's folders are measured only where they are this machine's beyond doubt; for any
    other server `disk.free_bytes` of the settings counts, and without it nothing is known.
    Raises what `database_errors` raises.
    """
    queries = _queries(settings)
    v2_table = queries.regclass("product_embeddings_v2")
    look = _Inspector(connection, queries)
    [row] = look.rows("inspect_disk", v2_table=v2_table)
    indexes = look.rows("vector_indexes", v2_table=v2_table)
    indexed = {index["column_name"] for index in indexes if index["valid"]}
    places, why_unknown = _places(connection, row)
    free = min(places.values(), default=None)
    if free is None and settings.disk.free_bytes is not None:
        free, why_unknown = settings.disk.free_bytes, None
    return DiskFacts(
        free_bytes=free,
        why_unknown=why_unknown,
        places=places,
        indexed=frozenset(aspect for aspect in Aspect if aspect.column in indexed),
        max_wal_bytes=row["max_wal_bytes"],
        keeps_wal_for_replicas=row["keeps_wal_for_replicas"],
    )


def server_folders(connection: Connection, settings: Settings) -> tuple[list[Path], str | None]:
    """The folders of this machine that the server writes to, or why they are not known.

    Raises what `database_errors` raises.
    """
    queries = _queries(settings)
    look = _Inspector(connection, queries)
    [row] = look.rows("inspect_disk", v2_table=queries.regclass("product_embeddings_v2"))
    places, why_unknown = _places(connection, row)
    return [Path(folder) for folder in places], why_unknown


class _Inspector:
    """Asks the questions of `sql/inspect_*.sql`."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries

    def rows(self, question: str, **parameters: object) -> list[dict[str, Any]]:
        statement = self._queries.compose(question)
        with database_errors(), self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()

    def server(self) -> ServerFacts:
        [row] = self.rows("inspect_server")
        return ServerFacts(**row)

    def schema(self, name: str | None) -> SchemaFacts | None:
        rows = self.rows("inspect_schema", schema=name)
        if not rows:
            return None
        return SchemaFacts(**{**rows[0], "closed_tables": tuple(rows[0]["closed_tables"])})

    def table(self, name: str) -> TableFacts | None:
        schema, table = _schema_and_table(name)
        rows = self.rows("inspect_table", schema=schema, table=table)
        if not rows:
            return None
        columns = self.rows("inspect_columns", schema=rows[0]["schema"], table=table)
        return TableFacts(
            **rows[0],
            columns={column.pop("name"): ColumnFacts(**column) for column in columns},
        )

    def similar_tables(self, name: str) -> tuple[str, ...]:
        rows = self.rows("inspect_similar_tables", table=_schema_and_table(name)[1])
        return tuple(row["name"] for row in rows)

    def ids(self) -> IdFacts | None:
        try:
            [row] = self.rows("inspect_product_ids")
        except DatabaseRightsError:
            return None  # a missing privilege is a fact of the table already
        return IdFacts(row["row_total"], row["with_id"], row["distinct_ids"])

    def mapping(self) -> MappingFacts:
        """Whether the mapping runs, its columns, and then what it gives."""
        file = self._queries.product_texts_file
        column_types: dict[str, str] = {}
        try:
            column_types = self._mapped_columns()
            if not {"product_id", "aspect", "text"} <= column_types.keys():
                return MappingFacts(file, column_types=column_types)
            return MappingFacts(
                file,
                column_types=column_types,
                aspects=self._mapped_aspects(),
                clocks=self._queries.clocks_in_product_texts(),
                unsteady=self._unsteady_texts(),
            )
        except MappingError as error:
            return MappingFacts(file, refusal=str(error).rstrip("."))
        except psycopg.Error as error:
            return MappingFacts(file, refusal=self._located(error), column_types=column_types)

    def _mapped_aspects(self) -> dict[str | None, MappedAspect]:
        """What the mapping gives for each aspect; psycopg's error where it breaks off."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(self._queries.compose("inspect_product_texts"), {}).fetchall()
        return {
            row["aspect"]: MappedAspect(
                rows=row["row_total"],
                empty_rows=row["empty_rows"],
                without_product=row["without_product"],
                repeated=row["repeated"],
                repeated_sample=tuple(row["repeated_sample"] or ()),
            )
            for row in rows
        }

    def _unsteady_texts(self) -> tuple[str, ...]:
        """Texts of the first products that differ each time they are looked at.

        Two looks that agree settle it: whoever edits a product meanwhile changes its text once.
        Each look is a transaction of its own, so that `now()` moves on.
        """
        try:
            looks = [self._first_texts()]
            for _ in range(_MOST_LOOKS - 1):
                looks.append(self._first_texts())
                if looks[-1] == looks[-2]:
                    return ()
        except psycopg.errors.UndefinedFunction:
            return ()  # product_id is of another type than ids, which is told by itself
        return tuple(
            f"{aspect} of {product_id}"
            for product_id, aspect in dict.fromkeys(key for look in looks for key in look)
            if len({look.get((product_id, aspect)) for look in looks}) > 1
        )

    def _first_texts(self) -> dict[tuple[str, str | None], bytes | None]:
        """By product and aspect, a digest of the text."""
        statement = self._queries.compose("inspect_first_texts")
        with self._connection.cursor() as cursor:
            rows = cursor.execute(statement, {"products": _PRODUCTS_LOOKED_AT_TWICE}).fetchall()
        return {(product_id, aspect): digest for product_id, aspect, digest in rows}

    def _mapped_columns(self) -> dict[str, str]:
        """Names and types of the mapping's columns; psycopg's error where it does not run."""
        statement = self._queries.compose("inspect_product_texts_shape")
        types = self._connection.adapters.types
        with self._connection.cursor() as cursor:
            described = cursor.execute(statement, {}).description or []
        known = {column.name: types.get(column.type_code) for column in described}
        return {name: type_.regtype if type_ else "unknown" for name, type_ in known.items()}

    def _located(self, error: psycopg.Error) -> str:
        """The server's complaint, with the line of the mapping that it is about."""
        message = redacted(error.diag.message_primary or str(error).strip()).rstrip(".")
        if not error.diag.statement_position:
            return message
        sent = self._queries.compose("inspect_product_texts_shape").as_string(self._connection)
        sent = sent.replace("%%", "%")
        mapping = self._queries.product_texts()
        start = sent.index(mapping)
        at = int(error.diag.statement_position) - 1
        if not start <= at <= start + len(mapping):
            return f"{message} (at its end: is a parenthesis or a quote left open?)"
        line = mapping.count("\n", 0, at - start) + 1
        if sent[at] == ";":
            return f"line {line}: a second statement begins after `;`, and there may be only one"
        return f"line {line}: {message}"


def _queries(settings: Settings) -> Queries:
    catalogue = settings.catalogue
    return Queries(
        tables={
            "products": catalogue.products,
            "product_embeddings": catalogue.v1,
            "product_embeddings_v2": catalogue.v2,
        },
        product_texts=catalogue.product_texts,
    )


def _schema_and_table(name: str) -> tuple[str | None, str]:
    schema, _, table = name.rpartition(".")
    return schema or None, table


def _places(connection: Connection, row: Mapping[str, Any]) -> tuple[dict[str, int], str | None]:
    """Free bytes of each folder that the server writes to, or why they cannot be measured."""
    address = connection.info.hostaddr
    over_socket = connection.info.host.startswith(("/", "@"))
    if not over_socket and not address.startswith(_LOOPBACK):
        return {}, f"the server is on another machine ({connection.info.host})"
    if row["data_directory"] is None:
        return {}, "this role may not see data_directory (GRANT pg_read_all_settings would do)"
    data = Path(row["data_directory"])
    if not _is_of_this_machine(data, row["started_at"], over_socket=over_socket):
        return {}, f"{data} is not a folder of this machine (a container or a tunnel?)"
    try:
        places = {str(folder): disk_usage(folder).free for folder in (data, *row["tablespaces"])}
    except OSError as error:
        return {}, f"{error.filename} cannot be looked at ({error.strerror})"
    # The log of changes may lie on a disk of its own. The door to it may be closed; it is open to
    # the owner of the embedded server, and elsewhere the log is nearly always beside the data.
    with suppress(PermissionError):
        places[str(data / "pg_wal")] = disk_usage(data / "pg_wal").free
    return places, None


def _is_of_this_machine(data: Path, started_at: int, *, over_socket: bool) -> bool:
    """Whether the server that answers runs on this folder: its pid file notes its start.

    A port of this machine may lead into a container whose folders have the same names as ours.
    Where the pid file may not be read, only a Unix socket is proof enough.
    """
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    except OSError:
        return over_socket and data.exists()
    noted = lines[2] if len(lines) > 2 else ""  # noqa: PLR2004 - the third line is the start
    return noted.isdecimal() and abs(int(noted) - started_at) <= _CLOCK_TOLERANCE_SECONDS
