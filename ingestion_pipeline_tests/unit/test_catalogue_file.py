"""Catalogue files: what they become, and what each damage is called."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pandas as pd
import pytest

from ingestion_pipeline.database.catalogue_file import CatalogueFile, read
from ingestion_pipeline.errors import InputError

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


def types(catalogue: CatalogueFile) -> dict[str, str]:
    return {column.name: column.type for column in catalogue.columns}


def values(catalogue: CatalogueFile, column: str) -> list[object]:
    return list(catalogue.frame[column])


# --- what a file becomes --------------------------------------------------------------------------


def test_the_same_products_come_out_of_every_format(write: Write, tmp_path: Path) -> None:
    products = pd.DataFrame({"id": [1, 2], "name": ["Coat", "Hat"], "stock": [3, None]})
    products["stock"] = products["stock"].astype("Int64")
    jsonl = '{"id": 1, "name": "Coat", "stock": 3}\n{"id": 2, "name": "Hat", "stock": null}\n'
    table = "id,name,stock\n1,Coat,3\n2,Hat,\n"
    products.to_parquet(tmp_path / "p.parquet")
    files = [
        write("p.jsonl", jsonl),
        write("p.ndjson", jsonl),
        write("p.jsonl.gz", gzip.compress(jsonl.encode())),
        write("p.csv", table),
        write("p.CSV.GZ", gzip.compress(table.encode())),
        tmp_path / "p.parquet",
        write("p.parquet.gz", gzip.compress((tmp_path / "p.parquet").read_bytes())),
    ]
    for file in files:
        catalogue = read(file)
        assert types(catalogue) == {"id": "integer", "name": "text", "stock": "bigint"}, file
        assert list(catalogue.rows()) == [(1, "Coat", 3), (2, "Hat", None)], file


@pytest.mark.parametrize(
    ("ids", "id_type", "read_ids"),
    [
        ("[1, 2147483647]", "integer", [1, 2147483647]),
        ("[1, 2147483648]", "bigint", [1, 2147483648]),
        ("[1.0, 2.0]", "integer", [1, 2]),
        ('["00123", "00124"]', "text", ["00123", "00124"]),
        ('["1", "2"]', "text", ["1", "2"]),
        ('["clx1", 2]', "text", ["clx1", "2"]),
        (
            '["550E8400-e29b-41d4-a716-446655440000", "00000000-0000-0000-0000-000000000001"]',
            "uuid",
            [UUID("550e8400-e29b-41d4-a716-446655440000"), UUID(int=1)],
        ),
    ],
)
def test_the_type_of_the_ids_follows_from_the_ids(
    write: Write, ids: str, id_type: str, read_ids: list[object]
) -> None:
    first, second = ids[1:-1].split(", ")
    lines = f'{{"id": {first}, "name": "a"}}\n{{"id": {second}, "name": "b"}}\n'
    catalogue = read(write("p.jsonl", lines))
    assert catalogue.id_type == id_type
    assert values(catalogue, "id") == read_ids


def test_ids_and_codes_with_leading_zeros_stay_text_in_csv(write: Write) -> None:
    catalogue = read(write("p.csv", "id,name,ean\n00123,Coat,0025184\n124,Hat,884252\n"))
    assert types(catalogue) == {"id": "text", "name": "text", "ean": "text"}
    assert values(catalogue, "id") == ["00123", "124"]
    assert values(catalogue, "ean") == ["0025184", "884252"]


def test_numbers_keep_their_digits_and_gaps_make_no_floats(write: Write) -> None:
    lines = (
        '{"id": 1, "name": "Coat", "price": 19.90, "stock": 9007199254740993}\n'
        '{"id": 2, "name": "Hat", "price": 20, "stock": null}\n'
    )
    catalogue = read(write("p.jsonl", lines))
    assert types(catalogue)["price"] == "numeric"
    assert [str(price) for price in values(catalogue, "price")] == ["19.90", "20"]
    assert types(catalogue)["stock"] == "bigint"
    assert values(catalogue, "stock") == [9007199254740993, None]


def test_nan_is_null_wherever_it_stands(write: Write, tmp_path: Path) -> None:
    pd.DataFrame({"id": [1, 2], "name": ["a", None], "price": [1.5, float("nan")]}).to_parquet(
        tmp_path / "p.parquet"
    )
    files = [
        write("p.jsonl", '{"id":1,"name":"a","price":1.5}\n{"id":2,"name":null,"price":NaN}\n'),
        write("p.csv", "id,name,price\n1,a,1.5\n2,,NaN\n"),
        tmp_path / "p.parquet",
    ]
    for file in files:
        assert list(read(file).rows()) == [(1, "a", Decimal("1.5")), (2, None, None)], file


def test_names_and_descriptions_are_text_even_where_all_look_like_numbers(write: Write) -> None:
    catalogue = read(write("p.csv", "id,name,description\n1,1984,007\n2,2001,42\n"))
    assert types(catalogue) == {"id": "integer", "name": "text", "description": "text"}
    assert values(catalogue, "name") == ["1984", "2001"]


def test_nested_values_become_jsonb_and_mixed_ones_text(write: Write) -> None:
    lines = (
        '{"id": 1, "name": "Coat", "tags": ["wool", 2.50], "size": 38}\n'
        '{"id": 2, "name": "Hat", "tags": {"a": null}, "size": "M"}\n'
    )
    catalogue = read(write("p.jsonl", lines))
    assert types(catalogue) == {"id": "integer", "name": "text", "tags": "jsonb", "size": "text"}
    assert values(catalogue, "tags") == ['["wool", 2.5]', '{"a": null}']
    assert values(catalogue, "size") == ["38", "M"]


def test_a_key_that_only_some_lines_have_is_null_in_the_others(write: Write) -> None:
    lines = '{"id": 1, "name": "Coat"}\n\n{"id": 2, "name": "Hat", "usage": "Rain."}\n'
    assert values(read(write("p.jsonl", lines)), "usage") == [None, "Rain."]


def test_parquet_keeps_its_types_and_an_id_that_pandas_made_the_index(tmp_path: Path) -> None:
    products = pd.DataFrame(
        {
            "name": pd.Categorical(["Coat", "Hat"]),
            "price": [Decimal("19.90"), None],
            "tags": [["wool"], None],
            "added": pd.to_datetime(["2026-01-02 03:04:05", "NaT"]),
            "season": [date(2026, 9, 1), None],
            "sold": [True, False],
        },
        index=pd.Index([7, 8], name="id"),
    )
    products.to_parquet(tmp_path / "p.parquet")
    catalogue = read(tmp_path / "p.parquet")
    assert types(catalogue) == {
        "id": "integer",
        "name": "text",
        "price": "numeric",
        "tags": "jsonb",
        "added": "timestamp",
        "season": "date",
        "sold": "boolean",
    }
    first, second = catalogue.rows()
    expected = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - the file says no zone
    assert first == (7, "Coat", Decimal("19.90"), '["wool"]', expected, date(2026, 9, 1), True)
    assert second == (8, "Hat", None, None, None, None, False)


def test_what_postgresql_cannot_store_is_taken_out_and_counted(write: Write) -> None:
    lines = '{"id": 1, "name": "Co\\u0000at", "description": "half \\ud800 pair"}\n'
    catalogue = read(write("p.jsonl", lines + '{"id": 2, "name": "Hat"}\n'))
    assert values(catalogue, "name") == ["Coat", "Hat"]
    assert values(catalogue, "description") == ["half  pair", None]
    assert catalogue.cleaned == 2


def test_spreadsheets_are_read_with_their_byte_order_mark_and_semicolons(write: Write) -> None:
    content = '\ufeffid;name;price\n1;"Coat; long\nand warm";1,90\n'
    catalogue = read(write("p.csv", content))
    assert list(catalogue.rows()) == [(1, "Coat; long\nand warm", "1,90")]


# --- what is refused, and in which words ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.xlsx", "x", ["no known format", ".jsonl", ".parquet"]),
        ("p", "x", ["no known format"]),
        ("p.jsonl", "", ["holds no products"]),
        ("p.jsonl", "\n\n", ["holds no products"]),
        ("p.csv", "", ["holds no products"]),
        ("p.csv", "id,name\n", ["holds no products"]),
        ("p.parquet", "", ["holds no products"]),
        ("p.jsonl", '{"id":1,"name":"a"}\n{"id":2,}\n', ["line 2", "malformed"]),
        ("p.jsonl", '{"id":1,"name":"a"}\n\n[2]\n', ["line 3", "one JSON object a line"]),
        ("p.jsonl", '{"id":1,"name":Infinity}\n', ["line 1", "Infinity"]),
        ("p.csv", "id,name\n1,a\n2\n", ["line 3", "1 fields, expected 2"]),
        ("p.csv", 'id,name\n1,"a\nb"\n2,c,d\n', ["line 4", "3 fields, expected 2"]),
        ("p.csv", 'id,name\n1,a\n2,"b\n', ["line 3", "unexpected end"]),
        ("p.csv", "id,name,name\n1,a,b\n", ["line 1", "repeated", "'name'"]),
        ("p.csv", b"id,name\n1,caf\xe9\n", ["not UTF-8", "0xe9"]),
        ("p.jsonl", b'{"id":1,"name":"caf\xe9"}\n', ["not UTF-8", "0xe9"]),
        ("p.jsonl.gz", b"plain", ["not a whole gzip file"]),
        (
            "p.csv.gz",
            gzip.compress(b"id,name\n" + b"1,a\n" * 999, mtime=0)[:-9],
            ["not a whole gzip"],
        ),
        ("p.parquet", b"PAR1 and no more", ["not a Parquet file"]),
        ("p.csv", "sku,name\n1,a\n", ["no column 'id'", "'sku', 'name'"]),
        ("p.csv", "id,title\n1,a\n", ["no column 'name'", "'title'"]),
        ("p.csv", "id,name,\n1,a,b\n", ["without a usable name"]),
        ("p.csv", f"id,name,{'x' * 64}\n1,a,b\n", ["longer than 63 bytes"]),
        ("p.csv", "id,name\n1,a\n,b\n,c\n", ["without an id", "2", "product number 2"]),
        ("p.jsonl", '{"id":1.5,"name":"a"}\n', ["1.5", "no id"]),
        ("p.jsonl", '{"id":true,"name":"a"}\n', ["True", "no id"]),
        ("p.jsonl", '{"id":[1],"name":"a"}\n', ["no id"]),
    ],
)
def test_a_damaged_file_is_refused_in_words_that_name_the_damage(
    write: Write, name: str, content: str | bytes, words: list[str]
) -> None:
    path = write(name, content)
    with pytest.raises(InputError) as refusal:
        read(path)
    message = str(refusal.value)
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is not a file"):
        read(tmp_path)


def test_repeated_ids_are_named_ten_at_most_with_the_number_of_the_others(write: Write) -> None:
    rows = [f"{number},a" for number in (*range(1, 13), *range(1, 13), 99)]
    with pytest.raises(InputError) as refusal:
        read(write("p.csv", "\n".join(["id,name", *rows])))
    assert "more than once" in str(refusal.value)
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more" in str(refusal.value)
    assert "99" not in str(refusal.value)


def test_ids_that_are_equal_only_to_the_database_are_repeated(write: Write) -> None:
    capital = "550E8400-E29B-41D4-A716-446655440000"
    lines = f'{{"id":"{capital}","name":"a"}}\n{{"id":"{capital.lower()}","name":"b"}}\n'
    with pytest.raises(InputError, match="more than once"):
        read(write("p.jsonl", lines))


def test_bytes_are_refused_by_column(tmp_path: Path) -> None:
    pd.DataFrame({"id": [1], "name": ["a"], "photo": [b"\xff"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="'photo' holds bytes"):
        read(tmp_path / "p.parquet")
