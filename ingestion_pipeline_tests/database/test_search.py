"""Search by the three vectors of a query, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.retrieval.search import search
from ingestion_pipeline_tests.database.small_shop import small_shop, text_of, vector_of

Vectors = dict[Aspect, npt.NDArray[np.float32]]


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with small_shop(database_url) as shop:
        yield shop


def vectors_of(shop: Shop, product_id: int, *aspects: Aspect) -> Vectors:
    """The vectors of a product's own texts."""
    vectors = {}
    for aspect in aspects or Aspect:
        text = text_of(product_id, aspect)
        assert text is not None
        vectors[aspect] = vector_of(text, shop.settings.aspects[aspect].dimensions)
    return vectors


@pytest.mark.parametrize("indexed", [False, True], ids=["without an index", "with indexes"])
def test_a_product_is_the_first_hit_for_its_own_vectors(shop: Shop, *, indexed: bool) -> None:
    if indexed:
        shop.embeddings.create_vector_indexes()

    hits = search(shop, vectors_of(shop, 103), limit=3)

    assert hits[0].product_id == 103
    assert hits[0].name == "Kettle"
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert len(hits) == 3
    assert hits[0].score > hits[1].score >= hits[2].score


def test_variants_make_one_hit_that_names_the_others(shop: Shop) -> None:
    hits = search(shop, vectors_of(shop, 105), limit=9)

    assert (hits[0].product_id, hits[0].variants) == (104, (105,))
    assert len({hit.name for hit in hits}) == len(hits) == 9
    assert 105 not in {hit.product_id for hit in hits}


def test_a_missing_aspect_is_left_out_of_the_mean_and_not_ranked_as_zero(shop: Shop) -> None:
    query = vectors_of(shop, 109, Aspect.DESCRIPTION, Aspect.FEATURE)
    query |= vectors_of(shop, 101, Aspect.USAGE)

    [chess] = [hit for hit in search(shop, query, limit=10) if hit.product_id == 109]

    assert chess.parts[Aspect.USAGE] is None
    assert chess.score == pytest.approx(1, abs=1e-6)


def test_parts_are_cosine_similarities_whatever_the_length_of_the_query(shop: Shop) -> None:
    query = {Aspect.DESCRIPTION: 7 * vectors_of(shop, 106)[Aspect.DESCRIPTION]}

    hits = search(shop, query, limit=10)

    assert hits[0].product_id == 106
    for hit in hits:
        text = text_of(int(hit.product_id), Aspect.DESCRIPTION)
        assert text is not None
        expected = float(vector_of(text, 768) @ vectors_of(shop, 106)[Aspect.DESCRIPTION])
        assert hit.parts == {Aspect.DESCRIPTION: pytest.approx(expected, abs=1e-5)}


def test_weights_decide_between_two_aspects_that_disagree(shop: Shop) -> None:
    query = vectors_of(shop, 101, Aspect.DESCRIPTION) | vectors_of(shop, 102, Aspect.FEATURE)

    by_description = search(shop, query, weights={Aspect.DESCRIPTION: 3, Aspect.FEATURE: 1})
    by_feature = search(shop, query, weights={Aspect.DESCRIPTION: 1, Aspect.FEATURE: 3})

    assert by_description[0].product_id == 101
    assert by_feature[0].product_id == 102


def test_hits_come_through_the_index_and_more_candidates_are_asked_for_than_hits(
    shop: Shop,
) -> None:
    # Sixty variants that are all nearer than the lamp: more than an index returns by default.
    shop.connection.execute(
        "INSERT INTO products SELECT 1000 + n, 'Lamp shade' FROM generate_series(1, 60) AS n"
    )
    vector = vectors_of(shop, 104)[Aspect.DESCRIPTION]
    shop.connection.execute(
        'INSERT INTO product_embeddings_v2 ("productId", description_embedding) '
        "SELECT 1000 + n, %s FROM generate_series(1, 60) AS n",
        (vector,),
    )
    shop.embeddings.create_vector_indexes()
    shop.connection.execute("SET enable_seqscan = off")

    hits = search(shop, {Aspect.DESCRIPTION: vector}, limit=2)

    found = {hit.name: 1 + len(hit.variants) for hit in hits}
    assert found == {"Lamp shade": 60, "Desk lamp": 2}


def test_a_zero_vector_is_no_match(shop: Shop) -> None:
    shop.connection.execute(
        "UPDATE product_embeddings_v2 SET feature_embedding = array_fill(0, ARRAY[384])::vector "
        'WHERE "productId" = 103'
    )

    hits = search(shop, vectors_of(shop, 110, Aspect.FEATURE), limit=10)

    assert hits[0].product_id == 110
    assert 103 not in {hit.product_id for hit in hits}


def test_the_rest_of_the_session_searches_as_before(shop: Shop) -> None:
    shop.connection.execute("SET hnsw.ef_search = 41")

    search(shop, vectors_of(shop, 101))

    assert shop.connection.execute("SHOW hnsw.ef_search").fetchone() == ("41",)


def test_a_query_that_makes_no_sense_is_refused_by_name(shop: Shop) -> None:
    with pytest.raises(InputError, match="usage has 3 numbers; expected 768"):
        search(shop, {Aspect.USAGE: [1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match="limit is 0"):
        search(shop, vectors_of(shop, 101), limit=0)
    with pytest.raises(InputError, match="at least one is above 0"):
        search(shop, {})
    with pytest.raises(InputError, match="0 or more"):
        search(shop, vectors_of(shop, 101), weights={Aspect.USAGE: -1})
