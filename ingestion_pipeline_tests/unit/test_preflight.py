"""Facts in, verdict with every reason out."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import AspectCount
from ingestion_pipeline.database.inspection import (
    ColumnFacts,
    CountFacts,
    DatabaseFacts,
    DiskFacts,
    MappedAspect,
    MappingFacts,
    SchemaFacts,
    ServerFacts,
    TableFacts,
)
from ingestion_pipeline.preflight import (
    CanaryFacts,
    EmbeddingFacts,
    Found,
    ModelFacts,
    Reason,
    Verdict,
    canary,
    canary_stopped,
    database_connection,
    disk_bytes_needed,
    disk_space,
    embedding_quota,
    failed_to_look,
    hnsw_bytes,
    memory_needed,
    product_count,
)
from ingestion_pipeline.preflight_services import ServiceFacts, Work, estimate
from ingestion_pipeline.prices import Price
from ingestion_pipeline.rate_limits import Limit, RateLimits
from ingestion_pipeline.settings import RangeSettings, Settings

GIGABYTE = 10**9

SETTINGS = Settings(home=Path("unused"), model_cache=Path("unused"))
MPNET = SETTINGS.fingerprint(Aspect.DESCRIPTION)
MINILM = SETTINGS.fingerprint(Aspect.FEATURE)

SERVER = ServerFacts(
    version_number=180004,
    version="18.4",
    database="shop",
    role="clerk",
    search_path='"$user", public',
    is_replica=False,
    is_read_only=False,
    may_create_schema=True,
    may_create_temporary_table=True,
    vector_version="0.8.5",
    vector_is_visible=True,
    vector_schema="public",
    vector_available="0.8.5",
)
COLUMN = ColumnFacts(
    type="text", type_modifier=None, is_required=False, may_select=True, is_key=False
)
PRODUCTS = TableFacts(
    schema="public",
    name="products",
    kind="r",
    may_use_schema=True,
    is_owner=False,
    may_select=True,
    may_insert=False,
    may_update=False,
    may_delete=False,
    may_reference=True,
    hides_rows=False,
    columns={
        "id": replace(COLUMN, type="integer", is_required=True, is_key=True),
        "name": COLUMN,
    },
)
MAPPING = MappingFacts(
    file="sql/product_texts.sql",
    column_types={"product_id": "integer", "aspect": "text", "text": "text"},
    aspects={aspect.value: MappedAspect(10, 0, 0, 0, ()) for aspect in Aspect},
)
DATABASE = DatabaseFacts(
    server=SERVER,
    bookkeeping=None,
    v2_home=SchemaFacts("public", may_use=True, may_create=True),
    products=PRODUCTS,
    v1=replace(PRODUCTS, name="product_embeddings"),
    v2=None,
    mapping=MAPPING,
)
COUNTS = CountFacts(
    products=1_000,
    stale_products=400,
    failed_products=0,
    aspects=(
        AspectCount(Aspect.USAGE, "done", 600, 500),
        AspectCount(Aspect.USAGE, "text changed", 400, 300),
    ),
    texts_to_embed={MPNET: 300, MINILM: 100},
    empty_texts=dict.fromkeys(Aspect, 0),
    ranges=4,
)
DISK = DiskFacts(
    free_bytes=100 * GIGABYTE,
    why_unknown=None,
    places={"/data": 100 * GIGABYTE},
    indexed=frozenset(),
    max_wal_bytes=2**30,
    keeps_wal_for_replicas=False,
)
LOCAL = Work(
    texts=0,
    tokens_per_text=20.0,
    texts_per_request=1,
    texts_per_second=10.0,
    requests_per_minute=None,
    tokens_per_minute=None,
    price=Price(None, "local"),
)
API = replace(
    LOCAL,
    texts=1_000_000,
    texts_per_request=100,
    texts_per_second=1_000.0,
    price=Price(Decimal("0.02"), "settings"),
)
CANARY = CanaryFacts(
    products=5,
    embedded=10,
    reused=4,
    empty=1,
    failed=0,
    seconds=2.5,
    found={aspect: Found(5, 5) for aspect in Aspect},
    left={
        MPNET: replace(LOCAL, texts=500),
        MINILM: replace(LOCAL, texts=200, texts_per_second=100),
    },
)


def server(**changes: object) -> DatabaseFacts:
    return replace(DATABASE, server=replace(SERVER, **changes))  # type: ignore[arg-type]


def reasons(verdict: Verdict) -> str:
    return "\n".join(str(reason) for reason in verdict.reasons)


# The verdict


@pytest.mark.parametrize(
    ("severities", "status"),
    [
        ([], "pass"),
        (["warning"], "warn"),
        (["warning", "unknown"], "unknown"),
        (["unknown", "error", "warning"], "fail"),
    ],
)
def test_the_gravest_reason_decides_and_only_an_error_blocks(
    severities: list[str], status: str
) -> None:
    verdict = Verdict("disk", tuple(Reason("disk", s, "So it is.", "") for s in severities))  # type: ignore[arg-type]

    assert verdict.status == status
    assert verdict.passed is (status == "pass")
    assert verdict.blocking is (status == "fail")


def test_a_verdict_reads_as_lines_and_as_json() -> None:
    reason = Reason("disk_space", "error", "The disk is small.", "Buy another.")
    details = ("2 of them on /data",)
    verdict = Verdict("disk_space", (reason,), {"bytes_free": 3}, "3 bytes free", details)

    assert verdict.lines() == [
        "disk_space: fail · 3 bytes free",
        "2 of them on /data",
        "✗ The disk is small. Buy another.",
    ]
    assert json.loads(json.dumps(verdict.as_dict())) == {
        "check": "disk_space",
        "status": "fail",
        "blocking": True,
        "summary": "3 bytes free",
        "details": ["2 of them on /data"],
        "reasons": [
            {"severity": "error", "message": "The disk is small.", "remedy": "Buy another."}
        ],
        "facts": {"bytes_free": 3},
    }


def test_a_check_that_saw_nothing_blocks() -> None:
    verdict = failed_to_look("product_count", "the server went away.")

    assert verdict.blocking
    assert "the server went away" in reasons(verdict)


def test_every_verdict_is_json_ready() -> None:
    model = ModelFacts("mpnet", (Aspect.USAGE,), None, pinned=True, bytes=1)
    for verdict in (
        database_connection(DATABASE, SETTINGS),
        embedding_quota(EmbeddingFacts((model,), None), SETTINGS),
        product_count(COUNTS, SETTINGS),
        disk_space(DISK, COUNTS, SETTINGS),
        canary(CANARY),
    ):
        assert json.loads(json.dumps(verdict.as_dict()))["status"] == verdict.status


# The database


def test_a_database_that_is_fit_passes() -> None:
    verdict = database_connection(DATABASE, SETTINGS)

    assert verdict.status == "pass"
    assert verdict.summary == "PostgreSQL 18.4, pgvector 0.8.5, database shop as clerk"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (DatabaseFacts(unreachable="The database cannot be reached."), "cannot be reached"),
        (server(version_number=130012, version="13.12"), "Upgrade it to PostgreSQL 14"),
        (server(is_replica=True, is_read_only=True), "is a replica"),
        (server(is_read_only=True), "are read-only"),
        (server(may_create_temporary_table=False), "GRANT TEMPORARY ON DATABASE shop TO clerk;"),
        (server(vector_version=None), "A DBA runs, in shop"),
        (server(vector_version=None), "owner: CREATE EXTENSION vector;"),
        (server(vector_version=None, vector_available=None), "apt install postgresql-18-pgvector"),
        (server(vector_version="0.8.3"), "A DBA runs, in shop: ALTER EXTENSION vector UPDATE;"),
        (server(vector_version="0.5.1", vector_available="0.7.4"), "must install pgvector 0.8.4"),
        (server(vector_is_visible=False, vector_schema="Tools"), '"Tools"'),
        (server(may_create_schema=False), "CREATE SCHEMA ingestion AUTHORIZATION clerk;"),
        (replace(DATABASE, v2_home=None), "CREATE SCHEMA"),
        (replace(DATABASE, products=None, mapping=None), "no table products"),
        (replace(DATABASE, v2=replace(PRODUCTS, kind="v")), "product_embeddings_v2 is not a table"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_database_blocks_and_comes_with_what_to_do(
    facts: DatabaseFacts, words: str
) -> None:
    verdict = database_connection(facts, SETTINGS)

    assert verdict.blocking
    assert words in reasons(verdict)


@pytest.mark.parametrize("version", ["0.8.4", "0.8.10", "0.9.0", "1.0"])
def test_versions_are_compared_as_numbers(version: str) -> None:
    assert database_connection(server(vector_version=version), SETTINGS).status == "pass"


def test_all_reasons_come_at_once() -> None:
    facts = replace(
        server(version_number=120000, vector_version=None, may_create_schema=False),
        products=None,
        v2_home=SchemaFacts("public", may_use=True, may_create=False),
    )

    assert len(database_connection(facts, SETTINGS).reasons) == 5


@pytest.mark.parametrize(
    "facts",
    [
        replace(DATABASE, v1=None),
        replace(DATABASE, products=replace(PRODUCTS, may_reference=False)),
        replace(DATABASE, products=replace(PRODUCTS, kind="m")),
    ],
    ids=["no v1", "no right to refer to products", "products is a view"],
)
def test_what_a_run_can_do_without_is_a_warning(facts: DatabaseFacts) -> None:
    assert database_connection(facts, SETTINGS).status == "warn"


# The models


def test_models_that_are_there_and_sound_pass_where_memory_is_enough() -> None:
    model = ModelFacts("mpnet", (Aspect.USAGE,), "the cache", pinned=True, bytes=400_000_000)

    verdict = embedding_quota(EmbeddingFacts((model,), 4 * GIGABYTE), SETTINGS)

    assert verdict.status == "pass"
    assert verdict.facts["memory_needed_bytes"] == memory_needed(400_000_000, 2_000)


def test_everything_wrong_with_the_models_is_said_at_once() -> None:
    missing = ModelFacts("mpnet", (Aspect.DESCRIPTION, Aspect.USAGE), None, pinned=True, bytes=0)
    altered = ModelFacts(
        "minilm",
        (Aspect.FEATURE,),
        "the cache",
        pinned=True,
        bytes=9,
        problems=("model.safetensors is not the pinned file.",),
    )

    verdict = embedding_quota(EmbeddingFacts((missing, altered), 100_000_000), SETTINGS)

    assert verdict.blocking
    assert len(verdict.reasons) == 3
    assert "mpnet (description and usage)" in reasons(verdict)
    assert "`ingest models --fetch`" in reasons(verdict)
    assert "model.safetensors is not the pinned file" in reasons(verdict)
    assert "100 MB are free" in reasons(verdict)


def test_a_model_without_checksums_is_a_warning_and_unknown_memory_is_no_pass() -> None:
    model = ModelFacts("own", (Aspect.USAGE,), "/models/own", pinned=False, bytes=9)

    assert embedding_quota(EmbeddingFacts((model,), 4 * GIGABYTE), SETTINGS).status == "warn"
    assert embedding_quota(EmbeddingFacts((), None), SETTINGS).status == "unknown"


def test_the_memory_asked_for_covers_what_was_measured() -> None:
    # 438 and 91 MB of weights, 3,072 tokens in a batch: 1,142 MB at the peak.
    assert 1_142_000_000 < memory_needed(529_000_000, 3_072) < 2_000_000_000


# The count


def test_the_count_says_what_is_done_and_what_is_left() -> None:
    verdict = product_count(COUNTS, SETTINGS)

    assert verdict.status == "pass"
    assert verdict.summary == ("1,000 products, 600 done, 400 stale; 400 distinct texts to embed")
    assert verdict.facts["stale_aspects"] == {
        "description": {},
        "usage": {"text changed": 400},
        "feature": {},
    }
    assert verdict.facts["texts_to_embed_by_model"] == {
        SETTINGS.aspects[Aspect.USAGE].model: 300,
        SETTINGS.aspects[Aspect.FEATURE].model: 100,
    }


def test_an_empty_catalogue_blocks_and_says_how_to_fill_it() -> None:
    empty = replace(COUNTS, products=0, stale_products=0, aspects=(), texts_to_embed={})

    verdict = product_count(empty, SETTINGS)

    assert verdict.blocking
    assert "`ingest load FILE`" in reasons(verdict)


def test_a_catalogue_without_any_text_is_a_warning() -> None:
    mute = replace(COUNTS, texts_to_embed={}, empty_texts=dict.fromkeys(Aspect, 1_000))

    assert product_count(mute, SETTINGS).status == "warn"
    assert "nothing to embed" in reasons(product_count(mute, SETTINGS))


def test_failed_products_are_told() -> None:
    assert product_count(replace(COUNTS, failed_products=3), SETTINGS).status == "warn"


@pytest.mark.parametrize(("products", "blocking"), [(25_000, False), (25_001, True)])
def test_more_ranges_than_dagster_takes_well_block_with_a_setting_that_helps(
    products: int, *, blocking: bool
) -> None:
    settings = SETTINGS.model_copy(update={"ranges": RangeSettings(products_per_range=1)})

    verdict = product_count(replace(COUNTS, products=products), settings)

    assert verdict.blocking is blocking
    assert ("products_per_range to 2 or more" in reasons(verdict)) is blocking


# The disk


def test_a_disk_with_room_passes_and_says_what_is_needed() -> None:
    verdict = disk_space(DISK, COUNTS, SETTINGS)

    assert verdict.status == "pass"
    assert verdict.facts["bytes_needed"] == sum(
        disk_bytes_needed(
            to_write=400,
            products=1_000,
            dimensions={Aspect.DESCRIPTION: 768, Aspect.USAGE: 768, Aspect.FEATURE: 384},
            indexed=frozenset(),
            max_wal_bytes=2**30,
        ).values()
    )


def test_a_disk_without_room_blocks_and_says_how_much_to_free() -> None:
    verdict = disk_space(replace(DISK, free_bytes=1_000_000), COUNTS, SETTINGS)

    assert verdict.blocking
    assert "1 MB are free" in reasons(verdict)
    assert "Free at least" in reasons(verdict)


def test_a_disk_that_gets_nearly_full_is_a_warning() -> None:
    needed = disk_space(DISK, COUNTS, SETTINGS).facts["bytes_needed"]
    assert isinstance(needed, int)

    assert disk_space(replace(DISK, free_bytes=needed), COUNTS, SETTINGS).status == "warn"
    assert disk_space(replace(DISK, free_bytes=needed * 2), COUNTS, SETTINGS).status == "pass"
    assert disk_space(replace(DISK, free_bytes=needed - 1), COUNTS, SETTINGS).status == "fail"


@pytest.mark.parametrize("stale", [0, 400])
def test_a_disk_that_cannot_be_looked_at_never_passes(stale: int) -> None:
    facts = replace(DISK, free_bytes=None, why_unknown="the server is on another machine")

    verdict = disk_space(facts, replace(COUNTS, stale_products=stale), SETTINGS)

    assert verdict.status == "unknown"
    assert not verdict.blocking
    assert "another machine" in reasons(verdict)
    assert "disk.free_bytes" in reasons(verdict)


def test_bytes_a_row_are_those_that_were_measured() -> None:
    dimensions = {Aspect.DESCRIPTION: 768, Aspect.USAGE: 768, Aspect.FEATURE: 384}

    parts = disk_bytes_needed(
        to_write=1_000,
        products=1_000,
        dimensions=dimensions,
        indexed=frozenset(),
        max_wal_bytes=0,
    )

    assert parts == {
        "table_bytes": 1_000 * (9_939 + 23),
        "ledger_bytes": 1_000 * 3 * 360,
        "index_bytes": 1_000 * (4_096 + 4_096 + 2_048),
        "wal_bytes": 0,
    }


def test_an_index_to_be_built_holds_every_product_and_one_that_is_there_only_the_new() -> None:
    def index_bytes(*indexed: Aspect) -> int:
        return disk_bytes_needed(
            to_write=10,
            products=1_000,
            dimensions={Aspect.DESCRIPTION: 768, Aspect.FEATURE: 384},
            indexed=frozenset(indexed),
            max_wal_bytes=0,
        )["index_bytes"]

    assert index_bytes() == 1_000 * (4_096 + 2_048)
    assert index_bytes(Aspect.DESCRIPTION) == 10 * 4_096 + 1_000 * 2_048
    assert index_bytes(*Aspect) == 10 * (4_096 + 2_048)


def test_the_log_is_bounded_by_its_setting_unless_a_replica_keeps_it() -> None:
    def log(to_write: int, max_wal_bytes: int | None) -> int:
        return disk_bytes_needed(
            to_write=to_write,
            products=to_write,
            dimensions={Aspect.DESCRIPTION: 768},
            indexed=frozenset(),
            max_wal_bytes=max_wal_bytes,
        )["wal_bytes"]

    assert log(1_000_000, 2**30) == 2**30
    assert log(10, 2**30) == log(10, None) < 2**20
    assert log(1_000_000, None) > 2**30


@pytest.mark.parametrize(
    ("dimensions", "expected"), [(384, 2_048), (768, 4_096), (1_536, 8_192), (2_000, 8_192)]
)
def test_an_index_packs_whole_vectors_into_pages(dimensions: int, expected: int) -> None:
    assert hnsw_bytes(dimensions) == expected


# The canary


def test_a_canary_that_came_through_estimates_the_rest() -> None:
    verdict = canary(CANARY)

    assert verdict.status == "pass"
    assert verdict.facts["estimated_seconds"] == 500 / 10 + 200 / 100
    assert verdict.summary == (
        "5 products in 2.5 s: 10 embedded, 4 reused; the other 700 texts take about 52 s"
    )


def test_with_nothing_embedded_and_no_past_rate_the_estimate_is_unknown() -> None:
    unmeasured = dict(CANARY.left) | {MPNET: replace(LOCAL, texts=500, texts_per_second=None)}
    verdict = canary(replace(CANARY, embedded=0, left=unmeasured))

    assert verdict.status == "unknown"
    assert verdict.facts["estimated_seconds"] is None
    assert "an unknown time" in verdict.summary


def test_a_past_rate_serves_where_the_canary_embedded_nothing() -> None:
    assert canary(replace(CANARY, embedded=0, reused=0)).facts["estimated_seconds"] == 52


def test_nothing_left_takes_no_time_whatever_the_rates() -> None:
    assert estimate({}).seconds == 0
    assert estimate({MPNET: replace(LOCAL, texts_per_second=None)}).seconds == 0
    assert estimate({MPNET: replace(LOCAL, texts=1, texts_per_second=None)}).seconds is None
    assert "nothing is left to embed" in canary(replace(CANARY, left={})).summary


@pytest.mark.parametrize(
    ("quota", "seconds", "bound_by"),
    [
        ({}, 1_000, "the model's answers"),
        ({"requests_per_minute": 300}, 2_000, "the quota of requests"),
        ({"tokens_per_minute": 150_000}, 8_000, "the quota of tokens"),
        (
            {"requests_per_minute": 3_000, "tokens_per_minute": 150_000},
            8_000,
            "the quota of tokens",
        ),
        ({"requests_per_minute": 30_000, "tokens_per_minute": 1e9}, 1_000, "the model's answers"),
    ],
)
def test_an_api_takes_as_long_as_its_answers_or_its_quota_whichever_is_longer(
    quota: dict[str, float], seconds: float, bound_by: str
) -> None:
    estimated = estimate({"api": replace(API, **quota)})  # type: ignore[arg-type]

    assert estimated.seconds == pytest.approx(seconds)
    assert estimated.bound_by == bound_by
    assert estimated.tokens == 20_000_000
    assert estimated.cost == Decimal("0.40")


def test_an_estimate_in_money_is_told_with_what_bounds_the_time() -> None:
    verdict = canary(replace(CANARY, left={"api": replace(API, tokens_per_minute=150_000)}))

    assert verdict.summary.endswith(
        "about 2 h 13 min, bound by the quota of tokens, and $0.40 for about 20,000,000 tokens"
    )


SERVICE = ServiceFacts(
    "text-embedding-3-small",
    (Aspect.DESCRIPTION, Aspect.USAGE),
    host="api.openai.com",
    expected_dimensions=768,
    price=Price(Decimal("0.02"), "genai-prices 0"),
    dimensions=768,
    limits=RateLimits(Limit(3_000, 2_999, 0.02), Limit(1_000_000, 999_990, 0.0006)),
    tokens=5,
)


def test_a_service_that_answers_as_it_should_passes_and_is_told_with_its_quota() -> None:
    verdict = embedding_quota(EmbeddingFacts((), None, (SERVICE,)), SETTINGS)

    assert not verdict.blocking
    assert "768 dimensions" in verdict.summary
    assert "1,000,000 tokens a minute (999,990 left)" in verdict.summary
    assert "local models" not in verdict.summary


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problem": "The key is wrong."}, "The key is wrong."),
        ({"dimensions": 1536}, "gives vectors of 1536 numbers, and description and usage want 768"),
    ],
)
def test_a_service_that_cannot_serve_blocks_with_the_reason(
    changes: dict[str, object], said: str
) -> None:
    service = replace(SERVICE, **changes)  # type: ignore[arg-type]
    verdict = embedding_quota(EmbeddingFacts((), None, (service,)), SETTINGS)

    assert verdict.blocking
    assert said in reasons(verdict)


def test_a_product_that_its_own_vector_does_not_find_blocks() -> None:
    verdict = canary(replace(CANARY, found={Aspect.USAGE: Found(5, 4)}))

    assert verdict.blocking
    assert "found 4 of the 5 products" in reasons(verdict)


def test_a_mapping_that_would_empty_most_vectors_of_an_aspect_blocks() -> None:
    few = replace(COUNTS, emptied={Aspect.USAGE: 50}, committed={Aspect.USAGE: 100})
    most = replace(COUNTS, emptied={Aspect.USAGE: 51}, committed={Aspect.USAGE: 100})

    assert not product_count(few, SETTINGS).blocking
    verdict = product_count(most, SETTINGS)
    assert verdict.blocking
    assert "would remove 51 of 100 usage vectors" in reasons(verdict)


def test_an_index_that_loses_a_product_is_named_and_stops_no_run() -> None:
    verdict = canary(replace(CANARY, found={Aspect.USAGE: Found(5, 4, "v2_usage_hnsw")}))

    assert (verdict.status, verdict.blocking) == ("warn", False)
    assert "DROP INDEX CONCURRENTLY v2_usage_hnsw" in reasons(verdict)


def test_a_canary_names_the_products_that_a_search_does_not_find() -> None:
    verdict = canary(replace(CANARY, found={Aspect.USAGE: Found(5, 4, missed=(17,))}))
    assert "and not 17." in verdict.reasons[0].message


def test_a_canary_that_was_stopped_was_looked_at_and_blocks() -> None:
    verdict = canary_stopped("4 products have failed")
    assert verdict.blocking
    assert "not looked at" not in " ".join(verdict.lines())


def test_a_canary_that_could_not_search_is_unknown() -> None:
    assert canary(replace(CANARY, found={Aspect.USAGE: Found(0, 0)})).status == "unknown"


def test_some_failures_warn_and_nothing_but_failures_block() -> None:
    assert canary(replace(CANARY, failed=2)).status == "warn"
    assert canary(replace(CANARY, failed=15, embedded=0, reused=0)).blocking


def test_one_product_that_fails_again_where_all_else_is_done_stops_no_run() -> None:
    verdict = canary(replace(CANARY, failed=3, embedded=0, reused=0))

    assert (verdict.status, verdict.blocking) == ("warn", False)
    assert "3 aspects of the first 5 products failed" in reasons(verdict)
