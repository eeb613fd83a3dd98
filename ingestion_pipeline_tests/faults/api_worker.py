"""A process that re-ingests a shop with the models of its settings: the work loop alone.

`python -m ingestion_pipeline_tests.faults.api_worker NUMBER FILE`: each number begins with another
range; the file is made when the work begins. Ends with the exit code of `ingest`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from ingestion_pipeline.cli.exit_codes import ExitCode, exit_code
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.orchestration.models import ConfiguredModels
from ingestion_pipeline.reingestion import Pace, RangeEnd, reingest_ranges
from ingestion_pipeline.settings import load_settings
from ingestion_pipeline.work import RunIdentity

BEGUN = "begun"


def reingest_shop(
    shop: Shop, first: int = 0, say: Callable[[str], None] = lambda _: None
) -> list[RangeEnd]:
    """Every range of a shop through the work loop, as a run of Dagster's does it."""
    run, work = str(uuid4()), shop.settings.work
    keys = {range_: key for key, range_ in shop.embeddings.ranges()}
    ranges = list(keys)
    first %= len(ranges)
    models = ConfiguredModels().of(shop.settings, say)
    try:
        return list(
            reingest_ranges(
                ranges[first:] + ranges[:first],
                catalogue=shop.catalogue,
                store=shop.embeddings,
                models=models,
                owner=lambda range_: RunIdentity(run, run, keys[range_]),
                pace=Pace(
                    products_per_page=work.products_per_page,
                    tokens_per_batch=work.tokens_per_batch,
                    lease_seconds=work.lease_seconds,
                    retry_seconds=work.retry_seconds,
                    max_failed_products=work.max_failed_products,
                    ranges_at_once=work.ranges_at_once,
                ),
                say=say,
            )
        )
    finally:
        for model in models.values():
            model.close()


def _main(number: int, begun: Path) -> int:
    try:
        with open_shop(load_settings()) as shop:
            shop.prepare()
            shop.embeddings.plan_ranges(shop.settings.ranges.products_per_range)
            begun.touch()
            ends = reingest_shop(shop, number * 3)
    except IngestionError as error:
        sys.stderr.write(f"{error}\n")
        return exit_code(error)
    return ExitCode.INCOMPLETE if any(end.left for end in ends) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), Path(sys.argv[2])))
