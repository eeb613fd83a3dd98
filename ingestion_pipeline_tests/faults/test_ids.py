"""Product ids at the ends of their types, far apart, and made of anything that text can hold.

Whatever the ids, the ranges tile the whole id space in the order in which PostgreSQL compares
them, each holds no more products than it should, and going through all of them leaves nothing out.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from uuid import UUID

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.ranges import EVERYTHING, ProductId, ProductIdRange, range_of
from ingestion_pipeline.settings import RangeSettings, WorkSettings
from ingestion_pipeline_tests.conftest import SHOP_TEMPLATE
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.orchestration.conftest import SmallShop
from ingestion_pipeline_tests.shops import (
    Product,
    add_products,
    create_products,
    embedders_of,
    prepared_shop,
    run,
    settings_for,
)

INT = (-(2**31), 2**31 - 1)
BIGINT = (-(2**63), 2**63 - 1)
AWKWARD = [
    "", " ", "  ", "a b", " a", "a ", "a/b", "a:b", "*", "*:*", ":", ".", "..", "...", "a...b", "~",
    "%", "%%", "100%", "%2A", "%s", "%(id)s", "'", "''", '"', "\\", "\\N", "\\.", "$$", ";--", "{}",
    "{id}", "line\nbreak", "\t", "\r", "\x01", "NULL", "null", "NaN", "0", "00", "1", "10", "9",
    "-1", "1e3", "a", "A", "b", "B", "ä", "Ä", "z", "Z", "_", "-", "Käse", "strasse", "straße", "é",
    "e\N{COMBINING ACUTE ACCENT}", "سكر", "שלום", "日本語", "👩\u200d🍳", "\N{NO-BREAK SPACE}",
    "\N{ZERO WIDTH SPACE}", "\N{RIGHT-TO-LEFT OVERRIDE}", "\U0010ffff", "clh3k2j0x0000qwer",
    "x" * 400, "👩" * 100,
]  # fmt: skip

TEXT: st.SearchStrategy[ProductId] = st.sampled_from(AWKWARD) | st.text(
    # PostgreSQL stores neither NUL nor half of a surrogate pair.
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=8,
)


def _whole_numbers(ends: tuple[int, int]) -> st.SearchStrategy[ProductId]:
    """Numbers at both ends of a type, around zero, a billion apart, and anywhere between."""
    lowest, highest = ends
    near = [lowest, lowest + 1, -1, 0, 1, highest - 1, highest]
    billions = st.integers(lowest // 10**9 + 1, highest // 10**9 - 1).map(lambda it: it * 10**9)
    return st.sampled_from(near) | billions | st.integers(lowest, highest)


# What products.id is declared as, and the ids it may hold.
IDS: dict[str, st.SearchStrategy[ProductId]] = {
    "smallint": _whole_numbers(INT).map(lambda it: int(str(it)) % 2**16 - 2**15),
    "integer": _whole_numbers(INT),
    "bigint": _whole_numbers(BIGINT),
    "uuid": st.sampled_from([UUID(int=0), UUID(int=1), UUID(int=2**128 - 1)]) | st.uuids(),
    "text": TEXT,
    'text COLLATE "C"': TEXT,
    'text COLLATE "POSIX"': TEXT,
    "text COLLATE pg_c_utf8": TEXT,
    "varchar(400)": TEXT,
    'varchar(400) COLLATE "C"': TEXT,
}
MANY = settings(
    max_examples=times(5, 40),
    deadline=None,
    # Every example fills the shop anew.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=IDS)
def id_type(request: pytest.FixtureRequest) -> str:
    """What products.id is declared as."""
    return str(request.param)


@pytest.fixture(scope="module")
def shop(server: LocalServer, _shop_template: None, id_type: str) -> Iterator[Shop]:
    """A shop with ids of this type, which each example fills anew."""
    name = f"ids_{next(_numbers)}"
    server.create_database(name, template=SHOP_TEMPLATE)
    with connect(server.url(name)) as connection:
        create_products(connection, [], id_type=id_type)
    with prepared_shop(server.url(name)) as shop:
        yield shop


def _empty(shop: Shop) -> None:
    shop.connection.execute(
        "TRUNCATE products, product_embeddings_v2, ingestion.embedding_ledger, "
        "ingestion.failed_products, ingestion.product_id_ranges"
    )


def _add(shop: Shop, ids: Collection[ProductId]) -> None:
    """Products of which no two share a text, in no order at all."""
    rows = _products(set(ids))
    with connect(_url(shop)) as connection:
        add_products(connection, rows)


def _products(ids: Iterable[ProductId]) -> list[Product]:
    """Names in ASCII: cleaning would make the same text of two ids that differ in a space."""
    return [Product(id_, f"Thing {ascii(id_).encode().hex()}", "d", "u", "f") for id_ in ids]


def _url(shop: Shop) -> str:
    assert shop.settings.database_url
    return shop.settings.database_url.get_secret_value()


def _assert_tiled(shop: Shop, ranges: Sequence[tuple[str, ProductIdRange]], ids: int) -> None:
    """No gap and no overlap; each id that there is stands in just one, and each key is its own."""
    edges = [range_ for _, range_ in ranges]
    assert edges[0].first is None
    assert edges[-1].end is None
    assert all(below.end == above.first for below, above in itertools.pairwise(edges))
    assert sum(shop.catalogue.count(range_) for range_ in edges) == ids
    assert shop.catalogue.count() == ids
    assert len({key for key, _ in ranges}) == len(ranges)
    for key, range_ in ranges:
        assert range_of(key, shop.id_type) == range_
    # The columns compare as products.id does.
    backwards = "SELECT count(*) FROM ingestion.product_id_ranges WHERE first_id >= end_id"
    assert shop.connection.execute(backwards).fetchone() == (0,)


def _ingest(shop: Shop, products_per_range: int, ids: int) -> list[str]:
    """Plan the ranges and go through all of them; returns the texts that were sent."""
    plan = shop.embeddings.plan_ranges(products_per_range)
    assert shop.embeddings.ranges() == plan.ranges
    _assert_tiled(shop, plan.ranges, ids)
    embedders = embedders_of(shop.settings)
    for _, range_ in plan.ranges:
        run(shop, range_, embedders=embedders)
        assert shop.catalogue.count(range_) <= 2 * products_per_range
    assert shop.connection.execute("SELECT count(*) FROM product_embeddings_v2").fetchone() == (
        ids,
    )
    return [text for embedder in embedders.values() for text in embedder.texts]


@pytest.mark.fault("ids at the ends of their type, far apart, of any text")
@MANY
@given(data=st.data(), products_per_range=st.integers(1, 4))
def test_ranges_tile_ids_of_every_shape_and_every_product_lands(
    id_type: str, shop: Shop, data: st.DataObject, products_per_range: int, fault: Fault
) -> None:
    ids = IDS[id_type]
    first = data.draw(st.sets(ids, min_size=1, max_size=12), label="ids")
    later = data.draw(st.sets(ids, max_size=8), label="added later") - first
    _empty(shop)
    _add(shop, first)
    started = time.monotonic()
    sent = _ingest(shop, products_per_range, len(first))
    assert len(sent) == 3 * len(first)
    fault.recovered(audit(shop), caused=len(first), seconds=time.monotonic() - started)

    # Ids come up below, between and above those that the ranges were planned for.
    _add(shop, later)
    started = time.monotonic()
    sent = _ingest(shop, products_per_range, len(first | later))
    assert len(sent) == 3 * len(later)
    fault.recovered(audit(shop), caused=len(later), seconds=time.monotonic() - started)
    assert run(shop, EVERYTHING).texts == []


@pytest.mark.fault("every awkward text id at once, range by range")
@pytest.mark.parametrize("products_per_range", [1, 3, 1000])
@pytest.mark.parametrize("id_type", ["text", 'varchar(400) COLLATE "C"'], indirect=True)
def test_every_awkward_text_id_lands(products_per_range: int, shop: Shop, fault: Fault) -> None:
    _empty(shop)
    _add(shop, AWKWARD)
    started = time.monotonic()
    sent = _ingest(shop, products_per_range, len(AWKWARD))
    assert len(sent) == 3 * len(AWKWARD)
    seconds = time.monotonic() - started
    fault.recovered(audit(shop), caused=len(AWKWARD), seconds=seconds)


WHOLE_RUNS: dict[str, Sequence[ProductId]] = {
    "text": AWKWARD,
    "bigint": [*BIGINT, -(10**18), -1, 0, 1, 10**9, 2 * 10**9, 3 * 10**9, 10**18],
    "integer": [*INT, -(10**9), -1, 0, 1, 10**9],
    "uuid": [UUID(int=number) for number in (0, 1, 2**64, 2**127, 2**128 - 1)],
}


@pytest.mark.fault("awkward ids in a whole run")
@pytest.mark.parametrize("id_type", [*WHOLE_RUNS] if thorough() else ["text", "bigint"])
def test_the_main_job_takes_awkward_ids_all_the_way(
    id_type: str, database_url: str, dagster_instance: dg.DagsterInstance, fault: Fault
) -> None:
    ids = WHOLE_RUNS[id_type]
    rows = _products(ids)
    options = settings_for(database_url).model_copy(
        update={
            "ranges": RangeSettings(products_per_range=3),
            "work": WorkSettings(tokens_per_batch=64),
        }
    )
    with connect(database_url) as connection:
        create_products(connection, rows, id_type=id_type)
        small = SmallShop(options, connection, dagster_instance)
        started = time.monotonic()
        outcome = small.ingest()
        seconds = time.monotonic() - started
        assert outcome.failed_ranges == []
        assert [check.name for check in outcome.checks if check.status == "fail"] == []
        sent = {name: embedder.texts for name, embedder in small.models.embedders.items()}
        with prepared_shop(database_url, options) as shop:
            _assert_tiled(shop, shop.embeddings.ranges(), len(ids))
            fault.recovered(audit(shop, sent), caused=len(ids), seconds=seconds)
        assert small.ingest().up_to_date
