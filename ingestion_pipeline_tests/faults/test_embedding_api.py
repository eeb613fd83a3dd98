"""An embedding API that fails in every way the test server knows, and workers killed meanwhile.

In the end every vector is right, or an outage has stopped the run with everything kept; no product
is blamed for what is the API's fault; and the ledger's spend is the server's bill, to the token.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from psycopg import sql

from ingestion_pipeline import patience
from ingestion_pipeline.cli.exit_codes import ExitCode, exit_code
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.embedding import checked_connections
from ingestion_pipeline.errors import EmbeddingServiceError, OutageError
from ingestion_pipeline_tests.conftest import SHOP_TEMPLATE
from ingestion_pipeline_tests.embedding_server import behaviour as served
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour
from ingestion_pipeline_tests.embedding_server.counters import digest_of_key
from ingestion_pipeline_tests.embedding_server.running import (
    Server,
    ServerInThread,
    running,
    running_process,
)
from ingestion_pipeline_tests.embedding_server.vectors import tokens_of
from ingestion_pipeline_tests.faults.api_shop import (
    MODELS_SERVED,
    REPOSITORY,
    REQUESTS_AT_ONCE,
    SERVED,
    TEXTS_PER_REQUEST,
    ApiShop,
    found,
    ledger_spend,
    opened,
    tokens_needed,
)
from ingestion_pipeline_tests.faults.api_worker import reingest_shop
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.shops import create_products, products

PRODUCTS = 12
KINDS = list(served.Fault)


def _few(*kinds: served.Fault) -> Sequence[served.Fault]:
    """These in `make test`, and every one there is in `make faults`."""
    return KINDS if thorough() else kinds


STOPS = {
    served.Fault.INSUFFICIENT_QUOTA,
    served.Fault.UNAUTHORIZED,
    served.Fault.ECHOED_KEY,
    served.Fault.FORBIDDEN,
    served.Fault.UNKNOWN_MODEL,
    served.Fault.REDIRECT,
    served.Fault.OTHER_MODEL,
}
"""One such answer is enough: nothing can succeed until somebody mends something."""

REFUSALS = {served.Fault.BAD_REQUEST, served.Fault.CONTEXT_LENGTH, served.Fault.TOO_LARGE}
"""What is said of a text."""

BELIEVED = REFUSALS | {served.Fault.NAN, served.Fault.ZERO}
"""What is a text's own fault if it happens twice: in company and alone."""

HARMLESS = {served.Fault.SWAPPED, served.Fault.EMPTY_USAGE}
"""Every answer may be like that."""

MOST_AT_WORK = REQUESTS_AT_ONCE * MODELS_SERVED
"""Requests of one worker: a place is taken until what came of its request is stored."""

SPARED = 3
"""Requests before the first that a fault befalls, so that something is there to be kept."""

POISON = "Thing 7."
POISONED = 7


@pytest.fixture(scope="module")
def api() -> Iterator[ServerInThread]:
    with running(Behaviour(dimensions=SERVED)) as server:
        yield server


@pytest.fixture(scope="module")
def database(server: LocalServer, _shop_template: None) -> str:
    """One for all tests here that work in this process."""
    server.create_database("embedding_api", template=SHOP_TEMPLATE)
    url = server.url("embedding_api")
    with connect(url) as connection:
        create_products(connection, products(PRODUCTS))
    return url


@pytest.fixture
def shop(
    database: str, api: ServerInThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """Twelve products of which nothing is ingested, and an API that is well."""
    _heal(api)
    api.reset()
    monkeypatch.setattr(patience, "LONGEST_RATE_LIMIT_SECONDS", 2.0)
    monkeypatch.setattr(checked_connections, "LARGEST_ANSWER_BYTES", 2**20)
    settings = ApiShop(database, tmp_path, api).settings(
        embedding="timeout_seconds = 0.3", other="[work]\nretry_seconds = 1\n"
    )
    with opened(settings) as shop:
        shop.connection.execute(
            "TRUNCATE product_embeddings_v2, ingestion.embedding_ledger, "
            "ingestion.failed_products, ingestion.spend, ingestion.rate_limits"
        )
        shop.embeddings.plan_ranges(settings.ranges.products_per_range)
        yield shop


def _heal(server: Server) -> None:
    server.behave(
        fault=None,
        fault_probability=1.0,
        fault_times=None,
        fault_after=0,
        fault_text=None,
        retry_after=0.2,
        drip_seconds=0.1,
        huge_body_bytes=2**22,
    )


def _works(shop: Shop) -> bool:
    """Run once; whether it came to its end without leaving anything."""
    try:
        return not any(end.left for end in reingest_shop(shop))
    except OutageError:
        return False


def _failed(shop: Shop) -> set[object]:
    return {failed.product_id for failed in shop.embeddings.failed_products()}


def _finished(shop: Shop, server: Server, fault: Fault, *, is_over: bool = False) -> None:
    """The API is well, and the same command makes everything right; what was paid is on record."""
    kept = _ledger(shop)
    assert found(shop, server.settle()).wrong == 0
    strikes = sum(server.counters.faults.values())
    _heal(server)
    shop.embeddings.retry_failed()
    began = time.monotonic()
    if not is_over:
        assert _works(shop)
    seconds = time.monotonic() - began
    assert _failed(shop) == set()
    assert kept <= _ledger(shop)
    counters = server.settle()
    assert ledger_spend(shop) == (counters.requests, counters.tokens_billed)
    fault.recovered(
        found(shop, counters),
        caused=strikes,
        seconds=seconds,
        # What was not believed, or not heard, is asked for once more.
        allowed_paid_twice=strikes * TEXTS_PER_REQUEST,
    )


def _ledger(shop: Shop) -> set[tuple[object, ...]]:
    query = (
        "SELECT product_id, aspect, text_digest, written_at FROM ingestion.embedding_ledger "
        "WHERE outcome = 'embedded'"
    )
    return set(shop.connection.execute(query).fetchall())


def _marked(kind: served.Fault) -> object:
    marks = pytest.mark.fault(f"an embedding API: {kind.explanation}")
    return pytest.param(kind, marks=marks, id=kind.value)


@pytest.mark.parametrize("kind", [_marked(kind) for kind in KINDS])
def test_a_fault_that_comes_once_is_got_over_or_stops_and_blames_nobody(
    kind: served.Fault, shop: Shop, api: ServerInThread, fault: Fault
) -> None:
    api.behave(fault=kind, fault_times=1, fault_after=SPARED)
    if kind in STOPS:
        with pytest.raises(EmbeddingServiceError) as stopped:
            reingest_shop(shop)
        assert exit_code(stopped.value) == ExitCode.OUTAGE
    else:
        assert _works(shop)
    assert api.counters.faults == {kind: 1}
    assert _failed(shop) == set()
    assert ledger_spend(shop)[0] >= SPARED
    _finished(shop, api, fault, is_over=kind not in STOPS)


BURSTS = _few(
    served.Fault.RATE_LIMIT,
    served.Fault.CONTEXT_LENGTH,
    served.Fault.SHORT,
    served.Fault.CUT_IN_BODY,
)


@pytest.mark.parametrize("kind", [_marked(kind) for kind in BURSTS if kind not in STOPS])
@pytest.mark.parametrize("strikes", [2, 3, 6] if thorough() else [2])
def test_a_burst_of_faults_is_got_over_or_stops_and_blames_nobody_for_one_alone(
    kind: served.Fault, strikes: int, shop: Shop, api: ServerInThread, fault: Fault
) -> None:
    api.behave(fault=kind, fault_times=strikes, fault_after=SPARED)
    is_over = _works(shop)
    assert len(_failed(shop)) <= (strikes // 2 if kind in BELIEVED else 0)
    _finished(shop, api, fault, is_over=is_over and not _failed(shop))


ENDLESS = _few(
    served.Fault.RATE_LIMIT,
    served.Fault.INSUFFICIENT_QUOTA,
    served.Fault.BAD_REQUEST,
    served.Fault.SERVER_ERROR,
    served.Fault.SHORT,
    served.Fault.SWAPPED,
    served.Fault.NAN,
    served.Fault.TIMEOUT,
    served.Fault.CUT,
)


@pytest.mark.parametrize("kind", [_marked(kind) for kind in ENDLESS])
def test_a_fault_that_never_ends_stops_the_run_keeps_everything_and_blames_nobody(
    kind: served.Fault, shop: Shop, api: ServerInThread, fault: Fault
) -> None:
    api.behave(fault=kind, fault_after=SPARED)
    assert _works(shop) is (kind in HARMLESS)
    assert _failed(shop) == set()
    if kind in STOPS:
        assert api.counters.faults[kind] <= MOST_AT_WORK
    assert _ledger(shop)
    _finished(shop, api, fault, is_over=kind in HARMLESS)


FOR_ONE_TEXT = _few(
    *sorted(REFUSALS),
    served.Fault.SERVER_ERROR,
    served.Fault.SHORT,
    served.Fault.ZERO,
    served.Fault.OTHER_MODEL,
)


@pytest.mark.parametrize("kind", [_marked(kind) for kind in FOR_ONE_TEXT])
def test_a_fault_of_one_text_is_that_products_or_an_outage_and_nobody_elses(
    kind: served.Fault, shop: Shop, api: ServerInThread, fault: Fault
) -> None:
    api.behave(fault=kind, fault_text=POISON)
    is_over = _works(shop)
    assert _failed(shop) <= {POISONED}
    if is_over and kind not in HARMLESS:
        [(vectors,)] = shop.connection.execute(
            "SELECT count(*) FROM product_embeddings_v2 WHERE description_embedding IS NOT NULL "
            'AND usage_embedding IS NOT NULL AND feature_embedding IS NOT NULL AND "productId" <> 7'
        ).fetchall()
        assert vectors == PRODUCTS - 1
    _finished(shop, api, fault)


@pytest.mark.fault("an embedding API: all of these by turns")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_faults_of_all_kinds_by_turns_are_got_over_in_the_end(
    seed: int, shop: Shop, api: ServerInThread, fault: Fault
) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same each time
    for _ in range(50):
        api.behave(fault=chance.choice(KINDS), fault_probability=0.5)
        is_over = _works(shop)
        # Half of all answers are bad: a text may have bad luck each time, and is on record then.
        shop.embeddings.retry_failed()
        assert found(shop, api.settle()).wrong == 0
        if is_over:
            break
    _finished(shop, api, fault)


# Killed workers


def _fill(url: str, count: int) -> None:
    with connect(url) as connection:
        create_products(connection, products(count))


@pytest.fixture
def api_process() -> Iterator[Server]:
    """A server that takes no time from the workers, and outlives them."""
    with running_process(Behaviour(dimensions=SERVED)) as server:
        _heal(server)
        yield server


@pytest.mark.fault("kill -9 of a worker with requests in flight at an API")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(times(1, 10)))
def test_workers_killed_at_random_moments_pay_twice_for_what_was_in_flight_at_the_most(
    seed: int, api_process: Server, database_url: str, tmp_path: Path, fault: Fault
) -> None:
    kills = times(3, 10)
    moments = random.Random(seed)  # noqa: S311 - the same each time
    _fill(database_url, 20 * kills)
    api_process.behave(latency=0.1, parallelism=REQUESTS_AT_ONCE)
    shop = ApiShop(database_url, tmp_path, api_process)
    settings = shop.settings()
    caused = in_flight = paid_in_vain = 0
    with opened(settings) as opened_shop:
        for _ in range(kills):
            before = api_process.settle()
            spent_before = ledger_spend(opened_shop)
            with shop.working() as process:
                shop.wait_until_begun(process)
                while api_process.counters.requests == before.requests and process.poll() is None:
                    time.sleep(0.01)
                try:
                    process.wait(moments.uniform(0.0, 0.6))
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    assert process.wait() == -signal.SIGKILL
            caused += 1
            after = api_process.settle()
            spent = ledger_spend(opened_shop)
            lost = (after.requests - before.requests) - (spent[0] - spent_before[0])
            assert 0 <= lost <= MOST_AT_WORK
            in_flight += lost
            paid_in_vain += (after.tokens_billed - before.tokens_billed) - (
                spent[1] - spent_before[1]
            )
            assert found(opened_shop, after).wrong == 0
        began = time.monotonic()
        [(code, said)] = shop.work()
        assert code == 0, said
        counters = api_process.settle()
        assert _failed(opened_shop) == set()
        requests, tokens = ledger_spend(opened_shop)
        assert requests == counters.requests - in_flight
        assert tokens == counters.tokens_billed - paid_in_vain
        audited = found(opened_shop, counters)
        fault.recovered(
            audited,
            caused=caused,
            seconds=time.monotonic() - began,
            allowed_paid_twice=caused * MOST_AT_WORK * TEXTS_PER_REQUEST,
        )


# The budget


@pytest.mark.fault("a budget of half of what is needed, with four workers")
def test_a_budget_stops_four_workers_and_the_same_command_finishes_once_it_is_raised(
    api_process: Server, database_url: str, tmp_path: Path, fault: Fault
) -> None:
    workers, at_once = 4, 2
    _fill(database_url, times(240, 3_000))
    api_process.behave(latency=0.05)
    shop = ApiShop(database_url, tmp_path, api_process)
    with opened(shop.settings(requests_at_once=at_once)) as opened_shop:
        needed = tokens_needed(opened_shop)
        budget = needed // 2
        shop.settings(requests_at_once=at_once, other=f"[budget]\ntokens = {budget}\n")
        ends = shop.work(workers)
        assert {code for code, _ in ends} == {ExitCode.OUTAGE}, ends
        assert all(f"budget.tokens = {budget:,}" in said for _, said in ends)
        stopped = api_process.settle()
        assert ledger_spend(opened_shop) == (stopped.requests, stopped.tokens_billed)
        a_request = TEXTS_PER_REQUEST * max(tokens_of(text) for text in stopped.texts)
        assert stopped.tokens_billed > budget - a_request
        at_work = at_once * MODELS_SERVED
        assert stopped.most_in_flight <= workers * at_work
        in_flight = workers * at_work * a_request
        assert stopped.tokens_billed <= budget + in_flight
        assert _failed(opened_shop) == set()

        shop.settings(requests_at_once=at_once, other=f"[budget]\ntokens = {needed + a_request}\n")
        began = time.monotonic()
        ends = (shop.work(workers) if thorough() else []) + shop.work()
        assert {code for code, _ in ends} <= {ExitCode.OK, ExitCode.INCOMPLETE}, ends
        assert ends[-1][0] == ExitCode.OK, ends
        counters = api_process.settle()
        assert counters.tokens_billed == needed
        assert ledger_spend(opened_shop) == (counters.requests, needed)
        fault.recovered(found(opened_shop, counters), seconds=time.monotonic() - began)


# The key

KEY = "canary-5f3a9c1e7b"


def _ingest(shop: ApiShop) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it."""
    return subprocess.run(
        [sys.executable, "-c", "from ingestion_pipeline.cli.app import main; main()"],
        cwd=REPOSITORY,
        env=shop.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def _spellings(secret: str) -> list[str]:
    encoded = secret.encode()
    return [secret, encoded.hex(), base64.b64encode(encoded).decode()[:-4], secret[::-1]]


def _rows_with(url: str, secret: str) -> list[str]:
    """The tables of a database in which a secret stands, in whatever column."""
    with connect(url) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert tables
        holding = []
        for schema, table in tables:
            query = sql.SQL("SELECT count(*) FROM {} AS it WHERE it::text LIKE ANY(%s)")
            [(count,)] = connection.execute(
                query.format(sql.Identifier(schema, table)),
                [[f"%{spelling}%" for spelling in _spellings(secret)]],
            ).fetchall()
            holding += [f"{schema}.{table}"] if count else []
        return holding


def _files_with(folder: Path, secret: str) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if file.is_file()
        and any(spelling.encode() in file.read_bytes() for spelling in _spellings(secret))
    ]


@pytest.mark.fault("an embedding API that repeats the key in its refusal, in a whole run")
@pytest.mark.parametrize(
    "kind", [served.Fault.ECHOED_KEY] if not thorough() else sorted(STOPS | {served.Fault.CUT})
)
def test_a_key_is_told_to_its_endpoint_and_to_nobody_else(
    kind: served.Fault,
    api: ServerInThread,
    database_url: str,
    dagster_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _fill(database_url, PRODUCTS)
    _heal(api)
    api.reset()
    shop = ApiShop(database_url, tmp_path, api)
    settings = shop.settings(
        embedding='api_key_variable = "OPENAI_API_KEY"\n', other="[work]\nretry_seconds = 1\n"
    )
    # Each model is probed, and five products go through, before the run itself.
    api.behave(key=KEY, fault=kind, fault_after=MODELS_SERVED + 5)
    try:
        refused = _ingest(shop)
        assert refused.returncode == ExitCode.OUTAGE, refused.stdout + refused.stderr
        with opened(settings) as opened_shop:
            assert _failed(opened_shop) == set()
            assert _ledger(opened_shop)
        strikes = sum(api.counters.faults.values())
        assert strikes >= 1
        if kind in STOPS:
            assert strikes <= MOST_AT_WORK
        api.behave(fault=None, fault_after=0)
        began = time.monotonic()
        with opened(settings) as opened_shop:
            assert _works(opened_shop)
        seconds = time.monotonic() - began
    finally:
        api.behave(key=None)
    counters = api.settle()
    assert set(counters.authorizations) == {digest_of_key(KEY)}
    said = refused.stdout + refused.stderr
    assert not any(spelling in said for spelling in _spellings(KEY))
    assert _rows_with(database_url, KEY) == []
    storage = os.environ["DAGSTER_PG_URL"].replace("postgresql+psycopg2", "postgresql")
    assert _rows_with(storage, KEY) == []
    assert _files_with(tmp_path, KEY) == []
    # That the search finds what is there: a text of the catalogue, the command's own event log.
    assert _rows_with(database_url, "Thing 3")
    assert _rows_with(storage, "product_embeddings_v2")
    assert dagster_home.is_relative_to(tmp_path)
    with opened(settings) as opened_shop:
        assert ledger_spend(opened_shop) == (counters.requests, counters.tokens_billed)
        fault.recovered(
            found(opened_shop, counters),
            caused=strikes,
            seconds=seconds,
            allowed_paid_twice=strikes * TEXTS_PER_REQUEST,
        )
