"""Shops whose tables are not as this project would make them.

What can be worked with is worked with, and keeps what it held; what cannot is refused before a
text is paid for or a row written, with a reason that names it, and works once it is mended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import dagster as dg
import pytest

from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.inspection import database_facts
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.errors import (
    DatabaseUnavailableError,
    OutageError,
    PreflightError,
)
from ingestion_pipeline.preflight import Verdict, database_connection
from ingestion_pipeline.settings import RangeSettings, Settings, WorkSettings
from ingestion_pipeline.verification.checks import CheckResult, run_checks
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault
from ingestion_pipeline_tests.orchestration.conftest import SmallShop
from ingestion_pipeline_tests.shops import (
    KnownEmbedder,
    create_products,
    embedders_of,
    prepared_shop,
    products,
    run,
    settings_for,
)

V1_CHECK = "v1_against_v2"


@dataclass
class Tables:
    """The tables of one shop, and what a run over them asked of the models."""

    settings: Settings
    connection: Connection
    embedders: dict[str, KnownEmbedder] = field(default_factory=dict)

    def execute(self, *statements: LiteralString) -> None:
        """Run statements of the shop's own."""
        for statement in statements:
            self.connection.execute(statement)

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.connection.execute(query).fetchall()

    def verdict(self) -> Verdict:
        """What preflight says of these tables."""
        return database_connection(database_facts(self.settings), self.settings)

    def ingest(self) -> list[CheckResult]:
        """Every step of a run that touches the tables, in the run's order."""
        self.embedders = embedders_of(self.settings)
        with prepared_shop(self._url, self.settings) as shop:
            shop.embeddings.delete_orphans()
            for _, range_ in shop.embeddings.plan_ranges(3).ranges:
                run(shop, range_, embedders=self.embedders)
            shop.embeddings.create_vector_indexes()
            return run_checks(shop)

    @property
    def texts(self) -> list[str]:
        """What was sent to the models by the last run."""
        return [text for embedder in self.embedders.values() for text in embedder.texts]

    @property
    def _url(self) -> str:
        assert self.settings.database_url
        return self.settings.database_url.get_secret_value()


@pytest.fixture
def tables(database_url: str) -> Iterator[Tables]:
    """Seven products; neither v1 nor v2 are there yet."""
    with connect(database_url) as connection:
        create_products(connection, products(7))
        yield Tables(settings_for(database_url), connection)


def _assert_recovered(tables: Tables, fault: Fault) -> None:
    """Preflight has nothing against a run, and no check has anything against what comes of it."""
    verdict = tables.verdict()
    assert not verdict.blocking, verdict.lines()
    started = time.monotonic()
    checks = tables.ingest()
    seconds = time.monotonic() - started
    assert [check for check in checks if check.status != "pass" and check.name != V1_CHECK] == []
    with open_shop(tables.settings) as shop:
        sent = {name: embedder.texts for name, embedder in tables.embedders.items()}
        fault.recovered(audit(shop, sent), seconds=seconds)
        assert len(shop.embeddings.vector_indexes()) == 3
    counts = "SELECT (SELECT count(*) FROM product_embeddings_v2), (SELECT count(*) FROM products)"
    [(vectors, of_products)] = tables.rows(counts)
    assert vectors == of_products
    tables.ingest()
    assert tables.texts == []


# What is refused


@dataclass(frozen=True)
class Refusal:
    """Tables that cannot be worked with, what must be said of them, and what mends them."""

    made_by: tuple[LiteralString, ...]
    words: tuple[str, ...]
    mended_by: tuple[LiteralString, ...]


# A v2 as this project would make it, but for the key.
V2: LiteralString = (
    "CREATE TABLE product_embeddings_v2 (description_embedding vector(8), "
    "usage_embedding vector(8), feature_embedding vector(4), "
)
KEYED_V2: LiteralString = V2 + '"productId" integer PRIMARY KEY)'
ALTER: LiteralString = "ALTER TABLE public.product_embeddings_v2 "
ADD_KEY: LiteralString = ALTER + 'ADD PRIMARY KEY ("productId");'
AWAY: LiteralString = "ALTER TABLE products RENAME TO articles"
ASIDE: LiteralString = ALTER + "RENAME TO vectors"

REFUSALS: dict[str, Refusal] = {
    "v2 has a column that must be filled": Refusal(
        (
            KEYED_V2,
            ALTER + "ADD \"shopId\" integer NOT NULL, ADD note text NOT NULL DEFAULT ''",
        ),
        (
            "product_embeddings_v2.shopId needs a value in every row",
            ALTER + 'ALTER COLUMN "shopId" DROP NOT NULL;',
        ),
        (ALTER + 'ALTER COLUMN "shopId" DROP NOT NULL;',),
    ),
    "v2 has vectors that must be filled": Refusal(
        (KEYED_V2, ALTER + "ALTER usage_embedding SET NOT NULL"),
        (
            "usage_embedding may not be NULL",
            ALTER + "ALTER COLUMN usage_embedding DROP NOT NULL;",
        ),
        (ALTER + "ALTER COLUMN usage_embedding DROP NOT NULL;",),
    ),
    "v2 has other dimensions": Refusal(
        (
            KEYED_V2,
            ALTER + "ALTER description_embedding TYPE vector(7)",
            ALTER + "ALTER feature_embedding TYPE vector(8)",
            "INSERT INTO product_embeddings_v2 VALUES ('[1,2,3,4,5,6,7]', NULL, NULL, 1)",
        ),
        (
            "description_embedding has 7 dimensions, and the settings say 8",
            "feature_embedding has 8 dimensions, and the settings say 4",
        ),
        ("DROP TABLE product_embeddings_v2",),
    ),
    "v2 has half vectors": Refusal(
        (KEYED_V2, ALTER + "ALTER description_embedding TYPE halfvec(8)"),
        ("description_embedding is halfvec, and vector(8) is expected",),
        (ALTER + "ALTER description_embedding TYPE vector(8)",),
    ),
    "v2 lacks a column": Refusal(
        (KEYED_V2, ALTER + "DROP feature_embedding"),
        ("no column feature_embedding", ALTER + "ADD COLUMN feature_embedding vector(4);"),
        (ALTER + "ADD COLUMN feature_embedding vector(4);",),
    ),
    "v2 is a view": Refusal(
        (
            KEYED_V2,
            "INSERT INTO product_embeddings_v2 VALUES (NULL, NULL, NULL, 1)",
            ASIDE,
            "CREATE VIEW product_embeddings_v2 AS SELECT * FROM vectors",
        ),
        ("product_embeddings_v2 is not a table",),
        ("DROP VIEW product_embeddings_v2",),
    ),
    "v2 is a materialized view": Refusal(
        (
            KEYED_V2,
            ASIDE,
            "CREATE MATERIALIZED VIEW product_embeddings_v2 AS SELECT * FROM vectors",
        ),
        ("product_embeddings_v2 is not a table",),
        ("DROP MATERIALIZED VIEW product_embeddings_v2",),
    ),
    "v2 has no key": Refusal(
        (V2 + '"productId" integer)',), ('"productId" is not unique', ADD_KEY), (ADD_KEY,)
    ),
    "v2 has a key over more than the product": Refusal(
        (V2 + '"productId" integer, shop integer DEFAULT 1, UNIQUE ("productId", shop))',),
        ('"productId" is not unique', ADD_KEY),
        (ADD_KEY,),
    ),
    "v2 has a key over some rows": Refusal(
        (
            V2 + '"productId" integer)',
            (
                'CREATE UNIQUE INDEX ON product_embeddings_v2 ("productId") '
                "WHERE usage_embedding IS NOT NULL"
            ),
        ),
        ('"productId" is not unique', ADD_KEY),
        (ADD_KEY,),
    ),
    "v2 has a key that is checked later": Refusal(
        (V2 + '"productId" integer CONSTRAINT later UNIQUE DEFERRABLE)',),
        ('"productId" is not unique',),
        (ALTER + "DROP CONSTRAINT later", ADD_KEY),
    ),
    "v2 has ids of another type": Refusal(
        (V2 + '"productId" text PRIMARY KEY)',),
        ('"productId" is text and products.id is integer',),
        (ALTER + 'ALTER "productId" TYPE integer USING "productId"::integer',),
    ),
    "products is a view that repeats an id": Refusal(
        (
            AWAY,
            (
                "CREATE VIEW products AS "
                "SELECT * FROM articles UNION ALL SELECT * FROM articles WHERE id = 3"
            ),
        ),
        ("1 rows of products repeat an id",),
        ("CREATE OR REPLACE VIEW products AS SELECT * FROM articles",),
    ),
    "products has no name": Refusal(
        ("ALTER TABLE products RENAME name TO title",),
        ("products has no column name",),
        ("ALTER TABLE products RENAME title TO name",),
    ),
    "products has an id of another kind": Refusal(
        ("ALTER TABLE products ALTER id TYPE numeric",),
        ("products.id is numeric",),
        ("ALTER TABLE products ALTER id TYPE integer",),
    ),
    "products has an id of the shop's own type": Refusal(
        ("CREATE DOMAIN sku AS integer", "ALTER TABLE products ALTER id TYPE sku"),
        ("products.id is sku",),
        ("ALTER TABLE products ALTER id TYPE integer",),
    ),
}


def _all_there_is(tables: Tables) -> list[tuple[Any, ...]]:
    """Every table and view, and every row of v2: whatever a run could have left."""
    names = tables.rows(
        "SELECT oid::regclass::text, relkind FROM pg_class "
        "WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace IN "
        "(SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'ingestion')) ORDER BY 1"
    )
    if ("product_embeddings_v2",) not in [name[:1] for name in names]:
        return names
    return names + tables.rows("SELECT v2::text FROM product_embeddings_v2 AS v2")


def _reasons(verdict: Verdict) -> str:
    reasons = [reason for reason in verdict.reasons if reason.severity == "error"]
    return "\n".join(f"{reason.message} → {reason.remedy}" for reason in reasons)


@pytest.mark.fault("tables that cannot be worked with")
@pytest.mark.parametrize("case", REFUSALS)
def test_tables_that_cannot_be_worked_with_are_refused_by_name_and_work_once_they_are_mended(
    case: str, tables: Tables, fault: Fault
) -> None:
    refusal = REFUSALS[case]
    tables.execute(*refusal.made_by)
    before = _all_there_is(tables)
    verdict = tables.verdict()
    assert verdict.blocking
    for words in refusal.words:
        assert words in _reasons(verdict)
    assert _all_there_is(tables) == before

    tables.execute(*refusal.mended_by)
    _assert_recovered(tables, fault)


@pytest.mark.fault("a view in the place of v2, in a whole run")
def test_the_main_job_says_no_to_a_view_in_the_place_of_v2_and_neither_pays_nor_writes(
    database_url: str, dagster_instance: dg.DagsterInstance, fault: Fault
) -> None:
    options = _few_products_a_range(settings_for(database_url))
    with connect(database_url) as connection:
        create_products(connection, products(7))
        tables = Tables(options, connection)
        shop = SmallShop(options, connection, dagster_instance)
        tables.execute(*REFUSALS["v2 is a view"].made_by)
        before = _all_there_is(tables)
        with pytest.raises(PreflightError, match="product_embeddings_v2 is not a table"):
            shop.ingest()
        assert shop.models.texts == []
        assert _all_there_is(tables) == before
        tables.execute(*REFUSALS["v2 is a view"].mended_by)
        _assert_recovered(tables, fault)


def _few_products_a_range(options: Settings) -> Settings:
    return options.model_copy(
        update={
            "ranges": RangeSettings(products_per_range=3),
            "work": WorkSettings(tokens_per_batch=16),
        }
    )


# What is worked with


ADOPTIONS: dict[str, tuple[LiteralString, ...]] = {
    "more columns": (
        V2 + 'note text, "productId" integer PRIMARY KEY)',
        ALTER + "ADD made_at timestamptz NOT NULL DEFAULT now()",
        ALTER + "ADD weight integer NOT NULL DEFAULT 7",
        ALTER + "ADD twice integer GENERATED ALWAYS AS (weight * 2) STORED",
        ALTER + "ADD number bigint GENERATED ALWAYS AS IDENTITY",
    ),
    "no foreign key": (KEYED_V2,),
    "a unique index for a key": (
        V2 + '"productId" integer)',
        'CREATE UNIQUE INDEX ON product_embeddings_v2 ("productId") INCLUDE (feature_embedding)',
    ),
    "a key of its own": (
        V2 + '"productId" integer UNIQUE NOT NULL)',
        ALTER + "ADD id uuid PRIMARY KEY DEFAULT gen_random_uuid()",
    ),
    "ids of a wider type": (V2 + '"productId" bigint PRIMARY KEY)',),
    "ids of a narrower type": (V2 + '"productId" smallint PRIMARY KEY)',),
    "a foreign key that is checked later": (
        V2 + '"productId" integer PRIMARY KEY REFERENCES products DEFERRABLE INITIALLY DEFERRED)',
    ),
    "an index of its own": (
        KEYED_V2,
        "CREATE INDEX mine ON product_embeddings_v2 USING hnsw (usage_embedding vector_cosine_ops)",
    ),
    "a trigger of its own": (
        KEYED_V2,
        "CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        (
            "CREATE TRIGGER touched BEFORE INSERT OR UPDATE ON product_embeddings_v2 "
            "FOR EACH ROW EXECUTE FUNCTION touched()"
        ),
    ),
    "no log": (KEYED_V2, ALTER + "SET UNLOGGED"),
}


@pytest.mark.fault("a v2 that somebody else made")
@pytest.mark.parametrize("kind", ADOPTIONS)
def test_a_v2_that_is_there_is_adopted_and_not_altered(
    kind: str, tables: Tables, fault: Fault
) -> None:
    tables.execute(*ADOPTIONS[kind])
    columns: LiteralString = (
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
        "WHERE attrelid = 'product_embeddings_v2'::regclass AND attnum > 0 ORDER BY attnum"
    )
    keys: LiteralString = (
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid = 'product_embeddings_v2'::regclass ORDER BY 1"
    )
    before = tables.rows(columns), tables.rows(keys)
    _assert_recovered(tables, fault)
    assert (tables.rows(columns), tables.rows(keys)) == before


@pytest.mark.fault("a v2 with columns of the shop's own")
def test_what_the_shop_keeps_in_columns_of_its_own_stays(tables: Tables, fault: Fault) -> None:
    tables.execute(*ADOPTIONS["more columns"])
    _assert_recovered(tables, fault)
    tables.execute(
        "UPDATE product_embeddings_v2 SET note = 'seen', weight = 3 WHERE \"productId\" = 2",
        "UPDATE products SET usage = 'is used anew' WHERE id = 2",
    )
    tables.ingest()
    assert tables.texts == ["Thing 2. is used anew"]
    _assert_recovered(tables, fault)
    assert tables.rows(
        'SELECT "productId", note, weight, twice FROM product_embeddings_v2 '
        "WHERE weight <> 7 OR note IS NOT NULL"
    ) == [(2, "seen", 3, 6)]


@pytest.mark.fault("a v2 with vectors that nobody knows the origin of")
def test_vectors_that_were_there_before_are_made_anew(tables: Tables, fault: Fault) -> None:
    tables.execute(
        KEYED_V2,
        "INSERT INTO product_embeddings_v2 "
        "SELECT '[1,2,3,4,5,6,7,8]', NULL, '[0,0,0,0]', id FROM generate_series(1, 9) AS id",
    )
    _assert_recovered(tables, fault)


@pytest.mark.fault("a v2 without a foreign key, and products that are gone")
@pytest.mark.parametrize("kind", ["no foreign key", "a unique index for a key", "no log"])
def test_vectors_of_gone_products_are_removed_by_the_run_where_no_key_takes_them_along(
    kind: str, tables: Tables, fault: Fault
) -> None:
    tables.execute(*ADOPTIONS[kind])
    _assert_recovered(tables, fault)
    tables.execute("DELETE FROM products WHERE id IN (1, 4, 7)")
    with open_shop(tables.settings) as shop:
        assert audit(shop).orphans == 3
    _assert_recovered(tables, fault)
    assert tables.rows("SELECT DISTINCT product_id FROM ingestion.embedding_ledger ORDER BY 1") == [
        (2,), (3,), (5,), (6,),
    ]  # fmt: skip


PRODUCTS: dict[str, tuple[LiteralString, ...]] = {
    "a view": (AWAY, "CREATE VIEW products AS SELECT * FROM articles WHERE name <> ''"),
    "a materialized view": (AWAY, "CREATE MATERIALIZED VIEW products AS SELECT * FROM articles"),
    "a view that casts its id": (
        AWAY,
        (
            "CREATE VIEW products AS "
            "SELECT id::text AS id, name, description, usage, features FROM articles"
        ),
    ),
    "partitions": (
        AWAY,
        "CREATE TABLE products (LIKE articles, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF products FOR VALUES FROM (MINVALUE) TO (4)",
        "CREATE TABLE high PARTITION OF products FOR VALUES FROM (4) TO (MAXVALUE)",
        "INSERT INTO products SELECT * FROM articles",
    ),
    "a table without a key": (AWAY, "CREATE TABLE products AS SELECT * FROM articles"),
}


@pytest.mark.fault("products that are no plain table")
@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_of_every_make_are_ingested_and_those_that_go_leave_no_orphan(
    kind: str, tables: Tables, fault: Fault
) -> None:
    tables.execute(*PRODUCTS[kind])
    _assert_recovered(tables, fault)
    if "view" in kind:
        tables.execute("DELETE FROM articles WHERE id IN (2, 7)")
    else:
        tables.execute("DELETE FROM products WHERE id IN (2, 7)")
    if kind == "a materialized view":
        tables.execute("REFRESH MATERIALIZED VIEW products")
    tables.ingest()
    assert tables.texts == []
    assert tables.rows("SELECT count(*) FROM product_embeddings_v2") == [(5,)]
    _assert_recovered(tables, fault)


@pytest.mark.fault("products that are a view, in a whole run")
def test_the_main_job_removes_what_a_view_of_products_shows_no_more(
    database_url: str, dagster_instance: dg.DagsterInstance, fault: Fault
) -> None:
    options = _few_products_a_range(settings_for(database_url))
    with connect(database_url) as connection:
        create_products(connection, products(7))
        tables = Tables(options, connection)
        tables.execute(*PRODUCTS["a view"])
        shop = SmallShop(options, connection, dagster_instance)
        assert shop.ingest().failed_ranges == []
        tables.execute("DELETE FROM articles WHERE id IN (2, 7)")
        sent = shop.models.texts
        outcome = shop.ingest()
        assert [check.name for check in outcome.checks if check.status == "fail"] == []
        assert shop.models.texts == sent
        assert shop.value("SELECT count(*) FROM product_embeddings_v2") == 5
        _assert_recovered(tables, fault)


V1: dict[str, tuple[str, tuple[LiteralString, ...]]] = {
    "missing": ("unknown", ()),
    "a table": ("pass", ("CREATE TABLE product_embeddings AS SELECT id FROM products",)),
    "a view": (
        "pass",
        (
            "CREATE TABLE old AS SELECT id FROM products",
            "CREATE VIEW product_embeddings AS SELECT * FROM old",
        ),
    ),
    "without a row": ("pass", ("CREATE TABLE product_embeddings (id integer)",)),
    "larger than the catalogue": (
        "warn",
        ("CREATE TABLE product_embeddings AS SELECT generate_series(1, 9) AS id",),
    ),
    "a view that breaks": (
        "unknown",
        ("CREATE VIEW product_embeddings AS SELECT id FROM products WHERE id / (id - id) > 0",),
    ),
}


@pytest.mark.fault("a v1 that is missing, or is no table")
@pytest.mark.parametrize("kind", V1)
def test_v1_of_every_make_is_counted_or_said_not_to_be_there_and_changes_nothing_else(
    kind: str, tables: Tables, fault: Fault
) -> None:
    status, made_by = V1[kind]
    tables.execute(*made_by)
    verdict = tables.verdict()
    assert not verdict.blocking
    assert any("no table product_embeddings (v1)" in line for line in verdict.lines()) is (
        kind == "missing"
    )
    started = time.monotonic()
    checks = {check.name: check.status for check in tables.ingest()}
    seconds = time.monotonic() - started
    assert checks.pop(V1_CHECK) == status
    assert set(checks.values()) == {"pass"}
    with open_shop(tables.settings) as shop:
        fault.recovered(audit(shop), seconds=seconds)


# What refuses rows


@pytest.mark.fault("a trigger of the shop that refuses rows of v2")
@pytest.mark.parametrize("code", ["P0001", "23514", "22000", "54000", "55000", "42883", "XX000"])
def test_a_trigger_that_refuses_rows_ends_the_run_without_waiting_and_blames_no_line_or_product(
    code: str, tables: Tables, fault: Fault
) -> None:
    tables.execute(
        KEYED_V2,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'not in our shop' USING ERRCODE = TG_ARGV[0]; END $$",
    )
    trigger = (
        "CREATE TRIGGER refuse BEFORE INSERT ON product_embeddings_v2 "
        f"FOR EACH ROW WHEN (NEW.\"productId\" = 5) EXECUTE FUNCTION refuse('{code}')"
    )
    tables.connection.execute(trigger.encode())
    with pytest.raises(OutageError, match="not in our shop") as stopped:
        tables.ingest()
    assert not isinstance(stopped.value, DatabaseUnavailableError)
    assert "ended the session" not in str(stopped.value)
    assert tables.rows("SELECT count(*) FROM ingestion.failed_products") == [(0,)]
    assert tables.rows("SELECT count(*) FROM ingestion.leases") == [(0,)]
    [(kept,)] = tables.rows("SELECT count(*) FROM product_embeddings_v2")
    assert kept == 3
    tables.execute("DROP TRIGGER refuse ON product_embeddings_v2")
    _assert_recovered(tables, fault)


@pytest.mark.fault("products that are a materialized view without data")
def test_a_materialized_view_without_data_is_no_lost_connection(
    tables: Tables, fault: Fault
) -> None:
    tables.execute(AWAY, "CREATE MATERIALIZED VIEW products AS SELECT * FROM articles WITH NO DATA")
    try:
        said = _reasons(tables.verdict())
    except OutageError as error:  # and no transient one, such as a lost connection
        said = str(error)
    assert "has not been populated" in said
    tables.execute("REFRESH MATERIALIZED VIEW products")
    _assert_recovered(tables, fault)
