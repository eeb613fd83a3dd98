"""Every file of `sql/`: one statement with a reason, used, and understood by the real server.

New files are found by themselves. Only one whose braces hold a piece of DDL needs a line in
`LITERALS`, and only one that makes what a prepared shop has already needs one in `FIRST`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import ExecStatus

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import queries
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.queries import Queries, identifier
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import MappingError
from ingestion_pipeline.ranges import EVERYTHING, IdType
from ingestion_pipeline.settings import CatalogueSettings
from ingestion_pipeline_tests.conftest import SHOP_TEMPLATE, _cloned
from ingestion_pipeline_tests.shops import (
    create_products,
    prepared_shop,
    products,
    settings_for,
)

PACKAGE = Path(queries.__file__).parents[1]
STATEMENTS = queries.names()

COLUMN = sql.Identifier("description_embedding")
DIMENSIONS = {f"{aspect.value}_dimensions": sql.Literal(4) for aspect in Aspect}


def _literals(shop: Shop) -> Mapping[str, Mapping[str, sql.Composable]]:
    """For a statement with pieces of DDL in its braces: what to try it with."""
    v2 = identifier(shop.queries.tables["product_embeddings_v2"])
    id_type = sql.SQL(shop.id_type.value)
    create_v2 = {"id_column_type": id_type, **DIMENSIONS}
    foreign_key = {"vectors": v2, "foreign_key": _foreign_key(shop)}
    schema, _, _ = shop.queries.tables["product_embeddings_v2"].rpartition(".")
    index = sql.Identifier(*([schema] if schema else []), "an_index")
    return {
        "add_foreign_key": {
            **foreign_key,
            "foreign_key": sql.Identifier("another"),
            "definition": sql.SQL("CHECK (true)"),
        },
        "comment_on_products": {"comment": sql.Literal("it's a shop")},
        "copy_products": {"columns": sql.SQL("id, name")},
        "count_rows": {"table": v2},
        "count_vectors_of_other_products": {"vectors": v2, "new_id_type": id_type},
        "create_products": {"columns": sql.SQL("id integer, name text")},
        "create_v2": create_v2,
        "create_v2_without_reference": create_v2,
        "create_vector_index": {"index": sql.Identifier("an_index"), "column": COLUMN},
        "delete_vectors_of_other_products": {"vectors": v2},
        "drop_foreign_key": foreign_key,
        "drop_vector_index": {"index": index},
        "drop_vectors": {"vectors": v2},
        "explain_own_neighbours": {"column": COLUMN},
        "own_neighbours": {"column": COLUMN},
        "upsert_vectors": {"column": COLUMN},
    }


# What makes room for a statement that a prepared shop has had already.
ROOM = {
    "create_schema": ("drop_bookkeeping",),
    "create_products": ("drop_everything",),
    "drop_products": ("drop_vectors_of_both",),
    **{
        name: (
            "drop_bookkeeping",
            "create_schema",
            "create_migrations",
            *(other for other in STATEMENTS if other.startswith("migration_") and other < name),
        )
        for name in STATEMENTS
        if name.startswith("migration_")
    },
}

# PostgreSQL analyses these when they are prepared; of any other it then only reads the grammar.
ANALYSED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "EXPLAIN")


@dataclass(frozen=True)
class Case:
    """A kind of shop: the type of its ids and the names of its tables."""

    id_type: str
    tables: tuple[str, str, str] = ("products", "product_embeddings", "product_embeddings_v2")


CASES = {
    **{id_type.value: Case(id_type.value) for id_type in IdType},
    "text in another collation": Case('text COLLATE "C"'),
    "renamed tables": Case(
        "bigint", ("Shop.Catalog Items", "Shop.Old Vectors", "Shop.New Vectors {v2}")
    ),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def shop(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: LocalServer,
    _shop_template: None,
) -> Iterator[Shop]:
    """A prepared shop of each kind, with one product and a v1."""
    case = CASES[request.param]
    name, v1, v2 = case.tables
    mapping = tmp_path_factory.mktemp("mapping") / "product_texts.sql"
    shops_own = queries.text("product_texts").replace("products", identifier(name).as_string(None))
    mapping.write_text(shops_own, encoding="utf-8")
    catalogue = CatalogueSettings(products=name, v1=v1, v2=v2, product_texts=mapping)
    with _cloned(server, SHOP_TEMPLATE) as database:
        url = server.url(database)
        with connect(url) as connection:
            if "." in name:
                connection.execute('CREATE SCHEMA "Shop"')
            create_products(connection, [], id_type=case.id_type, table=name)
            create_v1 = 'CREATE TABLE {} ("productId" {} PRIMARY KEY, embedding vector(4))'
            connection.execute(sql.SQL(create_v1).format(identifier(v1), sql.SQL(case.id_type)))
        with prepared_shop(url, settings_for(url, catalogue=catalogue)) as shop:
            shop.connection.execute(shop.queries.compose("create_incoming"), {})
            yield shop


def _foreign_key(shop: Shop) -> sql.Identifier:
    """The name of v2's foreign key."""
    row = shop.connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND contype = 'f'",
        [shop.queries.regclass("product_embeddings_v2")],
    ).fetchone()
    assert row
    return sql.Identifier(row[0])


def _code(text: str) -> str:
    """A statement without its comments, strings and names."""
    return re.sub(r"--[^\n]*|'[^']*'|\"[^\"]*\"", " ", text)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_file_begins_with_its_reason_and_holds_one_statement(name: str) -> None:
    text = queries.text(name)
    reason = text.splitlines()[0]
    assert re.fullmatch(r"-- \S.{8,}", reason), reason
    assert ";" not in _code(text).strip().rstrip(";")
    assert _code(text).strip(), "no statement"
    assert text.endswith("\n")


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_file_is_used_by_the_package_or_by_another_file(name: str) -> None:
    if name.startswith("migration_"):
        assert re.fullmatch(r"migration_\d{4}_\w+", name)
        return  # found by number: `prepare` runs each, as test_shop.py shows
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    named = re.compile(rf"[\"']{name}[\"']")
    included = any(f"{{{name}}}" in queries.text(other) for other in STATEMENTS)
    assert included or any(named.search(source) for source in sources)


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    numbers = [int(name.split("_")[1]) for name in STATEMENTS if name.startswith("migration_")]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_server_understands_a_statement(name: str, shop: Shop) -> None:
    statement = shop.queries.compose(name, **_literals(shop).get(name, {}))
    first_word = _code(queries.text(name)).split()[0]
    if first_word in ANALYSED:
        _prepare(shop, statement)
    elif "CONCURRENTLY" in queries.text(name):
        shop.connection.execute(statement, {})  # outside of any transaction
    else:
        with shop.connection.transaction(force_rollback=True):
            _make_room(shop, name)
            if first_word == "COPY":
                with shop.connection.cursor().copy(statement):
                    pass
            else:
                shop.connection.execute(statement, {})


def _prepare(shop: Shop, statement: sql.Composed) -> None:
    parameters: list[str] = []

    def numbered(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        if found[1] not in parameters:
            parameters.append(found[1])
        return f"${parameters.index(found[1]) + 1}"

    text = re.sub(r"%%|%\((\w+)\)s|%", numbered, statement.as_string(shop.connection.live))
    result = shop.connection.live.pgconn.prepare(b"", text.encode())
    assert result.status == ExecStatus.COMMAND_OK, f"{result.error_message.decode()}\n{text}"


def _make_room(shop: Shop, name: str) -> None:
    tables = {key: identifier(table) for key, table in shop.queries.tables.items()}
    for other in ROOM.get(name, ()):
        if other in STATEMENTS:
            shop.connection.execute(shop.queries.compose(other), {})
            continue
        dropped = [tables["product_embeddings"], tables["product_embeddings_v2"]]
        dropped += [tables["products"]] if other == "drop_everything" else []
        for table in dropped:
            shop.connection.execute(sql.SQL("DROP TABLE {}").format(table))


# The mapping


def _mapped(shop_url: str, tmp_path: Path, mapping: str) -> list[tuple[object, ...]]:
    """The aspect texts that the catalogue reads through a shop's own mapping."""
    file = tmp_path / "product_texts.sql"
    file.write_text(mapping, encoding="utf-8")
    settings = settings_for(shop_url, catalogue=CatalogueSettings(product_texts=file))
    with prepared_shop(shop_url, settings) as shop:
        rows = shop.connection.execute(
            sql.SQL("SELECT * FROM ({}) AS mapped ORDER BY 1, 2").format(
                sql.SQL(shop.queries.product_texts() + "\n")
            )
        ).fetchall()
        stale = shop.catalogue.stale_texts(EVERYTHING, settings.fingerprints)
        read = {(text.product_id, text.aspect.value): text.text for text in stale}
        assert all(read[id_, aspect] == text for id_, aspect, text in rows)
        return rows


PLAIN = "SELECT id AS product_id, 'usage' AS aspect, name AS text FROM products"


@pytest.mark.parametrize(
    "ending",
    [
        "", "\n", ";", ";\n", " ; ", ";;", "; -- done", ";\n-- done\n", "-- a note", " -- it's; ok",
        "; /* done;\n at last */\n", " WHERE name <> '-- ;'", " WHERE name <> 'it''s;';",
        " WHERE name <> $q$;'--$q$;", ' AS "a;b" ;',
    ],
)  # fmt: skip
def test_a_mapping_may_end_in_a_semicolon_or_in_a_comment(
    ending: str, database_url: str, tmp_path: Path
) -> None:
    with connect(database_url) as connection:
        create_products(connection, products(2))
    mapping = PLAIN.replace("FROM products", "FROM products" + ending)
    assert _mapped(database_url, tmp_path, mapping) == [
        (1, "usage", "Thing 1"),
        (2, "usage", "Thing 2"),
    ]


def test_percent_signs_braces_and_quotes_in_a_mapping_reach_the_server_as_they_are(
    database_url: str, tmp_path: Path
) -> None:
    mapping = """
        -- 100% of {products}, %(first)s and it's fine
        SELECT id AS product_id, 'usage' AS aspect,
            '100% {id_type} %(first)s %s products; ' || (id % 2) || E'\\n' || name AS text
        FROM products WHERE name LIKE 'Thing%'
    """
    with connect(database_url) as connection:
        create_products(connection, products(1))
    assert _mapped(database_url, tmp_path, mapping) == [
        (1, "usage", "100% {id_type} %(first)s %s products; 1\nThing 1")
    ]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_mapping_that_cannot_be_read_is_named_with_the_setting(
    content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "shop.sql"
    if content:
        file.write_bytes(content)
    with pytest.raises(MappingError) as refused:
        Queries(tables={}, product_texts=file).compose("stale_texts")
    assert str(file) in str(refused.value)
    assert "catalogue.product_texts" in str(refused.value)


# Composing


def test_a_name_with_a_quote_in_it_is_a_name_and_nothing_else(database_url: str) -> None:
    evil = 'products"; DROP TABLE products; --'
    with connect(database_url) as connection:
        create_products(connection, products(3), table="products")
        create_products(connection, products(2), table=evil)
        statement = Queries(
            tables={"products": evil}, literals={"id_type": sql.SQL("integer")}
        ).compose("products_in_range")
        row = connection.execute(statement, {"first": None, "end": None}).fetchone()
        assert row == (2,)
        assert connection.execute("SELECT count(*) FROM products").fetchone() == (3,)


def test_only_whole_table_names_are_replaced_and_none_in_strings_or_comments() -> None:
    composed = Queries(
        tables={"products": "Shop.Items", "product_embeddings_v2": "new"},
        literals={"id_type": sql.SQL("integer"), "collation": sql.SQL("")},
    )
    text = composed.compose("delete_orphan_vectors").as_string(None)
    assert 'DELETE FROM "new"' in text
    assert 'FROM "Shop"."Items"' in text
    failures = composed.compose("delete_orphan_failures").as_string(None)
    assert "ingestion.failed_products" in failures


def test_an_unfilled_brace_is_an_error_and_not_sql() -> None:
    with pytest.raises(KeyError, match="column"):
        Queries(tables={}).compose("upsert_vectors")


def test_a_statement_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        queries.text("no_such_statement")


def test_the_server_refuses_what_is_not_a_statement(database_url: str) -> None:
    """That the test of all statements can fail."""
    with connect(database_url) as connection:
        result = connection.pgconn.prepare(b"", b"SELECT nothing FROM nowhere")
        assert result.status == ExecStatus.FATAL_ERROR
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT nothing FROM nowhere")
