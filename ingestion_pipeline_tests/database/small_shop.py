"""A shop of ten products whose v2 is complete and right, made without a model.

Vectors are unit vectors of a seeded generator, one for each distinct text; ids have a gap, products
104 and 105 are variants with the same texts, and 109 has no usage text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psycopg
from pydantic import SecretStr

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import Connection
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.settings import CatalogueSettings, Settings

PRODUCTS = (
    (101, "Rain coat", "Keeps the rain out", "For walks in the wet", "Taped seams"),
    (102, "Wool blanket", "Soft and heavy", "For winter evenings", "Pure wool"),
    (103, "Kettle", "Boils a litre", "For tea", "Steel, 2 kW"),
    (104, "Desk lamp", "Warm light", "For reading", "LED, dimmable"),
    (105, "Desk lamp", "Warm light", "For reading", "LED, dimmable"),
    (106, "Trowel", "Digs small holes", "For planting bulbs", "Ash and steel"),
    (107, "Bicycle bell", "Rings clearly", "For busy paths", "Brass"),
    (109, "Chess set", "Carved by hand", None, "Boxwood"),
    (110, "Tea towel", "Dries well", "For glasses", "Linen"),
    (112, "Headphones", "Quiet inside", "For trains", "30 h battery"),
)


def settings_for(database_url: str, **catalogue: object) -> Settings:
    return Settings(
        catalogue=CatalogueSettings.model_validate(catalogue),
        home=Path("unused"),
        model_cache=Path("unused"),
        database_url=SecretStr(database_url),
    )


def create_products(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE products (id integer PRIMARY KEY, name text NOT NULL, "
        "description text, usage text, features text)"
    )
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO products VALUES (%s, %s, %s, %s, %s)", PRODUCTS)


def create_v1(connection: Connection) -> None:
    connection.execute(
        'CREATE TABLE product_embeddings ("productId" integer PRIMARY KEY, embedding vector(3))'
    )
    connection.execute("INSERT INTO product_embeddings SELECT id, '[1,2,3]' FROM products")


def text_of(product_id: int, aspect: Aspect) -> str | None:
    """The aspect text that the packaged product_texts.sql gives."""
    [(_, name, *texts)] = [product for product in PRODUCTS if product[0] == product_id]
    text = texts[list(Aspect).index(aspect)]
    return None if text is None else f"{name}.\n{text}"


def vector_of(text: str, dimensions: int) -> npt.NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def fill_v2(shop: Shop) -> None:
    """Every vector and ledger row as a finished run leaves them."""
    for product_id, *_ in PRODUCTS:
        vectors: list[object] = [product_id]
        for aspect in Aspect:
            text = text_of(product_id, aspect)
            size = shop.settings.aspects[aspect].dimensions
            vectors.append(None if text is None else vector_of(text, size))
            shop.connection.execute(
                "INSERT INTO ingestion.embedding_ledger "
                "(product_id, aspect, text_digest, fingerprint, outcome, run_id) "
                "VALUES (%s, %s, %s, %s, %s, 'a run')",
                (
                    product_id,
                    aspect.value,
                    hashlib.sha256((text or "").encode()).digest(),
                    shop.settings.fingerprint(aspect),
                    "empty" if text is None else "embedded",
                ),
            )
        shop.connection.execute(
            "INSERT INTO product_embeddings_v2 VALUES (%s, %s, %s, %s)", vectors
        )


@contextmanager
def small_shop(database_url: str) -> Iterator[Shop]:
    """The shop, its v1 and its finished v2, opened."""
    settings = settings_for(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        create_products(connection)
        create_v1(connection)
    with open_shop(settings) as shop:
        shop.prepare()
        fill_v2(shop)
        yield shop
