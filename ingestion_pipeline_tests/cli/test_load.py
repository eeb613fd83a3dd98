"""`ingest load`: a file becomes a table, or nothing happens at all."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from ingestion_pipeline_tests.cli.conftest import Ingest, execute

ROWS = [
    {"id": 3, "name": 'Coat [green] "L"', "description": "Keeps\nrain\tout.", "price": 19.5},
    {"id": 1, "name": "Hat \\N, 50% off", "description": None, "price": None},
]
V2 = """CREATE TABLE product_embeddings_v2 (
    "productId" integer PRIMARY KEY REFERENCES products (id) ON DELETE CASCADE,
    description_embedding vector(3))"""
V1 = """CREATE TABLE product_embeddings (
    "productId" integer REFERENCES products (id) ON DELETE CASCADE, embedding vector(3))"""


def _files(folder: Path) -> list[Path]:
    frame = pd.DataFrame(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = frame.to_csv(index=False).encode()
    frame.to_parquet(folder / "p.parquet")
    (folder / "p.jsonl").write_bytes(lines)
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "p.csv").write_bytes(table)
    (folder / "p.csv.gz").write_bytes(gzip.compress(table))
    return sorted(folder.glob("p.*"))


def test_every_format_arrives_in_postgresql_as_it_was(
    ingest: Ingest, shop_url: str, environment: Path
) -> None:
    files = _files(environment)
    assert len(files) == 5
    for number, file in enumerate(files):
        answer = ingest("load", file, "--table", f"from_{number}", "--json")
        assert answer.code == 0, answer.err
        assert answer.document["products"] == 2
        assert answer.document["columns"] == {
            "id": "integer",
            "name": "text",
            "description": "text",
            "price": "numeric",
        }
        rows = execute(shop_url, f"SELECT id, name, description, price FROM from_{number}")  # noqa: S608
        assert sorted(rows) == [
            (1, "Hat \\N, 50% off", None, None),
            (3, 'Coat [green] "L"', "Keeps\nrain\tout.", Decimal("19.5")),
        ], file


def test_a_load_says_what_came_in_and_what_to_do_next(
    ingest: Ingest, shop_url: str, environment: Path
) -> None:
    file = environment / "p.jsonl"
    lines = [{"id": 1, "name": "Coat", "usage": ["rain", "snow"]}, {"id": 2, "name": "Hat"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = ingest("load", file)
    assert answer.code == 0
    assert "2 products loaded" in answer.out
    assert "usage   jsonb       50%" in answer.out
    assert "→ Edit sql/product_texts.sql" in answer.out
    assert "(description, usage, features)" in answer.out
    assert "`ingest --limit 5`" in answer.out
    assert execute(shop_url, "SELECT usage ->> 0 FROM products WHERE id = 1") == [("rain",)]


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("bigint", [2**40, 7]),
        ("uuid", ["550e8400-e29b-41d4-a716-446655440000", "00000000-0000-0000-0000-000000000001"]),
        ("text", ["00123", "clx9"]),
    ],
)
def test_the_primary_key_has_the_type_of_the_ids(
    ingest: Ingest, shop_url: str, environment: Path, id_type: str, ids: list[object]
) -> None:
    file = environment / "p.jsonl"
    file.write_text("".join(json.dumps({"id": id_, "name": "x"}) + "\n" for id_ in ids))
    assert ingest("load", file).code == 0
    key = """SELECT format_type(atttypid, NULL) FROM pg_index JOIN pg_attribute
        ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid = 'products'::regclass AND indisprimary"""
    assert execute(shop_url, key) == [(id_type,)]
    assert execute(shop_url, "SELECT count(*) FROM products") == [(2,)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "does not exist"),
        ("empty.jsonl", "", "holds no products"),
        ("bad.jsonl", '{"id": 1, "name": "a"}\n{"id": 2, "name"\n', "line 2"),
        ("short.csv", "id,name\n1,a\n2\n", "line 3"),
        ("twice.csv", "id,name\n1,a\n2,b\n1,c\n", "more than once"),
        ("gap.csv", "id,name\n1,a\n,b\n", "without an id"),
        ("noname.csv", "id,title\n1,a\n", "no column 'name'"),
        ("system.csv", "id,name,xmin\n1,a,b\n", "xmin"),
    ],
)
def test_a_bad_file_exits_with_2_and_leaves_nothing_behind(
    ingest: Ingest, shop_url: str, environment: Path, name: str, content: str | None, words: str
) -> None:
    file = environment / name
    if content is not None:
        file.write_text(content)
    answer = ingest("load", file)
    assert answer.code == 2
    assert name in answer.err
    assert words in answer.err
    assert answer.out == ""
    assert execute(shop_url, "SELECT to_regclass('products')") == [(None,)]


def test_an_error_is_one_json_document_too(ingest: Ingest, environment: Path) -> None:
    answer = ingest("load", environment / "none.csv", "--json")
    assert answer.document["exit_code"] == answer.code == 2
    assert answer.document["error"]["kind"] == "InputError"
    assert "does not exist" in answer.document["error"]["message"]


def test_a_table_on_a_server_of_ones_own_is_dropped_only_with_replace_and_yes(
    ingest: Ingest, shop_url: str, catalogue: Path
) -> None:
    execute(
        shop_url,
        "CREATE TABLE products (id integer PRIMARY KEY, name text)",
        "INSERT INTO products VALUES (1, 'live'), (99, 'gone')",
        V1,
        V2,
        'INSERT INTO product_embeddings ("productId") VALUES (1), (99)',
        'INSERT INTO product_embeddings_v2 ("productId") VALUES (1), (99)',
    )
    for options in ([], ["--yes"], ["--replace"]):
        answer = ingest("load", catalogue, *options)
        assert answer.code == 2
        assert "2 products in products" in answer.err
        assert '1 rows of vectors in "product_embeddings"' in answer.err
        assert '1 rows of vectors in "product_embeddings_v2"' in answer.err
        assert "--replace --yes" in answer.err
        assert execute(shop_url, "SELECT name FROM products ORDER BY id")[0] == ("live",)

    assert ingest("load", catalogue, "--replace", "--yes").code == 0
    assert execute(shop_url, "SELECT count(*) FROM products") == [(12,)]
    # What the products that stay have is kept, and still goes with them when they go.
    for table in ("product_embeddings", "product_embeddings_v2"):
        kept = f'SELECT "productId" FROM {table}'  # noqa: S608
        assert execute(shop_url, kept) == [(1,)]
        execute(shop_url, "DELETE FROM products WHERE id = 1")
        assert execute(shop_url, kept) == []
        execute(shop_url, "INSERT INTO products (id) VALUES (1)")
        execute(shop_url, 'INSERT INTO product_embeddings_v2 ("productId") VALUES (1)')


def test_an_empty_table_of_a_live_shop_is_not_dropped_in_passing(
    ingest: Ingest, shop_url: str, catalogue: Path
) -> None:
    execute(shop_url, "CREATE TABLE products (id integer PRIMARY KEY, name text, secret text)")
    assert ingest("load", catalogue).code == 2
    assert execute(shop_url, "SELECT secret FROM products") == []


@pytest.mark.usefixtures("embedded")
def test_on_the_embedded_server_replace_is_enough_and_asked_for(
    ingest: Ingest, catalogue: Path
) -> None:
    assert ingest("load", catalogue).code == 0
    refused = ingest("load", catalogue)
    assert refused.code == 2
    assert "12 products in products" in refused.err
    assert "--replace" in refused.err
    assert "--yes" not in refused.err
    replaced = ingest("load", catalogue, "--replace", "--json")
    assert replaced.document["replaced"] == ["12 products in products"]


def test_ids_of_another_type_take_vectors_and_bookkeeping_along_and_say_so(
    ingest: Ingest, shop_url: str, environment: Path
) -> None:
    execute(
        shop_url,
        "CREATE TABLE products (id integer PRIMARY KEY, name text)",
        "INSERT INTO products VALUES (1, 'a')",
        V2,
        'INSERT INTO product_embeddings_v2 ("productId") VALUES (1)',
        "CREATE SCHEMA ingestion",
    )
    file = environment / "p.csv"
    file.write_text("id,name\nclx1,Coat\n")
    answer = ingest("load", file)
    assert '1 rows of vectors in "product_embeddings_v2"' in answer.err
    assert "bookkeeping in the schema ingestion" in answer.err
    assert ingest("load", file, "--replace", "--yes").code == 0
    gone = "SELECT to_regclass('product_embeddings_v2'), to_regnamespace('ingestion')"
    assert execute(shop_url, gone) == [(None, None)]
    assert execute(shop_url, "SELECT id FROM products") == [("clx1",)]


@pytest.mark.parametrize(
    ("dependent", "named"),
    [
        ("CREATE TABLE reviews (product integer REFERENCES products (id))", "reviews"),
        ("CREATE VIEW cheap AS SELECT id FROM products", "cheap"),
    ],
)
def test_products_that_something_else_depends_on_are_not_replaced(
    ingest: Ingest, shop_url: str, catalogue: Path, dependent: str, named: str
) -> None:
    execute(
        shop_url,
        "CREATE TABLE products (id integer PRIMARY KEY, name text)",
        "INSERT INTO products VALUES (1, 'live')",
        V2,
        'INSERT INTO product_embeddings_v2 ("productId") VALUES (1)',
        dependent,
    )
    answer = ingest("load", catalogue, "--replace", "--yes")
    assert answer.code == 2
    assert named in answer.err
    assert "--table" in answer.err
    assert execute(shop_url, "SELECT name FROM products") == [("live",)]
    assert execute(shop_url, 'SELECT "productId" FROM product_embeddings_v2') == [(1,)]


def test_a_view_is_not_replaced(ingest: Ingest, shop_url: str, catalogue: Path) -> None:
    execute(shop_url, "CREATE VIEW products AS SELECT 1 AS id, 'a' AS name")
    answer = ingest("load", catalogue, "--replace", "--yes")
    assert answer.code == 2
    assert "is a view" in answer.err


def test_a_table_beside_the_shops_leaves_the_shops_vectors_alone(
    ingest: Ingest, shop_url: str, catalogue: Path
) -> None:
    execute(
        shop_url,
        "CREATE TABLE products (id integer PRIMARY KEY, name text)",
        "INSERT INTO products VALUES (99, 'live')",
        V2,
        'INSERT INTO product_embeddings_v2 ("productId") VALUES (99)',
    )
    for options in ([], ["--replace", "--yes"]):
        answer = ingest("load", catalogue, "--table", "trial", *options)
        assert answer.code == 0, answer.err
        assert 'catalogue.products = "trial"' in answer.out
    assert execute(shop_url, 'SELECT "productId" FROM product_embeddings_v2') == [(99,)]
    assert execute(shop_url, "SELECT count(*) FROM trial") == [(12,)]


@pytest.mark.parametrize(
    ("table", "words"), [("a.b.c", "shop.products"), ("nowhere.products", '"nowhere" does not')]
)
@pytest.mark.usefixtures("shop_url")
def test_a_table_name_that_cannot_be_is_refused(
    ingest: Ingest, catalogue: Path, table: str, words: str
) -> None:
    answer = ingest("load", catalogue, "--table", table)
    assert answer.code == 2
    assert words in answer.err
