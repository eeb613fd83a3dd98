"""The catalogue, its ranges, `product_embeddings_v2` and its indexes, as assets.

Each range is recorded as materialized when it is committed, not when the run ends, so that a run
that dies leaves only what it had not done. What happens inside a range is `reingestion`.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import dagster as dg

from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import LeaseLostError, RangeFailedError
from ingestion_pipeline.orchestration import partitions
from ingestion_pipeline.orchestration.failures import V2
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.models import Models
from ingestion_pipeline.orchestration.range_work import work_on
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import told_to_dagster
from ingestion_pipeline.patience import Patience
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.ranges import ProductId, ProductIdRange, key_of, range_of
from ingestion_pipeline.reingestion import MAX_PASSES, RangeEnd
from ingestion_pipeline.tally import RangeResult, RangeStep

OWNERS = ["team:search"]

RANGES_COMPLETE = dg.AssetCheckKey(V2, "ranges_complete")

EMBEDDING_POOL = "embedding"
"""Runs that hold the models in memory; how many at once is a limit in dagster.yaml."""

FAILED_RANGES = "failed ranges"
"""Under this name a failure of the asset says which ranges failed, and why."""

HELD_RANGES = "held ranges"
"""Under this name it says which ranges are left to other runs."""

_SECONDS_BETWEEN_LOG_LINES = 5.0
_SAMPLE = 10

products = dg.AssetSpec(
    "products",
    group_name="shop",
    kinds={"postgres"},
    owners=OWNERS,
    description="The shop's catalogue. This project only reads it.",
)

product_embeddings = dg.AssetSpec(
    "product_embeddings",
    group_name="shop",
    kinds={"postgres"},
    owners=OWNERS,
    description="v1, today's table: one vector a product. Only counted, to compare with v2.",
)


@dg.asset(
    deps=["canary"],
    group_name="planning",
    kinds={"postgres"},
    owners=OWNERS,
)
def product_id_ranges(
    context: dg.AssetExecutionContext, shop: dg.ResourceParam[ShopAccess]
) -> dg.MaterializeResult[None]:
    """The catalogue cut into half-open ranges of product ids, one Dagster partition each.

    The table `ingestion.product_id_ranges` is the truth. Ranges that have grown to more than twice
    their size are cut; the vectors of products that are gone are removed.
    """
    with told_to_dagster(context), shop.open() as opened:
        patience = Patience(opened.settings.work.retry_seconds, context.log.info)
        patience(opened.prepare)
        size = opened.settings.ranges.products_per_range
        plan = patience(lambda: opened.embeddings.plan_ranges(size))
        orphans = patience(opened.embeddings.delete_orphans)
    keys = [key for key, _ in plan.ranges]
    partitions.sync(context.instance, keys)
    return dg.MaterializeResult(
        # The same plan again leaves the ranges' vectors as current as they were.
        data_version=dg.DataVersion(sha256(" ".join(keys).encode()).hexdigest()[:16]),
        metadata={
            "ranges": len(keys),
            "added": len(plan.added),
            "removed": len(plan.removed),
            "vectors of gone products removed": orphans,
        },
    )


@dataclass
class _Meter:
    """Adds up the steps of a run, and says every few seconds how far it is."""

    total: int
    context: dg.AssetExecutionContext
    recorder: Recorder
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)
    done: float = 0.0
    failed: int = 0
    embedded: int = 0
    reused: int = 0

    def step(self, step: RangeStep) -> None:
        self.done += step.products
        self.failed += step.failed_products
        self.embedded += step.embedded
        self.reused += step.reused
        now = time.monotonic()
        progress = Progress(
            done=self.done,
            total=max(self.total, round(self.done)),
            failed=self.failed,
            seconds=now - self.started,
            embedded=self.embedded,
            reused=self.reused,
        )
        self.recorder.progress(progress)
        if (
            now - self.last_line >= _SECONDS_BETWEEN_LOG_LINES
            or progress.products_done >= self.total
        ):
            self.last_line = now
            self.context.log.info(str(progress))


_COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("productId", "the type of products.id", "Key; refers to products.id."),
        dg.TableColumn("description_embedding", "vector", "The product's description."),
        dg.TableColumn("usage_embedding", "vector", "What, how and for whom it is used."),
        dg.TableColumn("feature_embedding", "vector", "Materials, measures and other features."),
    ]
)

_LEFT = dg.TableSchema(
    [
        dg.TableColumn("range", "string"),
        dg.TableColumn("stale products", "int"),
        dg.TableColumn("reason", "string"),
    ]
)

with warnings.catch_warnings():
    # The backfill policy is called beta; what we rely on was measured, and a test holds it.
    warnings.simplefilter("ignore", dg.BetaWarning)

    @dg.asset(
        partitions_def=partitions.RANGES,
        backfill_policy=dg.BackfillPolicy.multi_run(partitions.RANGES_PER_RUN),
        deps=[product_id_ranges],
        group_name="embedding",
        kinds={"postgres", "huggingface"},
        owners=OWNERS,
        pool=EMBEDDING_POOL,
        # Nothing is returned: each range's materialization is logged as it commits.
        output_required=False,
        check_specs=[
            dg.AssetCheckSpec(
                RANGES_COMPLETE.name,
                asset=V2,
                description="Every product of the run's ranges is up to date; names those not.",
            )
        ],
        metadata={
            "dagster/table_name": "product_embeddings_v2",
            "dagster/column_schema": _COLUMNS,
        },
    )
    def product_embeddings_v2(
        context: dg.AssetExecutionContext,
        shop: dg.ResourceParam[ShopAccess],
        models: dg.ResourceParam[Models],
        recorder: dg.ResourceParam[Recorder],
    ) -> Iterator[dg.AssetCheckResult]:
        """Three vectors a product: description, usage and feature, one partition for each range of
        product ids.

        Only stale aspects are embedded, and a text once for one model; vector, ledger and spend are
        committed together. Running again carries on.
        """
        with told_to_dagster(context), shop.open() as opened:
            opened.prepare()
            left = _reingest_ranges(context, opened, models, recorder)
            unfinished = _stale_products(opened, context.partition_keys)
        yield _ranges_complete(left, unfinished)
        if left:
            raise _failure(left, len(context.partition_keys))


@dataclass
class _Left:
    """Why which ranges of a run are not done: they failed, or another run holds them."""

    failed: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.failed or self.held)

    @property
    def reasons(self) -> dict[str, str]:
        return self.failed | self.held


def _reingest_ranges(
    context: dg.AssetExecutionContext, shop: Shop, models: Models, recorder: Recorder
) -> _Left:
    """Work on the run's ranges, and once more on those that others hold."""
    keys = context.partition_keys
    meter = _Meter(sum(_stale_products(shop, keys).values()), context, recorder)

    def say(text: str) -> None:
        _say(text, context, recorder)

    loaded = models.of(shop.settings, say)
    meter.started = time.monotonic()
    left = _Left()

    def go_through(chosen: Sequence[str]) -> None:
        for end in work_on(
            [range_of(key, shop.id_type) for key in chosen],
            shop=shop,
            models=loaded,
            run=context.run,
            report=meter.step,
            say=say,
        ):
            key = key_of(end.range_, shop.id_type)
            is_first = not left.held
            left.held.pop(key, None)
            match end:
                case RangeEnd(left=LeaseLostError() as held):
                    if is_first:  # one line of these is enough for a terminal
                        recorder.line(str(held))
                    context.log.info(str(held))
                    left.held[key] = str(held)
                case RangeEnd(left=RangeFailedError() as error):
                    left.failed[key] = str(error)
                    context.log.error("%s: %s", key, error)
                    recorder.line(f"Range {key} failed: {error}")
                case RangeEnd(result=result):
                    if result.outdated:
                        say(_changes_by_itself(key, result.outdated))
                    context.log_event(
                        dg.AssetMaterialization(
                            asset_key=V2, partition=key, metadata=_range_metadata(result)
                        )
                    )

    go_through(keys)
    # Who held them may have finished them since: then there is next to nothing to do.
    go_through(list(left.held))
    return left


def _ranges_complete(left: _Left, stale: Mapping[str, int]) -> dg.AssetCheckResult:
    """The check on a run's ranges: a sentence, and a row for each range with something left."""
    reasons = left.reasons
    unfinished = [key for key, products in stale.items() if products or key in reasons]
    rows = [
        dg.TableRecord({"range": key, "stale products": stale[key], "reason": reasons.get(key, "")})
        for key in unfinished
    ]
    description = (
        f"{len(unfinished)} of {len(stale)} ranges have something left: "
        f"{', '.join(unfinished[:_SAMPLE])}."
        if unfinished
        else f"Every product of {len(stale)} ranges is up to date."
    )
    return dg.AssetCheckResult(
        check_name=RANGES_COMPLETE.name,
        passed=not unfinished,
        description=description,
        metadata={
            "ranges": len(stale),
            "ranges with something left": dg.MetadataValue.table(rows, schema=_LEFT),
        },
    )


def _changes_by_itself(key: str, aspects: int) -> str:
    return (
        f"Range {key}: {aspects:,} aspect texts had changed each of {MAX_PASSES} times that they "
        "were embedded, and are left. If nobody edits these products just now, the mapping gives "
        "other texts each time: take random(), now() and the like out of it."
    )


def _say(text: str, context: dg.AssetExecutionContext, recorder: Recorder) -> None:
    context.log.info(text)
    recorder.line(text)


def _stale_products(shop: Shop, keys: Sequence[str]) -> dict[str, int]:
    """Products with something stale in each range; asks once for all that follow each other."""
    neighbours: list[list[tuple[str, ProductIdRange]]] = []
    end: ProductId | None = None
    for key in keys:
        range_ = range_of(key, shop.id_type)
        if end is None or range_.first != end:
            neighbours.append([])
        neighbours[-1].append((key, range_))
        end = range_.end
    return {
        progress.key: progress.stale_products
        for ranges in neighbours
        for progress in shop.catalogue.range_progress(ranges, shop.settings.fingerprints)
    }


def _range_metadata(result: RangeResult) -> Mapping[str, float | int]:
    metadata: dict[str, float | int] = {
        "products": result.products,
        "embedded": result.embedded,
        "reused": result.reused,
        "empty": result.empty,
        "failed": result.failed,
        "truncated": result.truncated,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
    }
    if result.embedded and result.model_seconds:
        metadata["texts/s"] = round(result.embedded / result.model_seconds, 2)
    if result.outdated:
        metadata["changed meanwhile"] = result.outdated
    return metadata


def _failure(left: _Left, ranges: int) -> dg.Failure:
    reasons = left.reasons
    sample = " ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:_SAMPLE])
    said = [
        *([f"{len(left.failed)} of {ranges} ranges failed"] if left.failed else []),
        *([f"{len(left.held)} of {ranges} ranges are left to other runs"] if left.held else []),
    ]
    return dg.Failure(
        description=(
            f"{' and '.join(said)}; the others are done. {sample} "
            "Run `ingest retry`, or a backfill of the failed partitions."
        ),
        metadata={
            FAILED_RANGES: dg.MetadataValue.json(dict(left.failed)),
            HELD_RANGES: dg.MetadataValue.json(dict(left.held)),
        },
        allow_retries=False,
    )


@dg.asset(
    deps=[product_embeddings_v2],
    group_name="embedding",
    kinds={"postgres"},
    owners=OWNERS,
)
def product_embeddings_v2_indexes(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    """An HNSW index on cosine distance for each of the three vectors.

    Built after the ranges, since loading rows under an index is a hundred times slower; kept up by
    PostgreSQL from then on. What is left of products that went during the run is removed before.
    """

    def say(text: str) -> None:
        _say(text, context, recorder)

    started = time.monotonic()
    with told_to_dagster(context), shop.open() as opened:
        patience = Patience(opened.settings.work.retry_seconds, say)
        patience(opened.prepare)
        orphans = patience(opened.embeddings.delete_orphans)
        created = patience(lambda: opened.embeddings.create_vector_indexes(say))
        indexes = opened.embeddings.vector_indexes()
    return dg.MaterializeResult(
        metadata={
            "created": len(created),
            "vectors of gone products removed": orphans,
            "seconds": round(time.monotonic() - started, 3),
            "bytes": sum(index.bytes for index in indexes),
            "indexes": dg.MetadataValue.table(
                [dg.TableRecord({"index": index.name, "bytes": index.bytes}) for index in indexes],
                schema=dg.TableSchema(
                    [dg.TableColumn("index", "string"), dg.TableColumn("bytes", "int")]
                ),
            ),
        }
    )
