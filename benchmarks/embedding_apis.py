"""How much of an endpoint's parallelism, and of a quota, is made use of; and whether it is kept to.

A server of its own process answers each request after 100 ms. Measured are: one worker without a
limit against the time that the server's parallelism allows; then a quota of requests, and one of
tokens, a minute, with one worker and with four: the share of the quota that was used after the
first minute, and the share of requests that were turned away (429).

    python -m benchmarks.embedding_apis [--case CASE] [--workers N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.orchestration.models import ConfiguredModels
from ingestion_pipeline.ranges import ProductIdRange, key_of
from ingestion_pipeline.reingestion import Pace, reingest_ranges
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour
from ingestion_pipeline_tests.embedding_server.counters import Counters
from ingestion_pipeline_tests.embedding_server.running import ServerInProcess, running_process

LATENCY = 0.1
TEXTS = 10_000
WORDS = 40
TEXTS_PER_REQUEST = 10
PARALLELISM = 8
REQUESTS_PER_MINUTE = 300
TOKENS_PER_MINUTE = 150_000
FIRST_MINUTE = 60

SETTINGS = """\
[embedding]
provider = "openai"
service = "openai"
base_url = "{base_url}"
api_key_variable = "EMBEDDING_API_KEY"
texts_per_request = {texts_per_request}

[ranges]
products_per_range = 250
"""


@dataclass(frozen=True)
class Measured:
    """One case. Seconds; shares between 0 and 1."""

    case: str
    workers: int
    texts: int
    requests: int
    turned_away: int
    seconds: float
    ideal_seconds: float
    share_used: float
    most_at_work: int


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["parallel", "requests", "tokens"])
    parser.add_argument("--workers", type=int, choices=[1, 4])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        _work(*chosen.work)
        return
    cases = [("parallel", 1), ("requests", 1), ("requests", 4), ("tokens", 1), ("tokens", 4)]
    measured = []
    for case, workers in cases:
        if chosen.case in (None, case) and chosen.workers in (None, workers):
            measured.append(_measure(case, workers))
            print(_row(measured[-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(it) for it in measured], indent=2))


def _row(it: Measured) -> str:
    return (
        f"| {it.case} | {it.workers} | {it.texts:,} | {it.requests:,} | {it.seconds:.1f} s "
        f"| {it.ideal_seconds / it.seconds:.0%} of the ideal | {it.share_used:.1%} "
        f"| {it.turned_away / it.requests:.2%} | {it.most_at_work} |"
    )


def _measure(case: str, workers: int) -> Measured:
    behaviour = Behaviour(latency=LATENCY)
    match case:
        case "parallel":
            behaviour.parallelism = PARALLELISM
        case "requests":
            behaviour.requests_per_minute = REQUESTS_PER_MINUTE
        case "tokens":
            behaviour.tokens_per_minute = TOKENS_PER_MINUTE
    with tempfile.TemporaryDirectory() as folder, running_process(behaviour) as server:
        place = Path(folder)
        settings_file = place / "ingestion.toml"
        settings_file.write_text(
            SETTINGS.format(base_url=server.base_url, texts_per_request=TEXTS_PER_REQUEST)
        )
        postgres = local_server.start(place / "postgres")
        try:
            postgres.create_database("shop")
            environ = {
                "DATABASE_URL": postgres.url("shop"),
                "INGESTION_SETTINGS": str(settings_file),
                "INGESTION_HOME": folder,
                "EMBEDDING_API_KEY": "benchmark",
                "OPENAI_API_KEY": "benchmark",
            }
            return _run(case, workers, server, load_settings(settings_file, environ), environ)
        finally:
            local_server.stop(place / "postgres")


def _run(
    case: str, workers: int, server: ServerInProcess, settings: Settings, environ: dict[str, str]
) -> Measured:
    products = TEXTS // len(Aspect) + 1
    _make_products(environ["DATABASE_URL"], products)
    with open_shop(settings) as shop:
        shop.prepare()
    server.reset()
    each = products // workers + 1
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.embedding_apis"),
                *("--work", str(number * each), str((number + 1) * each)),
            ],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(workers)
    ]
    told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"workers ended with {[process.returncode for process in running]}")
    counters = server.settle()
    requests, tokens = counters.requests - counters.rate_limited, counters.tokens_billed
    ideal = {
        "parallel": requests * LATENCY / PARALLELISM,
        "requests": requests / REQUESTS_PER_MINUTE * 60,
        "tokens": tokens / TOKENS_PER_MINUTE * 60,
    }
    return Measured(
        case,
        workers,
        texts=counters.texts_billed,
        requests=counters.requests,
        turned_away=counters.rate_limited,
        seconds=max(float(seconds) for seconds in told),
        ideal_seconds=ideal[case],
        share_used=_share_used(case, counters),
        most_at_work=counters.most_in_flight,
    )


def _share_used(case: str, counters: Counters) -> float:
    """Of the quota, after the first minute and until the last whole second of work."""
    last = len(counters.per_second) - 1
    later = counters.let_in(FIRST_MINUTE, last)
    minutes = (last - FIRST_MINUTE) / 60
    if minutes <= 0:
        return 0.0
    if case == "tokens":
        return later.tokens / TOKENS_PER_MINUTE / minutes
    return later.requests / REQUESTS_PER_MINUTE / minutes


def _make_products(url: str, products: int) -> None:
    """No two texts are equal; each has as many words as those of a real catalogue."""
    words = "string_agg(substr(md5({aspect} || id || ' ' || n), 1, 5), ' ')"
    columns = ", ".join(
        f"{words.format(aspect=repr(aspect))} AS {aspect}"
        for aspect in ("description", "usage", "features")
    )
    with connect(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(
            f"CREATE TABLE products AS SELECT id, 'Thing ' || id AS name, {columns} "  # noqa: S608 - constants of this file
            f"FROM generate_series(1, {products}) AS id, generate_series(1, {WORDS}) AS n "
            "GROUP BY id".encode()
        )
        connection.execute("ALTER TABLE products ADD PRIMARY KEY (id)")


def _work(first: int, end: int) -> None:
    """One worker: ranges of the ids from `first` to before `end`, and the seconds it took."""
    settings = load_settings()
    size = settings.ranges.products_per_range
    ranges = [ProductIdRange(it, min(it + size, end)) for it in range(first, end, size)]
    run = f"worker-{first}"
    work = settings.work
    with open_shop(settings) as shop:
        models = ConfiguredModels().of(settings, lambda _: None)
        began = time.monotonic()
        for ended in reingest_ranges(
            ranges,
            catalogue=shop.catalogue,
            store=shop.embeddings,
            models=models,
            owner=lambda range_: RunIdentity(run, run, key_of(range_, shop.id_type)),
            pace=Pace(
                work.products_per_page,
                work.tokens_per_batch,
                work.lease_seconds,
                work.retry_seconds,
                ranges_at_once=work.ranges_at_once,
            ),
            say=lambda text: print(text, file=sys.stderr),
        ):
            if ended.left is not None:
                raise ended.left
        print(time.monotonic() - began)


if __name__ == "__main__":
    main()
