"""The five checks before a run, as assets with a blocking check each.

The first four look at different things and stand side by side, so that all of them speak even if
one says no. The canary, which writes, comes after all four. What a verdict means is decided in
`preflight`; here facts are gathered and verdicts recorded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
import psutil
from pydantic import Field

from ingestion_pipeline import preflight
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import database_facts, disk_facts
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.errors import DatabaseUnavailableError, IngestionError, redacted
from ingestion_pipeline.orchestration.embedding_assets import (
    OWNERS,
    product_embeddings,
    products,
)
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.range_work import reingest_range
from ingestion_pipeline.orchestration.resources import Models, ShopAccess
from ingestion_pipeline.preflight import CanaryFacts, EmbeddingFacts, ModelFacts
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.verdict import Verdict, failed_to_look
from ingestion_pipeline.verification.checks import found_by_own_vector

CANARY_PRODUCTS = 5

VERDICT = "verdict"
"""The name of the check on each of the five."""

_GROUP = "preflight"
_FIRST = {"dagster/priority": "1"}


class CanaryConfig(dg.Config):
    """How much of the catalogue goes ahead of the rest."""

    products: int = Field(
        default=CANARY_PRODUCTS,
        ge=1,
        description="The first so many products go through the whole path. 5 is safe: seconds.",
    )


def _blocking(asset: str) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            VERDICT,
            asset=asset,
            blocking=True,
            description="Every reason why a run may not begin. A failure stops what comes after.",
        )
    ]


def _recorded(
    name: str,
    look: Callable[[], Verdict],
    context: dg.AssetExecutionContext,
    recorder: Recorder,
) -> dg.MaterializeResult[None]:
    """Look, and record the verdict: facts on the asset, reasons on its check.

    A check that cannot look says so, and blocks; only then does the whole preflight speak.
    """
    try:
        verdict = look()
    except IngestionError as error:
        verdict = failed_to_look(name, str(error))
    except Exception as error:  # noqa: BLE001 - a crash must not read as anything but a "no"
        context.log.exception(f"{name} crashed")
        verdict = failed_to_look(name, redacted(f"{type(error).__name__}: {error}"))
    recorder.verdict(verdict)
    for line in verdict.lines():
        context.log.info(line)
    result = dg.AssetCheckResult(
        check_name=VERDICT,
        passed=verdict.passed,
        severity=(
            dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN
        ),
        description="\n".join(str(reason) for reason in verdict.reasons) or verdict.summary,
        metadata={
            "status": verdict.status,
            "reasons": dg.MetadataValue.json([str(reason) for reason in verdict.reasons]),
        },
    )
    facts = {name: _metadata(value) for name, value in verdict.facts.items()}
    return dg.MaterializeResult(
        metadata={"summary": verdict.summary, **facts}, check_results=[result]
    )


def _metadata(value: object) -> dg.MetadataValue:
    match value:
        case bool():
            return dg.MetadataValue.bool(value)
        case int():
            return dg.MetadataValue.int(value)
        case float():
            return dg.MetadataValue.float(value)
        case str():
            return dg.MetadataValue.text(value)
        case None:
            return dg.MetadataValue.null()
        case _:
            return dg.MetadataValue.json(value)  # type: ignore[arg-type]


@contextmanager
def _prepared(shop: ShopAccess) -> Iterator[Shop]:
    """The shop, where `database_connection` has found it fit and prepared it."""
    with shop.open() as opened:
        if not opened.is_prepared():
            raise DatabaseUnavailableError(
                "its tables are not prepared, which database_connection does once it passes."
            )
        yield opened


@dg.asset(
    deps=[products, product_embeddings],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("database_connection"),
    op_tags=_FIRST,
    description=(
        "Is the server there and fit? Primary or replica, versions of PostgreSQL and pgvector, "
        "privileges, tables, columns and types, and the mapping of the shop's schema to aspect "
        "texts. Creates what is missing of v2 and the bookkeeping once it passes."
    ),
)
def database_connection(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    def look() -> Verdict:
        verdict = preflight.database_connection(database_facts(shop.settings), shop.settings)
        if not verdict.blocking:
            with shop.open() as opened:
                opened.prepare()
        return verdict

    return _recorded("database_connection", look, context, recorder)


@dg.asset(
    group_name=_GROUP,
    kinds={"huggingface"},
    owners=OWNERS,
    check_specs=_blocking("embedding_quota"),
    description=(
        "Is there something to embed with? For local models: files here and as pinned, and memory "
        "enough to run them."
    ),
)
def embedding_quota(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    models: dg.ResourceParam[Models],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    def look() -> Verdict:
        facts = EmbeddingFacts(
            models=_model_facts(shop.settings, models),
            free_memory_bytes=psutil.virtual_memory().available,
        )
        return preflight.embedding_quota(facts, shop.settings)

    return _recorded("embedding_quota", look, context, recorder)


@dg.asset(
    deps=[products],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("product_count"),
    description=(
        "How much is there to do? Products in all, done, stale by aspect and why, distinct texts "
        "still to embed, and texts that are empty."
    ),
)
def product_count(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    def look() -> Verdict:
        with _prepared(shop) as opened:
            return preflight.product_count(shop.counts(opened), opened.settings)

    return _recorded("product_count", look, context, recorder)


@dg.asset(
    deps=[products],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("disk_space"),
    description=(
        "Does it fit? Bytes that the rows, indexes and write-ahead log will take, against what is "
        "free where the server's data lies. What cannot be known is said to be unknown."
    ),
)
def disk_space(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    def look() -> Verdict:
        with _prepared(shop) as opened:
            facts = disk_facts(opened.connection, opened.settings)
            return preflight.disk_space(facts, shop.counts(opened), opened.settings)

    return _recorded("disk_space", look, context, recorder)


@dg.asset(
    deps=[database_connection, embedding_quota, product_count, disk_space],
    group_name=_GROUP,
    kinds={"postgres", "huggingface"},
    owners=OWNERS,
    check_specs=_blocking("canary"),
    description=(
        "The first products through the whole path, search included, and from their rate the time "
        "that the rest will take. Writes their vectors, so it runs only where all else passes."
    ),
)
def canary(
    context: dg.AssetExecutionContext,
    config: CanaryConfig,
    shop: dg.ResourceParam[ShopAccess],
    models: dg.ResourceParam[Models],
    recorder: dg.ResourceParam[Recorder],
) -> dg.MaterializeResult[None]:
    def look() -> Verdict:
        with shop.open() as opened:
            facts = _canary_facts(opened, models, context, recorder, config.products)
        return preflight.canary(facts)

    return _recorded("canary", look, context, recorder)


def _canary_facts(
    shop: Shop,
    models: Models,
    context: dg.AssetExecutionContext,
    recorder: Recorder,
    products: int,
) -> CanaryFacts:
    loaded = models.load(shop.settings, recorder.line)
    range_ = shop.catalogue.first_products(products)
    result = reingest_range(range_, shop=shop, models=loaded, run=context.run)
    return CanaryFacts(
        products=shop.catalogue.count(range_),
        embedded=result.embedded,
        reused=result.reused,
        empty=result.empty,
        failed=result.failed,
        seconds=result.seconds,
        found=found_by_own_vector(shop, range_),
        texts_left=shop.catalogue.texts_to_embed(shop.settings.fingerprints),
        rates=shop.embeddings.embedding_rates(),
    )


def _model_facts(settings: Settings, models: Models) -> tuple[ModelFacts, ...]:
    """One fact a model, with all the aspects that it serves."""
    by_fingerprint: dict[str, list[Aspect]] = {}
    for aspect in Aspect:
        by_fingerprint.setdefault(settings.fingerprint(aspect), []).append(aspect)
    facts = []
    for aspects in by_fingerprint.values():
        model = settings.aspects[aspects[0]]
        files = models.find(settings, aspects[0])
        facts.append(
            ModelFacts(
                model=model.model,
                aspects=tuple(aspects),
                source=files.source if files else None,
                pinned=files.pinned if files else False,
                bytes=files.bytes if files else 0,
                problems=tuple(weights.verify(files)) if files else (),
            )
        )
    return tuple(facts)
