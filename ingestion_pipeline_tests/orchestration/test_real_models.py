"""The main job with the real models, over the first products of the sample shop."""

from __future__ import annotations

import os

import dagster as dg
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.orchestration.in_process import run_ingest
from ingestion_pipeline.orchestration.models import ConfiguredModels
from ingestion_pipeline.ranges import EVERYTHING
from ingestion_pipeline.sample_catalogue.shop import sample_products
from ingestion_pipeline.settings import RangeSettings, load_settings
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline_tests.orchestration.conftest import Heard
from ingestion_pipeline_tests.shops import Product, create_products

SAMPLE = 7
COLUMNS = {aspect: sql.Identifier(aspect.column) for aspect in Aspect}


def test_the_sample_shops_products_get_the_vectors_of_their_texts(
    database_url: str, dagster_instance: dg.DagsterInstance
) -> None:
    settings = load_settings(environ={**os.environ, "DATABASE_URL": database_url}).model_copy(
        update={"ranges": RangeSettings(products_per_range=3)}
    )
    for model in settings.aspects.values():
        weights.fetch(
            model.model, revision=model.revision, path=model.path, cache=settings.model_cache
        )
    with connect(database_url) as connection:
        rows = [
            Product(it.id, it.name, it.description, it.usage, it.features)
            for it in sample_products()[:SAMPLE]
        ]
        create_products(connection, rows)
    with open_shop(settings) as shop:
        shop.prepare()
        texts = shop.catalogue.stale_texts(EVERYTHING, settings.fingerprints)

    outcome = run_ingest(settings, Heard())

    assert outcome.failed_ranges == []
    assert [verdict.check for verdict in outcome.verdicts if verdict.blocking] == []
    assert [check.name for check in outcome.checks if check.status == "fail"] == []
    assert len(dagster_instance.get_dynamic_partitions("product_id_ranges")) == 3
    assert len(texts) == 3 * SAMPLE
    models = ConfiguredModels().of(settings, print)
    with connect(database_url) as connection:
        for aspect, column in COLUMNS.items():
            query = sql.SQL('SELECT "productId", {} FROM product_embeddings_v2').format(column)
            stored = {id_: vector.to_numpy() for id_, vector in connection.execute(query)}
            wanted = [text for text in texts if text.aspect is aspect]
            embedder = models[aspect].embedder
            expected = embedder.embed([cleaned(text.text) for text in wanted]).vectors
            for text, vector in zip(wanted, expected, strict=True):
                assert float(stored[text.product_id] @ vector) >= 0.999
