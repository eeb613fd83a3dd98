"""The post-ingestion checks of the whole table, as asset checks.

They stand on the asset that is v2 as a whole, after all ranges and with its indexes. On the asset
of the ranges every backfill run would carry them along, and a range that failed would turn all of
them red without one having looked; there stands `ranges_complete`, on the ranges of its run. What a
check looks at, and how grave it is, is in `verification`.
"""

from collections.abc import Iterator

import dagster as dg

from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.orchestration.embedding_assets import product_embeddings_v2_indexes
from ingestion_pipeline.orchestration.failures import unfinished_ranges
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.partitions import keys_in_order
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import told_to_dagster
from ingestion_pipeline.verification.checks import CHECKS, CheckResult, run_checks

RANGES_MATERIALIZED = "every_range_is_materialized"

_SAMPLE = 10

_SPECS = [
    *(
        dg.AssetCheckSpec(
            name,
            asset=product_embeddings_v2_indexes,
            description=check.description,
        )
        for name, check in CHECKS.items()
    ),
    dg.AssetCheckSpec(
        RANGES_MATERIALIZED,
        asset=product_embeddings_v2_indexes,
        description="No range failed and none was left out; names those that were.",
    ),
]

WHOLE_TABLE_CHECKS = [spec.key for spec in _SPECS]


@dg.multi_asset_check(name="product_embeddings_v2_checks", specs=_SPECS, can_subset=True)
def product_embeddings_v2_checks(
    context: dg.AssetCheckExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> Iterator[dg.AssetCheckResult]:
    """The checks on the whole of v2."""
    wanted = {key.name for key in context.selected_asset_check_keys}
    with told_to_dagster(context):
        results = _table_results(shop, [name for name in CHECKS if name in wanted])
    for result in results:
        recorder.check(result)
        yield _recorded(result)
    if RANGES_MATERIALIZED in wanted:
        result = ranges_materialized(context.instance)
        recorder.check(result)
        yield _recorded(result)


def _table_results(shop: ShopAccess, names: list[str]) -> list[CheckResult]:
    """What the checks say; all of them "unknown" where the shop cannot be opened."""
    try:
        with shop.open() as opened:
            return run_checks(opened, names)
    except IngestionError as error:
        return [CheckResult(name, "unknown", str(error), 0, (), {}) for name in names]


def ranges_materialized(instance: dg.DagsterInstance) -> CheckResult:
    """Whether Dagster holds every range for done: an exact count, and the first of those not."""
    keys = keys_in_order(instance)
    unfinished = unfinished_ranges(instance, keys)
    if not keys:
        summary = "No ranges are planned yet. `ingest` plans them."
        return CheckResult(RANGES_MATERIALIZED, "unknown", summary, 0, (), {"ranges": 0})
    failed = sum(state == "failed" for state in unfinished.values())
    summary = (
        f"{failed:,} of {len(keys):,} ranges failed and {len(unfinished) - failed:,} are missing. "
        "`ingest retry` works on just these."
        if unfinished
        else f"All {len(keys):,} ranges are materialized."
    )
    return CheckResult(
        RANGES_MATERIALIZED,
        "fail" if unfinished else "pass",
        summary,
        len(unfinished),
        tuple(f"{key} ({state})" for key, state in list(unfinished.items())[:_SAMPLE]),
        {"ranges": len(keys), "failed": failed, "missing": len(unfinished) - failed},
    )


def _recorded(result: CheckResult) -> dg.AssetCheckResult:
    """The result as Dagster keeps it: what was not looked at did not pass, and warns."""
    return dg.AssetCheckResult(
        asset_key=product_embeddings_v2_indexes.key,
        check_name=result.name,
        passed=result.status == "pass",
        severity=(
            dg.AssetCheckSeverity.ERROR if result.status == "fail" else dg.AssetCheckSeverity.WARN
        ),
        description=result.summary,
        metadata={
            "status": result.status,
            "count": result.count,
            "sample": "; ".join(result.sample) or "none",
            "facts": dg.MetadataValue.json(dict(result.facts)),
        },
    )
