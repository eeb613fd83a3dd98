"""`ingest demo`: all of it on a small shop, nothing twice, and never on anybody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ingestion_pipeline.database import sample_shop
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.sample_shop import SampleShop
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.sample_catalogue.shop import sample_products
from ingestion_pipeline_tests.cli.conftest import Ingest, execute

FEW = 12
V1 = 'SELECT "productId", xmin::text FROM product_embeddings ORDER BY 1'


@pytest.fixture
def few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first products of the shop, so that a demo takes seconds."""
    few = sample_products()[:FEW]
    monkeypatch.setattr(sample_shop, "sample_products", lambda: few)


def _embedded(texts: list[str]) -> npt.NDArray[np.float32]:
    return np.ones((len(texts), 384), dtype=np.float32)


@pytest.mark.usefixtures("few_products", "dagster")
def test_a_demo_goes_all_the_way_and_a_second_one_embeds_nothing(
    ingest: Ingest, embedded: LocalServer
) -> None:
    first = ingest("demo")
    assert first.code == 0, first.err
    assert f"{FEW} products made" in first.out
    assert f"{FEW} of {FEW} products" in first.out
    assert '\nSearch for "a warm coat for a rainy walk"\n' in first.out
    for command in ("status", "up", "search", 'eval "$(', 'psql "$DATABASE_URL"'):
        assert command in first.out.split("To try next")[1]
    url = embedded.url("ecommerce")
    vectors = "SELECT count(*), count(description_embedding) FROM product_embeddings_v2"
    assert execute(url, vectors) == [(FEW, FEW)]
    v1 = execute(url, V1)
    assert len(v1) == FEW
    spent = "SELECT sum(embedded) FROM ingestion.spend"
    before = execute(url, spent)

    second = ingest("demo", "--json")
    assert second.code == second.document["exit_code"] == 0
    assert second.document["up_to_date"] is True
    assert second.document["report"]["embedded"] == 0
    assert len(second.document["search"]["hits"]) == 5
    assert execute(url, V1) == v1
    assert execute(url, spent) == before
    third = ingest("demo")
    assert "it is there already" in third.out
    assert "nothing was embedded" in third.out


@pytest.mark.usefixtures("dagster")
def test_a_demo_touches_no_shop_that_database_url_names(ingest: Ingest, shop_url: str) -> None:
    answer = ingest("demo")
    assert answer.code == 2
    assert "unset DATABASE_URL" in answer.err
    assert execute(shop_url, "SELECT count(*) FROM pg_class WHERE relname ~ 'product'") == [(0,)]


@pytest.mark.usefixtures("dagster")
def test_a_demo_leaves_a_loaded_catalogue_alone(
    ingest: Ingest, embedded: LocalServer, catalogue: Path
) -> None:
    ingest("load", catalogue)
    answer = ingest("demo")
    assert answer.code == 2
    assert "not the sample shop" in answer.err
    url = embedded.url("ecommerce")
    assert execute(url, "SELECT count(*), min(id) FROM products") == [(12, 1)]
    assert execute(url, "SELECT to_regclass('product_embeddings')") == [(None,)]


def test_v1_interrupted_half_way_goes_on_where_it_was(database_url: str) -> None:
    with connect(database_url) as connection:
        shop = SampleShop(connection, Queries(tables={}))
        assert shop.create() == len(sample_products())
        assert shop.create() == 0
        texts = shop.texts_without_v1()
        assert len({text for text, _ in texts}) == len(texts) < len(sample_products())

        asked: list[str] = []

        def one_batch_then_ctrl_c(batch: list[str]) -> npt.NDArray[np.float32]:
            if asked:
                raise KeyboardInterrupt
            asked.extend(batch)
            return _embedded(batch)

        with pytest.raises(KeyboardInterrupt):
            shop.fill_v1(texts, one_batch_then_ctrl_c, lambda _: None)
        left = shop.texts_without_v1()
        assert asked
        assert {text for text, _ in left} == {text for text, _ in texts} - set(asked)

        done: list[int] = []
        shop.fill_v1(left, _embedded, done.append)
        assert done[-1] == sum(len(ids) for _, ids in left)
        assert shop.texts_without_v1() == []
        rows = connection.execute("SELECT count(*) FROM product_embeddings").fetchone()
        assert rows == (len(sample_products()),)


def test_the_sample_shop_is_known_by_its_mark_and_nothing_else_is_taken_for_it(
    database_url: str,
) -> None:
    with connect(database_url) as connection:
        connection.execute("CREATE TABLE products (id integer PRIMARY KEY, sku text, name text)")
        shop = SampleShop(connection, Queries(tables={}))
        with pytest.raises(InputError, match="not the sample shop"):
            shop.create()
        assert connection.execute("SELECT to_regclass('product_embeddings')").fetchone() == (None,)
