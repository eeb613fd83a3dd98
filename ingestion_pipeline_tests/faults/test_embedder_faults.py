"""Models that raise, answer too little, too much, out of order or nonsense.

The neighbours of a text that a model cannot take get their vectors, the text itself is on record
with the reason, and where the model is at fault no text is blamed. An answer in another order that
does not say so looks like a right one: nothing here, or anywhere, can tell the two apart.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import dagster as dg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion_pipeline.asking import CONTROL_TEXT
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    OutageError,
    OutOfMemoryError,
    PermanentTextError,
    RangeFailedError,
    TooManyFailuresError,
    TransientError,
)
from ingestion_pipeline.ranges import EVERYTHING, key_of
from ingestion_pipeline.reingestion import (
    AspectModel,
    Pace,
    reingest,
)
from ingestion_pipeline.settings import CatalogueSettings, RangeSettings, WorkSettings
from ingestion_pipeline.tally import RangeResult
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.conftest import SHOP_TEMPLATE
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.orchestration.conftest import SmallShop
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import (
    DIMENSIONS,
    KnownEmbedder,
    create_products,
    prepared_shop,
    products,
    settings_for,
)

# One aspect has a text, so that a batch of n texts is n products.
MAPPING = "SELECT id AS product_id, 'description' AS aspect, description AS text FROM products"

ONE_BATCH = Pace(products_per_page=1_000, tokens_per_batch=10_000, lease_seconds=60)
SIZES = st.integers(2, 64)

POISON = "poison"

MANY = settings(
    max_examples=times(8, 50),
    deadline=None,
    # Every example fills the shop anew.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# What is wrong with an answer. `at` are the positions of the texts for which it is.

Spoil = Callable[[Embeddings, list[int]], Embeddings]


def _raising(error: Exception) -> Spoil:
    def spoil(right: Embeddings, at: list[int]) -> Embeddings:  # noqa: ARG001 - nothing to answer
        raise error

    return spoil


def _one_short(right: Embeddings, at: list[int]) -> Embeddings:
    return Embeddings(
        np.delete(right.vectors, at[0], axis=0),
        [it for position, it in enumerate(right.tokens) if position != at[0]],
        [it for position, it in enumerate(right.truncated) if position != at[0]],
    )


def _nothing(right: Embeddings, at: list[int]) -> Embeddings:  # noqa: ARG001
    return Embeddings(right.vectors[:0], [], [])


def _one_too_many(right: Embeddings, at: list[int]) -> Embeddings:
    return Embeddings(
        np.insert(right.vectors, at[0], right.vectors[at[0]], axis=0),
        [*right.tokens, 2],
        [*right.truncated, False],
    )


def _vectors(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda right, _: replace(right, vectors=change(right.vectors))


def _tokens(change: Callable[[list[int]], list[int]]) -> Spoil:
    return lambda right, _: replace(right, tokens=change(right.tokens))


def _indexes(change: Callable[[list[int]], list[int]]) -> Spoil:
    return lambda right, _: replace(right, indexes=change(list(range(len(right.tokens)))))


def _row(*numbers: float) -> Spoil:
    """A vector that begins with `numbers`, which are repeated to its length."""

    def spoil(right: Embeddings, at: list[int]) -> Embeddings:
        vectors = right.vectors.copy()
        vectors[at] = np.resize(np.asarray(numbers, np.float32), vectors.shape[1])
        return replace(right, vectors=vectors)

    return spoil


def _one_number(number: float) -> Spoil:
    def spoil(right: Embeddings, at: list[int]) -> Embeddings:
        vectors = right.vectors.copy()
        vectors[at, -1] = number
        return replace(right, vectors=vectors)

    return spoil


RAISES: dict[str, Spoil] = {
    "raises ValueError": _raising(ValueError("cannot tokenize this")),
    "raises RuntimeError": _raising(RuntimeError("shapes do not match")),
    "raises KeyError": _raising(KeyError("data")),
    "raises RecursionError": _raising(RecursionError("too deep")),
}
SHAPES: dict[str, Spoil] = {
    "one vector too few": _one_short,
    "no vectors": _nothing,
    "one vector too many": _one_too_many,
    "vectors one number too short": _vectors(lambda vectors: vectors[:, :-1]),
    "vectors one number too long": _vectors(lambda vectors: np.hstack([vectors, vectors[:, :1]])),
    "vectors of no dimension": _vectors(lambda vectors: vectors[:, 0]),
    "vectors in a list of lists": _vectors(lambda vectors: vectors[None]),
    "float64": _vectors(lambda vectors: vectors.astype(np.float64)),
    "float16": _vectors(lambda vectors: vectors.astype(np.float16)),
    "token counts: one too few": _tokens(lambda tokens: tokens[:-1]),
    "token counts: one too many": _tokens(lambda tokens: [*tokens, 1]),
    "token counts: negative": _tokens(lambda tokens: [-1 for _ in tokens]),
    "indexes: one twice": _indexes(
        lambda indexes: [*indexes[:-1], indexes[0]] + [0] * (len(indexes) == 1)
    ),
    "indexes: from one": _indexes(lambda indexes: [index + 1 for index in indexes]),
    "indexes: negative": _indexes(lambda indexes: [index - len(indexes) for index in indexes]),
    "indexes: one too few": _indexes(lambda indexes: indexes[:-1]),
    "indexes: none": _indexes(lambda _: []),
}
VECTORS: dict[str, Spoil] = {
    "NaN": _row(math.nan),
    "one NaN": _one_number(math.nan),
    "infinite": _row(math.inf),
    "one infinite": _one_number(-math.inf),
    "zero": _row(0.0),
    "negative zero": _row(-0.0),
    "near zero": _row(1e-30, -1e-30),
    "the smallest there is": _row(1e-45),
}
UNUSABLE = RAISES | SHAPES
BAD = UNUSABLE | VECTORS
REFUSED = {"raises PermanentTextError": _raising(PermanentTextError("The model refuses this."))}


@dataclass
class FaultyEmbedder(KnownEmbedder):
    """Spoils its answers; `answered` holds the texts of those that it gave.

    `for_texts` with this in them, and for the first `until` requests; None is without bound.
    """

    spoil: Spoil | None = None
    for_texts: str = ""
    until: int | None = None
    answered: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answer = self._spoilt

    def _spoilt(self, texts: Sequence[str], right: Embeddings) -> Embeddings:
        at = [position for position, text in enumerate(texts) if self.for_texts in text]
        if self.spoil and at and (self.until is None or len(self.requests) <= self.until):
            right = self.spoil(right, at)
        self.answered += texts
        return right


def _faulty(
    spoil: Spoil | None, *, for_texts: str = "", until: int | None = None
) -> FaultyEmbedder:
    return FaultyEmbedder(
        DIMENSIONS[Aspect.DESCRIPTION], spoil=spoil, for_texts=for_texts, until=until
    )


@pytest.fixture(scope="module")
def shop(
    server: LocalServer, _shop_template: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """One shop for all tests here, which fill it anew; only the description will have a text."""
    mapping = tmp_path_factory.mktemp("mapping") / "product_texts.sql"
    mapping.write_text(MAPPING, encoding="utf-8")
    server.create_database("embedder_faults", template=SHOP_TEMPLATE)
    url = server.url("embedder_faults")
    with connect(url) as connection:
        create_products(connection, [])
    options = settings_for(url, catalogue=CatalogueSettings(product_texts=mapping))
    with prepared_shop(url, options) as shop:
        yield shop


def _fill(shop: Shop, count: int, poison: Sequence[int] = ()) -> None:
    """Empty the shop, then make products 0 to `count` - 1; those in `poison` cannot be embedded."""
    shop.connection.execute(
        "TRUNCATE products, product_embeddings_v2, ingestion.embedding_ledger, "
        "ingestion.failed_products, ingestion.spend"
    )
    shop.connection.execute(
        "INSERT INTO products (id, name, description) "
        "SELECT id, 'Thing', CASE WHEN id = ANY(%s) THEN %s ELSE 'number ' END || id "
        "FROM generate_series(0, %s - 1) AS id",
        (list(poison), f"{POISON} ", count),
    )


def _run(
    shop: Shop,
    embedder: KnownEmbedder,
    pace: Pace = ONE_BATCH,
    say: Callable[[str], None] = lambda _: None,
) -> RangeResult:
    return reingest(
        EVERYTHING,
        catalogue=shop.catalogue,
        store=shop.embeddings,
        models={
            aspect: AspectModel(fingerprint, embedder)
            for aspect, fingerprint in shop.settings.fingerprints.items()
        },
        owner=RunIdentity("run-1", "run-1", key_of(EVERYTHING, shop.id_type)),
        pace=pace,
        say=say,
        sleep=lambda _: None,
    )


def _failed(shop: Shop) -> list[int]:
    ids = [failed.product_id for failed in shop.embeddings.failed_products()]
    return sorted(id_ for id_ in ids if isinstance(id_, int))


def _vectors_in_v2(shop: Shop) -> int:
    query = "SELECT count(description_embedding) FROM product_embeddings_v2"
    [(count,)] = shop.connection.execute(query).fetchall()
    return int(count)


def _requests_on_record(shop: Shop) -> int:
    [(count,)] = shop.connection.execute("SELECT sum(requests) FROM ingestion.spend").fetchall()
    return int(count or 0)


def _mended(shop: Shop, fault: Fault, embedder: FaultyEmbedder, *, allowed: int = 0) -> None:
    """The model is well again, the failed products are told to be tried again: all is right."""
    healthy = _faulty(None)
    started = time.monotonic()
    shop.embeddings.retry_failed()
    _run(shop, healthy)
    seconds = time.monotonic() - started
    assert _failed(shop) == []
    found = audit(shop, [*embedder.answered, *healthy.answered])
    fault.recovered(found, allowed_paid_twice=allowed, seconds=seconds)


# Once


@pytest.mark.fault("an embedder without a usable answer, once")
@pytest.mark.parametrize("kind", BAD)
def test_an_answer_that_is_bad_once_is_asked_for_again_and_nobody_is_blamed(
    kind: str, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 8)
    embedder = _faulty(BAD[kind], until=1)
    started = time.monotonic()
    result = _run(shop, embedder)
    seconds = time.monotonic() - started
    assert (result.embedded, result.failed) == (8, 0)
    assert len(embedder.requests) == 2
    assert _failed(shop) == []
    paid = 0 if kind in RAISES else 8
    fault.recovered(audit(shop, embedder.answered), allowed_paid_twice=paid, seconds=seconds)


@pytest.mark.fault("an embedder whose vectors are bad for one text, once")
@pytest.mark.parametrize("kind", VECTORS)
def test_a_vector_that_is_bad_once_is_asked_for_again_without_its_neighbours(
    kind: str, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 8, poison=[2, 5])
    embedder = _faulty(VECTORS[kind], for_texts=POISON, until=1)
    started = time.monotonic()
    result = _run(shop, embedder)
    seconds = time.monotonic() - started
    assert (result.embedded, result.failed) == (8, 0)
    assert embedder.requests[1:] == [["poison 2", "poison 5"]]
    fault.recovered(audit(shop, embedder.answered), allowed_paid_twice=2, seconds=seconds)


@pytest.mark.fault("an embedder without a usable answer, twice")
@pytest.mark.parametrize(
    "kind", ["raises RuntimeError", "one vector too few", "indexes: one twice"]
)
def test_a_model_that_has_no_usable_answer_twice_and_is_well_again_blames_nobody(
    kind: str, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 8)
    embedder = _faulty(UNUSABLE[kind], until=2)
    started = time.monotonic()
    result = _run(shop, embedder)
    seconds = time.monotonic() - started
    assert (result.embedded, _failed(shop)) == (8, [])
    paid = 0 if kind in RAISES else 16
    fault.recovered(audit(shop, embedder.answered), allowed_paid_twice=paid, seconds=seconds)


# For one text, or a few


def _bound(kind: str, texts: int) -> int:
    """Requests beyond the first that one poisonous text among so many may cost.

    A text that is refused alone is believed. Where there was no usable answer, it may have been the
    model: the same request is made once more, and before a text is blamed, it and another one are
    asked for alone.
    """
    if kind in VECTORS:
        return 2
    return math.ceil(math.log2(texts)) + (2 if kind in REFUSED else 4)


FOR_ONE_TEXT = REFUSED | {
    kind: BAD[kind]
    for kind in ("raises ValueError", "one vector too few", "indexes: one twice", "NaN", "zero")
}


@pytest.mark.fault("an embedder that cannot take one text among 2 to 64")
@pytest.mark.parametrize("kind", FOR_ONE_TEXT)
@MANY
@given(data=st.data(), size=SIZES)
def test_one_poisonous_text_is_found_in_few_requests_and_its_neighbours_land(
    kind: str, data: st.DataObject, size: int, shop: Shop, fault: Fault
) -> None:
    poison = data.draw(st.integers(0, size - 1), label="poison")
    _fill(shop, size, [poison])
    embedder = _faulty(FOR_ONE_TEXT[kind], for_texts=POISON)
    result = _run(shop, embedder)
    assert (result.embedded, result.failed) == (size - 1, 1)
    assert _failed(shop) == [poison]
    assert _vectors_in_v2(shop) == size - 1
    assert len(embedder.requests) - 1 <= _bound(kind, size)
    if kind in RAISES | REFUSED:
        assert len(set(embedder.answered)) == len(embedder.answered)  # nothing is paid for twice
    _mended(shop, fault, embedder, allowed=3 * size)


@pytest.mark.fault("an embedder that cannot take one text, every way there is")
@pytest.mark.parametrize("kind", BAD | REFUSED)
def test_whatever_is_wrong_with_one_text_its_neighbours_land(
    kind: str, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 13, [7])
    embedder = _faulty((BAD | REFUSED)[kind], for_texts=POISON)
    result = _run(shop, embedder)
    assert (result.embedded, _failed(shop), _vectors_in_v2(shop)) == (12, [7], 12)
    assert _requests_on_record(shop) == len(embedder.requests)
    assert len(embedder.requests) - 1 <= _bound(kind, 13)
    assert audit(shop).wrong == 0
    _mended(shop, fault, embedder, allowed=39)


@pytest.mark.fault("an embedder that cannot take two or three texts among 3 to 64")
@pytest.mark.parametrize("kind", FOR_ONE_TEXT)
@MANY
@given(data=st.data(), size=st.integers(3, 64))
def test_two_or_three_poisonous_texts_are_all_found_and_no_other(
    kind: str, data: st.DataObject, size: int, shop: Shop, fault: Fault
) -> None:
    positions = st.integers(0, size - 1)
    poison = sorted(data.draw(st.sets(positions, min_size=2, max_size=3), label="poison"))
    _fill(shop, size, poison)
    embedder = _faulty(FOR_ONE_TEXT[kind], for_texts=POISON)
    result = _run(shop, embedder)
    assert (result.embedded, result.failed) == (size - len(poison), len(poison))
    assert _failed(shop) == poison
    assert len(embedder.requests) - 1 <= len(poison) * (_bound(kind, size) + 1)
    _mended(shop, fault, embedder, allowed=3 * size * len(poison))


@pytest.mark.fault("an embedder that refuses every text")
def test_a_model_that_refuses_every_text_blames_nobody(shop: Shop, fault: Fault) -> None:
    _fill(shop, 16)
    embedder = _faulty(REFUSED["raises PermanentTextError"])
    with pytest.raises(RangeFailedError, match="not even to 'A plain cup'"):
        _run(shop, embedder)
    assert (_failed(shop), _vectors_in_v2(shop)) == ([], 0)
    assert len(embedder.requests) <= 2 + 16 * (math.log2(16) + 2)
    _mended(shop, fault, embedder)


# What is on record


@pytest.mark.fault("an embedder that refuses a text, until it is mended")
def test_a_failed_product_has_its_reason_attempts_and_times_and_leaves_once_it_is_mended(
    shop: Shop, fault: Fault
) -> None:
    _fill(shop, 4, [2])
    first = _faulty(_raising(ValueError("cannot tokenize this")), for_texts=POISON)
    _run(shop, first)
    [failed] = shop.embeddings.failed_products()
    assert (failed.product_id, failed.name, failed.aspect) == (2, "Thing", Aspect.DESCRIPTION)
    assert "ValueError: cannot tokenize this" in failed.reason
    assert (failed.attempts, failed.first_failed_at) == (1, failed.last_failed_at)

    untold = _faulty(None)
    _run(shop, untold)
    assert untold.requests == []

    assert shop.embeddings.retry_failed() == 1
    second = _faulty(REFUSED["raises PermanentTextError"], for_texts=POISON)
    _run(shop, second)
    [again] = shop.embeddings.failed_products()
    assert second.texts == ["poison 2", CONTROL_TEXT]
    assert (again.reason, again.attempts) == ("The model refuses this.", 2)
    assert failed.first_failed_at == again.first_failed_at < again.last_failed_at
    _mended(shop, fault, first)


@pytest.mark.fault("an embedder whose complaint PostgreSQL cannot store")
@pytest.mark.parametrize(
    "complaint", ["with a \x00 in it", "with half a pair \ud83d in it", "long " * 200_000, ""]
)
@pytest.mark.parametrize("error", [ValueError, PermanentTextError])
def test_a_complaint_of_any_kind_is_recorded_and_loses_nothing(
    error: type[Exception], complaint: str, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 4, [2])
    embedder = _faulty(_raising(error(complaint)), for_texts=POISON)
    assert _run(shop, embedder).embedded == 3
    assert _failed(shop) == [2]
    _mended(shop, fault, embedder)


@pytest.mark.fault("an embedder whose complaint holds a secret")
def test_a_password_in_a_complaint_is_never_recorded(shop: Shop, fault: Fault) -> None:
    _fill(shop, 4, [2])
    complaint = RuntimeError("cannot reach https://clerk:s3cret@models.example/embed")
    embedder = _faulty(_raising(complaint), for_texts=POISON)
    _run(shop, embedder)
    [failed] = shop.embeddings.failed_products()
    assert "models.example" in failed.reason
    assert "s3cret" not in failed.reason
    _mended(shop, fault, embedder)


# Order


@pytest.mark.fault("an embedder that answers in another order and says so")
@MANY
@given(data=st.data(), size=SIZES)
def test_an_answer_in_another_order_that_says_so_is_put_right(
    data: st.DataObject, size: int, shop: Shop, fault: Fault
) -> None:
    order = data.draw(st.permutations(range(size)), label="order")
    counts = [7 * position for position in range(size)]

    def shuffled(right: Embeddings, _: list[int]) -> Embeddings:
        return Embeddings(
            right.vectors[order],
            [counts[position] for position in order],
            [position % 2 == 0 for position in order],
            indexes=order,
        )

    _fill(shop, size)
    embedder = _faulty(shuffled)
    started = time.monotonic()
    result = _run(shop, embedder)
    seconds = time.monotonic() - started
    assert (result.embedded, len(embedder.requests)) == (size, 1)
    rows = shop.connection.execute(
        "SELECT product_id, tokens, truncated FROM ingestion.embedding_ledger "
        "WHERE aspect = 'description' ORDER BY product_id"
    ).fetchall()
    assert rows == [(id_, counts[id_], id_ % 2 == 0) for id_ in range(size)]
    fault.recovered(audit(shop, embedder.answered), seconds=seconds)


# The model's own fault


@pytest.mark.fault("an embedder that never has a usable answer")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("size", [1, 2, 13] if thorough() else [5])
def test_a_model_that_never_has_a_usable_answer_blames_nobody(
    kind: str, size: int, shop: Shop, fault: Fault
) -> None:
    _fill(shop, size)
    embedder = _faulty(BAD[kind])
    with pytest.raises(RangeFailedError):
        _run(shop, embedder)
    assert (_failed(shop), _vectors_in_v2(shop)) == ([], 0)
    assert len(embedder.requests) <= 4 + math.ceil(math.log2(size))
    _mended(shop, fault, embedder, allowed=5 * size)


@pytest.mark.fault("an embedder that breaks down in the middle of a search for one text")
@pytest.mark.parametrize("kind", ["raises RuntimeError", "one vector too few"])
@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_model_that_breaks_down_while_a_text_is_searched_for_blames_nobody_else(
    kind: str, answers: int, shop: Shop, fault: Fault
) -> None:
    _fill(shop, 32, [20])
    embedder = _faulty(None)

    def breaking(right: Embeddings, at: list[int]) -> Embeddings:
        poisonous = any(POISON in text for text in embedder.requests[-1])
        if len(embedder.requests) <= 2 + answers and not poisonous:
            return right
        return UNUSABLE[kind](right, at)

    embedder.spoil = breaking
    with pytest.raises(RangeFailedError):
        _run(shop, embedder)
    assert set(_failed(shop)) <= {20}
    _mended(shop, fault, embedder, allowed=200)


@pytest.mark.fault("an embedder that asks to wait, for longer than the patience")
def test_a_model_that_only_asks_to_wait_blames_nobody(shop: Shop, fault: Fault) -> None:
    _fill(shop, 8)
    embedder = _faulty(_raising(TransientError("429: too many requests")))
    with pytest.raises(RangeFailedError, match="429"):
        _run(shop, embedder)
    assert (_failed(shop), _vectors_in_v2(shop)) == ([], 0)
    _mended(shop, fault, embedder)


@pytest.mark.fault("an embedder out of service after the first batch")
def test_an_outage_keeps_what_is_committed_and_blames_nobody(shop: Shop, fault: Fault) -> None:
    _fill(shop, 8)
    embedder = _faulty(_raising(OutageError("401: no such key")), for_texts="number 5")
    with pytest.raises(OutageError, match="401"):
        _run(shop, embedder, replace(ONE_BATCH, tokens_per_batch=4))
    assert (_failed(shop), _vectors_in_v2(shop)) == ([], 4)
    _mended(shop, fault, embedder)


# Too many failures


@pytest.mark.fault("an embedder that refuses more products than the settings allow")
@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_more_failed_products_than_allowed_stop_the_run_and_what_is_committed_is_kept(
    allowed: int, shop: Shop, fault: Fault
) -> None:
    poison = [1, 2, 5, 9, 10]
    _fill(shop, 16, poison)
    embedder = _faulty(REFUSED["raises PermanentTextError"], for_texts=POISON)
    pace = replace(ONE_BATCH, tokens_per_batch=4, max_failed_products=allowed)
    with pytest.raises(TooManyFailuresError, match=f"max_failed_products = {allowed}") as stopped:
        _run(shop, embedder, pace)
    failed = _failed(shop)
    assert allowed < len(failed) <= allowed + 2  # a batch has two texts
    assert re.match(rf"{len(failed)} products", str(stopped.value))
    kept = _vectors_in_v2(shop)
    assert kept == 2 * (max(failed) // 2 + 1) - len(failed)
    # Told so once more by the next one, which fails, too.
    if len(failed) < len(poison):
        with pytest.raises(TooManyFailuresError):
            _run(shop, embedder, pace)
        assert _vectors_in_v2(shop) >= kept
    _mended(shop, fault, embedder)


@pytest.mark.fault("an embedder that refuses as many products as the settings allow")
def test_as_many_failed_products_as_allowed_do_not_stop_a_run(shop: Shop, fault: Fault) -> None:
    _fill(shop, 16, [1, 2, 5])
    embedder = _faulty(REFUSED["raises PermanentTextError"], for_texts=POISON)
    result = _run(shop, embedder, replace(ONE_BATCH, tokens_per_batch=4, max_failed_products=3))
    assert (result.embedded, result.failed) == (13, 3)
    _mended(shop, fault, embedder)


@pytest.mark.fault("a model that refuses more products than the settings allow, in a whole run")
def test_the_main_job_stops_at_too_many_failures_and_goes_on_once_they_are_mended(
    database_url: str, dagster_instance: dg.DagsterInstance, fault: Fault
) -> None:
    options = settings_for(database_url).model_copy(
        update={
            "ranges": RangeSettings(products_per_range=3),
            "work": WorkSettings(tokens_per_batch=16, max_failed_products=1),
        }
    )
    refusing = {
        options.fingerprint(aspect): KnownEmbedder(
            DIMENSIONS[aspect],
            refused={f"Thing {id_}.": "The model refuses this." for id_ in (8, 9, 12)},
        )
        for aspect in Aspect
    }
    with connect(database_url) as connection:
        create_products(connection, products(12))
        shop = SmallShop(options, connection, dagster_instance, KnownModels(embedders=refusing))
        with pytest.raises(TooManyFailuresError, match="2 products"):
            shop.ingest()
        runs = shop.runs("reingest")
        assert [run.status for run in runs] == [dg.DagsterRunStatus.FAILURE]
        assert connection.execute("SELECT count(*) FROM ingestion.leases").fetchone() == (0,)
        kept = connection.execute(
            'SELECT "productId" FROM product_embeddings_v2 '
            "WHERE description_embedding IS NOT NULL ORDER BY 1"
        ).fetchall()
        assert kept == [(id_,) for id_ in range(1, 8)]

        for embedder in refusing.values():
            embedder.refused = {}
        with open_shop(options) as opened:
            opened.embeddings.retry_failed()
            started = time.monotonic()
            assert shop.ingest().failed_ranges == []
            seconds = time.monotonic() - started
            assert _failed(opened) == []
            fault.recovered(audit(opened), seconds=seconds)


# Memory


def _no_memory_above(texts: int, error: type[Exception] = BatchTooLargeError) -> FaultyEmbedder:
    embedder = _faulty(None)

    def spoil(right: Embeddings, _: list[int]) -> Embeddings:
        if len(embedder.requests[-1]) > texts:
            raise error("the device has no memory for this")
        return right

    embedder.spoil = spoil
    return embedder


@pytest.mark.fault("no memory for a batch")
@pytest.mark.parametrize("error", [BatchTooLargeError, MemoryError])
@MANY
@given(size=SIZES, fits=st.integers(1, 64))
def test_a_batch_without_memory_is_halved_until_it_fits_and_every_text_lands(
    error: type[Exception], size: int, fits: int, shop: Shop, fault: Fault
) -> None:
    _fill(shop, size)
    embedder = _no_memory_above(fits, error)
    said: list[str] = []
    started = time.monotonic()
    result = _run(shop, embedder, say=said.append)
    seconds = time.monotonic() - started
    assert (result.embedded, result.failed) == (size, 0)
    assert bool(said) is (size > fits)
    assert len(said) <= math.ceil(math.log2(size / min(fits, size)))
    assert all("no memory" in line for line in said)
    # Halving ends where a batch fits, so that about half of what does is used at the least.
    assert len(embedder.requests) - len(said) <= 1 + math.ceil(3 * size / min(fits, size))
    fault.recovered(audit(shop, embedder.answered), caused=len(said), seconds=seconds)


@pytest.mark.fault("no memory for a batch with a poisonous text in it")
def test_a_poisonous_text_is_found_although_memory_is_short(shop: Shop, fault: Fault) -> None:
    _fill(shop, 32, [9])
    embedder = _no_memory_above(5)
    too_large = embedder.spoil
    assert too_large

    def spoil(right: Embeddings, at: list[int]) -> Embeddings:
        right = too_large(right, at)
        if POISON in str(embedder.requests[-1]):
            raise PermanentTextError("The model refuses this.")
        return right

    embedder.spoil = spoil
    result = _run(shop, embedder)
    assert (result.embedded, _failed(shop)) == (31, [9])
    _mended(shop, fault, embedder)


@pytest.mark.fault("no memory for even one text")
@pytest.mark.parametrize("error", [BatchTooLargeError, MemoryError])
def test_without_memory_for_one_text_the_run_stops_and_blames_nobody(
    error: type[Exception], shop: Shop, fault: Fault
) -> None:
    _fill(shop, 8)
    embedder = _no_memory_above(0, error)
    with pytest.raises(OutOfMemoryError, match="no memory to embed one text"):
        _run(shop, embedder)
    assert (_failed(shop), _vectors_in_v2(shop)) == ([], 0)
    _mended(shop, fault, embedder)
