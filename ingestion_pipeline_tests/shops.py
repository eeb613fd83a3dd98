"""Small shops in a test's database, and an embedder whose every answer is known without a model.

Vectors have a few dimensions here: what is tested with them is where they go, not what they mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql
from pydantic import SecretStr

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import Connection
from ingestion_pipeline.database.queries import identifier
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import PermanentTextError
from ingestion_pipeline.ranges import EVERYTHING, IdType, ProductId, ProductIdRange, key_of
from ingestion_pipeline.reingestion import (
    AspectModel,
    Pace,
    reingest,
)
from ingestion_pipeline.settings import AspectSettings, CatalogueSettings, Settings
from ingestion_pipeline.tally import RangeResult, RangeStep
from ingestion_pipeline.work import RunIdentity

DIMENSIONS = {Aspect.DESCRIPTION: 8, Aspect.USAGE: 8, Aspect.FEATURE: 4}
MODELS = {Aspect.DESCRIPTION: "large", Aspect.USAGE: "large", Aspect.FEATURE: "small"}
PACE = Pace(products_per_page=4, tokens_per_batch=64, lease_seconds=60)


@dataclass(frozen=True)
class Product:
    """A row of products."""

    id: ProductId
    name: str
    description: str | None
    usage: str | None
    features: str | None


def product_ids(count: int, id_type: IdType = IdType.INTEGER) -> list[ProductId]:
    """`count` ids of a type, ascending in the order of the database's default collation."""
    if id_type is IdType.UUID:
        return [UUID(int=number * 2**96) for number in range(1, count + 1)]
    if id_type is IdType.TEXT:
        return [f"sku {number:04d}" for number in range(1, count + 1)]
    return list(range(1, count + 1))


def products(count: int, id_type: IdType = IdType.INTEGER) -> list[Product]:
    """`count` products of which no two share a text."""
    return [
        Product(id_, f"Thing {id_}", "is described", "is used", "has features")
        for id_ in product_ids(count, id_type)
    ]


def create_products(
    connection: Connection,
    rows: Iterable[Product],
    *,
    id_type: str = "integer",
    table: str = "products",
) -> None:
    """Make a products table whose id has the SQL type `id_type`, collation included."""
    columns = "name text NOT NULL, description text, usage text, features text"
    create = "CREATE TABLE {} (id " + id_type + " PRIMARY KEY, " + columns + ")"
    connection.execute(sql.SQL(create).format(identifier(table)))
    add_products(connection, rows, table=table)


def add_products(
    connection: Connection | Session, rows: Iterable[Product], *, table: str = "products"
) -> None:
    """Insert products."""
    insert = sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s)").format(identifier(table))
    connection.cursor().executemany(
        insert, [(p.id, p.name, p.description, p.usage, p.features) for p in rows]
    )


def settings_for(
    database_url: str,
    *,
    models: Mapping[Aspect, str] = MODELS,
    catalogue: CatalogueSettings | None = None,
) -> Settings:
    """Settings of a shop with small vectors; `models` names the model of each aspect."""
    nowhere = Path("/nonexistent")
    return Settings(
        aspects={
            aspect: AspectSettings(
                model=models[aspect], dimensions=DIMENSIONS[aspect], max_tokens=64
            )
            for aspect in Aspect
        },
        catalogue=catalogue or CatalogueSettings(),
        home=nowhere,
        model_cache=nowhere,
        database_url=SecretStr(database_url),
    )


@contextmanager
def prepared_shop(database_url: str, settings: Settings | None = None) -> Iterator[Shop]:
    """The shop of a database that has products already, with v2 and the bookkeeping made."""
    with open_shop(settings or settings_for(database_url)) as shop:
        shop.prepare()
        yield shop


def vector_of(text: str, dimensions: int) -> npt.NDArray[np.float32]:
    """The vector that `KnownEmbedder` gives a text: of length 1, and another for every text."""
    numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[:dimensions], dtype=np.uint8)
    vector = numbers.astype(np.float32) - np.float32(127.5)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


@dataclass
class KnownEmbedder:
    """Embeds at once and without a model; a token is a word.

    A text that holds a key of `refused` is one that the model cannot take, ever. `answer` may
    change what is answered; it gets the texts and the right answer. `requests` holds what was sent.
    """

    dimensions: int
    refused: dict[str, str] = field(default_factory=dict)
    answer: Callable[[Sequence[str], Embeddings], Embeddings] = lambda _, right: right
    requests: list[list[str]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """Every text of every request, in order."""
        return [text for request in self.requests for text in request]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Known vectors, or `PermanentTextError` with the reason of a refused text."""
        self.requests.append(list(texts))
        for part, reason in self.refused.items():
            if any(part in text for text in texts):
                raise PermanentTextError(reason)
        vectors = [vector_of(text, self.dimensions) for text in texts]
        stacked = np.stack(vectors) if vectors else np.empty((0, self.dimensions), np.float32)
        right = Embeddings(stacked, self.count_tokens(texts), [False] * len(texts))
        return self.answer(texts, right)


@dataclass
class Run:
    """What a run over one range was told, did and sent."""

    result: RangeResult
    embedders: dict[str, KnownEmbedder]
    steps: list[RangeStep]

    @property
    def texts(self) -> list[str]:
        """Every text that was sent to any model."""
        return [text for embedder in self.embedders.values() for text in embedder.texts]


def embedders_of(settings: Settings) -> dict[str, KnownEmbedder]:
    """An embedder for each fingerprint of the settings."""
    return {
        settings.fingerprint(aspect): KnownEmbedder(settings.aspects[aspect].dimensions)
        for aspect in Aspect
    }


def run(
    shop: Shop,
    range_: ProductIdRange = EVERYTHING,
    *,
    embedders: Mapping[str, KnownEmbedder] | None = None,
    run_id: str = "run-1",
    pace: Pace = PACE,
) -> Run:
    """Re-ingest one range of a shop with known embedders, without ever waiting."""
    known = dict(embedders or embedders_of(shop.settings))
    fingerprints = shop.settings.fingerprints
    steps: list[RangeStep] = []
    result = reingest(
        range_,
        catalogue=shop.catalogue,
        store=shop.embeddings,
        models={
            aspect: AspectModel(fingerprint, known[fingerprint])
            for aspect, fingerprint in fingerprints.items()
        },
        owner=RunIdentity(run_id, run_id, key_of(range_, shop.id_type)),
        pace=pace,
        report=steps.append,
        sleep=lambda _: None,
    )
    return Run(result, known, steps)
