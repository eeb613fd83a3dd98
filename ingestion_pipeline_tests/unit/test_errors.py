"""The error tree, and no password in anything that a user may see."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline import errors
from ingestion_pipeline.errors import IngestionError, redacted

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, IngestionError)
]


def test_the_docstring_draws_every_error_under_the_branch_it_belongs_to() -> None:
    drawn: dict[str, str] = {}
    branch = "IngestionError"
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name and "──" in line:
            nested = line.lstrip().startswith("│")
            drawn[name] = branch if nested else "IngestionError"
            branch = branch if nested else name
    assert drawn == {
        error.__name__: error.__mro__[1].__name__
        for error in CLASSES
        if error is not IngestionError
    }


def test_every_error_says_in_its_docstring_what_happened() -> None:
    assert all(error.__doc__ and error.__doc__.rstrip().endswith(".") for error in CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://shop:hunter2@db.example.org:5432/shop",
        "postgresql+psycopg2://shop:hunter2@/dagster?host=/run",
        "POSTGRES://shop:hunter2@db/shop is not reachable",
        "postgresql://:hunter2@db/shop",
        "postgresql://shop:hun@hunter2@db/shop",
        "postgresql://shop:hun/hunter2@db/shop",
        "postgresql://shop:hunter2?x@db/shop",
        "postgresql://shop:a:hunter2@db/shop",
        "host=db user=shop password=hunter2 dbname=shop",
        "host=db password = 'hunter2' dbname=shop",
        r"password='it\'s hunter2' dbname=shop",
        "postgresql://db/shop?user=shop&password=hunter2&sslmode=require",
        "PGPASSWORD=hunter2 psql",
        "sslpassword=hunter2",
        '{"user": "shop", "password": "hunter2"}',
        "{'api_key': 'hunter2'}",
        "token: hunter2",
        "Authorization: Bearer hunter2-and-more",
        "{'authorization': 'bearer hunter2.and/more=='}",
        "Incorrect API key provided: sk-hunter2hunter2-and_more.",
        "sk-proj-hunter2hunter2hunter2",
        "token: Bearer sk-hunter2hunter2hunter2",
        "AIzahunter2hunter2hunter2-and_more",
        "hf_hunter2hunter2hunter2",
    ],
)
def test_a_password_is_blotted_out_wherever_it_stands(text: str) -> None:
    assert "hunter2" not in redacted(text)
    assert "***" in redacted(text)


def test_what_surrounds_a_password_stays_readable() -> None:
    text = "cannot reach postgresql://shop:hunter2@db.example.org:5432/shop: timeout"
    expected = "cannot reach postgresql://shop:***@db.example.org:5432/shop: timeout"
    assert redacted(text) == expected
    assert redacted("host=db password=hunter2 dbname=shop") == "host=db password=*** dbname=shop"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgresql://db.example.org:5432/shop",
        "postgresql://shop@db.example.org/shop",
        'password authentication failed for user "shop"',
        "http://127.0.0.1:3000/runs",
        "a text with 300 tokens: too long",
        "a disk-management-operation and a task-force-of-twenty",
        "the bearer of bad news",
        "half_hearted_and_other_words",
    ],
)
def test_a_text_without_a_password_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20))
def test_no_password_survives_in_a_url_whatever_its_characters(password: str) -> None:
    secret = f"<<{password}>>"
    assert secret not in redacted(f"postgresql://shop:{secret}@db/shop")


@given(st.text())
def test_blotting_out_twice_changes_no_more(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
