"""Texts that a shop never meant to hold, on their way from a catalogue's file or table into v2.

Whatever a text is made of, its aspect ends with the vector of the text as it is cleaned, or with
NULL and the reason "empty"; its neighbours land, and a second run has nothing left to do. What
cleaning makes of a text is tested beside `texts`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue_file import read
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.products_table import ProductsTable
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.embedding import pinned_models, weights
from ingestion_pipeline.embedding.embedder import validate
from ingestion_pipeline.settings import CatalogueSettings, Settings
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, times
from ingestion_pipeline_tests.shops import (
    Product,
    add_products,
    create_products,
    embedders_of,
    prepared_shop,
    run,
    settings_for,
)

PROGRAM = Path(sys.executable).parent / "ingest"

# The bare text, so that a blank one is blank: the packaged mapping puts the name before it.
MAPPING = """
SELECT products.id AS product_id, aspect_text.aspect, aspect_text.text
FROM products
CROSS JOIN LATERAL (
    VALUES ('description', description), ('usage', usage), ('feature', features)
) AS aspect_text (aspect, text)
"""

BLANKS = [
    None, "", " ", "\n\t\r\f\v", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\N{EM QUAD}",
    "\N{LINE SEPARATOR}", "\N{NEXT LINE}", "\N{ZERO WIDTH SPACE}", "\N{WORD JOINER}",
    "\N{ZERO WIDTH NO-BREAK SPACE}", "\N{RIGHT-TO-LEFT MARK}", "\N{SOFT HYPHEN}",
    "\N{BRAILLE PATTERN BLANK}", "<p></p>", "<p>&nbsp;</p>", "<br/>", "<!-- to do -->",
    "<script>alert('x')</script>", "<style>p { color: red }</style>", "&#8203;", "&#0;", "&#xD800;",
]  # fmt: skip

PIECES = [
    "word", "Käse", "👩\u200d🍳", "🏳️\u200d🌈", "e\N{COMBINING ACUTE ACCENT}", "é",
    "Z" + "\N{COMBINING GRAVE ACCENT}" * 40, "سكر وشاي", "שלום", "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "日本語", "\N{FULLWIDTH LATIN CAPITAL LETTER A}", "ﬁ", "\U0010ffff", "\ufffe", "\x01\x1b\x7f",
    "<b>", "</b>", "<p class='a > b'>", "<script>", "</script>", "<script>var x = '<b>';</script>",
    "<style>", "<!--", "-->", "<![CDATA[", "]]>", "<![if x]>", "<?php", "<svg/onload=x>",
    "<textarea>", "<plaintext>", "<", ">", "< 5", "<3", "&", "&amp;", "&lt;b&gt;", "&amp;lt;",
    "&#0;", "&#xD800;", "&#60;", "&nbsp;", "&foo;", "%s", "%(id)s", "{", "}", "'", '"', "\\", "$$",
    ";", "--", "/*", "\\N", "\\.", "NULL", "NaN", " ", "\n", "\t", "\N{NO-BREAK SPACE}",
    "\N{ZERO WIDTH SPACE}", "\N{ZERO WIDTH NO-BREAK SPACE}",
]  # fmt: skip
ONLY_IN_FILES = ["\x00", "\ud83d", "\ude00", "\udfff", "a\x00b", "<\x00b>", "&#\ud8000;"]

Texts = tuple[str | None, str | None, str | None]


def _texts(pieces: Sequence[str], characters: st.SearchStrategy[str]) -> st.SearchStrategy[Texts]:
    """The texts of one product: blanks, pieces put together, and any characters at all."""
    together = st.lists(st.sampled_from(pieces), min_size=1, max_size=8).map("".join)
    text = st.sampled_from(BLANKS) | together | st.text(characters, max_size=20)
    return st.tuples(text, text, text)


# PostgreSQL stores neither NUL nor half of a surrogate pair: those only come in a file.
STORABLE = _texts(PIECES, st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ANY = _texts([*PIECES, *ONLY_IN_FILES], st.characters(codec=None))

MANY = settings(
    max_examples=times(25, 150),
    deadline=None,
    # The database is the test's, and every example empties it first.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop without products, whose texts are mapped as they are."""
    with connect(database_url) as connection:
        create_products(connection, [])
    with prepared_shop(database_url, _settings(database_url, tmp_path)) as shop:
        yield shop


def _settings(database_url: str, folder: Path) -> Settings:
    mapping = folder / "product_texts.sql"
    mapping.write_text(MAPPING, encoding="utf-8")
    return settings_for(database_url, catalogue=CatalogueSettings(product_texts=mapping))


def _emptied(shop: Shop) -> None:
    shop.connection.execute(
        "TRUNCATE products, product_embeddings_v2, ingestion.embedding_ledger, "
        "ingestion.failed_products"
    )


def _products(texts: Sequence[Texts]) -> list[Product]:
    """A plain neighbour on either side of the products that have these texts."""
    neighbour = ("as it should be", "as it is used", "as it is made")
    return [
        Product(id_, f"Thing {id_}", *it) for id_, it in enumerate([neighbour, *texts, neighbour])
    ]


def _raw_texts(shop: Shop) -> dict[Aspect, list[str | None]]:
    rows = shop.connection.execute("SELECT description, usage, features FROM products").fetchall()
    return {
        aspect: list(texts) for aspect, texts in zip(Aspect, zip(*rows, strict=True), strict=True)
    }


def _assert_every_aspect_is_accounted_for(shop: Shop, products: int) -> None:
    """Each has a vector or the reason "empty" on record, each product its row in v2."""
    expected = {}
    for aspect, texts in _raw_texts(shop).items():
        assert len(texts) == products
        expected[aspect, "done"] = sum(bool(cleaned(text)) for text in texts)
        expected[aspect, "empty"] = products - expected[aspect, "done"]
    counts = shop.catalogue.aspect_counts(shop.settings.fingerprints)
    found = {(count.aspect, count.state): count.aspects for count in counts}
    assert found == {state: count for state, count in expected.items() if count}
    rows = shop.connection.execute("SELECT count(*) FROM product_embeddings_v2").fetchall()
    assert rows == [(products,)]
    assert shop.embeddings.failed_products() == []


def _spelled_alike(shop: Shop) -> int:
    """Texts that SQL gives differently and cleaning makes the same, for each model.

    What PostgreSQL can compare is the text as it gives it, so each of these may be paid for.
    """
    wordings: dict[str, set[str]] = {}
    for aspect, texts in _raw_texts(shop).items():
        of_model = wordings.setdefault(shop.settings.fingerprint(aspect), set())
        of_model.update(text for text in texts if text and cleaned(text))
    return sum(len(texts) - len({cleaned(text) for text in texts}) for texts in wordings.values())


def _ingest(shop: Shop, fault: Fault, products: int) -> None:
    """One run, which must leave nothing undone, and a second one, which must have nothing to do."""
    embedders = embedders_of(shop.settings)
    started = time.monotonic()
    result = run(shop, embedders=embedders).result
    seconds = time.monotonic() - started
    assert (result.failed, result.outdated) == (0, 0)
    _assert_every_aspect_is_accounted_for(shop, products)
    sent = {name: embedder.texts for name, embedder in embedders.items()}
    found = audit(shop, sent)
    fault.recovered(
        found, caused=3 * products, allowed_paid_twice=_spelled_alike(shop), seconds=seconds
    )
    assert run(shop, run_id="run-2").texts == []


@pytest.mark.fault("texts of every kind, inserted and edited in SQL")
@MANY
@given(before=st.lists(STORABLE, min_size=1, max_size=6), data=st.data())
def test_texts_inserted_and_edited_in_sql_get_their_vectors_or_the_reason_why_not(
    before: list[Texts], data: st.DataObject, shop: Shop, fault: Fault
) -> None:
    products = _products(before)
    _emptied(shop)
    add_products(shop.connection, products)
    _ingest(shop, fault, len(products))

    size = len(before)
    after = data.draw(st.lists(STORABLE, min_size=size, max_size=size), label="after")
    for product in _products(after):
        shop.connection.execute(
            "UPDATE products SET description = %s, usage = %s, features = %s WHERE id = %s",
            (product.description, product.usage, product.features, product.id),
        )
    _ingest(shop, fault, len(products))


def _write(file: Path, products: Sequence[Product]) -> None:
    """JSON Lines in ASCII: all else is escaped, which is how half a pair can be in a file."""
    lines = (json.dumps(vars(product), ensure_ascii=True) + "\n" for product in products)
    file.write_text("".join(lines), encoding="ascii")


def _assert_stored_as_written(shop: Shop, products: Sequence[Product]) -> None:
    """But for what PostgreSQL cannot store."""
    rows = shop.connection.execute("SELECT * FROM products ORDER BY id").fetchall()
    assert rows == [tuple(map(_storable, vars(product).values())) for product in products]


def _storable(value: object) -> object:
    if not isinstance(value, str):
        return value
    # Two halves of a pair beside each other are one character in JSON's escapes.
    return re.sub("[\x00\ud800-\udfff]", "", json.loads(json.dumps(value)))


@pytest.mark.fault("texts of every kind, from a file with JSON's escapes")
@MANY
@given(texts=st.lists(ANY, min_size=1, max_size=6))
def test_texts_from_a_file_get_their_vectors_or_the_reason_why_not(
    texts: list[Texts], shop: Shop, fault: Fault, database_url: str, tmp_path: Path
) -> None:
    products = _products(texts)
    file = tmp_path / "products.jsonl"
    _write(file, products)
    _emptied(shop)
    with connect(database_url) as connection:
        table = ProductsTable(connection, shop.queries)
        catalogue = read(file)
        table.load(catalogue, table.present(catalogue))
    _assert_stored_as_written(shop, products)
    _ingest(shop, fault, len(products))


@pytest.mark.fault("texts of every kind, brought in by ingest load")
def test_ingest_load_brings_every_awkward_text_to_its_vector(
    database_url: str, tmp_path: Path, fault: Fault
) -> None:
    awkward = [*BLANKS, *PIECES, *ONLY_IN_FILES]
    products = _products([(text, text, f"{text} and more") for text in awkward])
    file = tmp_path / "products.jsonl"
    _write(file, products)
    environ = os.environ | {"DATABASE_URL": database_url, "INGESTION_HOME": str(tmp_path / "home")}
    loaded = subprocess.run(
        [PROGRAM, "load", file, "--json"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["products"] == len(products)
    with prepared_shop(database_url, _settings(database_url, tmp_path)) as shop:
        _assert_stored_as_written(shop, products)
        _ingest(shop, fault, len(products))


MEGABYTE = 1024 * 1024
LONG: dict[str, Callable[[], str]] = {
    "words": lambda: "word " * (MEGABYTE // 5),
    "one word": lambda: "x" * MEGABYTE,
    "paragraphs": lambda: f"<p>{'word ' * 200}</p>\n" * (MEGABYTE // 1008),
    "entities": lambda: "&amp;" * (MEGABYTE // 5),
    "combining": lambda: "e" + "\N{COMBINING ACUTE ACCENT}" * (MEGABYTE // 2),
    "emoji": lambda: "👩\u200d🍳 " * (MEGABYTE // 12),
    "right to left": lambda: "سكر " * (MEGABYTE // 7),
    "spaces": lambda: " " * MEGABYTE,
    "open brackets": lambda: "<" * MEGABYTE,
    "a comment without an end": lambda: "before <!-- " + "after " * (MEGABYTE // 6),
}


@pytest.mark.fault("a text of 1 MB")
@pytest.mark.parametrize("kind", LONG)
def test_a_text_of_a_megabyte_lands_beside_its_neighbours(
    kind: str, shop: Shop, fault: Fault
) -> None:
    text = LONG[kind]()
    products = _products([(text, None, f"{text} differs")])
    add_products(shop.connection, products)
    _ingest(shop, fault, len(products))


def test_a_real_model_gives_every_awkward_text_a_vector_that_can_be_stored() -> None:
    from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder

    pin = pinned_models.ALL_MINILM_L6_V2
    cache = weights.default_cache()
    folder = weights.fetch(pin.name, revision=None, path=None, cache=cache).folder
    # Short texts are soon embedded, and each is cut somewhere in its oddities.
    embedder = SentenceTransformerEmbedder(folder, dimensions=pin.dimensions, max_tokens=16)
    awkward = [*BLANKS, *PIECES, *ONLY_IN_FILES, "".join(PIECES), LONG["combining"]()]
    texts = [text for text in map(cleaned, awkward) if text]

    answer = embedder.embed(texts)

    assert validate(answer, expected_count=len(texts), dimensions=pin.dimensions) == []
    assert answer.tokens == embedder.count_tokens(texts)
    assert max(answer.tokens) == 16
