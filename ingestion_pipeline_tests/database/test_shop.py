"""Opening and preparing a shop: what is made, what is left alone, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import pytest
from psycopg.conninfo import make_conninfo

from ingestion_pipeline.database import queries
from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.errors import (
    DatabaseRightsError,
    DatabaseUnavailableError,
    InputError,
    OutageError,
)
from ingestion_pipeline.ranges import IdType
from ingestion_pipeline.settings import CatalogueSettings, Settings
from ingestion_pipeline_tests.shops import (
    create_products,
    prepared_shop,
    products,
    run,
    settings_for,
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url) as connection:
        yield connection


def _rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


V2_COLUMNS = (
    "SELECT attname, format_type(atttypid, atttypmod), collname FROM pg_attribute "
    "LEFT JOIN pg_collation ON pg_collation.oid = attcollation "
    "WHERE attrelid = 'product_embeddings_v2'::regclass AND attnum > 0 ORDER BY attnum"
)


def test_without_a_database_url_the_message_says_where_to_get_one() -> None:
    settings = Settings(home=Path("/nonexistent"), model_cache=Path("/nonexistent"))
    with pytest.raises(DatabaseUnavailableError, match="ingest env"), open_shop(settings):
        pass


def test_a_database_without_products_names_the_table_and_the_setting(database_url: str) -> None:
    catalogue = CatalogueSettings(products="shop.items")
    with (
        pytest.raises(InputError, match=r"shop\.items") as refused,
        open_shop(settings_for(database_url, catalogue=catalogue)),
    ):
        pass
    assert "catalogue.products" in str(refused.value)


def test_a_products_table_without_an_id_is_refused(
    database_url: str, connection: Connection
) -> None:
    connection.execute("CREATE TABLE products (number integer, name text)")
    with pytest.raises(InputError, match="column id"), open_shop(settings_for(database_url)):
        pass


@pytest.mark.parametrize("id_type", ["numeric", "date", "character(8)", "integer[]", "real"])
def test_an_id_of_a_type_that_cannot_be_kept_in_order_or_apart_is_refused_by_its_name(
    id_type: str, database_url: str, connection: Connection
) -> None:
    connection.execute(f"CREATE TABLE products (id {id_type} PRIMARY KEY, name text)")
    with pytest.raises(InputError, match=r"products\.id") as refused:  # noqa: SIM117
        with open_shop(settings_for(database_url)):
            pass
    assert "integer, bigint, uuid or text" in str(refused.value)


@pytest.mark.parametrize(
    ("id_type", "kind", "column"),
    [
        ("smallint", IdType.INTEGER, ("smallint", None)),
        ("integer", IdType.INTEGER, ("integer", None)),
        ("bigint", IdType.BIGINT, ("bigint", None)),
        ("uuid", IdType.UUID, ("uuid", None)),
        ("text", IdType.TEXT, ("text", "default")),
        ("varchar(25)", IdType.TEXT, ("character varying(25)", "default")),
        ('text COLLATE "C"', IdType.TEXT, ("text", "C")),
    ],
)
def test_v2_is_made_with_the_type_and_collation_of_the_products_id_and_a_cascade(
    id_type: str,
    kind: IdType,
    column: tuple[str, str | None],
    database_url: str,
    connection: Connection,
) -> None:
    create_products(connection, [], id_type=id_type)
    with prepared_shop(database_url) as shop:
        assert shop.id_type is kind
        assert shop.is_prepared()
    assert _rows(connection, V2_COLUMNS) == [
        ("productId", *column),
        ("description_embedding", "vector(8)", None),
        ("usage_embedding", "vector(8)", None),
        ("feature_embedding", "vector(4)", None),
    ]
    [(definition,)] = _rows(
        connection, "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'"
    )
    assert definition == 'FOREIGN KEY ("productId") REFERENCES products(id) ON DELETE CASCADE'


def test_the_bookkeeping_copies_the_collation_of_the_id_so_that_its_order_is_the_same(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, [], id_type='text COLLATE "C"')
    with prepared_shop(database_url):
        pass
    assert _rows(
        connection,
        "SELECT DISTINCT collname FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid AND relkind = 'r' "
        "JOIN pg_collation ON pg_collation.oid = attcollation "
        "WHERE relnamespace = 'ingestion'::regnamespace "
        "AND attname IN ('product_id', 'first_id', 'end_id')",
    ) == [("C",)]


def test_preparing_runs_every_migration_once_and_a_second_time_changes_nothing(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, products(2))
    with prepared_shop(database_url) as shop:
        migrations = _rows(connection, "SELECT name FROM ingestion.migrations ORDER BY name")
        assert [name for (name,) in migrations] == [
            name for name in queries.names() if name.startswith("migration_")
        ]
        run(shop)
        tables = "SELECT oid, relname FROM pg_class WHERE relkind IN ('r', 'i') ORDER BY oid"
        before = _rows(connection, tables)
        shop.prepare()
        assert _rows(connection, tables) == before
        assert _rows(connection, "SELECT count(*) FROM product_embeddings_v2") == [(2,)]


def test_preparing_at_the_same_time_makes_everything_once(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, [])
    errors: list[BaseException] = []

    def prepare() -> None:
        try:
            with prepared_shop(database_url):
                pass
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            errors.append(error)

    workers = [threading.Thread(target=prepare) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert errors == []
    migrations = [name for name in queries.names() if name.startswith("migration_")]
    assert _rows(connection, "SELECT count(*) FROM ingestion.migrations") == [(len(migrations),)]


def test_a_shop_is_prepared_only_when_v2_and_the_bookkeeping_are_there(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, [])
    with open_shop(settings_for(database_url)) as shop:
        assert not shop.is_prepared()
        shop.prepare()
        assert shop.is_prepared()
        connection.execute("DROP TABLE product_embeddings_v2")
        assert not shop.is_prepared()


def test_a_preparation_that_fails_leaves_nothing_behind(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, [])
    connection.execute("DROP EXTENSION vector")
    with (
        open_shop(settings_for(database_url)) as shop,
        pytest.raises(OutageError, match='type "vector" does not exist'),
    ):
        shop.prepare()
    assert _rows(connection, "SELECT to_regnamespace('ingestion')") == [(None,)]


def test_v2_that_is_there_is_not_altered(database_url: str, connection: Connection) -> None:
    create_products(connection, [])
    connection.execute(
        'CREATE TABLE product_embeddings_v2 ("productId" integer PRIMARY KEY, note text, '
        "description_embedding vector(8), usage_embedding vector(8), feature_embedding vector(4))"
    )
    before = _rows(connection, V2_COLUMNS)
    with prepared_shop(database_url):
        pass
    assert _rows(connection, V2_COLUMNS) == before
    assert _rows(connection, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(0,)]


def test_products_without_a_unique_id_get_a_v2_without_a_foreign_key(
    database_url: str, connection: Connection
) -> None:
    connection.execute("CREATE TABLE products (id integer, name text)")
    with prepared_shop(database_url):
        pass
    assert _rows(connection, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(0,)]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE products SET UNLOGGED",
        "ALTER TABLE products DROP CONSTRAINT products_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
    ],
)
def test_products_that_no_foreign_key_can_refer_to_get_a_v2_without_one(
    statement: LiteralString, database_url: str, connection: Connection
) -> None:
    create_products(connection, products(2))
    connection.execute(statement)
    with prepared_shop(database_url) as shop:
        assert run(shop).result.embedded == 6
        connection.execute("DELETE FROM products WHERE id = 1")
        assert shop.embeddings.delete_orphans() == 1
    assert _rows(connection, "SELECT FROM pg_constraint WHERE contype = 'f'") == []


def test_a_role_that_may_not_create_is_told_so(database_url: str, connection: Connection) -> None:
    create_products(connection, [])
    connection.execute("CREATE ROLE onlooker LOGIN")
    try:
        connection.execute("GRANT SELECT ON products TO onlooker")
        settings = settings_for(make_conninfo(database_url, user="onlooker"))
        with (
            open_shop(settings) as shop,
            pytest.raises(DatabaseRightsError, match="permission denied"),
        ):
            shop.prepare()
    finally:
        connection.execute("DROP OWNED BY onlooker")
        connection.execute("DROP ROLE onlooker")


def test_a_ledger_is_never_taken_for_a_description_of_another_v2(
    database_url: str, connection: Connection
) -> None:
    create_products(connection, products(3))
    with prepared_shop(database_url):
        pass
    other = settings_for(database_url, catalogue=CatalogueSettings(v2="another_v2"))

    with (
        open_shop(other) as shop,
        pytest.raises(InputError, match=r"describes .*_v2, and .*another"),
    ):
        shop.prepare()

    connection.execute("DROP TABLE IF EXISTS another_v2")
    connection.execute("ALTER TABLE product_embeddings_v2 RENAME TO another_v2")
    with open_shop(other) as shop:
        shop.prepare()
        assert shop.is_prepared()
