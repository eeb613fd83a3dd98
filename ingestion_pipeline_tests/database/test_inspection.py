"""What preflight sees of real databases, fit and unfit, and what it tells a DBA to do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shutil import disk_usage

import psycopg
import pytest
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import inspection
from ingestion_pipeline.database.connection import Connection, connect
from ingestion_pipeline.database.inspection import (
    count_facts,
    database_facts,
    disk_facts,
    inspect,
)
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.preflight import Verdict, database_connection
from ingestion_pipeline.ranges import IdType
from ingestion_pipeline.settings import DiskSettings, Settings
from ingestion_pipeline_tests.database.small_shop import (
    create_products,
    create_v1,
    settings_for,
    small_shop,
)

_numbers = count(1)


@pytest.fixture
def role(server: LocalServer) -> Iterator[str]:
    """A role that may do nothing; it goes after the database in which it was granted something."""
    name = f"Clerk {next(_numbers)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(identifier))
        yield name
        connection.execute(sql.SQL("DROP ROLE {}").format(identifier))


@pytest.fixture
def connection(role: str, database_url: str) -> Iterator[Connection]:
    """The superuser's connection to a shop with products and v1, but no v2 yet."""
    del role  # named first, so that it outlives the database
    with connect(database_url) as connection:
        create_products(connection)
        create_v1(connection)
        yield connection


def verdict_on(connection: Connection, settings: Settings) -> Verdict:
    return database_connection(inspect(connection, settings), settings)


def messages(verdict: Verdict, severity: str = "error") -> str:
    return "\n".join(
        f"{reason.message} → {reason.remedy}"
        for reason in verdict.reasons
        if reason.severity == severity
    )


def mapped(tmp_path: Path, database_url: str, statement: str) -> Settings:
    file = tmp_path / "product_texts.sql"
    file.write_text(statement, encoding="utf-8")
    return settings_for(database_url, product_texts=file)


def test_a_shop_that_is_fit_passes_before_and_after_v2_is_made(
    connection: Connection, database_url: str
) -> None:
    settings = settings_for(database_url)

    before = verdict_on(connection, settings)
    with open_shop(settings) as shop:
        shop.prepare()
    after = verdict_on(connection, settings)

    assert before.lines()[1:] == after.lines()[1:] == []
    assert before.status == after.status == "pass"
    assert (before.facts["v2"], after.facts["v2"]) == (False, True)
    assert after.facts["product_id_type"] == "integer"


def test_no_server_is_a_reason_that_holds_no_password() -> None:
    settings = settings_for("postgresql://clerk:s3cret@127.0.0.1:1/shop")

    verdict = database_connection(database_facts(settings), settings)

    assert verdict.status == "fail"
    assert "127.0.0.1" in messages(verdict)
    assert "s3cret" not in messages(verdict)


def test_facts_are_gathered_over_a_connection_of_its_own(database_url: str) -> None:
    facts = database_facts(settings_for(database_url))

    assert facts.server is not None
    assert facts.server.vector_version == facts.server.vector_available
    assert facts.server.version_number >= 140_000
    assert facts.products is None


def test_a_missing_extension_is_named_with_the_statement_that_makes_it(
    connection: Connection, database_url: str
) -> None:
    connection.execute("DROP EXTENSION vector CASCADE")
    settings = settings_for(database_url)

    verdict = verdict_on(connection, settings)
    assert "CREATE EXTENSION vector;" in messages(verdict)
    assert "apt install" not in messages(verdict)

    connection.execute("CREATE EXTENSION vector")
    assert verdict_on(connection, settings).status == "pass"


def test_an_extension_that_is_too_old_is_named_with_the_statement_that_updates_it(
    connection: Connection, database_url: str
) -> None:
    connection.execute("UPDATE pg_extension SET extversion = '0.8.3' WHERE extname = 'vector'")

    verdict = verdict_on(connection, settings_for(database_url))

    assert "pgvector is 0.8.3" in messages(verdict)
    assert "ALTER EXTENSION vector UPDATE;" in messages(verdict)


def test_an_extension_out_of_sight_is_named_with_the_schema_it_is_in(
    connection: Connection, database_url: str
) -> None:
    connection.execute("CREATE SCHEMA tools")
    connection.execute("ALTER EXTENSION vector SET SCHEMA tools")

    verdict = verdict_on(connection, settings_for(database_url))

    assert "is in schema tools" in messages(verdict)
    assert "search_path" in messages(verdict)


def test_a_read_only_session_is_refused(connection: Connection, database_url: str) -> None:
    database = connection.info.dbname
    connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    settings = settings_for(database_url)

    verdict = database_connection(database_facts(settings), settings)

    assert "read-only" in messages(verdict)
    assert "default_transaction_read_only = off" in messages(verdict)


def test_every_missing_right_is_named_at_once_and_the_remedies_are_enough(
    connection: Connection, database_url: str, role: str
) -> None:
    settings = settings_for(database_url)
    connection.execute(f"REVOKE TEMPORARY ON DATABASE {connection.info.dbname} FROM PUBLIC")
    connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    connection.execute("CREATE SCHEMA shop")
    connection.execute("ALTER TABLE products SET SCHEMA shop")
    connection.execute("ALTER TABLE product_embeddings SET SCHEMA shop")
    settings = settings_for(
        database_url,
        products="shop.products",
        v1="shop.product_embeddings",
        v2="shop.product_embeddings_v2",
        product_texts=Path(__file__).parents[2] / "sql" / "product_texts.sql",
    )
    rounds = 0
    while True:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        connection.execute("SET search_path = shop, public")
        verdict = verdict_on(connection, settings)
        connection.execute("RESET ROLE")
        if verdict.status == "pass":
            break
        rounds += 1
        assert rounds <= 3, verdict.lines()
        if rounds == 1:
            for right in ("TEMPORARY", "schema ingestion", "schema shop", "schema public"):
                assert right in messages(verdict), right
        for reason in verdict.reasons:
            for statement in reason.remedy.split(";"):
                if statement.strip().startswith(("GRANT", "CREATE SCHEMA", "ALTER ROLE")):
                    connection.execute(statement.encode())
    assert rounds > 0


def test_a_table_of_the_bookkeeping_that_another_role_made_is_named(
    connection: Connection, database_url: str, role: str
) -> None:
    settings = settings_for(database_url)
    with open_shop(settings) as shop:
        shop.prepare()
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))

    verdict = verdict_on(connection, settings)

    assert "ingestion.described_table" in messages(verdict)
    assert "lacks SELECT, INSERT, UPDATE, DELETE on product_embeddings_v2" in messages(verdict)


def test_a_missing_products_table_is_named_with_tables_that_are_like_it(
    connection: Connection, database_url: str
) -> None:
    connection.execute('ALTER TABLE products RENAME TO "Product"')

    verdict = verdict_on(connection, settings_for(database_url))

    assert "no table products" in messages(verdict)
    assert "Did you mean public.Product?" in messages(verdict)


def test_tables_may_carry_a_schema_and_capitals(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute('CREATE SCHEMA "Shop"')
    connection.execute('ALTER TABLE products SET SCHEMA "Shop"')
    connection.execute('ALTER TABLE "Shop".products RENAME TO "Product"')
    file = tmp_path / "product_texts.sql"
    file.write_text(
        'SELECT id AS product_id, a.aspect, name AS text FROM "Shop"."Product" '
        "CROSS JOIN (VALUES ('description'), ('usage'), ('feature')) AS a (aspect)"
    )
    settings = settings_for(database_url, products="Shop.Product", product_texts=file)

    verdict = verdict_on(connection, settings)

    assert verdict.lines()[1:] == []
    assert verdict.facts["products"] is True


@pytest.mark.parametrize(
    ("column_type", "expected"),
    [
        ("smallint", IdType.INTEGER),
        ("integer", IdType.INTEGER),
        ("bigint", IdType.BIGINT),
        ("uuid", IdType.UUID),
        ("text", IdType.TEXT),
        ("varchar(25)", IdType.TEXT),
        ("numeric", None),
    ],
)
def test_the_type_of_an_id_is_recognised(
    database_url: str, column_type: str, expected: IdType | None
) -> None:
    settings = settings_for(database_url)
    with connect(database_url) as connection:
        connection.execute(
            f"CREATE TABLE products (id {column_type} PRIMARY KEY, name text, description text, "
            "usage text, features text)"
        )
        facts = inspect(connection, settings)

    assert facts.products is not None
    assert facts.products.columns["id"].id_type is expected
    refused = "products.id is numeric" in messages(database_connection(facts, settings))
    assert refused is (expected is None)


def test_missing_columns_are_named_beside_those_that_are_there(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute("CREATE TABLE products (sku text, title text)")
        verdict = verdict_on(connection, settings_for(database_url))

    assert "products has no column id. It has sku, title." in messages(verdict)
    assert "products has no column name" in messages(verdict)


def test_a_view_of_products_is_a_warning_and_its_ids_are_counted(
    connection: Connection, database_url: str
) -> None:
    connection.execute("ALTER TABLE products RENAME TO articles")
    connection.execute("CREATE VIEW products AS SELECT * FROM articles")
    settings = settings_for(database_url)

    verdict = verdict_on(connection, settings)
    assert verdict.status == "warn"
    assert "a view has no keys" in messages(verdict, "warning")

    connection.execute(
        "CREATE OR REPLACE VIEW products AS "
        "SELECT * FROM articles UNION ALL SELECT * FROM articles WHERE id = 101 "
        "UNION ALL SELECT NULL, 'Ghost', NULL, NULL, NULL"
    )
    repeated = verdict_on(connection, settings)
    assert "1 rows of products repeat an id" in messages(repeated)
    assert "1 rows of products have no id" in messages(repeated)


def test_row_level_security_is_told(connection: Connection, database_url: str, role: str) -> None:
    connection.execute("ALTER TABLE products ENABLE ROW LEVEL SECURITY")
    connection.execute(sql.SQL("GRANT SELECT ON products TO {}").format(sql.Identifier(role)))
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))

    verdict = verdict_on(connection, settings_for(database_url))

    assert "Row-level security" in messages(verdict, "warning")


def test_without_v1_there_is_a_warning(connection: Connection, database_url: str) -> None:
    connection.execute("DROP TABLE product_embeddings")

    verdict = verdict_on(connection, settings_for(database_url))

    assert verdict.status == "warn"
    assert "no table product_embeddings (v1)" in messages(verdict, "warning")


def test_everything_wrong_with_a_v2_is_said_at_once(
    connection: Connection, database_url: str
) -> None:
    connection.execute(
        'CREATE TABLE product_embeddings_v2 ("productId" text, description_embedding vector(384), '
        "usage_embedding halfvec(768), shop_id integer NOT NULL, note text NOT NULL DEFAULT '')"
    )

    errors = messages(verdict_on(connection, settings_for(database_url)))

    for words in (
        '"productId" is not unique',
        '"productId" is text and products.id is integer',
        "description_embedding has 384 dimensions, and the settings say 768",
        "usage_embedding is halfvec, and vector(768) is expected",
        "no column feature_embedding.",
        "ALTER TABLE public.product_embeddings_v2 ADD COLUMN feature_embedding vector(384);",
        "shop_id needs a value in every row",
    ):
        assert words in errors
    assert "note" not in errors


def test_a_v2_with_more_columns_is_adopted(connection: Connection, database_url: str) -> None:
    connection.execute(
        'CREATE TABLE product_embeddings_v2 ("productId" bigint PRIMARY KEY, '
        "description_embedding vector(768), usage_embedding vector(768), "
        "feature_embedding vector(384), made_at timestamptz NOT NULL DEFAULT now(), note text)"
    )

    assert verdict_on(connection, settings_for(database_url)).status == "pass"


def test_a_column_on_which_no_index_can_be_built_is_refused_before_anything_is_paid(
    connection: Connection, database_url: str
) -> None:
    connection.execute(
        'CREATE TABLE product_embeddings_v2 ("productId" bigint PRIMARY KEY, '
        "description_embedding vector(768), usage_embedding vector, feature_embedding vector(384))"
    )

    verdict = verdict_on(connection, settings_for(database_url))

    [reason] = verdict.reasons
    assert verdict.blocking
    assert "usage_embedding has no fixed number of dimensions" in reason.message
    connection.execute(reason.remedy)
    assert verdict_on(connection, settings_for(database_url)).status == "pass"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("-- mine\nSELECT id AS product_id,\n 'usage' AS aspect,\n titel AS text FROM products",
         'line 4: column "titel" does not exist'),
        ("SELECT id AS product_id, 'usage' AS aspect, name AS text FROM articles",
         'line 1: relation "articles" does not exist'),
        ("SELECT id AS product_id FROM products;\nSELECT 1", "line 1: a second statement begins"),
        ("SELECT (id AS product_id FROM products", "line 1: syntax error"),
        ("SELECT id AS product_id FROM (SELECT * FROM products", "is a parenthesis"),
        ("DELETE FROM products RETURNING id, 'usage', name", "line 1: syntax error"),
        ("SELECT id AS product_id, name AS text FROM products", "gives no column aspect"),
        ("SELECT id, 'usage' AS a, name FROM products",
         "no column product_id and no column aspect and no column text. It gives id, a, name."),
        ("SELECT id::text AS product_id, 'usage' AS aspect, name AS text FROM products",
         "gives product_id as text, and ids are integer"),
        ("SELECT id AS product_id, 'usage' AS aspect, id AS text FROM products",
         "gives text as integer"),
        ("SELECT id AS product_id, 'benefits' AS aspect, name AS text FROM products",
         "unknown aspect, 'benefits' (10 rows)"),
        ("SELECT id AS product_id, NULL AS aspect, name AS text FROM products",
         "unknown aspect, NULL (10 rows)"),
        ("SELECT NULL::integer AS product_id, 'usage' AS aspect, name AS text FROM products",
         "rows of aspect usage without a product_id"),
        ("SELECT unnest(ARRAY[110, 103, 110, 103]) AS product_id, 'usage' AS aspect, '' AS text",
         "2 products more than one row of aspect usage: 103, 110."),
        ("SELECT id / (id - 103) AS product_id, 'usage' AS aspect, name AS text FROM products",
         "division by zero"),
    ],
)  # fmt: skip
def test_a_mapping_that_is_wrong_is_named_with_its_line(
    connection: Connection, database_url: str, tmp_path: Path, statement: str, words: str
) -> None:
    settings = mapped(tmp_path, database_url, statement)

    verdict = verdict_on(connection, settings)

    assert words in messages(verdict)
    assert str(settings.catalogue.product_texts) in messages(verdict)
    assert connection.execute("SELECT count(*) FROM products").fetchone() == (10,)


@pytest.mark.parametrize(
    "volatile",
    [
        "name || random()",
        "name || now()",
        "name || clock_timestamp()",
        "name || gen_random_uuid()",
        "CASE WHEN random() < 0.5 THEN name END",
    ],
)
def test_a_mapping_whose_texts_change_by_themselves_is_refused_with_what_to_do(
    connection: Connection, database_url: str, tmp_path: Path, volatile: str
) -> None:
    statement = (
        "SELECT id AS product_id, a.aspect, CASE a.aspect WHEN 'usage' THEN "
        "(VOLATILE)::text ELSE name END AS text FROM products "
        "CROSS JOIN unnest(ARRAY['description', 'usage', 'feature']) AS a (aspect)"
    )
    settings = mapped(tmp_path, database_url, statement.replace("VOLATILE", volatile))

    verdict = verdict_on(connection, settings)

    assert verdict.blocking
    [message] = messages(verdict).splitlines()
    assert f"{settings.catalogue.product_texts} gives other texts each time" in message
    assert re.search(r"usage of 1\d\d", message)
    assert "feature of" not in message
    assert "Take out what changes by itself" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name || current_date", "current_date"),
        ("name || to_char(NOW (), 'YYYY-MM-DD')", "now"),
        ("CASE WHEN id < 0 THEN random()::text ELSE name END", "random"),
    ],
)
def test_a_mapping_that_may_change_with_time_is_warned_of_by_what_it_uses(
    connection: Connection, database_url: str, tmp_path: Path, text: str, named: str
) -> None:
    statement = "SELECT id AS product_id, 'usage' AS aspect, TEXT AS text FROM products"

    settings = mapped(tmp_path, database_url, statement.replace("TEXT", text))
    verdict = verdict_on(connection, settings)

    assert not verdict.blocking
    warned = [reason.message for reason in verdict.reasons if reason.severity == "warning"]
    assert any(f"uses {named}. Texts that change with time" in message for message in warned)


def test_what_a_mapping_only_says_in_strings_names_and_comments_is_no_clock(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    statement = (
        "SELECT id AS product_id, 'usage' AS aspect, name || ' now() current_date' AS text "
        "/* random() */ FROM products AS snow -- now()"
    )

    verdict = verdict_on(connection, mapped(tmp_path, database_url, statement))

    assert not any("change with time" in reason.message for reason in verdict.reasons)


def test_rows_that_a_mapping_gives_only_now_and_then_are_unsteady_texts(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    settings = mapped(
        tmp_path,
        database_url,
        "SELECT id AS product_id, 'usage' AS aspect, name AS text FROM products "
        "CROSS JOIN LATERAL (SELECT random() AS luck WHERE id > 0) AS a WHERE luck < 0.5",
    )

    assert "gives other texts each time" in messages(verdict_on(connection, settings))


def test_an_edit_between_two_looks_is_not_taken_for_a_mapping_that_never_rests(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = inspection._Inspector._first_texts
    edits = iter(["UPDATE products SET usage = 'edited' WHERE id = 103"])

    def edited_after(inspector: inspection._Inspector) -> object:
        seen = look(inspector)
        for edit in edits:
            connection.execute(edit.encode())
        return seen

    monkeypatch.setattr(inspection._Inspector, "_first_texts", edited_after)
    facts = inspect(connection, settings_for(database_url))

    assert list(edits) == []
    assert facts.mapping is not None
    assert facts.mapping.unsteady == ()


def test_the_packaged_mapping_gives_the_same_texts_each_time(
    connection: Connection, database_url: str
) -> None:
    facts = inspect(connection, settings_for(database_url))

    assert facts.mapping is not None
    assert facts.mapping.unsteady == ()


def test_a_mapping_file_that_is_not_there_is_named(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, product_texts=tmp_path / "nowhere.sql")

    assert "nowhere.sql cannot be read" in messages(verdict_on(connection, settings))


def test_percent_signs_semicolons_and_a_closing_comment_do_not_disturb_a_mapping(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    settings = mapped(
        tmp_path,
        database_url,
        "SELECT id AS product_id, a.aspect, name || ' 100%; ' AS text FROM products\n"
        "CROSS JOIN unnest(ARRAY['description', 'usage', 'feature']) AS a (aspect)\n"
        "WHERE name LIKE '%e%' OR id % 2 = 0 -- 5% of them",
    )

    facts = inspect(connection, settings)

    assert facts.mapping is not None
    assert facts.mapping.refusal is None
    assert facts.mapping.aspects is not None
    assert set(facts.mapping.aspects) == set(Aspect)
    assert database_connection(facts, settings).status == "pass"


def test_an_aspect_without_text_is_a_warning(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    settings = mapped(
        tmp_path,
        database_url,
        "SELECT id AS product_id, 'description' AS aspect, name AS text FROM products "
        "UNION ALL SELECT id, 'feature', NULL FROM products",
    )

    warnings = messages(verdict_on(connection, settings), "warning")

    assert "gives no rows of aspect usage" in warnings
    assert "gives only empty texts for aspect feature" in warnings


def test_counts_say_what_is_done_what_is_stale_and_why(database_url: str) -> None:
    with small_shop(database_url) as shop:
        shop.connection.execute("UPDATE products SET usage = 'For tea at five' WHERE id = 103")
        shop.connection.execute("INSERT INTO products VALUES (113, 'Mug', 'Holds tea', ' ', NULL)")
        facts = count_facts(shop.connection.live, shop.catalogue, shop.settings, ranges=3)

    assert (facts.products, facts.stale_products, facts.ranges) == (11, 2, 3)
    states = {(counted.aspect, counted.state): counted.aspects for counted in facts.aspects}
    assert states[Aspect.USAGE, "done"] == 8
    assert states[Aspect.USAGE, "empty"] == 1
    assert states[Aspect.USAGE, "text changed"] == 1
    assert states[Aspect.USAGE, "new"] == 1
    # A blank usage is no usage, although the product has a name.
    assert facts.empty_texts == {Aspect.DESCRIPTION: 0, Aspect.USAGE: 2, Aspect.FEATURE: 1}
    assert sum(facts.texts_to_embed.values()) == 2


def test_free_space_is_measured_where_the_embedded_server_keeps_its_data(
    server: LocalServer, connection: Connection, database_url: str
) -> None:
    facts = disk_facts(connection, settings_for(database_url))

    free = disk_usage(server.data_directory).free
    assert facts.why_unknown is None
    assert facts.free_bytes == pytest.approx(free, rel=0.2)
    assert str(server.data_directory) in facts.places
    assert facts.max_wal_bytes == 2 * 1024**3
    assert facts.indexed == frozenset()


def test_indexes_that_are_there_are_told(database_url: str) -> None:
    with small_shop(database_url) as shop:
        shop.embeddings.create_vector_indexes()
        facts = disk_facts(shop.connection.live, shop.settings)

    assert facts.indexed == frozenset(Aspect)


def test_free_space_is_unknown_to_a_role_that_may_not_see_where_the_data_lies(
    connection: Connection, database_url: str, role: str
) -> None:
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    settings = settings_for(database_url)
    told = settings.model_copy(update={"disk": DiskSettings(free_bytes=5_000)})

    unknown, known = disk_facts(connection, settings), disk_facts(connection, told)

    assert unknown.free_bytes is None
    assert "pg_read_all_settings" in (unknown.why_unknown or "")
    assert (known.free_bytes, known.why_unknown) == (5_000, None)


def test_a_folder_that_another_server_started_on_is_not_taken_for_this_ones(
    tmp_path: Path,
) -> None:
    started = int(time.time())
    pid_file = tmp_path / "postmaster.pid"
    is_here = inspection._is_of_this_machine

    assert not is_here(tmp_path, started, over_socket=True)
    pid_file.write_text(f"1\n{tmp_path}\n{started}\n5432\n")
    assert is_here(tmp_path, started + 1, over_socket=False)
    assert not is_here(tmp_path, started + 60, over_socket=True)
    pid_file.write_text("1\n")
    assert not is_here(tmp_path, started, over_socket=True)
